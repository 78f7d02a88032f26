"""The samplers against diffusers, and against closed forms on Gaussian data."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from reference import ALPHA_BAR, DIFFUSERS_PREDICTION, SCHEDULER
from torch import Tensor
from toy import SHAPE, denoiser, network, predicting, relative

from samplers import Flow, ImageNoise, KeyedNoise, Level, Schedule, as_x_0, ddim, ddpm, dpmpp_2m
from samplers.predict import Denoise
from samplers.schedule import Noise

SD = {**SCHEDULER, "clip_sample": False}
SD_ALPHA_BAR = torch.from_numpy(ALPHA_BAR)
SCHEDULE = Schedule()
ZERO_SNR = Schedule(zero_terminal_snr=True, spacing="trailing")


def in_float64(noise: Noise) -> Noise:
    return lambda: noise().double()


def diffusers_trajectory(
    scheduler: object, n: int, seeds: list[int], alpha_bar: Tensor = SD_ALPHA_BAR, **settings: float
) -> list[Tensor]:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in generators])
    scheduler.alphas_cumprod = alpha_bar
    if not scheduler.config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = alpha_bar[0]
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
    noise = ImageNoise(seeds, SHAPE)
    ours = list(ddim(predicting(prediction), noise(), SCHEDULE.steps(n, spacing, final="first"), noise, eta))
    assert len(ours) == len(reference) == n
    assert max(relative(x_t, theirs) for (_, x_t, _), theirs in zip(ours, reference, strict=True)) < 1e-5


@pytest.mark.parametrize("final", ["first", "clean"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("n", [4, 20])
def test_ddim_at_zero_terminal_snr_equals_diffusers(n: int, eta: float, final: str) -> None:
    seeds = [3, 4]
    scheduler = DDIMScheduler(
        **SD,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=final == "clean",
        prediction_type="v_prediction",
    )
    assert scheduler.alphas_cumprod[-1] == 0
    reference = diffusers_trajectory(scheduler, n, seeds, ZERO_SNR.alpha_bar, eta=eta)
    noise = ImageNoise(seeds, SHAPE)
    ours = list(ddim(predicting("v"), noise(), ZERO_SNR.steps(n, final=final), noise, eta))
    assert max(relative(x_t, theirs) for (_, x_t, _), theirs in zip(ours, reference, strict=True)) < 1e-5


@pytest.mark.parametrize("n", [7, 30])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_trailing_steps_go_to_their_listed_neighbours(n: int, eta: float) -> None:
    """Where n does not divide T, diffusers steps to t - T // n; here the float64 formula over the listed pairs."""
    seeds = [5, 6]
    noise = ImageNoise(seeds, SHAPE)
    sampled = ddim(predicting("eps"), noise(), SCHEDULE.steps(n, "trailing"), noise, eta)
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
        assert (step.now.t, step.to.t) == (t, s) and relative(x_t, x) < 1e-5


