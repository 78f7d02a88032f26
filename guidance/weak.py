from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Branch, check_number
from guidance.mix import Linear, Mix, mixed
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class Against:
    """Guidance of the prompt against one weak pass, weak + g (cond - weak); a subclass says which pass that is.

    scale  g = w + 1; 1 is no guidance, and costs one branch
    mix    the rule that applies the difference
    """

    scale: float = 7.5
    mix: Mix = Linear()

    def __post_init__(self) -> None:
        check_number("scale", self.scale)

    def weak(self, conditions: Conditions, step: Step) -> Branch:
        raise NotImplementedError

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        cond = {"cond": Branch(conditions.cond)}
        return cond if self.scale == 1 else {**cond, "weak": self.weak(conditions, step)}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        if self.scale == 1:
            return x_0["cond"]
        return mixed(self.mix, x_0["cond"], x_0["weak"], self.scale, x_t, step)
