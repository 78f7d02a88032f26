from collections.abc import Iterator, Sequence
from math import sqrt

from torch import Tensor

from samplers.predict import Denoise
from samplers.schedule import Noise, Step


def euler(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None, s_churn: float = 0.0
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Euler's method on the probability-flow ODE dy = eps dsigma, y = x_t / signal_t, on any levels of any process;
    with Karras et al. 2022's churn, noise that is added and removed again. Yields (step, x_t, x_0) after each step.

    denoise  denoise(x_t, step) -> (x_0, eps) [B, ...], guidance included
    x_T      [B, ...], standard normal
    noise    () -> standard normal [B, ...]; called only in steps that add noise
    s_churn  0: deterministic, and DDIM. Above: a step begins by raising sigma by the factor 1 + gamma,
             gamma = min(s_churn / n, sqrt(2) - 1), and comes down from there
    The churn is as in diffusers, an Euler-Maruyama step of the paper's eq. 6: the network is asked before the noise,
    at the step's own level. Algorithm 2 asks it after the noise, at a level whose t no step knows. So the last step
    leaves some noise, sqrt(2 gamma) of its sigma, even where it ends clean.
    Raises ValueError for s_churn below 0, and for one above 0 without noise.
    """
    if not s_churn >= 0:
        raise ValueError(f"s_churn={s_churn}: must be at least 0")
    if s_churn > 0 and noise is None:
        raise ValueError(f"s_churn={s_churn} draws noise: give noise=...")
    x_t = x_T
    for step in steps:
        gamma = min(s_churn / step.n, sqrt(2) - 1) if step.now.signal else 0.0
        x_0, eps = denoise(x_t, step)
        x_t = step.to.signal * x_0 + step.to.noise * eps  # x_0 + sigma' eps, times signal'
        if noise is not None and gamma > 0:
            up = sqrt((1 + gamma) ** 2 - 1) * noise()  # algorithm 2, line 6
            x_t = x_t + step.to.signal * step.now.sigma * (up - gamma * eps)  # from sigma (1 + gamma) down: line 8
        yield step, x_t, x_0
