"""What a network is told beside the noisy latent and its time, as one value.

Letters of shapes: B images (or rows: branches x images), L tokens, D width, C channels, h x w cells of the latent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Unfit(ValueError):
    """Something is asked of a model that it does not have: a class, an attention to words, a second network."""


@dataclass(frozen=True)
class Span:
    """A word of a prompt, lower-cased, and its tokens: positions start .. stop - 1 among the 77."""

    word: str
    start: int
    stop: int


@dataclass(frozen=True)
class Sizes:
    """What SDXL is told of a picture, in pixels (Podell et al. 2023, section 2.2).

    target    its (height, width)
    original  those of the picture that it was cropped from; None: its own
    crop      (top, left) of the crop
    """

    target: tuple[int, int]
    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)

    @property
    def numbers(self) -> tuple[int, ...]:
        """All six, in the order in which they are told."""
        return (*(self.original or self.target), *self.crop, *self.target)


@dataclass(frozen=True, eq=False)
class Condition:
    """The rows of a condition; what a model does not have is None.

    tokens    [B, L, D], what cross-attention looks at; never to be written into
    vector    [B, d], added to the time embedding: a pooled text and sizes (SDXL), a class
    channels  [B, C, h, w], concatenated to x_t: a mask and a masked latent, a low-resolution image
    spans     the words of each row's prompt; networks never read them
    sizes     how many of the vector's last numbers tell sizes, and so nothing of the prompt; nor do they read this
    kept      by layer the tokens, the state of its weights, and keys and values made of both, for as long as this
              value lives; a condition made by hand keeps nothing (None)
    """

    tokens: Tensor | None = None
    vector: Tensor | None = None
    channels: Tensor | None = None
    spans: tuple[tuple[Span, ...], ...] = ()
    sizes: int = 0
    kept: dict[Any, tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]] | None = None

    def rows(self, rows: slice) -> "Condition":
        """Some of the rows."""

        def some(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows]

        return Condition(some(self.tokens), some(self.vector), some(self.channels), self.spans[rows], self.sizes)


def stack(conditions: Sequence[Condition]) -> Condition:
    """The rows of several conditions one after another, as a condition that keeps its keys and values.

    Raises ValueError where some have a part that others lack.
    """

    def part(name: str) -> Tensor | None:
        parts = [value for condition in conditions if (value := getattr(condition, name)) is not None]
        if len(parts) not in (0, len(conditions)):
            raise ValueError(f"{len(parts)} of {len(conditions)} passes of a step have {name}: all must, or none")
        return torch.cat(parts) if parts else None

    spans = tuple(row for condition in conditions for row in condition.spans)
    return Condition(part("tokens"), part("vector"), part("channels"), spans, conditions[0].sizes, kept={})


def no_noise(key: str, shape: tuple[int, ...]) -> Tensor:
    raise ValueError("this guidance draws noise: make its conditions with noise=KeyedNoise(seeds)")


def no_decoder(latents: Tensor) -> Tensor:
    raise ValueError("this guidance looks at pictures: make its conditions by model.conditions")


@dataclass(frozen=True)
class Conditions:
    """What a guidance may draw on.

    cond, negative  of the prompts, and of the negative prompts (empty ones if none are given)
    encode          the condition of a prompt (shown to every image), of a list of prompts, one per image
    noise           noise(key, shape) -> standard normal [B, *shape], a pure stream of each image's own; the key holds
                    the guidance's name and step.i (`samplers.KeyedNoise`)
    decode          pictures [B, 3, H, W], about in [-1, 1], of latents, through which gradients go
    """

    cond: Condition
    negative: Condition
    encode: Callable[[str | Sequence[str]], Condition]
    noise: Callable[[str, tuple[int, ...]], Tensor] = no_noise
    decode: Callable[[Tensor], Tensor] = no_decoder
