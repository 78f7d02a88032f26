"""Each sampler against diffusers' scheduler of the same method, on the scheduler's own levels and from its start."""

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from reference import DIFFUSERS_PREDICTION
from reference import SCHEDULER as SD
from torch import Tensor
from toy import SHAPE, network, predicting, relative, steps_of

from samplers import ImageNoise, Schedule, dpmpp_2m, dpmpp_2m_sde, euler, euler_ancestral, heun, lms, plms, unipc

KARRAS = {"use_karras_sigmas": True}
LEVELS = [{"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}, KARRAS, {"use_exponential_sigmas": True}]
SEEDS = [3, 4294967295]


class Tape:
    """The noise that was drawn, so that a scheduler can be handed the same."""

    def __init__(self) -> None:
        self.source, self.drawn = ImageNoise(SEEDS, SHAPE), list[Tensor]()

    def __call__(self) -> Tensor:
        self.drawn.append(self.source())
        return self.drawn[-1]


def reference(scheduler: object, y: Tensor, prediction: str = "eps", **settings: object) -> Iterator[Tensor]:
    """What a scheduler in y = x_t / signal_t comes to after each call; the network sees x_t."""
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(y, t), t)
        y = scheduler.step(out, t, y, **settings).prev_sample
        yield y


def generators() -> list[torch.Generator]:
    """Each image's own stream, x_T drawn."""
    made = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    for generator in made:
        torch.randn(SHAPE, generator=generator)
    return made


def in_y(sampled: Iterator) -> Iterator[Tensor]:
    for step, x_t, _ in sampled:
        yield x_t / step.to.signal


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert max(relative(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-5


def ready(kind: type, n: int, **settings: object) -> object:
    scheduler = kind(**SD, **settings)
    scheduler.set_timesteps(n)
    return scheduler


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("n", [1, 6, 20])
def test_euler_equals_diffusers(n: int, levels: dict, prediction: str) -> None:
    scheduler = ready(EulerDiscreteScheduler, n, prediction_type=DIFFUSERS_PREDICTION[prediction], **levels)
    steps, x_T = steps_of(scheduler.sigmas, scheduler.timesteps), Tape()()
    ours = list(in_y(euler(predicting(prediction), x_T, steps)))
    assert_equal(ours, list(reference(scheduler, x_T / steps[0].now.signal)))


@pytest.mark.parametrize("s_churn", [2.0, 40.0])
@pytest.mark.parametrize("levels", [{}, KARRAS])
def test_churn_equals_diffusers(levels: dict, s_churn: float) -> None:
    scheduler = ready(EulerDiscreteScheduler, 12, **levels)
    steps, noise = steps_of(scheduler.sigmas, scheduler.timesteps), Tape()
    x_T = noise()
    ours = list(in_y(euler(predicting("eps"), x_T, steps, noise, s_churn)))
    theirs = reference(scheduler, x_T / steps[0].now.signal, s_churn=s_churn, generator=generators())
    assert_equal(ours, list(theirs))
    assert len(noise.drawn) == 13


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
@pytest.mark.parametrize("n", [1, 6, 20])
def test_euler_ancestral_equals_diffusers(n: int, spacing: str, prediction: str) -> None:
    settings = {"timestep_spacing": spacing, "prediction_type": DIFFUSERS_PREDICTION[prediction]}
    scheduler = ready(EulerAncestralDiscreteScheduler, n, **settings)
    steps, noise = steps_of(scheduler.sigmas, scheduler.timesteps), Tape()
    x_T = noise()
    ours = list(in_y(euler_ancestral(predicting(prediction), x_T, steps, noise)))
    assert_equal(ours, list(reference(scheduler, x_T / steps[0].now.signal, generator=generators())))
    assert len(noise.drawn) == n  # x_T, and none in the last step


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("n", [1, 6, 20])
def test_heun_equals_diffusers(n: int, levels: dict, prediction: str) -> None:
    scheduler = ready(HeunDiscreteScheduler, n, prediction_type=DIFFUSERS_PREDICTION[prediction], **levels)
    # all levels but the first and the last are listed twice
    sigmas, timesteps = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]), scheduler.timesteps[::2]
    if n == 1:
        timesteps = scheduler.timesteps[:1]
    steps, x_T, denoise = steps_of(sigmas, timesteps), Tape()(), predicting(prediction)
    asked = []

    def counted(x_t: Tensor, step: object) -> object:
        asked.append((step.i, step.stage, step.now))
        return denoise(x_t, step)

    ours = list(in_y(heun(counted, x_T, steps)))
    theirs = list(reference(scheduler, x_T / steps[0].now.signal))
    assert_equal(ours, [*theirs[1:-1:2], theirs[-1]])
    first, second = [(i, 0, steps[i].now) for i in range(n)], [(i, 1, steps[i].to) for i in range(n - 1)]
    assert asked == sorted(first + second, key=lambda entry: entry[:2]) and len(asked) == 2 * n - 1


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("levels", LEVELS[1:3])
@pytest.mark.parametrize(("n", "order"), [(1, 4), (12, 4), (12, 3), (12, 2), (12, 1)])
def test_lms_equals_diffusers(n: int, order: int, levels: dict, prediction: str) -> None:
    scheduler = ready(LMSDiscreteScheduler, n, prediction_type=DIFFUSERS_PREDICTION[prediction], **levels)
    steps, x_T = steps_of(scheduler.sigmas, scheduler.timesteps), Tape()()
    ours = list(in_y(lms(predicting(prediction), x_T, steps, order=order)))
    assert_equal(ours, list(reference(scheduler, x_T / steps[0].now.signal, order=order)))


@pytest.mark.parametrize("n", [1, 2, 5, 20, 50])
def test_plms_equals_diffusers(n: int) -> None:
    """With the default levels of Stable Diffusion's own; it extrapolates what a v-network predicts, and we its eps."""
    settings = {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    scheduler = PNDMScheduler(**SD, **settings)
    schedule = Schedule()
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = schedule.alpha_bar, schedule.alpha_bar[0]
    scheduler.set_timesteps(n)
    x_T, asked = Tape()(), []

    def denoise(x_t: Tensor, step: object) -> object:
        asked.append(step.now.t)
        return predicting("eps")(x_t, step)

    ours = [x_t for _, x_t, _ in plms(denoise, x_T, schedule.steps(n, "leading", final="first"))]
    theirs, x = [], x_T
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
        theirs.append(x)
    assert_equal(ours, theirs[1:] if n > 1 else theirs)
    assert asked == scheduler.timesteps.tolist()


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("n", [1, 6, 20])
@pytest.mark.parametrize(
    ("ours", "kind", "settings"),
    [
        (dpmpp_2m, DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        (dpmpp_2m_sde, DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        (unipc, UniPCMultistepScheduler, {}),
    ],
)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_solvers_equal_diffusers(
    ours: Callable, kind: type, settings: dict, n: int, levels: dict, prediction: str
) -> None:
    scheduler = ready(kind, n, prediction_type=DIFFUSERS_PREDICTION[prediction], **settings, **levels)
    steps, noise = steps_of(scheduler.sigmas, scheduler.timesteps), Tape()
    x_T = noise()
    found = [x_t for _, x_t, _ in ours(predicting(prediction), x_T, steps, noise)]
    x, theirs = x_T, []
    for i, t in enumerate(scheduler.timesteps):
        drawn = noise.drawn[i + 1] if i + 1 < len(noise.drawn) else torch.zeros_like(x)
        given = {"variance_noise": drawn} if "sde" in settings.get("algorithm_type", "") else {}
        x = scheduler.step(network(x, t), t, x, **given).prev_sample
        theirs.append(x)
    assert_equal(found, theirs)
    assert len(noise.drawn) == (n if ours is dpmpp_2m_sde else 1)
