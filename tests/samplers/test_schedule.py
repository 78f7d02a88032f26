"""Levels of noise and the steps through them, against diffusers, k-diffusion's formulas and numpy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from reference import ALPHA_BAR, SCHEDULER

from ldm.config import ScheduleConfig
from samplers import Flow, Level, Schedule, Step
from samplers.schedule import CLEAN

SIGMA = ((1 - ALPHA_BAR) / ALPHA_BAR) ** 0.5
ZERO_SNR = Schedule(zero_terminal_snr=True, spacing="trailing")


def levels(steps: list[Step]) -> list[Level]:
    return [*(step.now for step in steps), steps[-1].to]


def timesteps(steps: list[Step]) -> list[float]:
    return [step.now.t for step in steps]


@pytest.mark.parametrize(
    "kind, theirs", [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_schedules_equal_diffusers(kind: str, theirs: str) -> None:
    ours = Schedule(kind=kind).alpha_bar
    reference = DDIMScheduler(**{**SCHEDULER, "beta_schedule": theirs}).alphas_cumprod
    torch.testing.assert_close(ours.float(), reference, rtol=2e-5, atol=1e-9)
    assert ours.dtype == torch.float64


def test_zero_terminal_snr_equals_diffusers() -> None:
    rescaled = torch.cumprod(1 - rescale_zero_terminal_snr(Schedule().betas), dim=0)
    torch.testing.assert_close(ZERO_SNR.alpha_bar, rescaled, rtol=1e-12, atol=1e-15)
    last = ZERO_SNR.level(999)
    assert (last.signal, last.noise, last.sigma, last.log_snr) == (0, 1, math.inf, -math.inf)


def test_a_level_is_its_alpha_bar() -> None:
    for t in (0, 1, 500, 999):
        level = Schedule().level(t)
        assert level.t == t and {type(level.t), type(level.signal), type(level.noise)} == {float}
        assert math.isclose(level.signal**2, ALPHA_BAR[t], rel_tol=1e-12)
        assert math.isclose(level.noise**2, 1 - ALPHA_BAR[t], rel_tol=1e-12)
        assert math.isclose(level.sigma, SIGMA[t], rel_tol=1e-12)
        assert math.isclose(level.log_snr, math.log(ALPHA_BAR[t] / (1 - ALPHA_BAR[t])), rel_tol=1e-12)
    assert (CLEAN.sigma, CLEAN.log_snr) == (0, math.inf)
    x_t, eps = torch.randn(2, 5), torch.randn(2, 5)
    level = Schedule().level(700)
    x_0 = level.x_0(x_t, eps)
    torch.testing.assert_close(ALPHA_BAR[700] ** 0.5 * x_0 + (1 - ALPHA_BAR[700]) ** 0.5 * eps, x_t)
    torch.testing.assert_close(level.x_t(x_0, eps), x_t)
    torch.testing.assert_close(level.eps(x_t, x_0), eps)
    with pytest.raises(ValueError, match="at t=999 no signal is left"):
        ZERO_SNR.level(999).x_0(x_t, eps)


@pytest.mark.parametrize("n", [1, 7, 20, 30, 50, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_equal_diffusers(n: int, spacing: str) -> None:
    scheduler = DDIMScheduler(**SCHEDULER, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(n)
    steps = Schedule().steps(n, spacing)
    if spacing == "linspace" and n == 1:
        assert timesteps(steps) == [0]  # as numpy.linspace gives one point
    assert timesteps(steps) == scheduler.timesteps.tolist()
    assert [step.i for step in steps] == list(range(n)) and {step.n for step in steps} == {n}
    assert all(step.to is after.now for step, after in zip(steps, steps[1:], strict=False))
    assert all(step.stage == 0 for step in steps)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_all_timesteps_can_be_sampled(spacing: str) -> None:
    assert timesteps(Schedule().steps(1000, spacing)) == list(range(999, -1, -1))


def test_steps_end_at_the_first_level_or_clean() -> None:
    first = Schedule().level(0)
    assert Schedule().steps(20)[-1].to == first == Schedule().steps(20, final="first")[-1].to
    assert Schedule().steps(20, final="clean")[-1].to == CLEAN == Level(0.0, 1.0, 0.0)
    assert Schedule(final="clean").steps(20)[-1].to == CLEAN
    assert Schedule(final="clean").steps(20, final="first")[-1].to == first
    for spacing in ("karras", "exponential", "ays"):  # which come down to the first level by themselves
        assert Schedule().steps(20, spacing)[-1].to == CLEAN
    assert Flow().steps(20)[-1].to == CLEAN


@pytest.mark.parametrize("process, spacing", [(Schedule(), s) for s in ("leading", "karras", "ays")] + [(Flow(), None)])
def test_start_gives_the_last_of_the_same_steps(process: Schedule | Flow, spacing: str | None) -> None:
    whole = process.steps(10, spacing)
    for start, count in [(1.0, 10), (0.6, 6), (0.69, 6), (0.0, 0)]:
        assert process.steps(10, spacing, start=start) == whole[10 - count :]


@pytest.mark.parametrize("n", [5, 20, 50])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_noise_levels_equal_diffusers_and_k_diffusion(n: int, spacing: str) -> None:
    settings = {f"use_{spacing}_sigmas": True, "timestep_spacing": "linspace", "final_sigmas_type": "zero"}
    scheduler = DPMSolverMultistepScheduler(**SCHEDULER, **settings)
    scheduler.alphas_cumprod = torch.from_numpy(ALPHA_BAR)
    scheduler.set_timesteps(n)
    steps = Schedule().steps(n, spacing)
    ours = [level.sigma for level in levels(steps)]
    np.testing.assert_allclose(ours, scheduler.sigmas.double(), rtol=1e-6)
    np.testing.assert_allclose(timesteps(steps), scheduler.timesteps, atol=1)  # theirs are rounded or cut
    ramp, high, low = np.linspace(0, 1, n), SIGMA[-1], SIGMA[0]
    if spacing == "karras":
        expected = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    else:
        expected = np.exp(np.linspace(math.log(high), math.log(low), n))
    np.testing.assert_allclose(ours[:-1], expected, rtol=1e-12)


def test_align_your_steps() -> None:
    listed = AysSchedules["StableDiffusionTimesteps"]
    assert timesteps(Schedule().steps(10, "ays")) == listed
    for n in (4, 25):  # interpolated linearly in log sigma, as the paper's authors do
        ours = [step.now.sigma for step in Schedule().steps(n, "ays")]
        log_sigma = np.interp(np.linspace(0, 9, n), range(10), np.log(SIGMA[listed]))
        np.testing.assert_allclose(ours, np.exp(log_sigma), rtol=1e-12)


def test_between_timesteps_log_sigma_is_linear_in_t() -> None:
    schedule, t = Schedule(), np.array([0, 0.25, 1, 333.4, 998.9, 999])
    sigma = np.exp(np.interp(t, range(1000), np.log(SIGMA)))
    np.testing.assert_allclose([schedule.level(x).sigma for x in t], sigma, rtol=1e-12)
    np.testing.assert_allclose([schedule.at_sigma(x).t for x in sigma], t, atol=1e-9)
    np.testing.assert_allclose([schedule.level(x).t for x in t], t)
    for spacing in ("karras", "exponential", "ays"):
        steps = schedule.steps(12, spacing)
        told = np.interp([math.log(step.now.sigma) for step in steps], np.log(SIGMA), range(1000))
        np.testing.assert_allclose(timesteps(steps), told, atol=1e-9)
        for level in levels(steps):
            assert math.isclose(level.signal**2 + level.noise**2, 1, rel_tol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("n", [1, 4, 30])
def test_levels_of_a_flow_equal_diffusers(n: int, shift: float) -> None:
    """Its scheduler, told the even sigmas, shifts them: once, as we do."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / n for i in range(n)])
    steps = Flow(shift).steps(n)
    np.testing.assert_allclose([level.noise for level in levels(steps)], scheduler.sigmas, rtol=1e-6)
    np.testing.assert_allclose(timesteps(steps), scheduler.timesteps, rtol=1e-6)
    assert all(level.signal == 1 - level.noise for level in levels(steps))
    assert steps == Flow(shift).steps(n, "trailing")


