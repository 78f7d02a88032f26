from collections.abc import Iterator, Sequence

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def dpmpp_2m(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): DDIM with a second-order x_0, hence fewer steps
    for the same picture. Yields (step, x_t, x_0) after each step.

    denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T    [B, ...], standard normal
    noise  never called: the solver is deterministic
    The first step, a step from a level without signal, and the last are of first order, that is, DDIM's.
    """
    x_t, before = x_T, None
    for step in steps:
        h = (step.to.log_snr - step.now.log_snr) / 2  # lambda_s - lambda_t, lambda = log(signal / noise)
        x_0, eps = denoise(x_t, step)
        D = x_0
        if before is not None and step.i < step.n - 1:
            x_0_before, h_before = before
            D = x_0 + (x_0 - x_0_before) * h / (2 * h_before)
        # (sigma_s / sigma_t) x_t - signal_s (exp(-h) - 1) D of the paper, with x_t = signal_t x_0 + noise_t eps
        x_t = step.to.noise * eps + step.to.signal * D + step.to.noise / step.now.sigma * (x_0 - D)
        before = x_0, h  # h is infinite where no signal was left, and then weighs nothing
        yield step, x_t, x_0
