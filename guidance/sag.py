from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from guidance.branch import Branch, Unfit, Wrapper, check_number, check_once, combined, more
from guidance.edits import changing, only_at, record
from guidance.filters import check_grid, gaussian, smooth
from guidance.mix import Linear, Mix, mixed, shifted
from ldm.attention import Site
from ldm.condition import Conditions
from samplers.predict import Denoised
from samplers.schedule import Step


@dataclass(frozen=True)
class SelfAttentionGuidance(Wrapper):
    """Self-attention guidance, SAG (Hong et al. 2022, arXiv 2210.00939, algorithm 1): away from a blurred picture.

    `inner` + s (eps(x_t, u) - eps(x~_t, u)), in eps; one additional pass, after the others. x~_t is the negative pass's
    own x_0 (the conditional's, where there is no negative pass), blurred where self-attention looks most, and noised
    again with its eps.
    scale   s; 0.75 is tuned for Stable Diffusion 1; 0 is `inner`
    layers  whose self-attention says where: of the mean of the heads, the patches that receive more than their share
    mix     the rule that applies the difference, as in `Perturbed`
    The blur is 9 x 9 cells, sigma 1: latents need 5 at least in height and width.
    """

    scale: float = 0.75
    layers: Sequence[str] = ("mid_block",)
    mix: Mix = Linear()
    maps: dict[str, tuple[Site, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number("scale", self.scale)
        check_once(self)

    def see(self, site: Site, weights: Tensor) -> None:
        self.maps["last"] = (site, weights)

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        branches = super().branches(conditions, step)
        if not self.scale:
            return branches
        name = base(branches)
        look = only_at(self.layers, record(self.see, lambda site: site.kind == "self"))
        return branches | {name: replace(branches[name], edits=(*branches[name].edits, look))}

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        branches = more(self.inner, conditions, x_0, x_t, step)
        if branches or "blurred" in x_0 or not self.scale:
            return branches
        name = base(x_0)
        degraded = step.now.x_t(self.blurred(x_0[name]), step.now.eps(x_t, x_0[name]))
        same = super().branches(conditions, step)[name]
        return {"blurred": replace(same, edits=changing(same.edits), x_t=degraded, gradient=False)}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        if not self.scale:
            return combined(self.inner, x_0, x_t, step)
        estimate = x_0[base(x_0)]
        # the pass saw another x_t: the same eps at this one belongs to an x_0 moved by as much as that was
        weak = x_0["blurred"] + estimate - self.blurred(estimate)
        push = mixed(self.mix, estimate, weak, 1 + self.scale, x_t, step) - estimate
        return shifted(combined(self.inner, x_0, x_t, step), push, step)

    def blurred(self, x_0: Tensor) -> Tensor:
        """x_0 blurred where it is attended to."""
        if not self.maps:
            raise Unfit(f"layers={self.layers}: the network has no self-attention there")
        check_grid(x_0)
        site, weights = self.maps["last"]
        attended = weights.mean(dim=1).sum(dim=1) > 1  # [B, P]
        mask = attended.reshape(-1, 1, site.height, site.width).to(x_0.dtype)
        mask = F.interpolate(mask, x_0.shape[2:])
        return torch.lerp(x_0, smooth(x_0, gaussian(9, 1.0)), mask)


def base(passes: dict[str, Branch] | dict[str, Tensor]) -> str:
    """The pass that is degraded."""
    return "negative" if "negative" in passes else "cond"
