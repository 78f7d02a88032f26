from dataclasses import dataclass

import torch
from torch import Tensor

from guidance.branch import step_count
from guidance.mix import along, check_space
from samplers.schedule import Step


@dataclass(frozen=True)
class OptimizedScale:
    """The rule of CFG-Zero* (Fan et al. 2025, arXiv 2503.18886); two passes.

    The weak estimate is scaled to come nearest to the conditional, s = <c, u> / |u|^2: s u + g (c - s u).
    zero_steps  in the first steps, a count (int) or a fraction (float), the guided output is 0: on a flow x_t stays
                where it is, in eps nothing moves but by the schedule. The paper's zero-init, 4 % or one step as a
                start, was tuned for rectified flows; it is off by default
    space       "output", what the network predicts: on a flow the paper's velocity
    """

    zero_steps: int | float = 0
    space: str = "output"

    def __post_init__(self) -> None:
        step_count("zero_steps", self.zero_steps, 0)
        check_space("space", self.space)

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        if step.i < step_count("zero_steps", self.zero_steps, step.n):
            return torch.zeros_like(cond)
        nearest = along(cond, weak)
        return nearest + scale * (cond - nearest)
