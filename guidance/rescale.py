from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Branch, Guidance, Texts, check_number
from samplers.schedule import Step


@dataclass(frozen=True)
class Rescale:
    """Gives the guided eps the standard deviation of the conditional one (Lin et al. 2023, eq. 15-16).

    phi  0: off; 1: wholly; 0.7 is the paper's. The deviation is taken per image, over channels and space.
    """

    inner: Guidance
    phi: float = 0.7

    def __post_init__(self) -> None:
        check_number("phi", self.phi, most=1)

    def branches(self, texts: Texts, step: Step) -> dict[str, Branch]:
        return self.inner.branches(texts, step)

    def combine(self, eps: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        guided = self.inner.combine(eps, x_t, step)
        rescaled = guided * (std(eps["cond"]) / std(guided))
        return self.phi * rescaled + (1 - self.phi) * guided


def std(eps: Tensor) -> Tensor:
    return eps.std(dim=(1, 2, 3), keepdim=True)
