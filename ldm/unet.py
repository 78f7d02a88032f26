"""The latent U-Net of Stable Diffusion (Rombach et al. 2022).

Letters of shapes: B rows, C channels, h x w the latent grid, L text tokens.
Parameter names are those of a diffusers folder, but for the few that ldm/files/names.py lists.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.attention import Attention, Edits, SpatialTransformer
from ldm.config import UNetConfig
from ldm.layers import Conv2d, GroupNorm, Linear, ResBlock


class TimeEmbedding(nn.Module):
    """[B, out] of timesteps t [B]: cosines, then sines, at frequencies 1e4 ** (-i / (width / 2)), and two layers."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear_1 = Linear(width, out)
        self.linear_2 = Linear(out, out)

    def forward(self, t: Tensor) -> Tensor:
        half = self.linear_1.in_features // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / half))
        angles = t.float()[:, None] * frequencies
        h = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(h)))


class NoAttention(nn.Module):
    """Stands where a level has no spatial transformer."""

    def forward(self, x: Tensor, text: Tensor, edits: Edits) -> Tensor:
        return x


class DownLevel(nn.Module):
    """Blocks at one resolution on the way down; returns the output of each, and of the downsampling at their end."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsample = downsample

    def forward(self, x: Tensor, time: Tensor, text: Tensor, edits: Edits) -> list[Tensor]:
        out = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, time), text, edits)
            out.append(x)
        if self.downsample is not None:
            out.append(self.downsample(x))
        return out


class UpLevel(nn.Module):
    """Blocks at one resolution on the way up, each fed one of the features that the way down left."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], upsample: nn.Module | None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.upsample = upsample

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, text: Tensor, edits: Edits) -> Tensor:
        for resnet, attention, skip in zip(self.resnets, self.attentions, skips, strict=True):
            x = attention(resnet(torch.cat([x, skip], dim=1), time), text, edits)
        return x if self.upsample is None else self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """eps, v or x0 (as it was trained) of a noisy latent under a text.

    forward(x_t, t, text, edits) -> [B, out_channels, h, w]
      x_t   [B, in_channels, h, w], h and w multiples of 2 ** (levels - 1)
      t     timestep, 0 .. num_timesteps - 1: an int, or one per row [B]
      text  [B, L, text_width]
      edits one AttentionEdit or None per branch, the rows being split evenly over them in order; () for none
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        c, blocks = config.channels, config.blocks_per_level
        top = len(c) - 1
        time_width = 4 * c[0]

        def resnet(in_channels: int, out_channels: int) -> nn.Module:
            return ResBlock(in_channels, out_channels, config.norm_groups, 1e-5, time_width)

        def transformer(i: int) -> nn.Module:
            return SpatialTransformer(
                c[i], config.heads[i], config.text_width, config.linear_projection, config.norm_groups
            )

        def transformers(i: int, count: int) -> list[nn.Module]:
            return [transformer(i) if config.attention[i] else NoAttention() for _ in range(count)]

        self.time_embedding = TimeEmbedding(c[0], time_width)
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

        for name, module in self.named_modules():
            if isinstance(module, Attention):
                module.name = name

    def forward(self, x_t: Tensor, t: int | Tensor, text: Tensor, edits: Edits = ()) -> Tensor:
        time = F.silu(self.time_embedding(torch.as_tensor(t, device=x_t.device).reshape(-1)))
        skips = [self.conv_in(x_t)]
        for level in self.down_blocks:
            skips += level(skips[-1], time, text, edits)
        h = self.mid_block(skips[-1], time, text, edits)[-1]
        for level in self.up_blocks:
            h = level(h, [skips.pop() for _ in range(self.blocks_up)], time, text, edits)
        return self.conv_out(F.silu(self.conv_norm_out(h)))
