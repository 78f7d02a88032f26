from dataclasses import dataclass, field

from torch import Tensor

from guidance.branch import check_number
from guidance.mix import check_space
from samplers.schedule import Step


@dataclass(frozen=True)
class SlidingMode:
    """The rule of sliding-mode-control CFG (CFG-Ctrl, Wang et al., CVPR 2026, arXiv 2603.03281); two passes.

    The difference e is held near a surface s = (e - e') + lambda e', e' the corrected one of the step before:
    e - K sign(s), and then u + g e. In the first step e' is e.
    lam   lambda, 5 in the authors' README (0.05 in their code)
    gain  K, 0.2 there (0.3 in their code), tuned for velocities of rectified flows; on eps models that wrecks the
          picture and 0.01 works (second-hand, reported for SDXL), which is the default
    space "output", what the network predicts: on a flow the authors' velocity
    """

    lam: float = 5.0
    gain: float = 0.01
    space: str = "output"
    memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number("lam", self.lam)
        check_number("gain", self.gain)
        check_space("space", self.space)

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        e = cond - weak
        before = self.memory.get("e", e)
        surface = (e - before) + self.lam * before
        e = e - self.gain * surface.sign()
        if step.stage == 0:
            self.memory["e"] = e
        return weak + scale * e
