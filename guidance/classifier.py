from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from guidance.branch import Branch, Unfit, Wrapper, check_number, combined
from guidance.mix import shifted
from ldm.condition import Condition, Conditions
from samplers.predict import Denoised
from samplers.schedule import Step


class Classifier(Protocol):
    """A classifier of noisy latents: logits [B, K] of x_t [B, ...] at t, each image's from its own row alone."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of its K classes."""

    def __call__(self, x_t: Tensor, t: float) -> Tensor: ...


@dataclass(frozen=True)
class ClassifierGuided(Wrapper):
    """Classifier guidance (Dhariwal & Nichol 2021, algorithm 2), beside any guidance inside.

    eps' = eps - s noise g, and so x_0' = x_0 + s (noise^2 / signal) g, where g is the gradient of log p(y | x_t) at
    x_t; the log-probabilities of several classes add up. Over an unconditional model s = 1 samples p(x | y). Where no
    signal is left, x_t says nothing of y, and nothing is added.
    classifier   of noisy latents, told t; no pass of the U-Net more
    scale        s; 0 is `inner` alone
    temperature  divides the logits: above 1 the classifier is less sure, and its gradient does not fade as soon
    labels       names of its classes, for every image; None: those that stand in the image's prompt
    """

    classifier: Classifier
    scale: float = 1.0
    temperature: float = 1.0
    labels: Sequence[str] | None = None
    wanted: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number("scale", self.scale)
        check_number("temperature", self.temperature)
        if not self.temperature:
            raise ValueError("temperature=0: must be above 0")
        unknown = [label for label in self.labels or () if label not in self.classifier.classes]
        if unknown or self.labels == []:
            there = ", ".join(self.classifier.classes)
            raise ValueError(f"labels={list(self.labels or ())}: must be classes of the classifier: {there}")

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        if self.scale:
            self.wanted["y"] = self.rows_of(conditions.cond, x_t)
        return super().more(conditions, x_0, x_t, step)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        out = combined(self.inner, x_0, x_t, step)
        if not self.scale or not step.now.signal:
            return out
        return shifted(out, self.scale * step.now.noise**2 / step.now.signal * self.gradient(x_t, step), step)

    def gradient(self, x_t: Tensor, step: Step) -> Tensor:
        """g [B, ...]."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            log_p = (self.classifier(x, step.now.t) / self.temperature).log_softmax(dim=1)
            (g,) = torch.autograd.grad((log_p * self.wanted["y"]).sum(), x)
        return g

    def rows_of(self, condition: Condition, x_t: Tensor) -> Tensor:
        """[B, K], 1 at the classes of each image. Raises Unfit for an image without any."""
        classes = self.classifier.classes
        named = [self.labels] * len(x_t) if self.labels else [self.in_prompt(row) for row in prompt_words(condition)]
        if len(named) != len(x_t) or not all(named):
            raise Unfit(f"no class of the classifier stands in a prompt: give labels=[...], of {', '.join(classes)}")
        return torch.tensor([[float(name in row) for name in classes] for row in named], device=x_t.device)

    def in_prompt(self, words: Sequence[str]) -> list[str]:
        """The classes that stand in a prompt, in whole words."""
        text = f" {' '.join(words)} "
        return [name for name in self.classifier.classes if f" {name.lower()} " in text]


def prompt_words(condition: Condition) -> list[list[str]]:
    """The words of each row's prompt, lower-cased."""
    return [[span.word for span in row] for row in condition.spans]
