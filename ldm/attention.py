"""Attention, and the one place where its softmax weights can be seen or changed.

Letters of shapes: B rows (branches x images), K branches, H heads, P query patches, L keys (P for self-attention, the
77 tokens for cross-attention), C channels, c channels of one head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ldm.layers import Conv2d, GroupNorm, Linear, linear


@dataclass(frozen=True)
class Site:
    """Where in the U-Net an attention layer stands: its dotted name, "self" or "cross", and its grid of patches."""

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
    same shape; rows need not sum to one. Token spans that it needs are arguments of whoever builds it (see `Text`).
    At sites where `where` is false, and in branches without an edit, the fused attention runs.
    """

    function: Callable[[Tensor, Site], Tensor]
    where: Callable[[Site], bool] = is_cross


Edits = Sequence[AttentionEdit | None]  # one per branch, in the order of the rows; empty: no edit anywhere


def attend(q: Tensor, k: Tensor, v: Tensor, site: Site, edits: Edits) -> Tensor:
    """Attention [B, H, P, c] of queries [B, H, P, c] over keys and values [B, H, L, c], with the edits applied."""
    active = [edit if edit is not None and edit.where(site) else None for edit in edits]
    if not any(active):
        return F.scaled_dot_product_attention(q, k, v)
    out = []
    for edit, q_k, k_k, v_k in zip(active, *(x.chunk(len(active)) for x in (q, k, v)), strict=True):
        if edit is None:
            out.append(F.scaled_dot_product_attention(q_k, k_k, v_k))
        else:
            scores = q_k.float() @ k_k.float().mT * q.shape[-1] ** -0.5
            weights = scores.softmax(dim=-1)  # [B/K, H, P, L]
            edited = edit.function(weights, site)
            seen_only = edited is weights  # a probe: what it looks at is computed as without it, to the last bit
            out.append(F.scaled_dot_product_attention(q_k, k_k, v_k) if seen_only else edited.to(v.dtype) @ v_k)
    return torch.cat(out)


def split(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "B L (H c) -> B H L c", H=heads)


class Attention(nn.Module):
    """Multi-head attention of patches [B, P, C] over themselves, or over a text [B, L, text_width]."""

    def __init__(self, channels: int, heads: int, text_width: int | None = None):
        super().__init__()
        self.heads = heads
        self.kind = "self" if text_width is None else "cross"
        self.name = ""  # the U-Net fills it in
        self.read = WeakTensorKeyDictionary()  # texts: see keys_and_values
        source = channels if text_width is None else text_width
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(source, channels, bias=False)
        self.to_v = Linear(source, channels, bias=False)
        self.to_out = Linear(channels, channels)

    def forward(self, x: Tensor, source: Tensor, size: tuple[int, int], edits: Edits) -> Tensor:
        k, v = self.keys_and_values(source)
        h = attend(split(self.to_q(x), self.heads), k, v, Site(self.name, self.kind, *size), edits)
        return self.to_out(rearrange(h, "B H P c -> B P (H c)"))

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Both [B, H, L, c]. A text's are kept while that tensor lives, unwritten: sampling shows it in every step."""
        learns = source.requires_grad or self.to_k.weight.requires_grad
        if self.kind == "self" or learns or torch.compiler.is_compiling():
            return split(self.to_k(source), self.heads), split(self.to_v(source), self.heads)
        state = [0 if x.is_inference() else x._version for x in (source, self.to_k.weight, self.to_v.weight)]
        state.append(torch.is_inference_mode_enabled())  # whose tensors no gradient may meet
        if source not in self.read or self.read[source][0] != state:
            self.read[source] = state, split(self.to_k(source), self.heads), split(self.to_v(source), self.heads)
        return self.read[source][1:]


class GEGLU(nn.Module):
    """Feed-forward layer whose hidden units are gated: value * gelu(gate), the exact gelu (Shazeer 2020)."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj_in = Linear(channels, 8 * channels)
        self.proj_out = Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, text_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, text_width)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = GEGLU(channels)

    def forward(self, x: Tensor, text: Tensor, size: tuple[int, int], edits: Edits) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h, size, edits)
        x = x + self.attn2(self.norm2(x), text, size, edits)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Residual transformer over the patches of a feature map [B, C, h, w], told the text [B, L, text_width]."""

    def __init__(self, channels: int, heads: int, text_width: int, linear_projection: bool, norm_groups: int):
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear_projection else Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, text_width)])
        self.proj_out = Linear(channels, channels) if linear_projection else Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: Tensor, edits: Edits) -> Tensor:
        size = (x.shape[2], x.shape[3])
        h = project(self.proj_in, rearrange(self.norm(x), "B C h w -> B (h w) C"))
        for block in self.transformer_blocks:
            h = block(h, text, size, edits)
        return x + rearrange(project(self.proj_out, h), "B (h w) C -> B C h w", h=size[0])


def project(layer: Linear | Conv2d, h: Tensor) -> Tensor:
    """A linear layer, or a 1x1 convolution, of patches [B, P, C]."""
    return linear(h, layer.weight.flatten(1), layer.bias)
