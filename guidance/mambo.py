from dataclasses import dataclass

from torch import Tensor

from guidance.branch import check_number
from guidance.mix import check_space, dot
from samplers.schedule import Step


@dataclass(frozen=True)
class MagnitudeAware:
    """The rule of MAMBO-G (Zhu et al. 2025, arXiv 2508.03442): less guidance where passes differ; two passes.

    u + (1 + (g - 1) exp(-alpha |d| / |u|)) d, with d = c - u and the norms of each image.
    alpha  0 is linear. The authors' 8, at scale 10 and inside a full rescale, is for a rectified flow
    space  "output", what the network predicts. A velocity, or v, differs most early, where next to nothing is added
           then, which is the method's idea; eps differs most late, and damps there
    """

    alpha: float = 8.0
    space: str = "output"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha)
        check_space("space", self.space)

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        difference = cond - weak
        ratio = (dot(difference, difference) / dot(weak, weak).clamp(min=1e-12)).sqrt()
        return weak + (1 + (scale - 1) * (-self.alpha * ratio).exp()) * difference
