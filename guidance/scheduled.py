"""Guidance whose strength changes over the steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Branch, Wrapper, check_number, combined
from ldm.condition import Conditions
from samplers.predict import Denoised
from samplers.schedule import Step

Curve = Callable[[Step], float]  # what a step's guidance is multiplied by


@dataclass(frozen=True)
class Ramp:
    """Rises evenly to `end`, 2 i / S (Wang et al. 2024, arXiv 2404.13040); on average about 1. Never below `least`.

    Theirs is a least weight: 2 for Stable Diffusion 1.5, 4 for SDXL (second-hand); `least` is a share of inner's own w.
    """

    end: float = 2.0
    least: float = 0.0

    def __post_init__(self) -> None:
        check_number("end", self.end)
        check_number("least", self.least)

    def __call__(self, step: Step) -> float:
        return max(self.least, self.end * step.i / step.n)


@dataclass(frozen=True)
class Cosine:
    """Rises as 1 - cos(pi i / S) from 0 to 2 (Wang et al. 2024, arXiv 2404.13040). Never below `least`."""

    least: float = 0.0

    def __post_init__(self) -> None:
        check_number("least", self.least)

    def __call__(self, step: Step) -> float:
        return max(self.least, 1 - math.cos(math.pi * step.i / step.n))


@dataclass(frozen=True)
class Beta:
    """The density of the beta distribution at i / (S - 1) (beta-CFG, arXiv 2502.10574): most in the middle.

    Of that method it is the schedule alone; a = b = 2 are the authors' defaults.
    """

    a: float = 2.0
    b: float = 2.0

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}={getattr(self, name)}: must be a finite number of at least 1, for the density"
                )

    def __call__(self, step: Step) -> float:
        u = step.i / max(step.n - 1, 1)
        density = math.exp(math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b))
        return density * u ** (self.a - 1) * (1 - u) ** (self.b - 1)


@dataclass(frozen=True)
class Table:
    """One value per step, of either sign; fewer are spread evenly over the steps, and interpolated linearly."""

    values: Sequence[float]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values is empty: a table has at least one")
        for value in self.values:
            if not math.isfinite(value):
                raise ValueError(f"values={value}: must be a finite number")

    def __call__(self, step: Step) -> float:
        position = step.i / max(step.n - 1, 1) * (len(self.values) - 1)
        k = min(int(position), max(len(self.values) - 2, 0))
        share = position - k
        return self.values[k] if not share else (1 - share) * self.values[k] + share * self.values[k + 1]


@dataclass(frozen=True)
class Scheduled(Wrapper):
    """`inner`, whose difference from the conditional is multiplied by a curve over the steps.

    cond + f(i) (guided - cond), in x_0 and in eps alike: of classifier-free guidance it is w = g - 1 that follows the
    curve (as a second-hand account of Wang et al. has it). Around scale 2 a Table is a list of w. As many passes as
    `inner`; where the curve is 0, the conditional alone.
    """

    curve: Curve = Ramp()

    def __post_init__(self) -> None:
        if not callable(self.curve):
            raise ValueError(f"curve={self.curve}: must be a curve, a number for each step")

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        branches = super().branches(conditions, step)
        return branches if self.curve(step) else {"cond": branches["cond"]}

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        return super().more(conditions, x_0, x_t, step) if self.curve(step) else {}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        f, cond = self.curve(step), Denoised(x_0["cond"], step.now.eps(x_t, x_0["cond"]))
        if not f:
            return cond
        out = combined(self.inner, x_0, x_t, step)
        return Denoised(*(own + f * (guided - own) for own, guided in zip(cond, out, strict=True)))
