from dataclasses import dataclass, field

from torch import Tensor

from guidance.branch import Wrapper, check_number, combined
from guidance.mix import shifted
from samplers.predict import Denoised
from samplers.schedule import Step


@dataclass(frozen=True)
class Momentum(Wrapper):
    """Momentum guidance (Liao et al. 2026, arXiv 2602.20360): x_0 goes on the way it came; as many passes as `inner`.

    D + alpha (D - m), D the x_0 of `inner` and m a running mean of it, m <- (1 - beta) D + beta m, which begins as the
    first D. The paper averages a flow's velocities; x_0 instead is what a public implementation has, and not the same:
    there old changes fade as noise falls. It needs no second pass: around classifier-free at scale 1 it is alone.
    alpha, beta  0.5 and 0.6, the defaults of a public implementation (second-hand); alpha 0 is `inner`
    """

    alpha: float = 0.5
    beta: float = 0.6
    memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha)
        check_number("beta", self.beta, most=1)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        out = combined(self.inner, x_0, x_t, step)
        mean = self.memory.get("mean", out.x_0)
        if step.stage == 0:
            self.memory["mean"] = (1 - self.beta) * out.x_0 + self.beta * mean
        return shifted(out, self.alpha * (out.x_0 - mean), step)
