"""What every sampler promises, whatever its method."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from toy import SHAPE, predicting, relative

import samplers
from samplers import Denoised, Flow, ImageNoise, Schedule, Step, ddim
from samplers.predict import Denoise
from samplers.schedule import Noise

SCHEDULE, ZERO_SNR = Schedule(), Schedule(zero_terminal_snr=True, spacing="trailing")
DETERMINISTIC = ("ddim", "dpmpp_2m", "euler", "heun", "lms", "plms", "unipc")
ALL = {name: getattr(samplers, name) for name in DETERMINISTIC}
ALL |= {name: getattr(samplers, name) for name in ("ddpm", "dpmpp_2m_sde", "euler_ancestral", "euler_maruyama")}
ALL |= {"ddim_1": partial(samplers.ddim, eta=1.0), "churn": partial(samplers.euler, s_churn=10.0)}
ALL |= {"langevin": partial(samplers.langevin, corrections=2)}
ALL |= {"predictor_corrector": partial(samplers.langevin, corrections=2, snr=0.16)}


def never() -> Tensor:
    raise AssertionError("drawn")


def noise_for(name: str, seeds: list[int]) -> Noise:
    return never if name in DETERMINISTIC else ImageNoise(seeds, SHAPE)


def after(name: str, noise: Noise, denoise: Denoise, x_T: Tensor, steps: list[Step]) -> list[Tensor]:
    return [x_t for _, x_t, _ in ALL[name](denoise, x_T, steps, noise)]


@pytest.mark.parametrize("name", ALL)
def test_a_seed_is_a_picture(name: str) -> None:
    """Each image's noise is its own, in a batch as alone."""
    steps, denoise = SCHEDULE.steps(6, final="clean"), predicting("eps")
    x_T = ImageNoise([1, 7, 5], SHAPE)()
    noise = noise_for(name, [1, 7, 5])
    among = after(name, noise, denoise, x_T, steps)
    alone = after(name, noise_for(name, [7]), denoise, x_T[1:2], steps)
    assert max(relative(a[1:2], b) for a, b in zip(among, alone, strict=True)) < 1e-6


@pytest.mark.parametrize("process", [SCHEDULE, ZERO_SNR, Flow(2.0)], ids=["schedule", "zero_snr", "flow"])
@pytest.mark.parametrize("name", ALL)
def test_one_step_and_few_work_on_every_process(name: str, process: Schedule | Flow) -> None:
    denoise, x_T = predicting("v"), ImageNoise([1], SHAPE)()
    for n in (1, 2, 3, 5):
        steps = process.steps(n, final="clean")
        if name == "plms" and process is not SCHEDULE:
            with pytest.raises(ValueError, match="plms takes neither a flow nor zero terminal SNR"):
                after(name, never, denoise, x_T, steps)
            continue
        found = after(name, noise_for(name, [1]), denoise, x_T, steps)
        assert len(found) == n and all(x_t.isfinite().all() for x_t in found)
    assert torch.equal(x_T, ImageNoise([1], SHAPE)())


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras", "exponential", "ays"])
@pytest.mark.parametrize("name", ALL)
def test_every_spacing_ends_at_the_last_x_0(name: str, spacing: str) -> None:
    noise = noise_for(name, [1])
    *_, (step, x_t, x_0) = ALL[name](
        predicting("eps"), ImageNoise([1], SHAPE)(), SCHEDULE.steps(5, spacing, final="clean"), noise
    )
    assert step.to.noise == 0 and x_t.isfinite().all()
    if name not in ("churn", "lms", "unipc", "plms"):  # these extrapolate, correct or leave noise in the last step too
        torch.testing.assert_close(x_t, x_0)


@pytest.mark.parametrize("name", ALL)
def test_samplers_go_on_from_x_0_and_eps_alone(name: str) -> None:
    """So that whatever moves x_t, or parts x_0 and eps, does so to all of them."""
    values = ImageNoise([1, 2], SHAPE)
    told: dict[tuple[int, int], Denoised] = {}

    def denoise(x_t: Tensor, step: Step) -> Denoised:
        key = step.i, step.stage
        if key not in told:
            told[key] = Denoised(values(), values())
        return told[key]

    steps = SCHEDULE.steps(5, final="clean")
    once = after(name, noise_for(name, [3, 4]), denoise, torch.zeros(2, *SHAPE), steps)
    again = after(name, noise_for(name, [3, 4]), denoise, torch.ones(2, *SHAPE), steps)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("process", [ZERO_SNR, Flow()], ids=["zero_snr", "flow"])
@pytest.mark.parametrize("name", sorted(ALL.keys() - {"plms"}))
def test_a_step_without_signal_is_ddim_s_and_enters_no_history(name: str, process: Schedule | Flow) -> None:
    steps, denoise, x_T = process.steps(6), predicting("v"), ImageNoise([1], SHAPE)()
    noise = noise_for(name, [1])
    sampled = ALL[name](denoise, x_T, steps, noise)
    _, x_1, x_0 = next(sampled)
    if name in DETERMINISTIC or name in ("churn", "euler_maruyama"):
        ((_, expected, _),) = ddim(denoise, x_T, steps[:1])
        assert relative(x_1, expected) < 1e-6
    elif name in ("ddpm", "ddim_1", "dpmpp_2m_sde", "euler_ancestral"):
        ((_, expected, _),) = ddim(denoise, x_T, steps[:1], ImageNoise([1], SHAPE), eta=1.0)
        assert relative(x_1, expected) < 1e-6
    if name in DETERMINISTIC:
        rest = [x_t for _, x_t, _ in sampled]
        afresh = after(name, noise, denoise, x_1, steps[1:])
        assert all(torch.equal(a, b) for a, b in zip(rest, afresh, strict=True))


@pytest.mark.parametrize("name", sorted(ALL.keys() - set(DETERMINISTIC)))
def test_what_draws_wants_noise(name: str) -> None:
    with pytest.raises(ValueError, match="noise=..."):
        next(ALL[name](predicting("eps"), ImageNoise([1], SHAPE)(), SCHEDULE.steps(5)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (partial(samplers.euler, s_churn=-1.0), "s_churn=-1.0: must be at least 0"),
        (partial(samplers.euler, s_churn=float("nan")), "s_churn=nan: must be at least 0"),
        (partial(samplers.lms, order=5), "order=5: must be 1, 2, 3 or 4"),
        (partial(samplers.lms, order=0), "order=0: must be 1, 2, 3 or 4"),
        (partial(samplers.langevin, corrections=0), "corrections=0, step_size=0.2, snr=None: must be above 0"),
        (partial(samplers.langevin, step_size=-1.0), "step_size=-1.0"),
        (partial(samplers.langevin, snr=0.0), "snr=0.0"),
    ],
)
def test_wrong_settings_are_refused(call: Callable[..., Iterator], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        next(call(predicting("eps"), ImageNoise([1], SHAPE)(), SCHEDULE.steps(5), ImageNoise([1], SHAPE)))


def test_plms_is_refused_on_the_end_of_a_flow_too() -> None:
    with pytest.raises(ValueError, match="plms takes neither a flow"):
        next(samplers.plms(predicting("v"), ImageNoise([1], SHAPE)(), Flow().steps(10, start=0.5)))
