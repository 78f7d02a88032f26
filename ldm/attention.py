"""Attention, and the one place where its softmax weights can be seen or changed.

Letters of shapes: B rows (branches x images), K branches, H heads, P query patches, L keys (patches, or the 77 tokens),
C channels, c channels of one head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm import cpu
from ldm.condition import Condition, Unfit
from ldm.layers import Conv2d, GroupNorm, Linear


@dataclass(frozen=True)
class Site:
    """A place in the U-Net that edits reach: the dotted name of its layer, its kind, and its grid of patches or cells.

    kind  of an AttentionEdit: "self", "cross"; of a FeatureEdit: "resnet", "transformer" (what leaves such a block),
          "stream", "skip" (the two that a block on the way up joins, named after that block)
    """

    name: str
    kind: str
    height: int
    width: int


def is_cross(site: Site) -> bool:
    return site.kind == "cross"


@dataclass(frozen=True)
class AttentionEdit:
    """A function of the attention weights of one branch, and the sites where it acts.

    `function(weights, site)` receives the post-softmax weights [B/K, H, P, L] in float32 and returns weights of the
    same shape, new ones or these, written into; rows need not sum to one. Where `where` is false, and in branches
    without an edit, the fused attention runs.
    observes  the function only looks, and what it returns is ignored: the fused attention's result is kept
    logs      it receives the weights' logarithms, which are the scores up to a constant of each query
    """

    function: Callable[[Tensor, Site], Tensor | None]
    where: Callable[[Site], bool] = is_cross
    observes: bool = False
    logs: bool = False


@dataclass(frozen=True)
class FeatureEdit:
    """A function of the hidden states of one branch at block exits and skip joins, and the sites where it acts.

    `function(features, site)` receives features [B/K, C, h, w] in the network's dtype and returns as many.
    """

    function: Callable[[Tensor, Site], Tensor]
    where: Callable[[Site], bool]


Edit = AttentionEdit | FeatureEdit
Edits = Sequence[Sequence[Edit]]  # those of each branch, in the order of the rows; () where no branch has any
AttentionEdits = Sequence[Sequence[AttentionEdit]]  # the same, sorted by what they act on
FeatureEdits = Sequence[Sequence[FeatureEdit]]


def edits_of(kind: type, edits: Edits) -> Sequence[Sequence[Any]]:
    """The edits of one kind, branch by branch; () if there is none."""
    found = [[edit for edit in branch if isinstance(edit, kind)] for branch in edits]
    return found if any(found) else ()


def attend(q: Tensor, k: Tensor, v: Tensor, site: Site, edits: AttentionEdits) -> Tensor:
    """Attention [B, H, P, c] of queries [B, H, P, c] over keys and values [B, H, L, c], with the edits applied."""
    active = [[edit for edit in branch if edit.where(site)] for branch in edits]
    if not any(active):
        return cpu.attention(q, k, v)
    changes = [any(not edit.observes for edit in branch) for branch in active]
    out = []
    for branch, changed, q_k, k_k, v_k in zip(active, changes, *(x.chunk(len(active)) for x in (q, k, v)), strict=True):
        weights = edited(q_k, k_k, site, branch) if branch else None
        if changed and weights is not None:
            out.append(weights.to(v.dtype) @ v_k)
        elif any(changes):
            out.append(cpu.attention(q_k, k_k, v_k))
    return torch.cat(out) if out else cpu.attention(q, k, v)  # the same bits where all look


def check_cross(edits: AttentionEdits, layers: Sequence[str], tokens: Tensor | None) -> None:
    """Raises Unfit for an edit of cross-attention alone, at layers of these dotted names, with nothing to attend to.

    Of one of the condition's tokens [B, L, D] the weight is always 1.
    """
    if tokens is not None and tokens.shape[1] > 1:
        return
    for edit in (edit for branch in edits for edit in branch):
        acts = {kind: any(edit.where(Site(name, kind, 1, 1)) for name in layers) for kind in ("self", "cross")}
        if acts["cross"] and not acts["self"]:
            there = "no tokens" if tokens is None else "one token, whose weight is always 1"
            raise Unfit(f"it acts on the attention to a prompt's words, and this model is told {there}")


def edited(q: Tensor, k: Tensor, site: Site, edits: Sequence[AttentionEdit]) -> Tensor:
    """One branch's attention weights [B, H, P, L] in float32 after its edits, each seeing what those before it left."""
    scores, changed = q.float() @ k.float().mT * q.shape[-1] ** -0.5, None
    weights = scores.softmax(dim=-1)
    for edit in edits:
        given = weights if not edit.logs else scores.log_softmax(-1) if changed is None else weights.clamp(1e-37).log()
        if edit.observes:
            edit.function(given.clone() if len(edits) > 1 else given, site)  # a later edit may write in place
            continue
        changed = edit.function(given, site)
        assert changed is not None, f"the edit at {site.name} returned no weights"
        weights = changed
    return weights


