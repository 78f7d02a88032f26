"""The schedules and samplers against diffusers, and against closed forms on Gaussian data."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from samplers import ImageNoise, Schedule, add_noise, as_eps, ddim, ddpm, dpmpp_2m

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
DIFFUSERS_PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SHAPE = (4, 8, 8)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def network(x_t: Tensor, t: int | Tensor, text: Tensor | None = None, edits: object = ()) -> Tensor:
    """A stand-in for the U-Net: smooth, bounded, and dependent on position, timestep and every channel."""
    t = torch.as_tensor(t).float()
    return torch.tanh(x_t.roll(1, 1) * 0.7 + x_t.roll(1, 3) * 0.5 + torch.sin(t / 100) * 0.3)


@pytest.mark.parametrize(
    "kind, theirs", [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_schedules_equal_diffusers(kind: str, theirs: str) -> None:
    ours = Schedule(kind=kind).alpha_bar
    reference = DDIMScheduler(**{**SD, "beta_schedule": theirs}).alphas_cumprod
    torch.testing.assert_close(ours.float(), reference, rtol=2e-5, atol=1e-9)
    assert ours.dtype == torch.float64


@pytest.mark.parametrize("n", [1, 7, 20, 30, 50, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_equal_diffusers(n: int, spacing: str) -> None:
    scheduler = DDIMScheduler(**SD, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(n)
    steps = Schedule().steps(n, spacing)
    if spacing == "linspace" and n == 1:
        assert [step.t for step in steps] == [0]  # as numpy.linspace gives one point
    assert [step.t for step in steps] == scheduler.timesteps.tolist()
    assert [step.s for step in steps] == [*(step.t for step in steps[1:]), None]
    assert [step.i for step in steps] == list(range(n)) and {step.n for step in steps} == {n}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_all_timesteps_can_be_sampled(spacing: str) -> None:
    assert [step.t for step in Schedule().steps(1000, spacing)] == list(range(999, -1, -1))


def test_wrong_settings_are_named() -> None:
    for call, said in [
        (lambda: Schedule().steps(0), "0 sampling steps"),
        (lambda: Schedule().steps(1001), "1001 sampling steps"),
        (lambda: Schedule().steps(10, "even"), "spacing 'even'"),
        (lambda: Schedule(kind="quadratic"), "schedule kind 'quadratic'"),
        (lambda: as_eps(network, "score", Schedule().alpha_bar), "prediction 'score'"),
    ]:
        with pytest.raises(ValueError, match=said):
            call()


ALPHA_BAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def diffusers_trajectory(scheduler: object, n: int, seeds: list[int], **settings: float) -> list[Tensor]:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in generators])
    # its own are in float32, where 1 - alpha_bar at the last timestep is off by 3e-5
    scheduler.alphas_cumprod = torch.from_numpy(ALPHA_BAR)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(n)
    trajectory = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, generator=generators, **settings).prev_sample
        trajectory.append(x)
    return trajectory


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    "n, spacing", [(7, "leading"), (20, "leading"), (50, "leading"), (20, "trailing"), (50, "trailing")]
)
def test_ddim_equals_diffusers(n: int, spacing: str, eta: float, prediction: str) -> None:
    seeds = [3, 4294967295]
    scheduler = DDIMScheduler(
        **SD,
        timestep_spacing=spacing,
        steps_offset=1,
        set_alpha_to_one=False,
        prediction_type=DIFFUSERS_PREDICTION[prediction],
    )
    reference = diffusers_trajectory(scheduler, n, seeds, eta=eta)
    schedule = Schedule()
    predict = as_eps(network, prediction, schedule.alpha_bar)
    noise = ImageNoise(seeds, SHAPE)
    ours = list(
        ddim(
            lambda x, step: predict(x, step.t, None, ()),
            noise(),
            schedule.steps(n, spacing),
            schedule.alpha_bar,
            eta=eta,
            noise=noise,
        )
    )
    assert len(ours) == len(reference) == n
    assert max(relative(x_t, theirs) for (_, x_t, _), theirs in zip(ours, reference, strict=True)) < 1e-5


@pytest.mark.parametrize("n", [7, 30])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_trailing_steps_go_to_their_listed_neighbours(n: int, eta: float) -> None:
    """Where n does not divide T, diffusers steps to t - T // n; here the float64 formula over the listed pairs."""
    schedule, seeds = Schedule(), [5, 6]
    noise = ImageNoise(seeds, SHAPE)
    sampled = ddim(
        lambda x, step: network(x, step.t), noise(), schedule.steps(n, "trailing"), schedule.alpha_bar, eta, noise
    )
    draws = ImageNoise(seeds, SHAPE)
    x = draws().double()
    listed = [round(1000 - i * 1000 / n) - 1 for i in range(n)]
    for (step, x_t, _), t, s in zip(sampled, listed, [*listed[1:], 0], strict=True):
        a, b = ALPHA_BAR[t], ALPHA_BAR[s]
        sigma = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        eps = network(x.float(), t).double()
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - b - sigma**2) * eps
        if sigma > 0:
            x = x + sigma * draws().double()
        assert step.t == t and relative(x_t, x) < 1e-5


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("n", [7, 20, 50])
def test_ddpm_equals_diffusers(n: int, prediction: str) -> None:
    seeds = [0, 11]
    scheduler = DDPMScheduler(
        **SD, variance_type="fixed_small", steps_offset=1, timestep_spacing="leading",
        prediction_type=DIFFUSERS_PREDICTION[prediction],
    )  # fmt: skip
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in generators])
    scheduler.set_timesteps(n)
    schedule, noise = Schedule(), ImageNoise(seeds, SHAPE)
    predict = as_eps(network, prediction, schedule.alpha_bar)
    ours = ddpm(lambda x, step: predict(x, step.t, None, ()), noise(), schedule.steps(n), schedule.alpha_bar, noise)
    for t, (_, x_t, _) in zip(scheduler.timesteps, ours, strict=True):
        # one call per image, since this scheduler draws a batch from a single generator
        parts = [
            scheduler.step(network(x, t)[b : b + 1], t, x[b : b + 1], generator=g) for b, g in enumerate(generators)
        ]
        x = torch.cat([part.prev_sample for part in parts])
        assert relative(x_t, x) < 1e-5


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize(
    ("n", "spacing"), [(1, "leading"), (7, "leading"), (20, "leading"), (20, "trailing"), (50, "linspace")]
)
def test_dpmpp_2m_equals_diffusers(n: int, spacing: str, prediction: str) -> None:
    schedule = Schedule()
    steps = schedule.steps(n, spacing)
    settings = {key: value for key, value in SD.items() if key != "clip_sample"}
    scheduler = DPMSolverMultistepScheduler(**settings, prediction_type=DIFFUSERS_PREDICTION[prediction])
    scheduler.alphas_cumprod = torch.from_numpy(ALPHA_BAR)
    scheduler.set_timesteps(timesteps=[step.t for step in steps])  # its own are those of n + 1 steps
    predict = as_eps(network, prediction, schedule.alpha_bar)
    x = ImageNoise([1, 2], SHAPE)()
    ours = dpmpp_2m(lambda x, step: predict(x, step.t, None, ()), x, steps, schedule.alpha_bar)
    for t, (_, x_t, _) in zip(scheduler.timesteps, ours, strict=True):
        x = scheduler.step(network(x, t), t, x).prev_sample
        assert relative(x_t, x) < 1e-5


