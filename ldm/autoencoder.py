"""The KL autoencoder of Stable Diffusion (Rombach et al. 2022, section 3.1). The latent scale lives here only.

Letters of shapes: B images, C channels, H x W image pixels, h x w latent cells.
"""

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm import cpu
from ldm.config import AutoencoderConfig
from ldm.layers import Conv2d, GroupNorm, Linear, ResBlock

EPS = 1e-6  # of every GroupNorm in this file; the U-Net's residual blocks use 1e-5


class AttentionBlock(nn.Module):
    """Residual self-attention with a single head over the cells of a feature map."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.group_norm = GroupNorm(norm_groups, channels, eps=EPS)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = rearrange(self.group_norm(x), "B C h w -> B 1 (h w) C")
        h = self.to_out(cpu.attention(self.to_q(h), self.to_k(h), self.to_v(h)))
        return x + rearrange(h, "B 1 (h w) C -> B C h w", h=x.shape[2])


class Level(nn.Module):
    """The blocks at one resolution."""

    def __init__(self, resnets: list[ResBlock], attentions: list[AttentionBlock]):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsample: nn.Conv2d | None = None
        self.upsample: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        for j, resnet in enumerate(self.resnets):
            x = resnet(x)
            if j < len(self.attentions):
                x = self.attentions[j](x)
        if self.downsample is not None:
            x = self.downsample(F.pad(x, (0, 1, 0, 1)))  # right and bottom only
        if self.upsample is not None:
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


def blocks(width: int, channels: int, count: int, norm_groups: int) -> Level:
    widths = [width] + [channels] * (count - 1)
    return Level([ResBlock(width, channels, norm_groups, EPS) for width in widths], [])


def middle(channels: int, norm_groups: int) -> Level:
    resnets = [ResBlock(channels, channels, norm_groups, EPS) for _ in range(2)]
    return Level(resnets, [AttentionBlock(channels, norm_groups)])


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        c, groups = config.channels, config.norm_groups
        self.conv_in = Conv2d(config.image_channels, c[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width = c[0]
        for i, channels in enumerate(c):
            level = blocks(width, channels, config.blocks_per_level, groups)
            width = channels
            if i < len(c) - 1:
                level.downsample = Conv2d(width, width, 3, stride=2)
            self.down_blocks.append(level)
        self.mid_block = middle(width, groups)
        self.conv_norm_out = GroupNorm(groups, width, eps=EPS)
        self.conv_out = Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        c, groups = config.channels, config.norm_groups
        width = c[-1]
        self.conv_in = Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid_block = middle(width, groups)
        self.up_blocks = nn.ModuleList()
        for i, channels in reversed(list(enumerate(c))):
            level = blocks(width, channels, config.blocks_per_level + 1, groups)
            width = channels
            if i > 0:
                level.upsample = Conv2d(width, width, 3, padding=1)
            self.up_blocks.append(level)
        self.conv_norm_out = GroupNorm(groups, width, eps=EPS)
        self.conv_out = Conv2d(width, config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Autoencoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] to latents [B, latent_channels, h, w] of unit variance or so, and back."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.scale = config.scale
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, latent_channels, h, w] of q(latent | image), both in latent units."""
        mean, logvar = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype))).chunk(2, dim=1)
        return mean * self.scale, logvar.clamp(-30.0, 20.0) + 2 * math.log(self.scale)

    def decode(self, latent: Tensor) -> Tensor:
        """Image [B, 3, H, W] of a latent, about in [-1, 1] and not clamped."""
        return self.decoder(self.post_quant_conv(latent.to(self.quant_conv.weight.dtype) / self.scale))
