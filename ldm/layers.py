"""The layers that all three networks are made of. Weights, names and results are those of torch.nn; on a CPU without
gradients they take the kernels that experiments/benchmark/NOTES.md found faster.

Letters of shapes: B rows, C channels, h x w a grid of cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEW = 0.2  # cells of all rows per output channel, up to which a convolution is faster as one matrix product


def plain_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether a CPU works on these tensors, without gradients and uncompiled (a compiler chooses its own kernels)."""
    return x.device.type == "cpu" and not (x.requires_grad or weight.requires_grad or torch.compiler.is_compiling())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias. In float32 on a CPU by oneDNN: torch takes MKL, which has no fast kernels for AMD's."""
    if ONEDNN and x.dtype == torch.float32 and plain_cpu(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        """The convolution as one product of patches and weights, for 1x1 kernels and where the grid is small: torch
        lays the weights out anew in every call, which there takes longer than the arithmetic."""
        k, s, p = self.kernel_size[0], self.stride[0], int(self.padding[0])
        h, w = ((side + 2 * p - k) // s + 1 for side in x.shape[2:])
        if not plain_cpu(x, self.weight) or (k > 1 and len(x) * h * w > FEW * self.out_channels):
            return super().forward(x)
        patches = (F.unfold(x, k, padding=p, stride=s) if k > 1 else x.flatten(2)).mT.flatten(0, 1)  # [B h w, C k k]
        out = linear(patches, self.weight.flatten(1), self.bias)
        return out.unflatten(0, (len(x), h, w)).permute(0, 3, 1, 2)


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # where torch would load its compiler to draw normal numbers, for seconds
            super().reset_parameters()


class ResBlock(nn.Module):
    """Two convolutions; in the U-Net (`time_width`) with the time embedding [B, time_width] added between them."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int, eps: float, time_width: int = 0):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        if time_width:
            self.time_emb_proj = Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, eps)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        if time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return self.conv_shortcut(x) + h
