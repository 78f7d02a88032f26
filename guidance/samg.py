from dataclasses import dataclass

from torch import Tensor

from guidance.branch import check_number
from guidance.filters import check_grid
from samplers.schedule import Step

ROUNDING = 1e-6  # of the largest energy: what differs by less is equal


@dataclass(frozen=True)
class SpatiallyAdaptive:
    """The rule of SAMG (Li et al. 2026, arXiv 2604.26503), in eps: less guidance where passes differ most; two passes.

    Each cell has a scale, w_max - E (w_max - w_min), E the difference's squares averaged over channels and stretched to
    0 .. 1 in each image, so that it is the same in any space; 1/2 where all are equal. The formula, and the range
    5 .. 12 for Stable Diffusion 1.5 and SDXL, are second-hand.
    spread  how far w = g - 1 goes to either side of the guidance's own: 7/15 is 5 .. 12 about scale 8.5; 0 is linear
    """

    spread: float = 7 / 15
    space = "eps"

    def __post_init__(self) -> None:
        check_number("spread", self.spread, most=1)

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        check_grid(cond)
        difference = cond - weak
        energy = difference.square().mean(dim=1, keepdim=True)
        cells = tuple(range(1, energy.ndim))
        least, most = energy.amin(cells, keepdim=True), energy.amax(cells, keepdim=True)
        energy = ((energy - least) / (most - least)).where(most - least > ROUNDING * most, 0.5)
        return cond + (scale - 1) * (1 + self.spread * (1 - 2 * energy)) * difference