def test_other_spacings_of_a_flow_are_those_of_a_schedule() -> None:
    np.testing.assert_allclose(timesteps(Flow().steps(4, "leading")), [751, 501, 251, 1])
    np.testing.assert_allclose(timesteps(Flow().steps(4, "linspace")), np.linspace(1000, 1, 4))


def test_training_sees_the_levels_that_sampling_sees() -> None:
    t = torch.tensor([0, 400, 999])
    for process, times in [(Schedule(), t), (ZERO_SNR, t), (Flow(3.0), torch.tensor([0.0, 400.25, 1000.0]))]:
        signal, noise = process.at(times)
        expected = [process.level(x) for x in times.tolist()]
        torch.testing.assert_close(signal, torch.tensor([level.signal for level in expected], dtype=torch.float64))
        torch.testing.assert_close(noise, torch.tensor([level.noise for level in expected], dtype=torch.float64))


def test_times_drawn_in_training() -> None:
    g = torch.Generator().manual_seed(0)
    t = Schedule(num_timesteps=10).draw_t(20_000, g)
    assert t.dtype == torch.int64 and set(t.tolist()) == set(range(10))
    assert (torch.bincount(t) / 2000 - 1).abs().max() < 0.1


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("times", ["logit_normal", "uniform"])
def test_times_drawn_in_the_training_of_a_flow(times: str, shift: float) -> None:
    """Their quantiles are those of the normal or the even distribution, moved by the same functions; so are moments."""
    drawn = Flow(shift, times=times).draw_t(20_000, torch.Generator().manual_seed(0)).double() / 1000
    share = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    s = torch.special.ndtri(share).sigmoid() if times == "logit_normal" else share
    torch.testing.assert_close(drawn.quantile(share), shift * s / (1 + (shift - 1) * s), atol=0.012, rtol=0)
    if shift == 1:  # both are even about 1/2; the variance of a logit-normal is 0.2083 squared (by quadrature)
        deviation = {"logit_normal": 0.20827, "uniform": 12**-0.5}[times]
        assert abs(drawn.mean() - 0.5) < 0.006 and abs(drawn.std() - deviation) < 0.004


