"""How a guidance applies the difference of two passes: the rules, and what they share."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from samplers.predict import SPACES, Denoised, output_of, prediction_in, x_0_of
from samplers.schedule import Step


class Mix(Protocol):
    """A rule that pushes the conditional estimate away from a weaker one, whatever pass that is of.

    space  what `push` receives and returns: "x_0", "eps", or "output", what the network itself predicts (eps, v, or a
           flow's velocity), as most references have it. Linear rules read the same in all
    A rule that remembers is a dataclass with fields of init=False, as a guidance is: it begins anew with each sampling,
    and writes in stage 0 alone.
    """

    space: str

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        """The guided estimate [B, ...]; scale is g = w + 1, and never 1."""


@dataclass(frozen=True)
class Linear:
    """weak + g (cond - weak), as in classifier-free guidance (Ho & Salimans 2022, eq. 6); in x_0 as in eps."""

    space = "x_0"

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        return weak + scale * (cond - weak)


def mixed(mix: Mix, cond: Tensor, weak: Tensor, scale: float, x_t: Tensor, step: Step) -> Tensor:
    """The guided x_0 of two estimates of x_0, under a rule in its own space; at scale 1 the conditional, whatever rule.

    Where no signal is left, eps says nothing of x_0: there a rule in eps is linear.
    """
    prediction = prediction_in(mix.space, step)
    if scale == 1:
        return cond
    if prediction == "eps" and not step.now.signal:
        return Linear().push(cond, weak, scale, step)
    strong, weaker = (output_of(x_0, prediction, x_t, step.now) for x_0 in (cond, weak))
    return x_0_of(mix.push(strong, weaker, scale, step), prediction, x_t, step.now)


def check_space(name: str, space: str) -> None:
    """Raises ValueError unless a rule can be computed there."""
    if space not in SPACES:
        raise ValueError(f"{name}={space}: must be x_0, eps or output")


def shifted(out: Denoised, by: Tensor, step: Step) -> Denoised:
    """x_0 moved by so much, and eps with it, so that signal x_0 + noise eps stays what it was."""
    return Denoised(out.x_0 + by, out.eps - by / step.now.sigma)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each image, [B, 1, ...] of [B, ...]."""
    return (a * b).flatten(1).sum(dim=1).reshape(-1, *[1] * (a.ndim - 1))


def along(a: Tensor, b: Tensor) -> Tensor:
    """The part of each image's a [B, ...] that is parallel to its b; none where b is zero."""
    return dot(a, b) / dot(b, b).clamp(min=1e-12) * b
