"""Noise schedules, the steps through them, and what a network predicts. The project's notation:

T             training timesteps, t = 0 .. T-1; the largest t is the noisiest
beta_t        variance added at timestep t; alpha_t = 1 - beta_t
alpha_bar_t   product of alpha_1 .. alpha_t: the share of the signal's variance left at t      alpha_bar[t]
x_t           noisy latent, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps            [B, C, h, w]
eps           the noise in x_t; also the network's estimate of it, which is all a guidance sees
x_0           clean latent; also its estimate (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
v             sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0  (Salimans & Ho 2022)
S, i          sampling steps and their index; i = 0 is the noisiest
t -> s        one sampling step, from timestep t to s < t
sigma         of a step: the standard deviation of the noise it adds; of a level: sqrt(1/alpha_bar_t - 1)
g, w          guidance scale and weight, g = w + 1
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

KINDS = ("linear", "scaled_linear", "cosine")
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("eps", "v", "x0")


@dataclass(frozen=True)
class Step:
    """Step i of n, from timestep t to s; s is None in the last step, which ends at the sampler's `final` alpha_bar."""

    i: int
    n: int
    t: int
    s: int | None
    sigma: float  # noise level at t in the variance-exploding view, sqrt(1 / alpha_bar_t - 1)


@dataclass(frozen=True)
class Schedule:
    """Betas of T timesteps: "linear" (Ho et al. 2020), "scaled_linear" (Stable Diffusion: linear in sqrt(beta); its
    own code calls it "linear") or "cosine" (Nichol & Dhariwal 2021, eq. 17, betas capped at 0.999)."""

    num_timesteps: int = 1000
    kind: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"schedule kind '{self.kind}' is none of {', '.join(KINDS)}")

    @cached_property
    def betas(self) -> Tensor:
        """[T] in float64."""
        start, end, T = self.beta_start, self.beta_end, self.num_timesteps
        if self.kind == "linear":
            return torch.linspace(start, end, T, dtype=torch.float64)
        if self.kind == "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2
        f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=0.999)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """[T] in float64."""
        return torch.cumprod(1 - self.betas, dim=0)

    def steps(self, n: int, spacing: str = "leading", offset: int = 1) -> list[Step]:
        """Exactly n steps down the schedule (Lin et al. 2023, table 2, names the spacings).

        offset is added to leading timesteps (1 in Stable Diffusion), less where n leaves it no room: n = T.
        Raises ValueError for n outside 1 .. T and for an unknown spacing.
        """
        T = self.num_timesteps
        if not 1 <= n <= T:
            raise ValueError(f"{n} sampling steps: must be between 1 and the {T} timesteps of the model")
        if spacing == "leading":
            timesteps = [i * (T // n) for i in reversed(range(n))]
            timesteps = [t + min(offset, T - 1 - timesteps[0]) for t in timesteps]
        elif spacing == "trailing":
            timesteps = [round(T - i * T / n) - 1 for i in range(n)]
        elif spacing == "linspace":
            timesteps = [round(i * (T - 1) / max(n - 1, 1)) for i in reversed(range(n))]
        else:
            raise ValueError(f"spacing '{spacing}' is none of {', '.join(SPACINGS)}")
        sigma = (1 / self.alpha_bar - 1).sqrt()
        pairs = zip(timesteps, [*timesteps[1:], None], strict=True)
        return [Step(i, n, t, s, sigma[t].item()) for i, (t, s) in enumerate(pairs)]


def add_noise(x_0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """x_t of a clean latent [B, C, h, w]; alpha_bar_t is a scalar, or one per row [B] (Ho et al. 2020, eq. 4)."""
    a_t = alpha_bar_t.to(x_0.device).reshape(-1, 1, 1, 1)
    return a_t.sqrt().to(x_0.dtype) * x_0 + (1 - a_t).sqrt().to(x_0.dtype) * eps


Network = Callable[[Tensor, int, Tensor, Sequence[Any]], Tensor]  # (x_t, t, text, edits) -> prediction


def as_eps(network: Network, prediction: str, alpha_bar: Tensor) -> Network:
    """The same network, predicting eps whatever it was trained to predict: "eps", "v" or "x0"."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction '{prediction}' is none of {', '.join(PREDICTIONS)}")

    def predict(x_t: Tensor, t: int, text: Tensor, edits: Sequence[Any] = ()) -> Tensor:
        out = network(x_t, t, text, edits)
        a_t = alpha_bar[t]
        if prediction == "v":
            return a_t.sqrt() * out + (1 - a_t).sqrt() * x_t
        if prediction == "x0":
            return (x_t - a_t.sqrt() * out) / (1 - a_t).sqrt()
        return out

    return predict
