from collections.abc import Iterator, Sequence
from math import expm1

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def unipc(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """UniPC (Zhao et al. 2023, arXiv 2302.04867) of order 2, B(h) = exp(h) - 1 ("bh2"), on x_0: each evaluation also
    corrects the x_t that it was made at. Yields (step, x_t, x_0) after each step.

    denoise  denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T      [B, ...], standard normal
    noise    never called: the solver is deterministic
    The first step, a step from a level without signal, and the last are of first order.
    """
    x_t, known = x_T, list[tuple[Tensor, float]]()  # x_0 of a step and its h in log(signal / noise), the newest first
    for step in steps:
        x_0, eps = denoise(x_t, step)
        correction: Tensor | float = 0.0  # of x_t = signal_t x_0 + noise_t eps
        if known:
            x_0_1, h_1 = known[0]
            rho, change = 0.5, 0.0 * x_0_1
            if len(known) == 2:
                x_0_2, h_2 = known[1]
                phi = expm1(-h_1) / -h_1 - 1
                b = phi / expm1(-h_1), 2 * (phi / -h_1 - 0.5) / expm1(-h_1)
                rho_1 = (b[0] - b[1]) / (1 + h_2 / h_1)  # solves R rho = b, with r_1 = -h_2 / h_1
                rho, change = b[0] - rho_1, (rho_1 - 0.5) * h_1 / h_2 * (x_0_1 - x_0_2)
            correction = -step.now.signal * expm1(-h_1) * (change + rho * (x_0 - x_0_1))  # UniC less UniP
        h = (step.to.log_snr - step.now.log_snr) / 2
        x_t = step.to.signal * x_0 + step.to.noise * (eps + correction / step.now.noise)
        if known and step.i < step.n - 1:
            x_t = x_t - step.to.signal * expm1(-h) / 2 * h / h_1 * (x_0 - x_0_1)  # UniP
        known = [(x_0, h), *known][:2] if step.now.signal else []
        yield step, x_t, x_0
