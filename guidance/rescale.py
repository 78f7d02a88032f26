from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Wrapper, check_number, combined
from samplers.predict import Denoised
from samplers.schedule import Step


@dataclass(frozen=True)
class Rescale(Wrapper):
    """Gives the guided eps the standard deviation of the conditional one (Lin et al. 2023, eq. 15-16).

    phi  0: off; 1: wholly; 0.7 is the paper's. The deviation is taken per image, over channels and space.
    Its space is eps, whatever that of `inner`, and signal x_0 + noise eps stays as `inner` leaves it. Where no signal
    is left, eps is x_t in every pass and nothing changes.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        check_number("phi", self.phi, most=1)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        guided = combined(self.inner, x_0, x_t, step)
        if not step.now.signal:
            return guided
        rescaled = guided.eps * (std(step.now.eps(x_t, x_0["cond"])) / std(guided.eps))
        eps = self.phi * rescaled + (1 - self.phi) * guided.eps
        return Denoised(guided.x_0 + step.now.sigma * (guided.eps - eps), eps)


def std(eps: Tensor) -> Tensor:
    """[B, 1, ...] of eps [B, ...]."""
    return eps.flatten(1).std(dim=1).reshape(-1, *[1] * (eps.ndim - 1))
