from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from guidance.branch import check_finite
from guidance.filters import BINOMIAL, check_grid, smooth
from guidance.mix import along
from samplers.schedule import Step


@dataclass(frozen=True)
class FrequencyDecoupled:
    """The rule of frequency-decoupled guidance (Sadat et al. 2025, arXiv 2506.19713, algorithms 1, 2), in x_0.

    The difference of the two passes is taken apart into a Laplacian pyramid, each of whose levels has a scale of its
    own: low frequencies set layout and colour, and want less.
    shares    of the weight w = g - 1, for each level, the highest frequencies first: the paper's scales 10 and 5 for
              SDXL are shares 1 and 4/9 at scale 10
    parallel  weight of each level's part parallel to the conditional's level: 1 keeps it; below, it saturates less
    Two passes. Reads the same in eps at parallel 1. Latents need a height and a width.
    """

    shares: Sequence[float] = (1.0, 4 / 9)
    parallel: float = 1.0
    space = "x_0"

    def __post_init__(self) -> None:
        if not self.shares:
            raise ValueError("shares is empty: there is one for each level, at least one")
        for share in self.shares:
            check_finite("shares", share)
        check_finite("parallel", self.parallel)

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        levels = zip(pyramid(cond - weak, len(self.shares)), pyramid(cond, len(self.shares)), strict=True)
        pushes = [
            (scale - 1) * share * (difference - (1 - self.parallel) * along(difference, of_cond))
            for share, (difference, of_cond) in zip(self.shares, levels, strict=True)
        ]
        return cond + joined(pushes)


def pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """The Laplacian pyramid of x [B, C, h, w], its finest level first."""
    check_grid(x)
    out = []
    for _ in range(levels - 1):
        size = (x.shape[2] // 2, x.shape[3] // 2)
        coarse = F.interpolate(smooth(x, BINOMIAL), size, mode="bilinear")
        out.append(x - expanded(coarse, x))
        x = coarse
    return [*out, x]


def joined(levels: list[Tensor]) -> Tensor:
    """What `pyramid` took apart."""
    x = levels[-1]
    for finer in reversed(levels[:-1]):
        x = expanded(x, finer) + finer
    return x


def expanded(coarse: Tensor, finer: Tensor) -> Tensor:
    return smooth(F.interpolate(coarse, finer.shape[2:], mode="bilinear"), BINOMIAL)
