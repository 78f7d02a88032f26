from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isclose

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778), Stable Diffusion's first sampler: DDIM's step with
    an eps extrapolated from the last four. Yields (step, x_t, x_0) after each step.

    denoise  denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T      [B, ...], standard normal
    noise    never called: the method is deterministic
    The first step, unless it is the last too, evaluates twice (as Heun's), the second time with step.stage 1.
    Raises ValueError on a rectified flow and at zero terminal SNR.
    """
    if any(not now.signal or (now.noise and isclose(now.signal + now.noise, 1)) for now in (s.now for s in steps)):
        raise ValueError("plms takes neither a flow nor zero terminal SNR: use dpmpp_2m or unipc")
    x_t, known = x_T, list[Tensor]()  # eps, the newest first
    for step in steps:
        x_0, eps = denoise(x_t, step)
        known = [eps, *known][:4]
        weights = ADAMS_BASHFORTH[len(known) - 1]
        mean = sum((w * e for w, e in zip(weights[1:], known[1:], strict=True)), weights[0] * eps)
        if len(known) == 1 and step.i < step.n - 1:
            x_t = step.to.signal * x_0 + step.to.noise * eps
            mean = (eps + denoise(x_t, replace(step, now=step.to, stage=1)).eps) / 2
        # DDIM's step of x_t = signal_t x_0 + noise_t eps, with another eps
        x_t = step.to.signal * (x_0 + step.now.sigma * (eps - mean)) + step.to.noise * mean
        yield step, x_t, x_0
