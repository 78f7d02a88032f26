"""What is known of a picture, kept by wrappers of every sampler: on Gaussians, of which all is known."""

from functools import partial

import pytest
import torch
from torch import Tensor

import samplers
from samplers import Denoised, Schedule, Step
from samplers.inpainting import Known, replacing, resampling, takes_single_steps

RHO = 0.9  # of two values that are standard normal each
COVARIANCE = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)
ONE_STEP = {"ddim", "ddpm", "euler", "euler_ancestral", "euler_maruyama", "heun", "langevin"}
MEMORY = {"dpmpp_2m", "dpmpp_2m_sde", "lms", "plms", "unipc"}


def denoise(x_t: Tensor, step: Step) -> Denoised:
    """The mean of x_0 [B, 2, 1, 1] given x_t, under COVARIANCE."""
    a, b = step.now.signal, step.now.noise
    gain = a * COVARIANCE @ torch.linalg.inv(a**2 * COVARIANCE + b**2 * torch.eye(2, dtype=torch.float64))
    x_0 = torch.einsum("ij,bjhw->bihw", gain, x_t)
    return Denoised(x_0, step.now.eps(x_t, x_0))


def known_of(count: int) -> Known:
    """The first value is known, the second to be drawn."""
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, count, 2, 1, 1, generator=g, dtype=torch.float64)
    return Known(x_0, eps, torch.tensor([0.0, 1.0]).double()[None, :, None, None])


def noise_of(count: int) -> partial[Tensor]:
    return partial(torch.randn, count, 2, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_replacement_is_the_loop_that_diffusers_writes_out() -> None:
    known, steps = known_of(3), Schedule().steps(5)
    moments = list(replacing(samplers.ddim, known)(denoise, known.eps, steps))
    x = known.eps
    for step, (_, x_t, _) in zip(steps, moments, strict=True):
        x_0, eps = denoise(x, step)
        x = step.to.x_t(x_0, eps)
        kept = known.x_0 if step.i == 4 else step.to.x_t(known.x_0, known.eps)
        x = torch.cat([kept[:, :1], x[:, 1:]], dim=1)
        torch.testing.assert_close(x_t, x)
    assert torch.equal(x[:, 0], known.x_0[:, 0])


@pytest.mark.parametrize("name", sorted(ONE_STEP))
def test_a_step_taken_once_is_replacement(name: str) -> None:
    known, steps, sampler = known_of(3), Schedule().steps(6, start=0.7), getattr(samplers, name)
    first = steps[0].now.x_t(known.x_0, known.eps)
    one = list(replacing(sampler, known)(denoise, first, steps, noise=noise_of(3)))
    other = list(resampling(sampler, known, 1)(denoise, first, steps, noise=noise_of(3)))
    for a, b in zip(one, other, strict=True):
        assert a[0] == b[0]
        torch.testing.assert_close(a[1:], b[1:])


def test_resampling_fits_what_is_drawn_to_what_is_known() -> None:
    """Given the first value y, the second is normal with mean RHO y: the closer, the oftener a step is taken."""
    count, steps = 2000, Schedule().steps(30, final="clean")
    known, slopes, calls = known_of(count), {}, 0

    def counted(x_t: Tensor, step: Step) -> Denoised:
        nonlocal calls
        calls += 1
        return denoise(x_t, step)

    for times in (1, 2, 10):
        calls = 0
        *_, (_, x, _) = resampling(samplers.ddpm, known, times)(counted, known.eps, steps, noise=noise_of(count))
        y, drawn = x[:, 0].flatten(), x[:, 1].flatten()
        assert calls == 30 * times and torch.equal(x[:, 0], known.x_0[:, 0])
        slopes[times] = ((y * drawn).sum() / y.square().sum()).item()
    assert slopes[1] < slopes[2] - 0.05 < slopes[10] - 0.1 and slopes[10] == pytest.approx(RHO, abs=0.06), slopes


def test_samplers_without_a_memory_are_known_by_what_they_do() -> None:
    settings = {"langevin": {"corrections": 2}}
    found = {
        name
        for name in ONE_STEP | MEMORY
        if takes_single_steps(partial(getattr(samplers, name), **settings.get(name, {})), Schedule().steps(6))
    }
    assert found == ONE_STEP


def test_resampling_wants_noise_and_a_time() -> None:
    with pytest.raises(ValueError, match="times=0: must be at least 1"):
        next(resampling(samplers.ddim, known_of(1), 0)(denoise, known_of(1).eps, Schedule().steps(3), noise_of(1)))
    with pytest.raises(ValueError, match="resampling draws noise"):
        next(resampling(samplers.ddim, known_of(1), 2)(denoise, known_of(1).eps, Schedule().steps(2)))