def test_a_process_is_made_of_a_model_s_numbers() -> None:
    numbers = ScheduleConfig(500, "linear", 0.001, 0.02, spacing="linspace", steps_offset=3, ends_clean=True)
    assert Schedule.of(numbers) == Schedule(500, "linear", 0.001, 0.02, False, "linspace", 3, "clean")
    assert Schedule.of(ScheduleConfig()) == Schedule()
    assert Schedule.of(ScheduleConfig(zero_terminal_snr=True, prediction="v", spacing="trailing")) == ZERO_SNR
    numbers = ScheduleConfig(kind="flow", shift=3.0, prediction="flow")
    assert Schedule.of(numbers) == Flow(3.0)
    assert Schedule.of(replace(numbers, times="uniform")) == Flow(3.0, times="uniform")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Schedule().steps(0), "0 sampling steps"),
        (lambda: Schedule().steps(1001), "1001 sampling steps"),
        (lambda: Schedule().steps(10, "even"), "spacing 'even'"),
        (lambda: Schedule().steps(10, start=1.5), "start=1.5"),
        (lambda: Schedule().steps(10, final="last"), "final=last"),
        (lambda: Schedule().steps(10, "karras", final="first"), "final=first with spacing=karras"),
        (lambda: Schedule(kind="quadratic"), "schedule kind 'quadratic'"),
        (lambda: Schedule(zero_terminal_snr=True).steps(10), "spacing=leading .* use trailing"),
        (lambda: ZERO_SNR.steps(10, "karras"), "spacing=karras .* use trailing"),
        (lambda: ZERO_SNR.steps(10, "ays"), "spacing=ays .* use trailing"),
        (lambda: Schedule.of(ScheduleConfig(zero_terminal_snr=True)), "prediction=eps with zero_terminal_snr"),
        (lambda: Flow().steps(10, "karras"), "spacing=karras: a flow takes"),
        (lambda: Flow().steps(10, "exponential"), "spacing=exponential: a flow takes"),
        (lambda: Flow().steps(10, "ays"), "spacing=ays: a flow takes"),
        (lambda: Flow().steps(10, final="first"), "final=first: a flow ends clean"),
        (lambda: Flow().steps(0), "0 sampling steps"),
        (lambda: Flow(shift=0), "shift=0"),
        (lambda: Flow(times="normal"), "times=normal: must be logit_normal or uniform"),
    ],
)
def test_what_cannot_be_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
