"""Guidances that compare the prompt's pass with one whose self-attention is made worse."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from guidance.branch import Branch, Wrapper, check_number, check_once, combined
from guidance.edits import changing, only_at
from guidance.filters import gaussian, smooth
from guidance.mix import Linear, Mix, mixed, shifted
from ldm.attention import AttentionEdit, Site
from ldm.condition import Conditions
from samplers.predict import Denoised
from samplers.schedule import Step


@dataclass(frozen=True)
class Perturbed(Wrapper):
    """`inner` + s (cond - perturbed): another pass of cond's condition and edits, which `edit` of a subclass perturbs.

    inner   classifier-free at scale 1 leaves cond + s (cond - perturbed), of two passes
    scale   s; 0 is `inner`
    layers  dotted names of the U-Net's blocks, as they begin, whose self-attention is perturbed. The mid block is the
            papers'; where it has few patches, as in a small model, it changes next to nothing
    mix     the rule that applies the difference: `inner` + what it makes of cond at scale 1 + s, less cond
    """

    scale: float = 3.0
    layers: Sequence[str] = ("mid_block",)
    mix: Mix = Linear()
    logs: ClassVar[bool] = False  # whether `edit` receives the weights' logarithms

    def __post_init__(self) -> None:
        check_number("scale", self.scale)
        check_once(self)

    def edit(self, weights: Tensor, site: Site) -> Tensor:
        raise NotImplementedError

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        branches = super().branches(conditions, step)
        if not self.scale:
            return branches
        edit = only_at(self.layers, AttentionEdit(self.edit, lambda site: site.kind == "self", logs=self.logs))
        cond = branches["cond"]
        perturbed = replace(cond, edits=(*changing(cond.edits), edit), gradient=False)
        return {**branches, type(self).__name__: perturbed}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        out = combined(self.inner, x_0, x_t, step)
        if not self.scale:
            return out
        cond, perturbed = x_0["cond"], x_0[type(self).__name__]
        return shifted(out, mixed(self.mix, cond, perturbed, 1 + self.scale, x_t, step) - cond, step)


@dataclass(frozen=True)
class PerturbedAttention(Perturbed):
    """Perturbed-attention guidance, PAG (Ahn et al. 2024, arXiv 2403.17377): self-attention is the identity.

    u + w (c - u) + s (c - p), linear, so in any space; three passes, two without classifier-free guidance. The authors'
    README takes w 4, s 3 for Stable Diffusion 1 and 2, and s 5 alone, in the mid block.
    """

    def edit(self, weights: Tensor, site: Site) -> Tensor:
        return torch.eye(weights.shape[-1], device=weights.device).expand_as(weights)


@dataclass(frozen=True)
class SmoothedEnergy(Perturbed):
    """Smoothed energy guidance, SEG (Hong 2024, arXiv 2408.00760): self-attention's queries are blurred.

    u + w (c - u) + s (c - p), linear, so in any space; three passes, two without classifier-free guidance. Scores are
    linear in the queries, so blurring them, or the logarithms of the weights, over the grid of queries is the same.
    sigma  of the Gaussian, in patches, cut off at 3 sigma and at the grid: 0 changes nothing, infinity is the mean of
           all queries. The author's code takes infinity, s 3, in the mid block, for SDXL
    """

    sigma: float = math.inf
    logs = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma >= 0:
            raise ValueError(f"sigma={self.sigma}: must be a number of at least 0")

    def edit(self, scores: Tensor, site: Site) -> Tensor:
        if self.sigma == 0:
            return scores.exp()
        if self.sigma == math.inf:
            return scores.mean(dim=2, keepdim=True).softmax(dim=-1).expand_as(scores)
        grid = scores.transpose(2, 3).unflatten(3, (site.height, site.width)).flatten(1, 2)  # [B, H L, h, w]
        blurred = smooth(grid, self.kernel(site.height), self.kernel(site.width))
        return blurred.flatten(2).reshape(scores.mT.shape).mT.softmax(dim=-1)

    def kernel(self, side: int) -> Tensor:
        return gaussian(min(math.ceil(6 * self.sigma) // 2 * 2 + 1, side // 2 * 2 + 1), self.sigma)
