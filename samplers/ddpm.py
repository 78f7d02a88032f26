from collections.abc import Iterator, Sequence
from math import sqrt

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def ddpm(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over any steps, with the smaller of the paper's two variances,
    that of the posterior q(x_s | x_t, x_0). Yields (step, x_t, x_0) after each step.

    denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T    [B, ...], standard normal
    noise  () -> standard normal [B, ...]; called only in steps that add noise
    Raises ValueError without noise.
    """
    if noise is None:
        raise ValueError("ddpm draws noise: give noise=...")
    x_t = x_T
    for step in steps:
        alpha = (step.now.signal / step.to.signal) ** 2
        beta = step.now.noise**2 - alpha * step.to.noise**2  # 1 - alpha where variance is preserved
        to_x_0, to_x_t = step.to.signal * beta / step.now.noise**2, sqrt(alpha) * (step.to.noise / step.now.noise) ** 2
        sigma = sqrt(beta) * step.to.noise / step.now.noise  # eq. 7
        x_0, eps = denoise(x_t, step)
        x_t = to_x_0 * x_0 + to_x_t * step.now.x_t(x_0, eps)  # eq. 7
        if sigma > 0:
            x_t = x_t + sigma * noise()
        yield step, x_t, x_0
