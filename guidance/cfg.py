from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Branch, check_number
from guidance.mix import Linear, Mix, mixed
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6), eps = eps_u + g (eps_c - eps_u), and so x_0 as well.

    scale  g = w + 1, w being the paper's weight: 1 is no guidance, and costs one branch; 0 is the negative prompt
    mix    the rule that applies the difference; linear is the paper's
    """

    scale: float = 7.5
    mix: Mix = Linear()

    def __post_init__(self) -> None:
        check_number("scale", self.scale)

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        if self.scale == 1:
            return {"cond": Branch(conditions.cond)}
        return {"cond": Branch(conditions.cond), "negative": Branch(conditions.negative)}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        if self.scale == 1:
            return x_0["cond"]
        return mixed(self.mix, x_0["cond"], x_0["negative"], self.scale, x_t, step)
