"""A classifier of noisy latents, for guidance by its gradient (Dhariwal & Nichol 2021, section 4).

Letters of shapes: B images, C channels, h x w cells of the latent, K classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.layers import Conv2d, GroupNorm, Linear, ResBlock
from ldm.unet import TimeEmbedding


@dataclass(frozen=True)
class ClassifierConfig:
    """Residual convolutions on the way down that a U-Net has; one resolution level per entry of `channels`.

    classes          their names
    latent_channels  C
    scale            of the autoencoder whose latents it knows, by which that is recognised
    """

    classes: tuple[str, ...] = ()
    latent_channels: int = 4
    channels: tuple[int, ...] = (32, 64, 96)
    norm_groups: int = 8
    scale: float = 0.18215


class LatentClassifier(nn.Module):
    """Logits [B, K] of noisy latents x_t [B, C, h, w] at t (a number, or [B]); always in float32."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        c, groups = config.channels, config.norm_groups
        time_width = 4 * c[0]
        self.time_embedding = TimeEmbedding(c[0], time_width)
        self.conv_in = Conv2d(config.latent_channels, c[0], 3, padding=1)
        widths = zip((c[0], *c), c, strict=False)
        self.resnets = nn.ModuleList(ResBlock(before, width, groups, 1e-5, time_width) for before, width in widths)
        self.downsample = nn.ModuleList(Conv2d(width, width, 3, stride=2, padding=1) for width in c[:-1])
        self.norm_out = GroupNorm(groups, c[-1], eps=1e-5)
        self.out = Linear(c[-1], len(config.classes))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes

    def forward(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        time = F.silu(self.time_embedding(torch.as_tensor(t, device=x_t.device).reshape(-1)))
        h = self.conv_in(x_t)
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, time)
            if i < len(self.downsample):
                h = self.downsample[i](h)
        return self.out(F.silu(self.norm_out(h)).mean(dim=(2, 3))).float()
