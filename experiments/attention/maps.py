"""Which words the patches of a picture attend to, and which word owns which patch.

Letters of shapes: H heads, P = h x w patches, L tokens (77), W words, of one image in one cross-attention layer.
BOS, EOS and padding are no words; a word that CLIP splits has all its tokens; a repeated word is two words.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.files import UserError
from guidance import Branch, Guidance, Wrapper, edits
from ldm.attention import AttentionEdit, Site
from ldm.condition import Conditions, Span
from samplers import Step


def word_maps(weights: Tensor, words: Sequence[Span], site: Site) -> Tensor:
    """The share of a patch's attention that each word gets, [W, h, w] in 0..1, of weights [H, P, L]; heads' mean."""
    maps = tokens_of(words, weights).to(weights.dtype) @ weights.mean(dim=0).mT
    return maps.reshape(len(words), site.height, site.width)


def word_votes(weights: Tensor, words: Sequence[Span], site: Site, argmax: str, candidates: str) -> Tensor:
    """The share of heads whose strongest token at a patch is of each word, [W + 1, h, w] in 0..1, of weights [H, P, L].

    The strongest token is chosen as segmentation-free guidance chooses it, by its settings `argmax` ("head"; "mean":
    the heads' average has one vote) and `candidates` ("all_but_bos"; "words"). The last map: a token of no word.
    """
    k_star = edits.strongest(weights[None], argmax, [words] if candidates == "words" else None)[0, ..., 0]  # [H, P]
    votes = tokens_of(words, weights)[:, k_star].float().mean(dim=1)  # [W, P]
    votes = torch.cat([votes, 1 - votes.sum(dim=0, keepdim=True)])
    return votes.reshape(len(words) + 1, site.height, site.width)


def tokens_of(words: Sequence[Span], weights: Tensor) -> Tensor:
    """Mask [W, L] of each word's tokens."""
    return edits.candidates([[word] for word in words], weights.shape[-1])[:, 0, 0].to(weights.device)


def owner_map(votes: Tensor) -> Tensor:
    """The index of the word that owns each patch, [h, w], of votes [W + 1, h, w]; W where no word does."""
    return votes.argmax(dim=0)


def average(maps: Collection[Tensor]) -> Tensor:
    """The mean [N, h, w] of several layers' maps or votes on the finest grid among them, coarse patches being split."""
    finest = max(tuple(layer.shape[1:]) for layer in maps)
    return torch.stack([F.interpolate(layer[None], finest, mode="nearest")[0] for layer in maps]).mean(dim=0)


@dataclass(frozen=True)
class StepMaps:
    """What one step recorded: the words of the prompt that ruled, and, by layer name, `word_maps` and `word_votes`."""

    words: tuple[Span, ...]
    maps: dict[str, Tensor] = field(default_factory=dict)
    votes: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorder(Wrapper):
    """Another guidance, and in `steps`, by step index, the maps of the first image in its "cond" branch.

    layers  beginnings of the layers' dotted names, as in "up_blocks.1"; "" is the beginning of all
    only    the indices of the steps that are recorded; None: all
    """

    inner: Guidance
    layers: Collection[str] = ("",)
    argmax: str = "head"
    candidates: str = "words"
    steps: dict[int, StepMaps] = field(default_factory=dict)
    only: Collection[int] | None = None

    def __post_init__(self) -> None:
        for name, choices in (("argmax", ("head", "mean")), ("candidates", ("all_but_bos", "words"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)}: must be {' or '.join(choices)}")

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        branches = super().branches(conditions, step)
        if self.only is not None and step.i not in self.only:
            return branches
        cond = branches["cond"]
        self.steps[step.i] = StepMaps(cond.condition.spans[0])
        return {**branches, "cond": replace(cond, edits=(*cond.edits, self.edit(self.steps[step.i])))}

    def edit(self, seen: StepMaps) -> AttentionEdit:
        def store(site: Site, weights: Tensor) -> None:
            seen.maps[site.name] = word_maps(weights[0], seen.words, site).cpu()
            seen.votes[site.name] = word_votes(weights[0], seen.words, site, self.argmax, self.candidates).cpu()

        return edits.only_at(self.layers, edits.record(store))
