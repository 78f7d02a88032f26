"""Kernels that are faster on a CPU than those torch takes by itself, each with the same result. The choices are those
of experiments/benchmark/NOTES.md; gradients, compilers and GPUs get torch's own.

Letters of shapes: B rows, C channels, h x w a grid of cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEW_ROWS = 16  # of a float32 product, up to which oneDNN's overhead is longer than its gain
FEW_CELLS = 0.2  # of all rows, per output channel, up to which a convolution is faster as one matrix product
SMALL_GRID = 1024  # cells, below which torch norms a channels-last grid by a slower kernel


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a CPU works on these tensors, of one dtype, uncompiled and without gradients to any of them."""
    if x.device.type != "cpu" or x.dtype != weight.dtype or torch.compiler.is_compiling():
        return False
    return not torch.is_grad_enabled() or not (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, straight by oneDNN: torch takes MKL, slow on AMD's processors, or a longer way to oneDNN."""
    few = x.dtype == torch.float32 and x.numel() <= FEW_ROWS * x.shape[-1]
    if ONEDNN and not few and x.dtype in (torch.float32, torch.bfloat16) and plain(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """The convolution as one product of patches and weights, or None where torch's own is faster or differs.

    On 1x1 kernels and small grids torch lays the weights out anew in every call, which takes longer than the product.
    """
    k, s, p = layer.kernel_size[0], layer.stride[0], 0 if isinstance(layer.padding, str) else layer.padding[0]
    square = layer.kernel_size == (k, k) and layer.stride == (s, s) and layer.padding == (p, p)
    simple = square and layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    many = x.numel() / s**2 > FEW_CELLS * layer.weight.shape[:2].numel()
    if not simple or (k > 1 and many) or not plain(x, layer.weight, layer.bias):
        return None
    patches = (F.pad(x, (p, p, p, p)) if p else x).unfold(2, k, s).unfold(3, k, s)
    patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3)  # [B, h, w, k k C], a view where k is 1
    return linear(patches, layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias).permute(0, 3, 1, 2)


def group_norm(layer: nn.GroupNorm, x: Tensor) -> Tensor | None:
    """The norm in float32, or None where torch's own is as fast: its channels-last kernel for 16 bits is not."""
    if x.dtype.itemsize > 2 or x.shape[2:].numel() >= SMALL_GRID or not plain(x, layer.weight, layer.bias):
        return None
    return F.group_norm(x.float(), layer.num_groups, layer.weight.float(), layer.bias.float(), layer.eps).to(x.dtype)
