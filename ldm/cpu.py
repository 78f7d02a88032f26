"""Kernels that are faster on a CPU than those torch takes by itself, each with the same result. The choices are those
of experiments/benchmark/NOTES.md; compilers, GPUs and most gradients get torch's own.

Letters of shapes: B rows, C channels, h x w a grid of cells.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEW_ROWS = 16  # of a float32 product, up to which oneDNN's overhead is longer than its gain
FEW_CELLS = 0.2  # of all rows, per output channel, up to which a convolution is faster as one matrix product
SMALL_GRID = 1024  # cells, below which torch norms a channels-last grid by a slower kernel
VECTOR = 16  # values in 16 bits, of whose multiples torch's norm and softmax are fast
NORM_SLICE = 2**18  # values, which a core's cache holds in float32
WEIGHTS_SLICE = 2**20  # of attention, which a core's cache holds in 16 bits
FEW_WEIGHTS = 2**15  # of attention, below which the calls take longer than the work
MANY_WEIGHTS = 2**25  # of attention, which would take too much memory if they were stored for a gradient
MANY_ROWS = 512  # of a product, from which two of them take no longer than one of twice the width
KEPT_WEIGHT = 5 * 2**18  # values of a weight, up to which its copy in oneDNN's layout is worth the memory
KEPT_INPUT = 2**18  # values of an input, beyond which laying out is short beside the product
WATCHED = 64  # values of a weight that are compared in each call, which takes a microsecond


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a CPU works on these tensors, of one dtype, uncompiled and without gradients to any of them."""
    if x.device.type != "cpu" or x.dtype != weight.dtype or torch.compiler.is_compiling():
        return False
    return not torch.is_grad_enabled() or not (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


class Layout(NamedTuple):
    """oneDNN's copy of a weight, and the state of the weight and the input that it was made for.

    some, before  a view of some of the weight's values, and what they were
    """

    of: tuple[object, ...]
    copy: Tensor
    some: Tensor
    before: Tensor


layouts = WeakTensorKeyDictionary()  # the last Layout of each weight, for as long as the weight lives


def laid_out(weight: Tensor, x: Tensor, lay_out: Callable[[], Tensor]) -> Tensor | None:
    """Returns the weight in the layout that oneDNN wants for this input, or None where no copy is kept.

    Otherwise oneDNN lays it out in every call, a tenth of the time of a small network. It is done from the first call
    on, since the two ways may differ in the last bit. Writing into the weight makes the copy anew. What torch does not
    count as writing (into `weight.data`, by a fused optimizer) is seen by some values of the weight's diagonal.
    """
    small = weight.numel() <= KEPT_WEIGHT and x.numel() <= KEPT_INPUT
    if not small or not isinstance(weight, nn.Parameter) or weight.is_inference():
        return None
    of = weight.data_ptr(), weight._version, x.shape, x.dtype
    last = layouts.get(weight)
    if last is None or last.of != of or not torch.equal(last.some, last.before):
        some = weight.detach()
        while some.ndim > 2:
            some = some.select(-1, some.shape[-1] // 2)
        some = some.diagonal()[:: max(min(some.shape) // WATCHED, 1)]
        layouts[weight] = last = Layout(of, lay_out(), some, some.clone())
    return last.copy


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, straight by oneDNN: torch takes MKL, slow on AMD's processors, or a longer way to oneDNN.

    The weight of a convolution [out, C, k, k] is taken as [out, k k C].
    """

    def flat() -> Tensor:
        return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight

    few = x.dtype == torch.float32 and x.numel() <= FEW_ROWS * x.shape[-1]
    if few or not ONEDNN or x.dtype not in (torch.float32, torch.bfloat16) or not plain(x, weight, bias):
        return F.linear(x, flat(), bias)
    rows = x.shape[:-1].numel()
    kept = laid_out(weight, x, lambda: torch.ops.mkldnn._reorder_linear_weight(flat(), rows))
    return torch.ops.mkldnn._linear_pointwise(x, flat() if kept is None else kept, bias, "none", [], "")


def conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """The convolution by a faster way, or None where torch's own is as fast or differs."""
    k, s, p = layer.kernel_size[0], layer.stride[0], 0 if isinstance(layer.padding, str) else layer.padding[0]
    square = layer.kernel_size == (k, k) and layer.stride == (s, s) and layer.padding == (p, p)
    simple = square and layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not simple or not plain(x, layer.weight, layer.bias):
        return None
    many = x.numel() / s**2 > FEW_CELLS * layer.weight.shape[:2].numel()
    return convolution(layer, x, s, p) if k > 1 and many else of_patches(layer, x, k, s, p)


def convolution(layer: nn.Conv2d, x: Tensor, s: int, p: int) -> Tensor | None:
    """Returns torch's own convolution with a weight that is laid out already, or None where that is not kept."""
    known = ONEDNN and x.dtype in (torch.float32, torch.bfloat16)
    if not known or not x.is_contiguous(memory_format=torch.channels_last):
        return None
    way = [p, p], [s, s], [1, 1], 1
    kept = laid_out(layer.weight, x, lambda: torch.ops.mkldnn._reorder_convolution_weight(layer.weight, *way, x.shape))
    if kept is None:
        return None
    return torch.ops.mkldnn._convolution_pointwise(x, kept, layer.bias, *way, "none", [], "")


def of_patches(layer: nn.Conv2d, x: Tensor, k: int, s: int, p: int) -> Tensor:
    """The convolution as one product of patches and weights.

    On 1x1 kernels and small grids torch lays the weights out anew in every call, which takes longer than the product.
    """
    patches = (F.pad(x, (p, p, p, p)) if p else x).unfold(2, k, s).unfold(3, k, s)
    patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3)  # [B, h, w, k k C], a view where k is 1
    return linear(patches, layer.weight, layer.bias).permute(0, 3, 1, 2)


def group_norm(layer: nn.GroupNorm, x: Tensor) -> Tensor | None:
    """The norm in float32, or None where torch's own is as fast.

    In 16 bits and channels-last, torch's kernel is slow on small grids, and its gradient on all of them; not where the
    channels of a group fill its vectors. Slices of the batch stay in the cache between the three passes over them.
    """
    if x.device.type != "cpu" or x.dtype.itemsize > 2 or torch.compiler.is_compiling():
        return None
    learns = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
    if not learns and (x.shape[2:].numel() >= SMALL_GRID or x.shape[1] // layer.num_groups % VECTOR == 0):
        return None
    weight, bias = layer.weight.float(), layer.bias.float()

    def norm(part: Tensor) -> Tensor:
        return F.group_norm(part.float(), layer.num_groups, weight, bias, layer.eps).to(x.dtype)

    rows = max(NORM_SLICE // x[0].numel(), 1)
    return norm(x) if learns or rows >= len(x) else torch.cat([norm(part) for part in x.split(rows)])


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    """Attention [B, H, P, c] of queries [B, H, P, c] over keys and values [B, H, L, c].

    In 16 bits it is two products: torch's fused kernel takes up to 2.5 times as long, and its gradient five times.
    """
    weights = q.shape[:-1].numel() * k.shape[-2]
    tracked = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    slow = q.device.type == "cpu" and q.dtype.itemsize <= 2 and not torch.compiler.is_compiling()
    if not slow or not (weights <= MANY_WEIGHTS if tracked else weights >= FEW_WEIGHTS):
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    shape, mask = q.shape[:2], q.new_full((q.shape[-2], k.shape[-2]), float("-inf")).triu(1) if is_causal else None
    parts = [x.flatten(0, 1) for x in (q, k, v)]
    heads = len(parts[0]) if tracked else max(WEIGHTS_SLICE * len(parts[0]) // weights, 1)
    out = [products(q, k, v, mask) for q, k, v in zip(*(part.split(heads) for part in parts), strict=True)]
    return (out[0] if len(out) == 1 else torch.cat(out)).unflatten(0, shape)


def products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention [N, P, c] as products; a mask [P, L] is added to the scores, which are rounded to 16 bits."""
    added = q.new_zeros(1, 1) if mask is None else mask
    scores = torch.baddbmm(added, q, k.mT, beta=int(mask is not None), alpha=q.shape[-1] ** -0.5)
    if k.shape[-2] % VECTOR and not scores.requires_grad:  # torch's softmax in 16 bits takes three times as long
        return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
    return scores.softmax(dim=-1) @ v


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """value * gelu(gate) of value and gate side by side in x @ weight.T + bias.

    Of many rows in 16 bits they are two products: the halves of one are strided, on which gelu takes twice as long.
    """
    if x.dtype.itemsize > 2 or x.shape[:-1].numel() < MANY_ROWS or not plain(x, weight, bias):
        value, gate = linear(x, weight, bias).chunk(2, dim=-1)
        return value * F.gelu(gate)
    value, gate = (linear(x, *half) for half in zip(weight.chunk(2), bias.chunk(2), strict=True))
    return F.gelu(gate).mul_(value)
