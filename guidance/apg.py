from dataclasses import dataclass, field

from torch import Tensor

from guidance.branch import check_finite, check_number
from guidance.mix import along, dot
from samplers.schedule import Step


@dataclass(frozen=True)
class AdaptiveProjected:
    """The rule of adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416, algorithm 1), in x_0; two passes.

    The difference gathers momentum, g_i = x_0_c - x_0_u + beta g_(i-1); is cut to norm r; and loses what of it is
    parallel to x_0_c, which saturates: x_0_c + w (g_perp + eta g_par).
    eta        0 drops the parallel part, 1 keeps it
    threshold  r, the L2 norm of a whole latent, 0 for none: on fewer cells than 4 x 64 x 64 it binds more seldom
    momentum   beta, negative as in the paper; 0 remembers nothing
    Defaults are those reported for Stable Diffusion 2.1, at scale 10 (second-hand; SDXL 15, r 15, beta -0.5).
    """

    eta: float = 0.0
    threshold: float = 7.5
    momentum: float = -0.75
    memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    space = "x_0"

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold)
        check_finite("eta", self.eta)
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: must be a number above -1 and below 1")

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        difference = cond - weak + self.momentum * self.memory.get("difference", 0)
        if step.stage == 0:
            self.memory["difference"] = difference
        if self.threshold > 0:
            norm = dot(difference, difference).sqrt().clamp(min=1e-12)
            difference = difference * (self.threshold / norm).clamp(max=1)
        return cond + (scale - 1) * (difference - (1 - self.eta) * along(difference, cond))
