from dataclasses import dataclass, replace

from torch import Tensor

from guidance.branch import Branch
from guidance.weak import Against
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class IndependentCondition(Against):
    """Independent condition guidance (Sadat et al. 2024, arXiv 2407.02687): needs no empty prompt.

    p + g (c - p), p under a condition that has nothing to do with x_t: Gaussian, with the mean and the standard
    deviation of the prompt's own embedding, drawn in each step from the image's stream. Linear, so in any space; two
    passes. The scale is that of classifier-free guidance.
    """

    def weak(self, conditions: Conditions, step: Step) -> Branch:
        def like(value: Tensor | None, name: str) -> Tensor | None:
            if value is None:
                return None
            over = tuple(range(1, value.ndim))
            noise = conditions.noise(f"icg {name} {step.i}.{step.stage}", tuple(value.shape[1:])).to(value.dtype)
            return value.mean(over, keepdim=True) + value.std(over, keepdim=True) * noise

        cond = conditions.cond
        return Branch(replace(cond, tokens=like(cond.tokens, "tokens"), vector=like(cond.vector, "vector")))
