from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Branch, Texts, check_number
from samplers.schedule import Step


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6), eps = eps_u + g (eps_c - eps_u).

    scale is g = w + 1, w being the paper's weight: 1 is no guidance, and costs one branch; 0 is the negative prompt.
    """

    scale: float = 7.5

    def __post_init__(self) -> None:
        check_number("scale", self.scale)

    def branches(self, texts: Texts, step: Step) -> dict[str, Branch]:
        if self.scale == 1:
            return {"cond": Branch(texts.cond)}
        return {"cond": Branch(texts.cond), "negative": Branch(texts.negative)}

    def combine(self, eps: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        if self.scale == 1:
            return eps["cond"]
        return eps["negative"] + self.scale * (eps["cond"] - eps["negative"])