def edit_features(h: Tensor, name: str, kind: str, edits: FeatureEdits) -> Tensor:
    """Features [B, C, h, w] after the feature edits of each branch that act at this site."""
    if not edits:
        return h
    site = Site(name, kind, h.shape[2], h.shape[3])
    parts = list(h.chunk(len(edits)))
    for i, branch in enumerate(edits):
        for edit in branch:
            if edit.where(site):
                parts[i] = edit.function(parts[i], site)
    return torch.cat(parts)


def split(x: Tensor, heads: int) -> Tensor:
    """Channels [B, L, H c] by heads [B, H, L, c]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention of patches [B, P, C] over themselves, or over a condition's tokens [B, L, text_width]."""

    def __init__(self, channels: int, heads: int, text_width: int | None = None, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.kind = "self" if text_width is None else "cross"
        self.name = ""  # the U-Net fills it in
        source = channels if text_width is None else text_width
        self.to_q = Linear(channels, channels, bias=bias)
        self.to_k = Linear(source, channels, bias=bias)
        self.to_v = Linear(source, channels, bias=bias)
        self.to_out = Linear(channels, channels)

    def forward(self, x: Tensor, condition: Condition, size: tuple[int, int], edits: AttentionEdits) -> Tensor:
        k, v = self.keys_and_values(x) if self.kind == "self" else self.of_tokens(condition)
        h = attend(split(self.to_q(x), self.heads), k, v, Site(self.name, self.kind, *size), edits)
        return self.to_out(h.transpose(1, 2).flatten(2))

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Both [B, H, L, c]."""
        return split(self.to_k(source), self.heads), split(self.to_v(source), self.heads)

    def of_tokens(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """Keys and values of the condition's tokens, which sampling shows in every step: kept there, if it keeps any.

        Made anew once the weights were written into. Never while something learns: a gradient wants its own graph.
        """
        tokens, kept = condition.tokens, condition.kept
        assert tokens is not None, "a network with cross-attention needs tokens"
        learns = torch.is_grad_enabled() and (tokens.requires_grad or any(p.requires_grad for p in self.parameters()))
        if kept is None or learns or torch.compiler.is_compiling():
            return self.keys_and_values(tokens)
        weights = [(p.data_ptr(), p.is_inference() or p._version) for p in self.parameters()]
        if self not in kept or kept[self][0] is not tokens or kept[self][1] != weights:
            k, v = self.keys_and_values(tokens)
            kept[self] = (tokens, weights, k.contiguous(), v.contiguous())
        return kept[self][2:]


class GEGLU(nn.Module):
    """Feed-forward layer whose hidden units are gated: value * gelu(gate), the exact gelu (Shazeer 2020)."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj_in = Linear(channels, 8 * channels)
        self.proj_out = Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(cpu.geglu(x, self.proj_in.weight, self.proj_in.bias))


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, text_width: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, text_width)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = GEGLU(channels)

    def forward(self, x: Tensor, condition: Condition, size: tuple[int, int], edits: AttentionEdits) -> Tensor:
        x = x + self.attn1(self.norm1(x), condition, size, edits)
        x = x + self.attn2(self.norm2(x), condition, size, edits)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Residual transformer over the patches of a feature map [B, C, h, w], told the condition's tokens."""

    def __init__(self, channels: int, heads: int, text_width: int | None, linear: bool, groups: int, depth: int = 1):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear else Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, heads, text_width) for _ in range(depth))
        self.proj_out = Linear(channels, channels) if linear else Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, condition: Condition, edits: AttentionEdits) -> Tensor:
        size = (x.shape[2], x.shape[3])
        h = project(self.proj_in, rearrange(self.norm(x), "B C h w -> B (h w) C"))
        for block in self.transformer_blocks:
            h = block(h, condition, size, edits)
        return x + rearrange(project(self.proj_out, h), "B (h w) C -> B C h w", h=size[0])


def project(layer: Linear | Conv2d, h: Tensor) -> Tensor:
    """A linear layer, or a 1x1 convolution, of patches [B, P, C]."""
    return cpu.linear(h, layer.weight, layer.bias)
