from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Branch, Wrapper
from ldm.condition import Conditions
from samplers.predict import Denoised
from samplers.schedule import Step


@dataclass(frozen=True)
class Interval(Wrapper):
    """Guidance in a limited interval (Kynkaanniemi et al. 2024); outside it the conditional alone, in one branch.

    start, stop         `inner` acts while start <= i / S < stop, fractions of the sampling steps
    sigma_lo, sigma_hi  the paper's own form, sigma_lo < sigma <= sigma_hi in noise levels (Stable Diffusion's run from
                        14.6, the noisiest, to 0.03); where both forms are given, both must hold
    """

    start: float = 0.0
    stop: float = 1.0
    sigma_lo: float = 0.0
    sigma_hi: float = float("inf")

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= 1:
            raise ValueError(f"start={self.start}, stop={self.stop}: must be 0 <= start <= stop <= 1")
        if not 0 <= self.sigma_lo <= self.sigma_hi:
            raise ValueError(f"sigma_lo={self.sigma_lo}, sigma_hi={self.sigma_hi}: must be 0 <= sigma_lo <= sigma_hi")

    def acts(self, step: Step) -> bool:
        return self.start <= step.i / step.n < self.stop and self.sigma_lo < step.now.sigma <= self.sigma_hi

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        branches = super().branches(conditions, step)
        return branches if self.acts(step) else {"cond": branches["cond"]}

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        return super().more(conditions, x_0, x_t, step) if self.acts(step) else {}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor | Denoised:
        return super().combine(x_0, x_t, step) if self.acts(step) else x_0["cond"]
