"""The layers that all three networks are made of. Weights, names and results are those of torch.nn; on a CPU without
gradients they take the kernels that experiments/benchmark/NOTES.md found faster.

Letters of shapes: B rows, C channels, h x w a grid of cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEW_ROWS = 16  # of a float32 product, up to which oneDNN's overhead is longer than its gain
FEW_CELLS = 0.2  # of all rows, per output channel, up to which a convolution is faster as one matrix product
TORCH_SMALL = 1024  # cells, below which torch norms a channels-last grid by another kernel


def plain_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether a CPU works on these tensors, of one dtype, without gradients, uncompiled (a compiler knows better)."""
    tracked = x.requires_grad or weight.requires_grad or torch.compiler.is_compiling()
    return x.device.type == "cpu" and x.dtype == weight.dtype and not tracked


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; on a CPU straight by oneDNN, where torch takes MKL (slow on AMD's) or a longer way there."""
    few = x.dtype == torch.float32 and x.numel() <= FEW_ROWS * x.shape[-1]
    if ONEDNN and not few and x.dtype != torch.float16 and plain_cpu(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        """On a CPU one product of patches and weights, for 1x1 kernels and where the grid is small: torch lays the
        weights out anew in every call, which there takes longer than the arithmetic."""
        k, s, p = self.kernel_size[0], self.stride[0], int(self.padding[0])
        many = x.numel() / s**2 > FEW_CELLS * self.weight.shape[:2].numel()
        if (k > 1 and many) or not plain_cpu(x, self.weight):
            return super().forward(x)
        patches = (F.pad(x, (p, p, p, p)) if p else x).unfold(2, k, s).unfold(3, k, s)
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3)  # [B, h, w, k k C], a view where k is 1
        return linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias).permute(0, 3, 1, 2)


class GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        """On a CPU in float32 where the grid is small: there torch's channels-last kernel for 16 bits is far slower."""
        if x.dtype == torch.float32 or x.shape[2:].numel() >= TORCH_SMALL or not plain_cpu(x, self.weight):
            return super().forward(x)
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


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
