from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def heun(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Heun's method, of second order, on the probability-flow ODE dy = eps dsigma, y = x_t / signal_t (Karras et al.
    2022, algorithm 1). Yields (step, x_t, x_0) after each step; x_0 is that of the first of its two evaluations.

    denoise  denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included; the second evaluation has step.stage 1
    x_T      [B, ...], standard normal
    noise    never called: the method is deterministic
    A step to a level without noise, or from one without signal, is Euler's, with one evaluation.
    """
    x_t = x_T
    for step in steps:
        sigma, sigma_to = step.now.sigma, step.to.sigma
        x_0, eps = denoise(x_t, step)
        x_t = step.to.signal * x_0 + step.to.noise * eps  # line 5
        if step.to.noise and step.now.signal:
            _, eps_to = denoise(x_t, replace(step, now=step.to, stage=1))  # line 7
            slopes = (sigma + sigma_to) * eps + (sigma_to - sigma) * eps_to
            x_t = step.to.signal * (x_0 + slopes / 2)  # line 8, with y = x_0 + sigma eps
        yield step, x_t, x_0
