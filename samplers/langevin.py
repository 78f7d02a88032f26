from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import sqrt

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def langevin(
    denoise: Denoise,
    x_T: Tensor,
    steps: Sequence[Step],
    noise: Noise | None = None,
    corrections: int = 20,
    step_size: float = 0.2,
    snr: float | None = None,
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1) or predictor-corrector sampling (Song et al. 2021,
    algorithm 1), in y = x_t / signal_t. Yields (step, x_t, x_0) after each step.

    denoise      denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included; corrections have step.stage 1
    x_T          [B, ...], standard normal
    noise        () -> standard normal [B, ...]; called only where noise is added
    corrections  moves y += alpha / 2 score + sqrt(alpha) z at each level that a step leads to
    step_size    alpha = step_size sigma^2: the paper's rule, whose eps / sigma_L^2 is 2e-5 / 0.01^2 = 0.2
    snr          null: annealed, a step takes y as it is to the next level. A number r, 0.16 in the paper: a step is
                 ancestral, and alpha = (2 r sigma)^2, that is algorithm 4's (2 r |z| / |score|)^2 with the norms that
                 noise alone has, |z| = sigma |score|, so that no image's step depends on its batch
    A step to a level without noise gives x_0 (Tweedie's formula); one from a level without signal is DDIM's.
    Raises ValueError without noise, and for corrections or a step size of 0 or less.
    """
    if noise is None:
        raise ValueError("langevin draws noise: give noise=...")
    if not (corrections > 0 and step_size > 0 and (snr is None or snr > 0)):
        raise ValueError(f"corrections={corrections}, step_size={step_size}, snr={snr}: must be above 0")
    x_t = x_T
    for step in steps:
        x_0, eps = denoise(x_t, step)
        if not step.now.signal or not step.to.noise:
            x_t = step.to.signal * x_0 + step.to.noise * eps
        elif snr is None:
            x_t = step.to.signal * (x_0 + step.now.sigma * eps)  # y stays
        else:
            down = step.to.noise * step.to.sigma / step.now.sigma
            x_t = step.to.signal * x_0 + down * eps + sqrt(step.to.noise**2 - down**2) * noise()
        for _ in range(corrections if step.to.noise else 0):
            x_0_to, eps_to = denoise(x_t, replace(step, now=step.to, stage=1))
            half = step_size / 2 if snr is None else 2 * snr**2  # alpha / (2 sigma^2)
            x_t = step.to.x_t(x_0_to, (1 - half) * eps_to + sqrt(2 * half) * noise())  # score = -eps / noise_t
        yield step, x_t, x_0
