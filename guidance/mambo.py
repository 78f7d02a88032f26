from dataclasses import dataclass

from torch import Tensor

from guidance.branch import check_number
from guidance.mix import dot
from samplers.schedule import Step


@dataclass(frozen=True)
class MagnitudeAware:
    """The rule of MAMBO-G (Zhu et al. 2025, arXiv 2508.03442), in eps: less guidance where passes differ; two passes.

    u + (1 + (g - 1) exp(-alpha |d| / |u|)) d, with d = c - u and the norms of each image: early, where d is long beside
    the weak estimate, next to nothing is added.
    alpha  0 is linear. The authors' 8, at scale 10 and inside a full rescale, is for a rectified flow, whose u is a
           velocity
    """

    alpha: float = 8.0
    space = "eps"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha)

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        difference = cond - weak
        ratio = (dot(difference, difference) / dot(weak, weak).clamp(min=1e-12)).sqrt()
        return weak + (1 + (scale - 1) * (-self.alpha * ratio).exp()) * difference
