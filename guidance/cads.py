from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from guidance.branch import Branch, Wrapper, check_number
from ldm.condition import Condition, Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class ConditionAnnealed(Wrapper):
    """Condition-annealed sampling, CADS (Sadat et al. 2023, arXiv 2310.17347): conditions begin as noise.

    y <- sqrt(gamma) y + s sqrt(1 - gamma) n, brought back to y's mean and standard deviation, and mixed with itself
    before that by psi. It changes what passes are told, not how they join: in no space, at no cost.
    tau_1, tau_2  gamma is 0 while t >= tau_2, rises evenly, and is 1 once t <= tau_1; t = 1 - i / S, which falls from 1
    strength      s
    psi           1: the deviation is y's own; 0: it is left as it comes
    Defaults are the paper's for Stable Diffusion 2.1 at scale 9 (table 13, as two public implementations quote it: the
    authors' code is not public). Whatever a network is told is noised, SDXL's sizes too. Each image draws from its own
    stream, in each step and for each prompt anew.
    """

    tau_1: float = 0.6
    tau_2: float = 0.9
    strength: float = 0.25
    psi: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.tau_1 < self.tau_2 <= 1:
            raise ValueError(f"tau_1={self.tau_1}, tau_2={self.tau_2}: must be 0 <= tau_1 < tau_2 <= 1")
        check_number("strength", self.strength)
        check_number("psi", self.psi, most=1)

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return super().branches(self.annealed(conditions, step), step)

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        return super().more(self.annealed(conditions, step), x_0, x_t, step)

    def annealed(self, conditions: Conditions, step: Step) -> Conditions:
        """The conditions of this step; those themselves once gamma is 1."""
        t = 1 - step.i / step.n
        gamma = min(max((self.tau_2 - t) / (self.tau_2 - self.tau_1), 0.0), 1.0)
        if gamma == 1:
            return conditions

        def noise(keys: str | Sequence[str], kind: str, shape: tuple[int, ...]) -> Tensor:
            if isinstance(keys, str):
                return conditions.noise(f"cads {step.i}.{step.stage} {keys} {kind}", shape)
            return torch.stack([noise(key, kind, shape)[row] for row, key in enumerate(keys)])

        def noised(value: Tensor | None, keys: str | Sequence[str], kind: str) -> Tensor | None:
            if value is None:
                return None
            n = noise(keys, kind, tuple(value.shape[1:])).to(value.dtype)
            y, over = sqrt(gamma) * value + self.strength * sqrt(1 - gamma) * n, tuple(range(1, value.ndim))
            standard = (y - y.mean(over, keepdim=True)) / y.std(over, keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
            scaled = standard * value.std(over, keepdim=True) + value.mean(over, keepdim=True)
            return self.psi * scaled + (1 - self.psi) * y

        def of(condition: Condition, keys: str | Sequence[str]) -> Condition:
            tokens, vector = noised(condition.tokens, keys, "tokens"), noised(condition.vector, keys, "vector")
            return replace(condition, tokens=tokens, vector=vector)

        def encode(prompts: str | Sequence[str]) -> Condition:
            return of(conditions.encode(prompts), prompts)

        cond, negative = of(conditions.cond, "cond"), of(conditions.negative, "negative")
        return replace(conditions, cond=cond, negative=negative, encode=encode)
