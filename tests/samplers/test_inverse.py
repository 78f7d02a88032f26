"""DDIM undone: algebraically exact, against diffusers, and on the mixture of Gaussians."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMInverseScheduler
from reference import SCHEDULER as SD
from toy import SHAPE, network, predicting, relative

from experiments.studies.mixture import three
from samplers import Denoised, Flow, ImageNoise, Schedule, Step, ddim, ddim_inverse

PROCESSES = [Schedule(), Schedule(zero_terminal_snr=True, spacing="trailing"), Flow(3.0)]


def plus_plus(x_t: torch.Tensor, step: Step) -> Denoised:
    """CFG++ with lambda 0.6: a guided x_0, and the noise of the negative pass, here of x_0 / 2."""
    x_0, _ = predicting("v")(x_t, step)
    return Denoised(0.5 * x_0 + 0.6 * 0.5 * x_0, step.now.eps(x_t, 0.5 * x_0))


@pytest.mark.parametrize("denoise", [predicting("v"), plus_plus], ids=["one", "cfg_pp"])
@pytest.mark.parametrize("final", ["first", "clean"])
@pytest.mark.parametrize("process", PROCESSES, ids=["schedule", "zero_snr", "flow"])
def test_the_way_back_is_exact_where_the_noise_is_held(
    process: Schedule | Flow, final: str, denoise: Callable[..., Denoised]
) -> None:
    """DDIM's own two noises, step by step; only the last step, down to no noise at all, forgets its eps."""
    held = {}

    def recorded(x_t: torch.Tensor, step: Step) -> Denoised:
        x_0, eps = denoise(x_t, step)
        held[step.i] = x_0, step.now.eps(x_t, x_0), eps
        return Denoised(x_0, eps)

    def again(x_t: torch.Tensor, step: Step) -> Denoised:
        x_0, noise_of_x_0, eps = held[step.i]
        return Denoised(step.now.x_0(x_t, noise_of_x_0) if step.now.signal else x_0, eps)

    steps = process.steps(8, final="clean" if process == PROCESSES[2] else final)
    x_T = ImageNoise([1], SHAPE)().double()
    *_, (_, x, _) = ddim(recorded, x_T, steps)
    *_, (step, back, _) = ddim_inverse(again, x, steps)
    assert step == steps[0] and relative(back, x_T) < 1e-10


@pytest.mark.parametrize("n", [5, 20])
def test_equals_diffusers(n: int) -> None:
    """Its first step begins at alpha_bar_0, and each asks the network at the noisier end."""
    scheduler = DDIMInverseScheduler(**SD, set_alpha_to_one=False, steps_offset=1, clip_sample=False)
    schedule = Schedule()
    scheduler.alphas_cumprod, scheduler.initial_alpha_cumprod = schedule.alpha_bar, schedule.alpha_bar[0]
    scheduler.set_timesteps(n)
    steps = schedule.steps(n, "leading", final="first")
    assert scheduler.timesteps.tolist() == [int(step.now.t) for step in reversed(steps)]
    x = ImageNoise([1, 2], SHAPE)()
    for t, (_, x_t, _) in zip(scheduler.timesteps, ddim_inverse(predicting("eps"), x, steps), strict=True):
        x = scheduler.step(network(x, t), t, x).prev_sample
        assert relative(x_t, x) < 1e-5


@pytest.mark.parametrize("process", PROCESSES, ids=["schedule", "zero_snr", "flow"])
def test_more_steps_and_refinements_come_closer(process: Schedule | Flow) -> None:
    """On the mixture; to the last digits with enough refinements."""
    mixture = three()
    x_0 = mixture.sample(32, torch.Generator().manual_seed(0))

    def error(n: int, refinements: int) -> float:
        steps = process.steps(n)
        *_, (_, x_T, _) = ddim_inverse(mixture.denoise, x_0, steps, refinements)
        *_, (_, again, _) = ddim(mixture.denoise, x_T, steps)
        return relative(again, x_0)

    rough = error(25, 0)
    assert 0.03 < rough < 0.2
    assert error(100, 0) < rough / 2.5
    assert error(50, 3) < rough / 10
    assert error(50, 40) < 1e-8


def test_a_single_step_from_noise_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="use more steps"):
        next(ddim_inverse(predicting("v"), ImageNoise([1], SHAPE)(), Flow().steps(1)))
