from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from guidance.branch import Branch, Unfit, check_number
from guidance.edits import LARGEST_MAP, check_bos, is_small, record
from guidance.filters import SOFT, smooth
from guidance.mix import Linear, Mix, mixed
from ldm.attention import AttentionEdit, Site
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class SemanticAware:
    """Semantic-aware classifier-free guidance, S-CFG (Shen et al. 2024, arXiv 2404.05384): one strength per region.

    u + g r (c - u), r being such that |c - u| is as large in each region as in the foreground, on average; in x_0 or
    eps alike; two passes. A region is the patches of one token: cross-attention of the conditional pass, spread by its
    self-attention A as (A + 3 A^2) / 4, as the authors' code does it (their text has powers up to 4), smoothed and
    divided by its mean. The foreground is where, in the negative pass, other tokens than BOS win.
    finest, coarsest  maps of layers with 1/4 to 1/8 of the latent's side are used, in the authors' code; never those of
                      more than 1024 patches, for the memory's sake
    least, most       bounds of r; and g r stays below `ceiling`. Tuned for Stable Diffusion 1 and 2 at scale 7.5
    mix               the rule that applies the difference, before r does; linear is the paper's
    """

    scale: float = 7.5
    finest: int = 4
    coarsest: int = 8
    least: float = 0.8
    most: float = 3.0
    ceiling: float = 15.0
    mix: Mix = Linear()
    maps: dict[tuple[str, str], tuple[Site, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_number("scale", self.scale)
        check_number("ceiling", self.ceiling)
        if not 0 <= self.least <= self.most:
            raise ValueError(f"least={self.least}, most={self.most}: must be 0 <= least <= most")

    def look(self, name: str) -> tuple[AttentionEdit, ...]:
        def store(site: Site, weights: Tensor) -> None:
            self.maps[name, site.name] = (site, weights.mean(dim=1))

        def small(kind: str) -> Callable[[Site], bool]:
            return lambda site: site.kind == kind and is_small(site)

        return tuple(record(store, small(kind)) for kind in ("self", "cross"))

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        if self.scale == 1:
            return {"cond": Branch(conditions.cond)}
        check_bos(conditions.cond)
        passes = {"cond": conditions.cond, "negative": conditions.negative}
        return {name: Branch(condition, self.look(name)) for name, condition in passes.items()}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        if self.scale == 1:
            return x_0["cond"]
        difference = x_0["cond"] - x_0["negative"]
        magnitude = difference.norm(dim=1, keepdim=True)  # [B, 1, h, w]
        tokens = regions(self.spread("cond", x_t), x_t)
        by_bos = [torch.stack([m[:, 0], m[:, 1:].sum(dim=1)], dim=1) for m in self.spread("negative", x_t)]
        foreground = regions(by_bos, x_t)[:, 1:]
        highest = self.ceiling / self.scale if self.scale else self.most
        ratio = averages(magnitude, foreground) / (averages(magnitude, tokens) + 1e-8)  # [B, L, 1, 1]
        r = (ratio * tokens).sum(dim=1, keepdim=True).clamp(self.least, self.most).clamp(max=highest)
        guided = mixed(self.mix, x_0["cond"], x_0["negative"], self.scale, x_t, step)
        return torch.lerp(x_0["negative"], guided, smooth(r, SOFT))

    def spread(self, name: str, x_t: Tensor) -> list[Tensor]:
        """A pass's cross-attention [B, L, h', w'] spread by self-attention, of each layer on the finest grid."""
        layers = [
            (site, self.maps[name, f"{layer[:-1]}1"][1], cross)
            for (owner, layer), (site, cross) in self.maps.items()
            if owner == name and site.kind == "cross" and self.finest <= x_t.shape[2] / site.height <= self.coarsest
        ]
        if not layers:
            bounds = f"finest={self.finest}, coarsest={self.coarsest}"
            raise Unfit(f"{bounds}: the network has no attention so coarse, of up to {LARGEST_MAP} patches")
        grid = max((site.height, site.width) for site, _, _ in layers)
        out = []
        for site, A, cross in layers:
            maps = ((A + 3 * A @ A) / 4 @ cross).mT.unflatten(2, (site.height, site.width))
            out.append(smooth(F.interpolate(maps, grid, mode="bilinear"), SOFT))
        return out


def regions(maps: list[Tensor], x_t: Tensor) -> Tensor:
    """Masks [B, L, h, w] of the cells where each of L is the strongest, on the average of layers [B, L, h', w']."""
    relative = torch.stack([m / (m.mean(dim=(2, 3), keepdim=True) + 1e-8) for m in maps]).mean(dim=0)
    owner = F.one_hot(relative.argmax(dim=1), relative.shape[1]).movedim(-1, 1)
    return F.interpolate(owner.to(x_t.dtype), x_t.shape[2:])


def averages(values: Tensor, masks: Tensor) -> Tensor:
    """The mean of values [B, 1, h, w] in each of the masks [B, L, h, w]: [B, L, 1, 1]; 0 in an empty one."""
    return (values * masks).sum(dim=(2, 3), keepdim=True) / (masks.sum(dim=(2, 3), keepdim=True) + 1e-8)
