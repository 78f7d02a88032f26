"""The diffusion transformer (Peebles & Xie 2023), on latent grids by patches and on latent vectors by slices.

Letters of shapes: B rows, C channels, h x w the latent grid, d numbers of a latent vector, P patches or slices of them,
D width.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.attention import Attention, AttentionEdit, AttentionEdits, Edits, FeatureEdit, Site, edits_of
from ldm.condition import Condition, Unfit
from ldm.config import DiTConfig
from ldm.layers import Linear
from ldm.unet import TimeEmbedding

TIME_WIDTH = 256  # of the cosines and sines of a time


class DiTBlock(nn.Module):
    """Attention and an MLP, each shifted, scaled and gated by the embedding of time and class (adaLN-zero).

    Without heads there is no attention: a residual MLP.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.modulation = zeroed(Linear(width, (6 if heads else 3) * width))
        if heads:
            self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
            self.attn1 = Attention(width, heads, bias=True)
        self.heads = heads
        self.norm2 = nn.LayerNorm(width, eps=1e-5, elementwise_affine=False)
        self.linear_1 = Linear(width, mlp_ratio * width)
        self.linear_2 = Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor, told: Tensor, size: tuple[int, int], edits: AttentionEdits) -> Tensor:
        *attention, shift, scale, gate = self.modulation(told)[:, None].chunk(6 if self.heads else 3, dim=-1)
        if self.heads:
            h = modulated(self.norm1(x), *attention[:2])
            x = x + attention[2] * self.attn1(h, Condition(), size, edits)
        h = self.linear_1(modulated(self.norm2(x), shift, scale))
        return x + gate * self.linear_2(F.gelu(h, approximate="tanh"))


class DiT(nn.Module):
    """eps, v, x0 or flow (as it was trained) of a noisy latent under a condition.

    forward(x_t, t, condition, edits) -> as x_t, in the weights' dtype
      x_t        [B, C, h, w], h and w multiples of patch_size, or [B, d] where `tokens` says so; in any dtype
      t          0 .. num_timesteps - 1, fractional too: a number, or one per row [B]
      condition  vector [B, D], of a class, added to the time embedding; or nothing
      edits      of self-attention, branch by branch, as in the U-Net
    Raises Unfit for edits of what it does not have: cross-attention, skip joins, layers of other names.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, cells = config.width, config.in_channels // config.tokens if config.tokens else config.patch_size**2
        numbers = cells if config.tokens else cells * config.in_channels  # of a patch, or of a slice
        self.config = config
        self.time_embedding = TimeEmbedding(TIME_WIDTH, width, shift=1)
        self.proj_in = Linear(numbers, width)
        self.blocks = nn.ModuleList(DiTBlock(width, config.heads, config.mlp_ratio) for _ in range(config.layers))
        self.modulation_out = zeroed(Linear(width, 2 * width))
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.proj_out = zeroed(Linear(width, (1 + config.learn_sigma) * numbers))
        self.attention_layers = [name for name, module in self.named_modules() if isinstance(module, Attention)]
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                module.name = name

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Condition, edits: Edits = ()) -> Tensor:
        return self.moments(x_t, t, condition, edits)[0]

    def moments(
        self, x_t: Tensor, t: float | Tensor, condition: Condition, edits: Edits = ()
    ) -> tuple[Tensor, Tensor | None]:
        """The prediction, and what says its variance (improved DDPM's v) where it was learnt: both as x_t."""
        if condition.channels is not None:
            raise Unfit("it takes no channels beside x_t")
        x, size = self.patches(x_t.to(self.proj_in.weight.dtype))
        self.check_edits(edits, size)
        told = self.time_embedding(torch.as_tensor(t, device=x_t.device).reshape(-1))
        if condition.vector is not None:
            told = told + condition.vector.to(told.dtype)
        told = F.silu(told)
        h = self.proj_in(x) + self.positions(*size).to(x)
        for block in self.blocks:
            h = block(h, told, size, edits_of(AttentionEdit, edits))
        h = self.proj_out(modulated(self.norm_out(h), *self.modulation_out(told)[:, None].chunk(2, dim=-1)))
        if not self.config.learn_sigma:
            return self.unpatched(h, size), None
        if self.config.tokens:
            mean, variance = h.chunk(2, dim=-1)
            return self.unpatched(mean, size), self.unpatched(variance, size)
        mean, variance = self.unpatched(h, size).chunk(2, dim=1)
        return mean, variance

    def patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A latent as [B, P, numbers of each], and the grid of the patches."""
        if self.config.tokens:
            return rearrange(x, "B (P n) -> B P n", P=self.config.tokens), (1, self.config.tokens)
        p = self.config.patch_size
        size = x.shape[2] // p, x.shape[3] // p
        return rearrange(x, "B C (h p) (w q) -> B (h w) (C p q)", p=p, q=p), size

    def unpatched(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """A latent of its patches; those of a grid hold their cells before their channels."""
        if self.config.tokens:
            return x.flatten(1)
        p = self.config.patch_size
        return rearrange(x, "B (h w) (p q C) -> B C (h p) (w q)", h=size[0], p=p, q=p)

    def positions(self, height: int, width: int) -> Tensor:
        """[P, D] of the places of patches, on the scale of the grid that it was trained on."""
        if self.config.tokens:
            return waves(width, float(width), self.config.width)
        trained = self.config.size / self.config.patch_size
        across = waves(width, trained, self.config.width // 2).repeat(height, 1)
        down = waves(height, trained, self.config.width // 2).repeat_interleave(width, dim=0)
        return torch.cat([across, down], dim=1)

    def check_edits(self, edits: Edits, size: tuple[int, int]) -> None:
        for edit in (edit for branch in edits for edit in branch):
            if isinstance(edit, FeatureEdit):
                raise Unfit("it acts on the skip joins of a U-Net, and this network has none")
            if not any(edit.where(Site(name, "self", *size)) for name in self.attention_layers):
                there = ", ".join(self.attention_layers) or "none"
                raise Unfit(f"it acts on attention that this network does not have: there is self-attention in {there}")


def zeroed(layer: Linear) -> Linear:
    """A layer whose output begins as 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


@lru_cache
def waves(count: int, trained: float, width: int) -> Tensor:
    """[count, width] of places 0 .. `trained`: sines, then cosines, at frequencies 1e4 ** (-i / (width / 2))."""
    places = torch.arange(count, dtype=torch.float64) * (trained / count)
    frequencies = torch.exp(torch.arange(width // 2, dtype=torch.float64) * (-math.log(10000.0) / (width // 2)))
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
