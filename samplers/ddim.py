from collections.abc import Iterator, Sequence
from math import sqrt

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def ddim(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None, eta: float = 0.0
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Denoising diffusion implicit models (Song et al. 2021), on every process. Yields (step, x_t, x_0) after steps.

    denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T    [B, ...], standard normal
    noise  () -> standard normal [B, ...]; called only in steps that add noise
    eta    0: deterministic, which on a rectified flow is Euler's method; 1: as noisy as DDPM
    Raises ValueError for eta outside 0 .. 1, and above 0 without noise.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: must be between 0 and 1")
    if eta > 0 and noise is None:
        raise ValueError(f"eta={eta} draws noise: give noise=...")
    x_t = x_T
    for step in steps:
        sigma = eta * step.to.noise * sqrt(1 - (step.to.sigma / step.now.sigma) ** 2)  # eq. 16
        x_0, eps = denoise(x_t, step)
        x_t = step.to.signal * x_0 + sqrt(step.to.noise**2 - sigma**2) * eps  # eq. 12
        if noise is not None and sigma > 0:
            x_t = x_t + sigma * noise()
        yield step, x_t, x_0
