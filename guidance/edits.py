"""Edits of attention weights [B, H, P, L] (images, heads, patches, keys), for the branches of a guidance."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.attention import AttentionEdit, Edit, FeatureEdit, Site, is_cross
from ldm.condition import Condition, Span, Unfit

LARGEST_MAP = 32 * 32  # patches of a map worth its memory, where a guidance needs maps of many layers


def is_small(site: Site) -> bool:
    return site.height * site.width <= LARGEST_MAP


def scale_strongest(
    factor: float, argmax: str = "head", words: Sequence[Sequence[Span]] | None = None
) -> AttentionEdit:
    """In every cross-attention layer, multiply each patch's largest weight A_pk* by a factor; nothing is renormalised.

    The step of segmentation-free guidance (Azarian et al. 2024, eq. 8-9 and algorithm 1), whose factor is -a.
    argmax  "head": each head has its own k*; "mean": one k* per patch, the strongest on the average of the heads
    words   candidates for k*: the tokens of these spans, one sequence of spans per image; by default all but BOS. An
            image without any stays as it is
    """

    def function(weights: Tensor, site: Site) -> Tensor:
        k_star = strongest(weights, argmax, words)
        scaled = weights.scatter(-1, k_star, factor * weights.gather(-1, k_star))
        if words is None or all(words):
            return scaled
        has_words = torch.tensor([bool(spans) for spans in words], device=weights.device)
        return torch.where(has_words[:, None, None, None], scaled, weights)

    return AttentionEdit(function)


def scale_strongest_score(factor: float, argmax: str = "head") -> AttentionEdit:
    """In every cross-attention layer, multiply each patch's strongest token's score, before the softmax, by a factor.

    Not the published step (`scale_strongest`): what a published comparison takes for it. Needs a condition with a last
    token of zeros (`with_zero_token`), whose key is zero and whose score is therefore 0: it tells the scores from the
    weights, and takes no part. BOS is no candidate.
    """

    def function(logs: Tensor, site: Site) -> Tensor:
        scores = logs[..., :-1] - logs[..., -1:]
        k_star = strongest(scores, argmax)
        scores = scores.scatter(-1, k_star, factor * scores.gather(-1, k_star))
        return torch.cat([scores.softmax(dim=-1), torch.zeros_like(logs[..., -1:])], dim=-1)

    return AttentionEdit(function, logs=True)


def with_zero_token(condition: Condition) -> Condition:
    """The same with one more token, of zeros."""
    return replace(condition, tokens=F.pad(text_tokens(condition), (0, 0, 0, 1)))


def text_tokens(condition: Condition) -> Tensor:
    """The tokens [B, L, D] of a text. Raises Unfit for a condition that is none: a class, or nothing."""
    if condition.tokens is None or condition.tokens.shape[1] == 1:
        raise Unfit("it acts on the words of a prompt, and this model is not told a text")
    return condition.tokens


def check_bos(condition: Condition) -> None:
    """Raises Unfit for tokens that do not begin with one of no word, as boxes do not."""
    if any(span.start == 0 for spans in condition.spans for span in spans):
        raise Unfit("it leaves out the first token, which is a text's BOS, and this model is not told a text")


def without_zero_token() -> AttentionEdit:
    """Takes the weight of the last token, and gives it to the others in proportion: as if it were not there."""

    def function(weights: Tensor, site: Site) -> Tensor:
        others = weights[..., :-1]
        return torch.cat([others / others.sum(dim=-1, keepdim=True), torch.zeros_like(weights[..., -1:])], dim=-1)

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
    encoded again (the exact form of segmentation-free guidance, Azarian et al. 2024, eq. 5-7). Where the masked ones
    have all of a patch's weight, to float32's last bit, the others are not told apart any more and share it equally.
    """

    def function(weights: Tensor, site: Site) -> Tensor:
        masked = candidates(words, weights.shape[-1]).to(weights.device)
        kept = weights.masked_fill(masked, 0)
        kept = torch.where(kept.sum(dim=-1, keepdim=True) > 0, kept, (~masked).to(kept.dtype))
        return kept / kept.sum(dim=-1, keepdim=True)

    return AttentionEdit(function)


def record(store: Callable[[Site, Tensor], None], where: Callable[[Site], bool] = is_cross) -> AttentionEdit:
    """A probe: calls store(site, weights) wherever `where` is true, and changes nothing."""
    return AttentionEdit(lambda weights, site: store(site, weights), where, observes=True)


def only_at(layers: Collection[str], edit: AttentionEdit) -> AttentionEdit:
    """The same edit, restricted to the layers whose dotted name begins with one of these, as in "up_blocks.1"."""
    assert not isinstance(layers, str), f"layers={layers!r}: must be a list of names"
    return replace(edit, where=lambda site: site.name.startswith(tuple(layers)) and edit.where(site))


def changing(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Those of the edits that change what a pass says: all but those that only look."""
    return tuple(edit for edit in edits if isinstance(edit, FeatureEdit) or not edit.observes)