@pytest.mark.parametrize("process", [SCHEDULE, Flow(2.0)])
def test_ddim_with_eta_1_is_euler_ancestral(process: Schedule | Flow) -> None:
    """By its own formulas, in y = x / signal, over levels between the timesteps (Karras et al. 2022's, or a flow's)."""
    steps = process.steps(12, "karras" if process is SCHEDULE else None)[1:]  # a flow begins without signal
    noise, draws = in_float64(ImageNoise([7], SHAPE)), in_float64(ImageNoise([7], SHAPE))
    y = draws() / steps[0].now.signal
    for step, x_t, _ in ddim(denoiser(optimal_x_0), noise(), steps, noise, eta=1.0):
        s, s_next = step.now.sigma, step.to.sigma
        up = min(s_next, math.sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
        down = math.sqrt(s_next**2 - up**2)
        x_0 = optimal_x_0(step.now.signal * y, step.now)
        y = y + (down - s) * (y - x_0) / s
        if s_next > 0:
            y = y + up * draws()
        assert relative(x_t, step.to.signal * y) < 1e-10


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
    noise = ImageNoise(seeds, SHAPE)
    ours = ddpm(predicting(prediction), noise(), SCHEDULE.steps(n, final="clean"), noise)
    for t, (_, x_t, _) in zip(scheduler.timesteps, ours, strict=True):
        # one call per image, since this scheduler draws a batch from a single generator
        parts = [
            scheduler.step(network(x, t)[b : b + 1], t, x[b : b + 1], generator=g) for b, g in enumerate(generators)
        ]
        x = torch.cat([part.prev_sample for part in parts])
        assert relative(x_t, x) < 1e-5


@pytest.mark.parametrize(
    ("process", "final"), [(SCHEDULE, "first"), (SCHEDULE, "clean"), (ZERO_SNR, "clean"), (Flow(), "clean")]
)
def test_ddpm_is_ddim_with_eta_1(process: Schedule | Flow, final: str) -> None:
    steps, noise = process.steps(9, final=final), in_float64(ImageNoise([1], SHAPE))
    ancestral = ddpm(denoiser(optimal_x_0), noise(), steps, noise)
    noise = in_float64(ImageNoise([1], SHAPE))
    implicit = ddim(denoiser(optimal_x_0), noise(), steps, noise, eta=1.0)
    assert max(relative(x, y) for (_, x, _), (_, y, _) in zip(ancestral, implicit, strict=True)) < 1e-12


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize(
    ("n", "spacing"), [(1, "leading"), (7, "leading"), (20, "leading"), (20, "trailing"), (50, "linspace")]
)
def test_dpmpp_2m_equals_diffusers(n: int, spacing: str, prediction: str) -> None:
    steps = SCHEDULE.steps(n, spacing, final="clean")
    scheduler = DPMSolverMultistepScheduler(**SCHEDULER, prediction_type=DIFFUSERS_PREDICTION[prediction])
    scheduler.alphas_cumprod = SD_ALPHA_BAR
    scheduler.set_timesteps(timesteps=[int(step.now.t) for step in steps])  # its own are those of n + 1 steps
    x = ImageNoise([1, 2], SHAPE)()
    for t, (_, x_t, _) in zip(scheduler.timesteps, dpmpp_2m(predicting(prediction), x, steps), strict=True):
        x = scheduler.step(network(x, t), t, x).prev_sample
        assert relative(x_t, x) < 1e-5


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("n", [6, 20])
def test_dpmpp_2m_between_timesteps_equals_diffusers(n: int, spacing: str) -> None:
    """The network is told no time here: diffusers rounds it."""
    settings = {f"use_{spacing}_sigmas": True, "timestep_spacing": "linspace", "final_sigmas_type": "zero"}
    scheduler = DPMSolverMultistepScheduler(**SCHEDULER, **settings)
    scheduler.alphas_cumprod = SD_ALPHA_BAR
    scheduler.set_timesteps(n)
    predict = as_x_0(lambda x_t, *_: network(x_t, 0), "eps")
    x = ImageNoise([1, 2], SHAPE)()
    ours = dpmpp_2m(denoiser(lambda x_t, level: predict(x_t, level, None)), x, SCHEDULE.steps(n, spacing))
    for t, (_, x_t, _) in zip(scheduler.timesteps, ours, strict=True):
        x = scheduler.step(network(x, 0), t, x).prev_sample
        assert relative(x_t, x) < 1e-5


def test_dpmpp_2m_is_of_second_order() -> None:
    """On Gaussian data, where the exact flow is known, twice the steps leave about a quarter of the error."""
    x_T = ImageNoise([1], SHAPE)().double()
    error = {}
    for n in (25, 50):
        steps = SCHEDULE.steps(n, "trailing")
        # before the last steps, which go down to noise levels that no grid of n resolves
        step, x_t, _ = list(dpmpp_2m(denoiser(optimal_x_0), x_T, steps))[n // 2]
        error[n] = relative(x_t, exact_flow(x_T, steps[0].now, step.to))
    assert 3 < error[25] / error[50] < 5


@pytest.mark.parametrize("process", [ZERO_SNR, Flow()])
def test_a_step_without_signal_is_ddim_s_and_enters_no_history(process: Schedule | Flow) -> None:
    steps, x_T = process.steps(6), ImageNoise([1], SHAPE)().double()
    second_order = [x_t for _, x_t, _ in dpmpp_2m(denoiser(optimal_x_0), x_T, steps)]
    first_order = [x_t for _, x_t, _ in ddim(denoiser(optimal_x_0), x_T, steps)]
    assert steps[0].now.signal == 0
    for i in (0, 1):
        assert relative(second_order[i], first_order[i]) < 1e-12
    assert relative(second_order[2], first_order[2]) > 1e-3
    later = [x_t for _, x_t, _ in dpmpp_2m(denoiser(optimal_x_0), second_order[0], steps[1:])]
    assert max(relative(x, y) for x, y in zip(second_order[1:], later, strict=True)) < 1e-12


# Gaussian data x_0 ~ N(m, c^2): the optimal x_0 is affine in x_t, and so is every sampling step.
MEAN, STD = 0.7, 0.3


def optimal_x_0(x_t: Tensor, level: Level) -> Tensor:
    a, b = level.signal, level.noise
    return MEAN + a * STD**2 / (a**2 * STD**2 + b**2) * (x_t - a * MEAN)


def exact_flow(x: Tensor, now: Level, to: Level) -> Tensor:
    """Where the probability-flow ODE takes x: a point keeps its distance to the mean in standard deviations."""
    spread = math.sqrt((to.signal**2 * STD**2 + to.noise**2) / (now.signal**2 * STD**2 + now.noise**2))
    return to.signal * MEAN + spread * (x - now.signal * MEAN)


def test_ddim_on_gaussian_data_is_affine_with_known_coefficients() -> None:
    x_T = ImageNoise([1], SHAPE)().double()
    slope, offset = 1.0, 0.0
    for step, x_t, _ in ddim(denoiser(optimal_x_0), x_T, SCHEDULE.steps(50)):
        a, b = ALPHA_BAR[int(step.now.t)], ALPHA_BAR[int(step.to.t)]
        variance = a * STD**2 + 1 - a  # of x_t
        # deviation from the mean shrinks by the ratio below (x_s - sqrt(b) m) / (x_t - sqrt(a) m)
        ratio = math.sqrt(a * b) * STD**2 / variance + math.sqrt((1 - a) * (1 - b)) / variance
        offset = math.sqrt(b) * MEAN + ratio * (offset - math.sqrt(a) * MEAN)
        slope *= ratio
        assert relative(x_t, slope * x_T + offset) < 1e-10


def test_ddpm_on_gaussian_data_gives_the_data() -> None:
    noise = ImageNoise(range(64), (4, 16, 16))
    steps = SCHEDULE.steps(1000, final="clean")
    *_, (_, x_t, _) = ddpm(denoiser(optimal_x_0), noise(), steps, noise)
    n = x_t.numel()
    # exact mean and variance of the discrete chain, by the same recursion in numbers
    mean, variance = 0.0, 1.0
    for t in reversed(range(1000)):
        a, b = ALPHA_BAR[t], ALPHA_BAR[t - 1] if t else 1.0
        total = a * STD**2 + 1 - a
        # x_0 estimate = MEAN + k (x_t - sqrt(a) MEAN)
        k = math.sqrt(a) * STD**2 / total
        c_0, c_t = math.sqrt(b) * (1 - a / b) / (1 - a), math.sqrt(a / b) * (1 - b) / (1 - a)
        mean = c_0 * (MEAN + k * (mean - math.sqrt(a) * MEAN)) + c_t * mean
        variance = (c_0 * k + c_t) ** 2 * variance + (1 - b) / (1 - a) * (1 - a / b)
    assert abs(mean - MEAN) < 1e-2 and abs(variance - STD**2) < 1e-2  # the chain itself ends near the data
    assert abs(x_t.mean().item() - mean) < 3 * math.sqrt(variance / n)
    assert abs(x_t.var().item() - variance) < 3 * variance * math.sqrt(2 / n)


# Data of two Gaussians on the line, as a rectified flow sees them: its exact velocity is known.
WEIGHTS, MEANS, SPREADS = torch.tensor([[0.3, 0.7], [-2.0, 1.0], [0.4, 0.2]], dtype=torch.float64)


def velocity(x_t: Tensor, t: float, condition: object = None, edits: object = ()) -> Tensor:
    """E[eps - x_0 given x_t], by Bayes over the two Gaussians; what a flow model of these data predicts."""
    a, b = 1 - t / 1000, t / 1000
    variance = a**2 * SPREADS**2 + b**2  # of x_t under each
    off = x_t[..., None] - a * MEANS
    share = (WEIGHTS.log() - variance.log() / 2 - off**2 / (2 * variance)).softmax(-1)
    x_0 = MEANS + a * SPREADS**2 / variance * off
    eps = b / variance * off
    return (share * (eps - x_0)).sum(-1)


def flow_denoiser() -> Denoise:
    predict = as_x_0(velocity, "flow")
    return denoiser(lambda x_t, level: predict(x_t, level, None))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ddim_on_a_flow_is_euler_s_method(shift: float) -> None:
    x_T = ImageNoise([3], (512,))().double()
    x, s = x_T, 1.0
    for i, (_, x_t, x_0) in enumerate(ddim(flow_denoiser(), x_T, Flow(shift).steps(25))):
        before, even = s, 1 - (i + 1) / 25
        s = shift * even / (1 + (shift - 1) * even)
        u = velocity(x, 1000 * before)
        torch.testing.assert_close(x_0, x - before * u, rtol=1e-11, atol=1e-11)
        x = x + (s - before) * u
        torch.testing.assert_close(x_t, x, rtol=1e-11, atol=1e-11)
    assert s == 0


def test_ddim_on_a_flow_equals_diffusers() -> None:
    steps = Flow(3.0).steps(20)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[step.now.noise for step in steps])
    x = ImageNoise([1, 2], SHAPE)()
    for t, (_, x_t, _) in zip(scheduler.timesteps, ddim(predicting("flow"), x, steps), strict=True):
        x = scheduler.step(network(x, t), t, x).prev_sample
        assert relative(x_t, x) < 1e-5


def test_a_flow_ends_in_its_data() -> None:
    """On the line the exact flow keeps order, so the k-th of N quantiles of noise ends at that of the data."""
    N = 2001
    share = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    *_, (_, x, _) = ddim(flow_denoiser(), torch.special.ndtri(share)[None], Flow().steps(400))
    reached = (WEIGHTS * torch.special.ndtr((x[0, :, None] - MEANS) / SPREADS)).sum(-1)
    assert (reached - share).abs().max() < 0.01
    left = x[0] < -0.5
    assert abs(left.double().mean() - WEIGHTS[0]) < 0.003
    for part, mean, spread in ((x[0][left], MEANS[0], SPREADS[0]), (x[0][~left], MEANS[1], SPREADS[1])):
        assert abs(part.mean() - mean) < 0.02 and abs(part.std() / spread - 1) < 0.05


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    alone, among = ImageNoise([7], SHAPE), ImageNoise([1, 7, 2**32 - 1], SHAPE)
    for _ in range(3):
        assert torch.equal(alone()[0], among()[1])
    generator = torch.Generator("cpu").manual_seed(7)
    noise = ImageNoise([7], SHAPE)
    for _ in range(3):
        assert torch.equal(torch.randn((1, *SHAPE), generator=generator), noise())


def test_noise_of_a_key_is_pure() -> None:
    """The same bits whatever the batch and whatever was drawn before; other bits for another key, seed, or as x_T."""
    among, x_T = KeyedNoise([1, 7]), ImageNoise([1, 7], SHAPE)()
    first, second = among("cads 3", SHAPE), among("cads 4", SHAPE)
    assert torch.equal(among("cads 3", SHAPE), first)
    assert torch.equal(KeyedNoise([7])("cads 3", SHAPE)[0], first[1])
    for a, b in [(first, second), (first[:1], first[1:]), (first, x_T), (first, KeyedNoise([2, 8])("cads 3", SHAPE))]:
        assert (a * b).mean().abs() < 0.2  # independent: the mean of 256 or more products
    drawn = KeyedNoise(range(100))("x", SHAPE)
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 1) < 0.03
    assert among("cads 3", (5,)).shape == (2, 5)


