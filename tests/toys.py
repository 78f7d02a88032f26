"""Guidances, one class each, each the smallest that needs something of the contract between them and the loop."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from guidance import Branch, ClassifierFree
from ldm.attention import AttentionEdit, Site
from ldm.condition import Condition, Conditions
from samplers import Denoised, Step


@dataclass(frozen=True)
class Momentum(ClassifierFree):
    """Classifier-free, whose difference keeps a share of the one before (as in APG, Sadat et al. 2024)."""

    share: float = 0.5
    memory: dict[str, Tensor] = field(default_factory=dict, init=False)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        difference = x_0["cond"] - x_0["negative"] + self.share * self.memory.get("difference", 0)
        if step.stage == 0:
            self.memory["difference"] = difference
        return x_0["negative"] + self.scale * difference


@dataclass(frozen=True)
class Noisy(ClassifierFree):
    """Classifier-free under a noised condition (as CADS, Sadat et al. 2023)."""

    strength: float = 0.5

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        tokens = conditions.cond.tokens
        noise = conditions.noise(f"noisy {step.i}", tokens.shape[1:])
        return super().branches(
            replace(conditions, cond=replace(conditions.cond, tokens=tokens + self.strength * noise)), step
        )


@dataclass(frozen=True)
class Autoguidance:
    """Away from a weaker network under the same prompt (Karras et al. 2024)."""

    scale: float = 2.0

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return {"cond": Branch(conditions.cond), "weak": Branch(conditions.cond, network="weak")}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        return x_0["weak"] + self.scale * (x_0["cond"] - x_0["weak"])


@dataclass(frozen=True)
class SelfAttention:
    """Away from what is predicted of its own estimate blurred (as SAG, Hong et al. 2023), once or again and again."""

    scale: float = 1.0
    rounds: int = 1

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return {"cond": Branch(conditions.cond)}

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        if len(x_0) > self.rounds:
            return {}
        last = list(x_0.values())[-1]
        blurred = step.now.x_t(F.avg_pool2d(last, 3, 1, 1), step.now.eps(x_t, last))
        return {f"blurred {len(x_0)}": Branch(conditions.cond, x_t=blurred, t=step.now.t / 2)}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        last = x_0[f"blurred {self.rounds}"]
        return x_0["cond"] + self.scale * (x_0["cond"] - last)


@dataclass(frozen=True)
class Towards:
    """Down the gradient at x_t of the distance between the network's x_0 and a flat picture (as universal guidance)."""

    picture: float = 1.0
    strength: float = 0.1
    space: str = "x_0"

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return {"cond": Branch(conditions.cond, gradient=True), "negative": Branch(conditions.negative)}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        distance = (x_0["cond"] - self.picture).square().sum()
        (gradient,) = torch.autograd.grad(distance, x_t)
        return x_0["cond"] - self.strength * gradient


@dataclass(frozen=True)
class Emphasis(Autoguidance):
    """Towards a pass whose attention to some tokens is multiplied, as a newcomer would write it."""

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        def function(weights: Tensor, site: Site) -> Tensor:
            weights[..., 5:9] *= 4
            return weights

        return {"cond": Branch(conditions.cond, (AttentionEdit(function),)), "weak": Branch(conditions.cond)}


@dataclass(frozen=True)
class Faded(ClassifierFree):
    """Classifier-free under the prompt's embedding, moved towards another prompt's."""

    other: str = "a dragon"
    share: float = 0.4

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        tokens = torch.lerp(conditions.cond.tokens, conditions.encode(self.other).tokens, self.share)
        return super().branches(replace(conditions, cond=Condition(tokens)), step)


@dataclass(frozen=True)
class Manifold(ClassifierFree):
    """CFG++ (Chung et al. 2024): x_0 is guided, with a scale of at most 1, and the noise is the negative pass's."""

    scale: float = 0.6

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        return Denoised(super().combine(x_0, x_t, step), step.now.eps(x_t, x_0["negative"]))


@dataclass(frozen=True)
class Damped(ClassifierFree):
    """Classifier-free, and nine tenths of the noise: its weights do not sum to one."""

    space = "eps"

    def combine(self, eps: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        return 0.9 * super().combine(eps, x_t, step)
