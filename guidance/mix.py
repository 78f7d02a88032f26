"""How a guidance applies the difference of two passes: the rules, and what they share."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from samplers.predict import Denoised
from samplers.schedule import Step


class Mix(Protocol):
    """A rule that pushes the conditional estimate away from a weaker one, whatever pass that is of.

    space  "x_0" or "eps": what `push` receives and returns. Linear rules read the same in both
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
    now = step.now
    if scale == 1:
        return cond
    assert mix.space in ("x_0", "eps"), f"{type(mix).__name__}.space is '{mix.space}': must be x_0 or eps"
    if mix.space == "x_0":
        return mix.push(cond, weak, scale, step)
    if not now.signal:
        return Linear().push(cond, weak, scale, step)
    return now.x_0(x_t, mix.push(now.eps(x_t, cond), now.eps(x_t, weak), scale, step))


def shifted(out: Denoised, by: Tensor, step: Step) -> Denoised:
    """x_0 moved by so much, and eps with it, so that signal x_0 + noise eps stays what it was."""
    return Denoised(out.x_0 + by, out.eps - by / step.now.sigma)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each image, [B, 1, ...] of [B, ...]."""
    return (a * b).flatten(1).sum(dim=1).reshape(-1, *[1] * (a.ndim - 1))


def along(a: Tensor, b: Tensor) -> Tensor:
    """The part of each image's a [B, ...] that is parallel to its b; none where b is zero."""
    return dot(a, b) / dot(b, b).clamp(min=1e-12) * b
