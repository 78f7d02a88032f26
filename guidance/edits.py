"""Edits of attention weights [B, H, P, L] (images, heads, patches, keys), to be hung on a branch."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ldm.attention import AttentionEdit, Site, is_cross
from ldm.text import Span


def scale_strongest(
    factor: float, argmax: str = "head", words: Sequence[Sequence[Span]] | None = None
) -> AttentionEdit:
    """In every cross-attention layer, multiply each patch's largest weight A_pk* by a factor; nothing is renormalised.

    The step of segmentation-free guidance (Azarian et al. 2024, eq. 8-9 and algorithm 1), whose factor is -a.
    argmax  "head": each head has its own k*; "mean": one k* per patch, the strongest on the average of the heads
    words   candidates for k*: the tokens of these spans, one sequence of spans per image; by default all but BOS
    """

    def function(weights: Tensor, site: Site) -> Tensor:
        k_star = strongest(weights, argmax, words)
        return weights.scatter(-1, k_star, factor * weights.gather(-1, k_star))

    return AttentionEdit(function)


def strongest(weights: Tensor, argmax: str = "head", words: Sequence[Sequence[Span]] | None = None) -> Tensor:
    """The token k* that owns each patch, [B, H, P, 1]: see `scale_strongest`. With argmax="mean" all heads agree."""
    ranked = weights if argmax == "head" else weights.mean(dim=1, keepdim=True)
    if words is None:  # all but BOS, whose weight is mostly the largest
        k_star = 1 + ranked[..., 1:].argmax(dim=-1, keepdim=True)  # [B, H or 1, P, 1]
    else:
        allowed = candidates(words, weights.shape[-1]).to(weights.device)
        k_star = ranked.masked_fill(~allowed, -1).argmax(dim=-1, keepdim=True)
    return k_star.expand(*weights.shape[:3], 1)


def candidates(words: Sequence[Sequence[Span]], length: int) -> Tensor:
    """Mask [B, 1, 1, L] of the tokens of these spans, one sequence of spans per image."""
    mask = torch.zeros(len(words), 1, 1, length, dtype=torch.bool)
    for row, spans in zip(mask, words, strict=True):
        for span in spans:
            row[..., span.start : span.stop] = True
    return mask


def leave_out(words: Sequence[Sequence[Span]]) -> AttentionEdit:
    """In every cross-attention layer, mask the tokens of these spans (one sequence per image) from the keys.

    The others' weights are renormalised, as if the scores of the masked ones were minus infinity; the prompt is not
    encoded again (the exact form of segmentation-free guidance, Azarian et al. 2024, eq. 5-7).
    """

    def function(weights: Tensor, site: Site) -> Tensor:
        kept = weights.masked_fill(candidates(words, weights.shape[-1]).to(weights.device), 0)
        return kept / kept.sum(dim=-1, keepdim=True)

    return AttentionEdit(function)


def record(store: Callable[[Site, Tensor], None], where: Callable[[Site], bool] = is_cross) -> AttentionEdit:
    """A probe: calls store(site, weights) wherever `where` is true, and changes nothing."""

    def function(weights: Tensor, site: Site) -> Tensor:
        store(site, weights)
        return weights

    return AttentionEdit(function, where)


def only_at(layers: Collection[str], edit: AttentionEdit) -> AttentionEdit:
    """The same edit, restricted to the layers whose dotted name begins with one of these, as in "up_blocks.1"."""
    return replace(edit, where=lambda site: site.name.startswith(tuple(layers)) and edit.where(site))


def chain(*edits: AttentionEdit | None) -> AttentionEdit | None:
    """One edit after another, each where it applies; None stands for no edit."""
    present = [edit for edit in edits if edit is not None]

    def function(weights: Tensor, site: Site) -> Tensor:
        for edit in present:
            if edit.where(site):
                weights = edit.function(weights, site)
        return weights

    return AttentionEdit(function, lambda site: any(edit.where(site) for edit in present)) if present else None
