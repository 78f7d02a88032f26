"""Smoothing of maps [B, C, h, w], for the guidances that blur."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.condition import Unfit

BINOMIAL = torch.tensor([1, 4, 6, 4, 1]) / 16  # Burt & Adelson 1983


def gaussian(size: int, sigma: float) -> Tensor:
    """A kernel [size] of odd size that sums to one."""
    x = torch.arange(size) - (size - 1) / 2
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def check_grid(x: Tensor) -> None:
    """Raises Unfit for latents that have no height and width."""
    if x.ndim != 4:
        raise Unfit("it works on grids of cells, and this model's latents are vectors")


def smooth(x: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
    """Convolves down the rows and along the columns (by the same kernel, unless told), reflected at the edges."""
    down, across = (kernel.to(x) for kernel in (rows, rows if columns is None else columns))
    if x.shape[2] <= len(down) // 2 or x.shape[3] <= len(across) // 2:
        raise Unfit(f"it blurs over {len(down)} x {len(across)} cells, too many for {x.shape[2]} x {x.shape[3]}")
    planes = x.reshape(-1, 1, *x.shape[2:])
    pad = (len(across) // 2, len(across) // 2, len(down) // 2, len(down) // 2)
    planes = F.conv2d(F.pad(planes, pad, mode="reflect"), down[None, None, :, None])
    return F.conv2d(planes, across[None, None, None, :]).reshape(x.shape)


# what the authors of Attend-and-Excite and of S-CFG call sigma 0.5: their exponent is (x / (2 sigma))^2
SOFT = gaussian(3, 0.5 * 2**0.5)
