"""Guidances by several prompts at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from guidance.branch import Branch, check_finite, check_number
from guidance.mix import along
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class Part:
    """A prompt beside the image's own, and its weight."""

    prompt: str
    weight: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", str(self.prompt))  # YAML reads a class 7 as a number
        check_finite("weight", self.weight)


def parts(name: str, given: Sequence[Part | Mapping[str, Any]]) -> tuple[Part, ...]:
    """Parts given as such or as mappings of their fields. Raises ValueError if there is none, or one of others."""
    if not given:
        raise ValueError(f"{name} is empty: name at least one {{prompt: ..., weight: ...}}")
    for part in given:
        if not isinstance(part, Part) and set(part) != {"prompt", "weight"}:
            raise ValueError(f"{name}: each has a prompt and a weight, and one has {', '.join(map(str, part))}")
    return tuple(part if isinstance(part, Part) else Part(**part) for part in given)


@dataclass(frozen=True)
class Composable:
    """Composable diffusion (Liu et al. 2022, arXiv 2206.01714): u + sum_i w_i (c_i - u).

    scale   w of the image's own prompt
    others  further prompts, as Part or as mappings of its fields: a weight above 0 is AND, one below 0 NOT
    u is the negative pass. Linear, so in any space; 2 passes and one for each of the others. The authors take 7.5 each.
    """

    others: tuple[Part, ...]
    scale: float = 7.5

    def __post_init__(self) -> None:
        check_number("scale", self.scale)
        object.__setattr__(self, "others", parts("others", self.others))

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        others = {f"other {i}": Branch(conditions.encode(part.prompt)) for i, part in enumerate(self.others)}
        return {"cond": Branch(conditions.cond), "negative": Branch(conditions.negative), **others}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        u = x_0["negative"]
        pushes = [part.weight * (x_0[f"other {i}"] - u) for i, part in enumerate(self.others)]
        return u + self.scale * (x_0["cond"] - u) + sum(pushes)


@dataclass(frozen=True)
class PerpNeg:
    """Perp-Neg (Armandpour et al. 2023, arXiv 2304.04968): of a negative prompt only what the prompt lacks.

    u + g (d - sum_j w_j n_j'), d = c - u, and n_j' the part of n_j - u perpendicular to d, image by image. Of degree
    one in the differences, so in any space; 2 passes and one for each negative prompt.
    scale      g, on the whole
    negatives  as Part or as mappings of its fields; weights above 0, 1 to 1.5 in the authors' examples at scale 7.5
    u is always the empty prompt: the image's own negative prompt takes no part.
    """

    negatives: tuple[Part, ...]
    scale: float = 7.5

    def __post_init__(self) -> None:
        check_number("scale", self.scale)
        object.__setattr__(self, "negatives", parts("negatives", self.negatives))
        for part in self.negatives:
            check_number("weight", part.weight)

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        prompts = {f"negative {i}": part.prompt for i, part in enumerate(self.negatives)}
        others = {name: Branch(conditions.encode(prompt)) for name, prompt in {"empty": "", **prompts}.items()}
        return {"cond": Branch(conditions.cond), **others}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        d = direction = x_0["cond"] - x_0["empty"]
        for i, part in enumerate(self.negatives):
            n = x_0[f"negative {i}"] - x_0["empty"]
            direction = direction - part.weight * (n - along(n, d))
        return x_0["empty"] + self.scale * direction
