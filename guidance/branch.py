"""The contract between a guidance and the sampling loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ldm.attention import AttentionEdit
from ldm.text import Text, Texts
from samplers.schedule import Step


@dataclass(frozen=True)
class Branch:
    """One pass of the U-Net: under this text, with this edit of its attention."""

    text: Text
    edit: AttentionEdit | None = None


class Guidance(Protocol):
    """Says which passes a step needs, and how their predictions join; never runs the network itself."""

    def branches(self, texts: Texts, step: Step) -> dict[str, Branch]:
        """The passes by name; "cond", the prompt's own, is always among them."""

    def combine(self, eps: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        """The guided eps [B, C, h, w] from each branch's, in float32 and of the same shape."""


Predict = Callable[[Tensor, int, Tensor, Sequence[AttentionEdit | None]], Tensor]


def guided(
    predict: Predict, guidance: Guidance, texts: Texts, max_batch: int | None = None
) -> Callable[[Tensor, Step], Tensor]:
    """denoise(x_t, step) -> eps for a sampler: all branches of a step in one forward of `predict`.

    predict(x_t, t, text, edits) -> eps, its rows being the branches one after another. Latents stay in float32; the
    network receives and returns the dtype of its text. Steps with the same branches show it the same text tensor.
    max_batch  rows of a forward at most, where memory asks for it: branches then go one after another, whole ones
    """

    @lru_cache(maxsize=4)
    def stacked(*embeddings: Tensor) -> Tensor:
        return torch.cat(embeddings)

    def denoise(x_t: Tensor, step: Step) -> Tensor:
        branches = guidance.branches(texts, step)
        passes, eps = list(branches.values()), list[Tensor]()
        together = len(passes) if max_batch is None else max(max_batch // len(x_t), 1)
        for part in (passes[i : i + together] for i in range(0, len(passes), together)):
            text = stacked(*(branch.text.embedding for branch in part))
            x = x_t.to(text.dtype).repeat(len(part), 1, 1, 1)
            eps += predict(x, step.t, text, [branch.edit for branch in part]).float().chunk(len(part))
        return guidance.combine(dict(zip(branches, eps, strict=True)), x_t, step)

    return denoise


def check_number(name: str, value: float, most: float = float("inf")) -> None:
    """Raises ValueError unless the value is a finite number from 0 to `most`."""
    if not isinstance(value, int | float) or not 0 <= value <= most or value == float("inf"):
        limit = "of at least 0" if most == float("inf") else f"from 0 to {most:g}"
        raise ValueError(f"{name}={value}: must be a finite number {limit}")


def step_count(name: str, value: int | float, n: int) -> int:
    """How many of n steps are meant: an integer counts them, a float is a fraction of n, rounded.

    Raises ValueError for a negative value and a fraction above 1. A count above n means all steps.
    """
    if not isinstance(value, int | float) or value < 0 or (isinstance(value, float) and not value <= 1):
        raise ValueError(f"{name}={value}: must be a count of steps (an integer) or a fraction of them (0.0 to 1.0)")
    return min(value, n) if isinstance(value, int) else int(value * n + 0.5)
