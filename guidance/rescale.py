from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Wrapper, check_number, combined
from samplers.predict import Denoised
from samplers.schedule import Step


@dataclass(frozen=True)
class Rescale(Wrapper):
    """Gives the guided eps the standard deviation of the conditional one (Lin et al. 2023, eq. 15-16).

    phi  0: off; 1: wholly; 0.7 is the paper's. The deviation is taken per image, over channels and space.
    Its space is eps, whatever that of `inner`. Where no signal is left, eps is x_t in every pass and nothing changes.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        check_number("phi", self.phi, most=1)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        guided = combined(self.inner, x_0, x_t, step)
        if not step.now.signal:
            return guided
        eps = step.now.eps(x_t, guided.x_0)
        rescaled = eps * (std(step.now.eps(x_t, x_0["cond"])) / std(eps))
        eps = self.phi * rescaled + (1 - self.phi) * eps
        return Denoised(step.now.x_0(x_t, eps), eps)


def std(eps: Tensor) -> Tensor:
    """[B, 1, ...] of eps [B, ...]."""
    return eps.flatten(1).std(dim=1).reshape(-1, *[1] * (eps.ndim - 1))
