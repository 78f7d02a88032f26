from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guidance.branch import Branch
from guidance.weak import Against
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class IndependentCondition(Against):
    """Independent condition guidance (Sadat et al. 2024, arXiv 2407.02687): needs no empty prompt.

    p + g (c - p), p under a condition that has nothing to do with x_t: Gaussian, with the mean and the standard
    deviation of the prompt's own embedding, drawn in each step from the image's stream; what SDXL is told of sizes
    stays. Linear, so in any space; two passes. The scale is that of classifier-free guidance.
    """

    def weak(self, conditions: Conditions, step: Step) -> Branch:
        def like(value: Tensor, name: str) -> Tensor:
            over = tuple(range(1, value.ndim))
            noise = conditions.noise(f"icg {name} {step.i}.{step.stage}", tuple(value.shape[1:])).to(value.dtype)
            return value.mean(over, keepdim=True) + value.std(over, keepdim=True) * noise

        cond, vector = conditions.cond, conditions.cond.vector
        tokens = None if cond.tokens is None else like(cond.tokens, "tokens")
        if vector is not None:
            of_prompt, of_sizes = vector.tensor_split([vector.shape[1] - cond.sizes], dim=1)
            vector = torch.cat([like(of_prompt, "vector"), of_sizes], dim=1)
        return Branch(replace(cond, tokens=tokens, vector=vector))