def test_nothing_is_drawn_where_no_noise_is_added() -> None:
    def never() -> Tensor:
        raise AssertionError("drawn")

    x_T = ImageNoise([0], SHAPE)()
    for sampler in (ddim, dpmpp_2m):
        assert len(list(sampler(predicting("eps"), x_T, SCHEDULE.steps(3), never))) == 3
    draws = ImageNoise([0], SHAPE)
    count = 0

    def counted() -> Tensor:
        nonlocal count
        count += 1
        return draws()

    list(ddpm(predicting("eps"), x_T, SCHEDULE.steps(5, final="clean"), counted))
    assert count == 4  # the last step ends without noise
    list(ddim(predicting("eps"), x_T, SCHEDULE.steps(5, "karras"), counted, eta=0.5))
    assert count == 8


def test_a_sampler_that_draws_asks_for_noise() -> None:
    x_T = ImageNoise([0], SHAPE)()
    with pytest.raises(ValueError, match="ddpm draws noise"):
        next(ddpm(predicting("eps"), x_T, SCHEDULE.steps(5)))
    with pytest.raises(ValueError, match=r"eta=0\.5 draws noise"):
        next(ddim(predicting("eps"), x_T, SCHEDULE.steps(5), eta=0.5))


@pytest.mark.parametrize("sampler", [ddim, ddpm, dpmpp_2m])
def test_the_last_of_the_steps_go_on_from_where_the_first_left(sampler: Callable[..., object]) -> None:
    """As image-to-image starts: with the levels of the whole run, and i and n of it."""
    noise = ImageNoise([4], SHAPE)
    whole = list(sampler(predicting("eps"), noise(), SCHEDULE.steps(5), noise))
    generator = ImageNoise([4], SHAPE)
    steps = SCHEDULE.steps(5, start=0.2)
    for _ in range(5):  # x_T, and what four steps drew
        generator()
    (_, x_t, _) = list(sampler(predicting("eps"), whole[3][1], steps, generator))[-1]
    assert (steps[0].i, steps[0].n) == (4, 5)
    assert torch.equal(x_t, whole[4][1])
