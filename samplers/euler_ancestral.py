from collections.abc import Iterator, Sequence
from math import sqrt

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def euler_ancestral(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Euler ancestral (Crowson 2022, k-diffusion): Euler's method to a level below the next, and new noise up to it.
    It is DDIM with eta = 1, in sigma. Yields (step, x_t, x_0) after each step.

    denoise  denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T      [B, ...], standard normal
    noise    () -> standard normal [B, ...]; called only in steps that add noise
    Raises ValueError without noise.
    """
    if noise is None:
        raise ValueError("euler_ancestral draws noise: give noise=...")
    x_t = x_T
    for step in steps:
        ratio = step.to.sigma / step.now.sigma
        up, down = step.to.sigma * sqrt(1 - ratio**2), step.to.sigma * ratio  # up^2 + down^2 = sigma'^2
        x_0, eps = denoise(x_t, step)
        x_t = step.to.signal * (x_0 + down * eps)
        if up > 0:
            x_t = x_t + step.to.signal * up * noise()
        yield step, x_t, x_0
