"""The latent U-Net of Stable Diffusion (Rombach et al. 2022).

Letters of shapes: B rows, C channels, h x w the latent grid, L text tokens.
Parameter names are those of a diffusers folder, but for the few that ldm/files/names.py lists.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.attention import (
    Attention,
    AttentionEdit,
    AttentionEdits,
    Edits,
    FeatureEdit,
    FeatureEdits,
    SpatialTransformer,
    check_cross,
    edit_features,
    edits_of,
)
from ldm.condition import Condition, Unfit
from ldm.config import UNetConfig
from ldm.layers import Conv2d, GroupNorm, Linear, ResBlock


def sinusoids(t: Tensor, width: int, shift: int = 0) -> Tensor:
    """[B, width] of numbers t [B] in float32: cosines, then sines, at frequencies 1e4 ** (-i / (width / 2 - shift))."""
    half = width // 2
    slope = -math.log(10000.0) / (half - shift)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * slope)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """[B, out] of timesteps t [B]: sinusoids, and two layers."""

    def __init__(self, width: int, out: int, shift: int = 0):
        super().__init__()
        self.shift = shift
        self.linear_1 = Linear(width, out)
        self.linear_2 = Linear(out, out)

    def forward(self, t: Tensor) -> Tensor:
        h = sinusoids(t, self.linear_1.in_features, self.shift).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(h)))


class NoAttention(nn.Module):
    """Stands where a level has no spatial transformer."""

    def forward(self, x: Tensor, condition: Condition, edits: AttentionEdits) -> Tensor:
        return x


class Block(nn.Module):
    """Residual blocks at one resolution, each with a spatial transformer or none, whose features edits reach."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module]):
        super().__init__()
        self.name = ""  # the U-Net fills it in
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)

    def run(self, j: int, x: Tensor, time: Tensor, condition: Condition, edits: "Both") -> Tensor:
        """Its j-th residual block and transformer."""
        x = edit_features(self.resnets[j](x, time), f"{self.name}.resnets.{j}", "resnet", edits.features)
        if isinstance(self.attentions[j], NoAttention):
            return x
        x = self.attentions[j](x, condition, edits.attention)
        return edit_features(x, f"{self.name}.attentions.{j}", "transformer", edits.features)


class DownLevel(Block):
    """On the way down; returns the output of each block, and of the downsampling at their end."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], downsample: nn.Module | None):
        super().__init__(resnets, attentions)
        self.downsample = downsample

    def forward(self, x: Tensor, time: Tensor, condition: Condition, edits: "Both") -> list[Tensor]:
        out = []
        for j in range(len(self.resnets)):
            x = self.run(j, x, time, condition, edits)
            out.append(x)
        if self.downsample is not None:
            out.append(self.downsample(x))
        return out


class UpLevel(Block):
    """On the way up; each block is fed one of the features that the way down left."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], upsample: nn.Module | None):
        super().__init__(resnets, attentions)
        self.upsample = upsample

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, condition: Condition, edits: "Both") -> Tensor:
        for j, skip in enumerate(skips):
            x = edit_features(x, f"{self.name}.resnets.{j}", "stream", edits.features)
            skip = edit_features(skip, f"{self.name}.resnets.{j}", "skip", edits.features)
            x = self.run(j, torch.cat([x, skip], dim=1), time, condition, edits)
        return x if self.upsample is None else self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Both(NamedTuple):
    """A forward's edits, by what they act on."""

    attention: AttentionEdits
    features: FeatureEdits