def test_dpmpp_2m_is_of_second_order() -> None:
    """On Gaussian data, where the exact flow is known, twice the steps leave about a quarter of the error."""
    schedule = Schedule()
    x_T = ImageNoise([1], SHAPE)().double()
    error = {}
    for n in (25, 50):
        steps = schedule.steps(n, "trailing")
        sampled = dpmpp_2m(lambda x, step: optimal_eps(x, schedule.alpha_bar[step.t]), x_T, steps, schedule.alpha_bar)
        # before the last steps, which go down to noise levels that no grid of n resolves
        step, x_t, _ = list(sampled)[n // 2]
        a, b = schedule.alpha_bar[steps[0].t], schedule.alpha_bar[step.s]
        spread = ((b * STD**2 + 1 - b) / (a * STD**2 + 1 - a)).sqrt()
        exact = b.sqrt() * MEAN + spread * (x_T - a.sqrt() * MEAN)
        error[n] = relative(x_t, exact)
    assert 3 < error[25] / error[50] < 5


# Gaussian data x_0 ~ N(m, c^2): the optimal eps at t is affine in x_t, and so is every sampling step.
MEAN, STD = 0.7, 0.3


def optimal_eps(x_t: Tensor, a_t: Tensor) -> Tensor:
    return (1 - a_t).sqrt() * (x_t - a_t.sqrt() * MEAN) / (a_t * STD**2 + 1 - a_t)


def test_ddim_on_gaussian_data_is_affine_with_known_coefficients() -> None:
    schedule = Schedule()
    x_T = ImageNoise([1], SHAPE)().double()
    sampled = ddim(
        lambda x, step: optimal_eps(x, schedule.alpha_bar[step.t]), x_T, schedule.steps(50), schedule.alpha_bar
    )
    slope, offset = 1.0, 0.0
    for step, x_t, _ in sampled:
        a = schedule.alpha_bar[step.t].item()
        b = schedule.alpha_bar[0 if step.s is None else step.s].item()
        variance = a * STD**2 + 1 - a  # of x_t
        # deviation from the mean shrinks by the ratio below (x_s - sqrt(b) m) / (x_t - sqrt(a) m)
        ratio = math.sqrt(a * b) * STD**2 / variance + math.sqrt((1 - a) * (1 - b)) / variance
        offset = math.sqrt(b) * MEAN + ratio * (offset - math.sqrt(a) * MEAN)
        slope *= ratio
        assert relative(x_t, slope * x_T + offset) < 1e-6


def test_ddpm_on_gaussian_data_gives_the_data() -> None:
    schedule = Schedule()
    noise = ImageNoise(range(64), (4, 16, 16))
    *_, (_, x_t, _) = ddpm(
        lambda x, step: optimal_eps(x, schedule.alpha_bar[step.t]),
        noise(),
        schedule.steps(1000),
        schedule.alpha_bar,
        noise,
    )
    n = x_t.numel()
    # exact mean and variance of the discrete chain, by the same recursion in numbers
    mean, variance = 0.0, 1.0
    for step in schedule.steps(1000):
        a = schedule.alpha_bar[step.t].item()
        b = 1.0 if step.s is None else schedule.alpha_bar[step.s].item()
        total = a * STD**2 + 1 - a
        # x_0 estimate = MEAN + k (x_t - sqrt(a) MEAN)
        k = math.sqrt(a) * STD**2 / total
        c_0, c_t = math.sqrt(b) * (1 - a / b) / (1 - a), math.sqrt(a / b) * (1 - b) / (1 - a)
        mean = c_0 * (MEAN + k * (mean - math.sqrt(a) * MEAN)) + c_t * mean
        variance = (c_0 * k + c_t) ** 2 * variance + (1 - b) / (1 - a) * (1 - a / b)
    assert abs(mean - MEAN) < 1e-2 and abs(variance - STD**2) < 1e-2  # the chain itself ends near the data
    assert abs(x_t.mean().item() - mean) < 3 * math.sqrt(variance / n)
    assert abs(x_t.var().item() - variance) < 3 * variance * math.sqrt(2 / n)


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    alone, among = ImageNoise([7], SHAPE), ImageNoise([1, 7, 2**32 - 1], SHAPE)
    for _ in range(3):
        assert torch.equal(alone()[0], among()[1])
    generator = torch.Generator("cpu").manual_seed(7)
    noise = ImageNoise([7], SHAPE)
    for _ in range(3):
        assert torch.equal(torch.randn((1, *SHAPE), generator=generator), noise())


def test_nothing_is_drawn_where_no_noise_is_added() -> None:
    schedule = Schedule()

    def never() -> Tensor:
        raise AssertionError("drawn")

    x_T = ImageNoise([0], SHAPE)()
    list(ddim(lambda x, step: network(x, step.t), x_T, schedule.steps(3), schedule.alpha_bar, noise=never))
    draws = ImageNoise([0], SHAPE)
    count = 0

    def counted() -> Tensor:
        nonlocal count
        count += 1
        return draws()

    list(ddpm(lambda x, step: network(x, step.t), x_T, schedule.steps(5), schedule.alpha_bar, counted))
    assert count == 4  # the last step ends at alpha_bar = 1


def test_add_noise_and_predictions_are_consistent() -> None:
    schedule = Schedule()
    x_0, eps = ImageNoise([0, 1], SHAPE)(), ImageNoise([2, 3], SHAPE)()
    t = 400
    a_t = schedule.alpha_bar[t]
    x_t = add_noise(x_0, eps, a_t)
    outputs = {"eps": eps, "x0": x_0, "v": a_t.sqrt() * eps - (1 - a_t).sqrt() * x_0}
    for prediction, out in outputs.items():
        predict = as_eps(lambda *_, out=out: out, prediction, schedule.alpha_bar)
        assert relative(predict(x_t, t, None, ()), eps) < 1e-5
    rows = add_noise(x_0, eps, schedule.alpha_bar[torch.tensor([400, 10])])
    assert torch.equal(rows[0], x_t[0]) and not torch.allclose(rows[1], x_t[1])
