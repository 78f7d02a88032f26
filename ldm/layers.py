"""The layers that all networks are made of: torch.nn's, in weights, names and results, by the kernels of ldm/cpu.py.

Letters of shapes: B rows, C channels, h x w a grid of cells.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ldm import cpu


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return cpu.linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        out = cpu.conv2d(self, x)
        return super().forward(x) if out is None else out


class GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        out = cpu.group_norm(self, x)
        return super().forward(x) if out is None else out


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # where torch would load its compiler to draw normal numbers, for seconds
            super().reset_parameters()


class ResBlock(nn.Module):
    """Two convolutions; in the U-Net (`time_width`) with a time embedding [B or 1, time_width] added between them."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int, eps: float, time_width: int = 0):
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, in_channels, eps)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        if time_width:
            self.time_emb_proj = Linear(time_width, out_channels)
        self.norm2 = GroupNorm(norm_groups, out_channels, eps)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        if time is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return self.conv_shortcut(x) + h