class UNet(nn.Module):
    """eps, v, x0 or flow (as it was trained) of a noisy latent under a condition.

    forward(x_t, t, condition, edits) -> [B, out_channels, h, w], in the weights' dtype
      x_t        [B, C, h, w], in any dtype; h and w multiples of 2 ** (levels - 1)
      t          0 .. num_timesteps - 1, fractional too: a number, or one per row [B]
      condition  tokens [B, L, text_width] for cross-attention; vector [B, vector_width], added to the time embedding;
                 channels [B, in_channels - C, h, w], concatenated to x_t
      edits      the edits of each branch, the rows being split evenly over branches in order; () for none
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        c, blocks = config.channels, config.blocks_per_level
        top = len(c) - 1
        time_width = 4 * c[0]

        def resnet(in_channels: int, out_channels: int) -> nn.Module:
            return ResBlock(in_channels, out_channels, config.norm_groups, 1e-5, time_width)

        def transformer(i: int) -> nn.Module:
            heads, depth = config.heads[i], config.depth[i] if config.depth else 1
            return SpatialTransformer(
                c[i], heads, config.text_width, config.linear_projection, config.norm_groups, depth
            )

        def transformers(i: int, count: int) -> list[nn.Module]:
            return [transformer(i) if config.attention[i] else NoAttention() for _ in range(count)]

        self.time_embedding = TimeEmbedding(c[0], time_width)
        if config.vector_width:
            linears = Linear(config.vector_width, time_width), Linear(time_width, time_width)
            self.add_embedding = nn.ModuleDict({"linear_1": linears[0], "linear_2": linears[1]})
        self.conv_in = Conv2d(config.in_channels, c[0], 3, padding=1)

        width, skips = c[0], [c[0]]  # channels of the stream, and of what it leaves for the way up
        self.down_blocks = nn.ModuleList()
        for i in range(len(c)):
            resnets = [resnet(width if j == 0 else c[i], c[i]) for j in range(blocks)]
            downsample = Conv2d(c[i], c[i], 3, stride=2, padding=1) if i < top else None
            self.down_blocks.append(DownLevel(resnets, transformers(i, blocks), downsample))
            width = c[i]
            skips += [width] * (blocks + (i < top))

        self.mid_block = DownLevel([resnet(width, width) for _ in range(2)], [transformer(top), NoAttention()], None)

        self.blocks_up = blocks + 1
        self.up_blocks = nn.ModuleList()
        for i in reversed(range(len(c))):
            resnets = [resnet((width if j == 0 else c[i]) + skips.pop(), c[i]) for j in range(self.blocks_up)]
            upsample = Conv2d(c[i], c[i], 3, padding=1) if i > 0 else None
            self.up_blocks.append(UpLevel(resnets, transformers(i, self.blocks_up), upsample))
            width = c[i]

        self.conv_norm_out = GroupNorm(config.norm_groups, c[0], eps=1e-5)
        self.conv_out = Conv2d(c[0], config.out_channels, 3, padding=1)

        self.attention_layers = [name for name, module in self.named_modules() if isinstance(module, Attention)]
        for name, module in self.named_modules():
            if isinstance(module, Attention | Block):
                module.name = name

    def forward(self, x_t: Tensor, t: float | Tensor, condition: Condition, edits: Edits = ()) -> Tensor:
        both = Both(edits_of(AttentionEdit, edits), edits_of(FeatureEdit, edits))
        check_cross(both.attention, self.attention_layers, condition.tokens)
        time = F.silu(self.embedded(torch.as_tensor(t, device=x_t.device).reshape(-1), condition.vector))
        x = x_t if condition.channels is None else torch.cat([x_t, condition.channels], dim=1)
        skips = [self.conv_in(x.to(self.conv_in.weight.dtype))]
        for level in self.down_blocks:
            skips += level(skips[-1], time, condition, both)
        h = self.mid_block(skips[-1], time, condition, both)[-1]
        for level in self.up_blocks:
            h = level(h, [skips.pop() for _ in range(self.blocks_up)], time, condition, both)
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def embedded(self, t: Tensor, vector: Tensor | None) -> Tensor:
        """The time embedding [B or 1, time_width], with the condition's vector added."""
        if (vector is None) == hasattr(self, "add_embedding"):
            raise Unfit("this U-Net needs a vector beside tokens" if vector is None else "this U-Net takes no vector")
        time = self.time_embedding(t)
        if vector is None:
            return time
        h = self.add_embedding["linear_1"](vector.to(time.dtype))
        return time + self.add_embedding["linear_2"](F.silu(h))
