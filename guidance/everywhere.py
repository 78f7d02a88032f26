"""Guidances that edit every pass of another: they change the network, not how passes are compared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guidance.branch import Branch, Wrapper, check_number
from guidance.edits import only_at
from ldm.attention import AttentionEdit, Edit, FeatureEdit, Site
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class Everywhere(Wrapper):
    """`inner`, with the same edits in each of its passes, before its own; a subclass says which."""

    def edits(self) -> tuple[Edit, ...]:
        raise NotImplementedError

    def edited(self, branches: dict[str, Branch]) -> dict[str, Branch]:
        return {name: replace(branch, edits=(*self.edits(), *branch.edits)) for name, branch in branches.items()}

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return self.edited(super().branches(conditions, step))

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        return self.edited(super().more(conditions, x_0, x_t, step))


@dataclass(frozen=True)
class SparseCross(Everywhere):
    """PLADIS (Kim & Sim 2025, arXiv 2503.07677, eq. 15): cross-attention away from dense towards sparse weights.

    A + scale (entmax_1.5(scores) - A): no additional pass. entmax ignores a constant of the scores, and so reads them
    off log A.
    scale   2 in the paper, for SDXL; 0 changes nothing
    layers  dotted names as they begin; all on the way down and up, as in the paper
    """

    scale: float = 2.0
    layers: Sequence[str] = ("down_blocks", "up_blocks")

    def __post_init__(self) -> None:
        check_number("scale", self.scale)

    def edits(self) -> tuple[Edit, ...]:
        def function(weights: Tensor, site: Site) -> Tensor:
            return weights + self.scale * (entmax(weights) - weights)

        return (only_at(self.layers, AttentionEdit(function)),)


def entmax(weights: Tensor) -> Tensor:
    """1.5-entmax of the scores whose softmax is `weights` [..., L] (Peters et al. 2019, algorithm 2, exact).

    [z - tau]_+^2 of z = scores / 2, tau being such that they sum to one: among the k largest, with mean M and sum of
    squared deviations V, tau = M - sqrt((1 - V) / k); k is the largest count whose least z is not below its tau.
    """
    z = weights.clamp(min=torch.finfo(weights.dtype).tiny).log() / 2
    z = z - z.amax(dim=-1, keepdim=True)
    largest = z.sort(dim=-1, descending=True).values
    k = torch.arange(1, z.shape[-1] + 1, device=z.device)
    mean, of_squares = largest.cumsum(-1) / k, largest.square().cumsum(-1) / k
    tau = mean - ((1 / k - (of_squares - mean.square())).clamp(min=0)).sqrt()
    count = (tau <= largest).sum(dim=-1, keepdim=True)
    return (z - tau.gather(-1, count - 1)).clamp(min=0).square()


@dataclass(frozen=True)
class AttentionTemperature(Everywhere):
    """Attention at another temperature, softmax(scores / temperature), in every pass; no additional pass.

    Weights to the power 1 / temperature, normalised: below 1 attention is sharper. Self-attention at
    sqrt(log T / log N) keeps its entropy where a picture of N patches is not of the T trained for (Jin et al. 2023,
    arXiv 2306.08645).
    kind    "self" or "cross"
    layers  dotted names as they begin; by default all
    The default sharpens cross-attention a little; it is tuned for nothing.
    """

    temperature: float = 0.8
    kind: str = "cross"
    layers: Sequence[str] = ("",)

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: must be a number above 0")
        if self.kind not in ("self", "cross"):
            raise ValueError(f"kind='{self.kind}': must be self or cross")

    def edits(self) -> tuple[Edit, ...]:
        def function(scores: Tensor, site: Site) -> Tensor:
            return (scores / self.temperature).softmax(dim=-1)

        return (only_at(self.layers, AttentionEdit(function, lambda site: site.kind == self.kind, logs=True)),)


@dataclass(frozen=True)
class FreeU(Everywhere):
    """FreeU (Si et al. 2023, arXiv 2309.11497, the authors' first version): a stronger stream, weaker skips.

    Where a block on the way up joins the two, the first half of the stream's channels is multiplied by b, and the
    lowest frequencies of the skip by s. In no space; no additional pass.
    b1, s1  of the first level on the way up; b2, s2 of the second, as diffusers reads it; the authors' code goes by the
            width of the stream, which parts Stable Diffusion 1's blocks elsewhere. The defaults are diffusers' advice
            for Stable Diffusion 1.5, with this form. The authors' own demo has b 1.2 and 1.4; they give 1.5 and 1.6
            beside a later form, which scales each place by its mean over the channels
    """

    b1: float = 1.5
    b2: float = 1.6
    s1: float = 0.9
    s2: float = 0.2

    def __post_init__(self) -> None:
        for name in ("b1", "b2", "s1", "s2"):
            check_number(name, getattr(self, name))

    def edits(self) -> tuple[Edit, ...]:
        levels = [("up_blocks.0.", self.b1, self.s1), ("up_blocks.1.", self.b2, self.s2)]
        return tuple(edit for name, b, s in levels for edit in (backbone(name, b), low_pass(name, s)))


def backbone(name: str, b: float) -> FeatureEdit:
    """Multiplies the first half of the stream's channels."""

    def function(h: Tensor, site: Site) -> Tensor:
        half = h.shape[1] // 2
        return torch.cat([b * h[:, :half], h[:, half:]], dim=1)

    return FeatureEdit(function, lambda site: site.kind == "stream" and site.name.startswith(name))


def low_pass(name: str, s: float) -> FeatureEdit:
    """Multiplies the skip's mean and its lowest frequencies, -1 and 0 along each side."""

    def function(h: Tensor, site: Site) -> Tensor:
        waves = torch.fft.fft2(h.float())
        low = torch.ones(waves.shape[-2:], device=h.device)
        low[-1:, -1:] = low[-1:, :1] = low[:1, -1:] = low[:1, :1] = s
        return torch.fft.ifft2(waves * low).real.to(h.dtype)

    return FeatureEdit(function, lambda site: site.kind == "skip" and site.name.startswith(name))
