from collections.abc import Iterator, Sequence
from math import sqrt

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def dpmpp_2m_sde(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, its section on SDEs): DDIM with eta = 1 and an x_0 of
    second order. Yields (step, x_t, x_0) after each step.

    denoise  denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T      [B, ...], standard normal
    noise    () -> standard normal [B, ...]; called only in steps that add noise
    The first step, a step from a level without signal, and the last are of first order.
    Raises ValueError without noise.
    """
    if noise is None:
        raise ValueError("dpmpp_2m_sde draws noise: give noise=...")
    x_t, before = x_T, None
    for step in steps:
        h = (step.to.log_snr - step.now.log_snr) / 2  # lambda_s - lambda_t, lambda = log(signal / noise)
        kept = (step.to.sigma / step.now.sigma) ** 2  # exp(-2h)
        x_0, eps = denoise(x_t, step)
        x_t = step.to.signal * x_0 + step.to.noise * sqrt(kept) * eps
        if before is not None and step.i < step.n - 1:
            x_0_before, h_before = before
            x_t = x_t + step.to.signal * (1 - kept) * h / (2 * h_before) * (x_0 - x_0_before)
        if step.to.noise > 0 and kept < 1:
            x_t = x_t + step.to.noise * sqrt(1 - kept) * noise()
        before = (x_0, h) if step.now.signal else None
        yield step, x_t, x_0
