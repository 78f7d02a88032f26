import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from guidance.branch import Branch, Unfit, Wrapper, check_number, combined, more
from guidance.edits import check_bos, is_small, record
from guidance.filters import SOFT, smooth
from ldm.attention import Site, is_cross
from ldm.condition import Condition, Conditions
from samplers.predict import Denoised
from samplers.schedule import Step

FUNCTION_WORDS = re.compile("a|an|and|are|as|at|by|for|from|in|into|is|it|its|next|of|on|or|the|to|with")


@dataclass(frozen=True)
class AttendAndExcite(Wrapper):
    """Attend-and-Excite (Chefer et al. 2023, arXiv 2301.13826, algorithm 1): x_t moves until each word is seen.

    Before a step, x_t goes down the gradient of max over words of 1 - max over patches of the word's cross-attention;
    then `inner` guides from there. One additional pass with a gradient in each of the first steps, and up to `rounds`
    more in those of `refine`. It goes outside all else: what is around it would mix passes at x_t with moved ones.
    words       of any case; None: all of the image's prompt but articles, prepositions and the like
    step_size   of the gradient; falls to sqrt(1/2) of it over the steps
    stop        the share of the steps that are so prepared
    refine      (share, threshold): in the step at that share of all, x_t moves until each word's attention is at the
                threshold, at most `rounds` times; those of a batch that are there wait for the others
    downscale   the maps' side is this part of the latent's: 16 x 16 in Stable Diffusion
    Tuned for Stable Diffusion 1.4 at scale 7.5 and 50 steps. Attention is the mean of layers and heads, told apart anew
    among the tokens but BOS and the last by a softmax of 100 times its weights, and smoothed, as in the authors' code.
    """

    words: Sequence[str] | None = None
    step_size: float = 20.0
    stop: float = 0.5
    refine: Sequence[Sequence[float]] = ((0.0, 0.05), (0.2, 0.5), (0.4, 0.8))
    rounds: int = 20
    downscale: int = 4
    maps: dict[str, tuple[Site, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)
    moved: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size)
        check_number("stop", self.stop, most=1)
        if type(self.downscale) is not int or self.downscale < 1:
            raise ValueError(f"downscale={self.downscale}: must be a whole number of at least 1")
        if type(self.rounds) is not int or self.rounds < 0:
            raise ValueError(f"rounds={self.rounds}: must be a whole number of at least 0")
        if not all(len(pair) == 2 and all(0 <= value <= 1 for value in pair) for pair in self.refine):
            raise ValueError(
                f"refine={list(self.refine)}: must be pairs of a share of the steps and a threshold, each from 0 to 1"
            )
        if self.words is not None:
            assert not isinstance(self.words, str), f"words={self.words!r}: must be a list of words"
            object.__setattr__(self, "words", tuple(str(word).lower() for word in self.words))

    def acts(self, step: Step) -> bool:
        return step.stage == 0 and step.i < self.stop * step.n

    def see(self, site: Site, weights: Tensor) -> None:
        self.maps[site.name] = (site, weights)

    def looked_at(self, branch: Branch) -> Branch:
        look = record(self.see, lambda site: is_cross(site) and is_small(site))
        return replace(branch, edits=(*branch.edits, look), gradient=True)

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        branches = super().branches(conditions, step)
        if not self.acts(step):
            return branches
        check_bos(branches["cond"].condition)
        return {"cond": self.looked_at(branches["cond"])}

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        if not self.acts(step):
            return super().more(conditions, x_0, x_t, step)
        if own := of_inner(x_0):
            return self.there(more(self.inner, conditions, own, self.moved["x_t"], step))
        branches, done = super().branches(conditions, step), sum(name.startswith("refined") for name in x_0)
        x = self.moved["x_t"] if done else x_t
        loss = self.loss(branches["cond"].condition, x)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        behind = loss > 1 - self.threshold(step)
        refining = done < self.rounds and bool(behind.any())
        size = self.step_size * (1 - 0.5 * step.i / max(step.n - 1, 1)) ** 0.5
        moving = behind if refining else torch.ones_like(behind)
        self.moved["x_t"] = x.detach() - size * moving.reshape(-1, *[1] * (x.ndim - 1)) * gradient
        if refining:
            start = replace(branches["cond"], x_t=self.moved["x_t"].requires_grad_())
            return {f"refined {done + 1}": self.looked_at(start)}
        return self.there(branches)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        if not self.acts(step):
            return combined(self.inner, x_0, x_t, step)
        return combined(self.inner, of_inner(x_0), self.moved["x_t"], step)

    def there(self, branches: dict[str, Branch]) -> dict[str, Branch]:
        """Passes of `inner`, where x_t has moved to."""
        x_t = self.moved["x_t"]
        return {
            f"moved {name}": replace(branch, x_t=x_t if branch.x_t is None else branch.x_t)
            for name, branch in branches.items()
        }

    def threshold(self, step: Step) -> float:
        """The attention that each word must reach in this step."""
        return next((least for share, least in self.refine if step.i == int(share * step.n + 0.5)), 0.0)

    def loss(self, condition: Condition, x_t: Tensor) -> Tensor:
        """[B], the lack of attention of each image's least seen word; 0 for an image without any."""
        side = x_t.shape[2] // self.downscale
        found = [(site, weights) for site, weights in self.maps.values() if site.height == side]
        if not found:
            raise Unfit(f"downscale={self.downscale}: the network has no cross-attention {side} patches high")
        site = found[0][0]
        attention = torch.cat([weights for _, weights in found], dim=1).mean(dim=1)  # [B, P, L]
        told_apart = (100 * attention[..., 1:-1]).softmax(dim=-1).mT.unflatten(2, (site.height, site.width))
        most = smooth(told_apart, SOFT).amax(dim=(2, 3))  # [B, L - 2]
        lack = [
            torch.stack([(1 - row[k - 1]).clamp(min=0) for k in tokens] or [0 * row.sum()]).max()
            for row, tokens in zip(most, self.tokens(condition, most.shape[1]), strict=True)
        ]
        return torch.stack(lack)

    def tokens(self, condition: Condition, last: int) -> list[list[int]]:
        """Positions 1 .. last of the tokens of each image's words."""

        def wanted(word: str) -> bool:
            return not FUNCTION_WORDS.fullmatch(word) if self.words is None else word in self.words

        return [
            [k for span in spans if wanted(span.word) for k in range(span.start, span.stop) if k <= last]
            for spans in condition.spans
        ]


def of_inner(x_0: dict[str, Tensor]) -> dict[str, Tensor]:
    """The estimates of the passes after the move, under the names that `inner` gave them."""
    return {name.removeprefix("moved "): value for name, value in x_0.items() if name.startswith("moved ")}
