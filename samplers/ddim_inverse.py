from collections.abc import Iterator, Sequence

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Step


def ddim_inverse(
    denoise: Denoise, x_0: Tensor, steps: Sequence[Step], refinements: int = 0
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """DDIM's steps undone, from a clean latent up to the x_T that leads there (Song et al. 2021, section 4.3). Yields
    (step, x_t, x_0) after each step, the last of the steps first: x_t is at step.now.

    denoise      denoise(x_t, step) -> (x_0, eps) [B, ...]; guidance above 1 makes the errors grow
    x_0          [B, ...], at the level where the steps end
    steps        those that `ddim` is to take with eta = 0
    refinements  a step is exact for the noise that it holds, which belongs to x_t; the x before the step stands for x_t
                 at first, and then so many times the x_t just found (fixed-point iteration)
    Where a guidance parts x_0 and eps, as CFG++ does, eps is taken out, and put in is the noise in x_t beside its x_0.
    A step from a level without signal, where eps says nothing, holds x_0 in its place.
    Raises ValueError for one step from there to no noise, which x_T does not survive.
    """
    x = x_0
    for step in reversed(steps):
        now, to = step.now, step.to
        if not now.signal and not to.noise:
            raise ValueError("a single step from noise alone to no noise cannot be undone: use more steps")
        x_t = x
        for _ in range(1 + refinements):
            estimate, eps = denoise(x_t, step)
            if now.signal:
                x_t = now.signal / to.signal * (x - to.noise * eps) + (x_t - now.signal * estimate)  # eq. 12 for x_t
            else:
                x_t = now.noise / to.noise * (x - to.signal * estimate)
        x = x_t
        yield step, x, estimate
