from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Branch, check_number
from guidance.mix import Linear, Mix, mixed
from ldm.condition import Conditions
from samplers.predict import Denoised
from samplers.schedule import Step


@dataclass(frozen=True)
class CFGPlusPlus:
    """CFG++ (Chung et al. 2024, arXiv 2406.08070, algorithm 2): guided x_0, and the noise of the negative pass.

    x_0 = u + lambda (c - u), and the sampler goes on with u's eps: any sampler does. Linear but for `mix`, so in any
    space; two passes. Under DDIM it is classifier-free guidance at g = lambda sigma / (sigma - sigma'), the step ending
    at sigma'. DDIM, Euler and Euler ancestral are the authors' loops; in their DPM-Solver++(2M) the second-order term
    is the guided x_0 less the last step's u, here less the last guided x_0.
    scale  lambda, 0 to 1; the authors compare 0.6 with g 7.5 and 1 with 12.5, on Stable Diffusion 1.5
    mix    the rule that applies the difference, as at g, its push times lambda / g; linear where g is at most 1, which
           others turn round, or where there is none: in the second evaluation of a method that makes two
    """

    scale: float = 0.6
    mix: Mix = Linear()

    def __post_init__(self) -> None:
        check_number("scale", self.scale, most=1)

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return {"cond": Branch(conditions.cond), "negative": Branch(conditions.negative)}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        cond, negative = x_0["cond"], x_0["negative"]
        gap = 1 - step.to.sigma / step.now.sigma  # lambda / g; 0 in a second evaluation, at the step's end
        if self.scale > gap > 0:
            push = gap * (mixed(self.mix, cond, negative, self.scale / gap, x_t, step) - negative)
        else:
            push = self.scale * (cond - negative)
        return Denoised(negative + push, step.now.eps(x_t, negative))
