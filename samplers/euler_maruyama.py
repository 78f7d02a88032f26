from collections.abc import Iterator, Sequence
from math import log, sqrt

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def euler_maruyama(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Euler-Maruyama on the reverse SDE dx = (f x - g^2 score) dt + g dw (Song et al. 2021, arXiv 2011.13456, eq. 6);
    f = dlog(signal)/dt, g^2 = dnoise^2/dt - 2 f noise^2. Yields (step, x_t, x_0) after each step.

    denoise  denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T      [B, ...], standard normal
    noise    () -> standard normal [B, ...]; called only in steps that add noise
    A step to a level without noise gives x_0 (Tweedie's formula), and one from a level without signal, where f is
    infinite, is DDIM's.
    Raises ValueError without noise.
    """
    if noise is None:
        raise ValueError("euler_maruyama draws noise: give noise=...")
    x_t = x_T
    for step in steps:
        a, b = step.now.signal, step.now.noise
        x_0, eps = denoise(x_t, step)
        if a and step.to.noise:
            f = log(a / step.to.signal)  # f dt, from the end of the step to its beginning
            g2 = b**2 - step.to.noise**2 - 2 * f * b**2
            x_t = (1 - f) * step.now.x_t(x_0, eps) - g2 / b * eps + sqrt(g2) * noise()  # score = -eps / noise_t
        else:
            x_t = step.to.signal * x_0 + step.to.noise * eps
        yield step, x_t, x_0
