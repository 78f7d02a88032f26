from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def lms(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None, order: int = 4
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """A linear multistep method (Adams-Bashforth on uneven levels, after Crowson's k-diffusion 2022) on the
    probability-flow ODE dy = eps dsigma, y = x_t / signal_t. Yields (step, x_t, x_0) after each step.

    denoise  denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T      [B, ...], standard normal
    noise    never called: the method is deterministic
    order    1 to 4: how many eps it looks back on, this step's included; the first steps have fewer
    Raises ValueError for another order.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order={order}: must be 1, 2, 3 or 4")
    x_t, known = x_T, list[tuple[float, Tensor]]()  # (sigma, eps), the newest first
    for step in steps:
        x_0, eps = denoise(x_t, step)
        x_t = step.to.signal * x_0 + step.to.noise * eps
        if step.now.signal:
            sigma, end = step.now.sigma, step.to.sigma
            known = [(sigma, eps), *known][:order]
            # the integral of the polynomial through them; Simpson's rule is exact up to the third degree
            for j, (own, eps_j) in enumerate(known[1:], 1):
                others = [other for k, (other, _) in enumerate(known) if k != j]
                basis = [prod((s - other) / (own - other) for other in others) for s in (sigma, (sigma + end) / 2, end)]
                c_j = (end - sigma) / 6 * (basis[0] + 4 * basis[1] + basis[2])
                x_t = x_t + step.to.signal * c_j * (eps_j - eps)  # all c sum to sigma' - sigma
        yield step, x_t, x_0
