"""A given picture kept while a part of it is drawn anew: wrappers of samplers.

A sampler goes on from what `denoise` returns alone, so what is mixed into x_t before an evaluation reaches every
sampler, those with a memory too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from samplers.predict import Denoise, Denoised
from samplers.schedule import CLEAN, Level, Noise, Step

Sampler = Callable[..., Iterator[tuple[Step, Tensor, Tensor]]]


@dataclass(frozen=True, eq=False)
class Known:
    """What is kept: x_0 [B, C, h, w], where `mask` [B, 1, h, w] is 0; where it is 1, cells are drawn anew.

    eps  [B, C, h, w], the noise in the kept part at every level; it made x_T too
    """

    x_0: Tensor
    eps: Tensor
    mask: Tensor

    def mixed(self, x_t: Tensor, level: Level) -> Tensor:
        """x_t, its kept part replaced by the known x_0 at this level."""
        return self.mask * x_t + (1 - self.mask) * level.x_t(self.x_0, self.eps)

    def after(self, x_t: Tensor, step: Step) -> Tensor:
        """x_t after a step, mixed; after the last, with the clean x_0, wherever the step ends."""
        return self.mixed(x_t, CLEAN if step.i == step.n - 1 else step.to)


def replacing(sampler: Sampler, known: Known) -> Sampler:
    """Wraps a sampler so that the known part is replaced after every step (as diffusers' inpainting pipeline does).

    It is replaced where x_t is used: before every evaluation of the network but the first, and in what is yielded.
    """

    def sample(
        denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
    ) -> Iterator[tuple[Step, Tensor, Tensor]]:
        def within(x_t: Tensor, step: Step) -> Denoised:
            return denoise(x_t if step == steps[0] else known.mixed(x_t, step.now), step)

        for step, x_t, x_0 in sampler(within, x_T, steps, noise=noise):
            yield step, known.after(x_t, step), x_0

    return sample


def resampling(sampler: Sampler, known: Known, times: int) -> Sampler:
    """Wraps a one-step sampler so that each step is taken `times` times, noise of the forward process leading back to
    its beginning in between, so that the new part gets to fit the known one (RePaint, Lugmayr et al. 2022, algorithm 1;
    jumps of length 1). One time is `replacing`. Raises ValueError without noise, and for times below 1.
    """

    def sample(
        denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None
    ) -> Iterator[tuple[Step, Tensor, Tensor]]:
        if noise is None:
            raise ValueError("resampling draws noise: give noise=...")
        if times < 1:
            raise ValueError(f"times={times}: must be at least 1")

        def within(x_t: Tensor, step: Step) -> Denoised:
            return denoise(known.mixed(x_t, step.now) if step.stage else x_t, step)

        x_t = x_T
        for step in steps:
            for left in reversed(range(times)):
                _, x_s, x_0 = next(sampler(within, x_t, [step], noise=noise))
                x_s = known.mixed(x_s, step.to) if left else known.after(x_s, step)
                if left:
                    kept = step.now.signal / step.to.signal
                    x_t = kept * x_s + sqrt(step.now.noise**2 - (kept * step.to.noise) ** 2) * noise()
            x_t = x_s
            yield step, x_s, x_0

    return sample


def takes_single_steps(sampler: Sampler, steps: Sequence[Step]) -> bool:
    """Tells whether a sampler comes to the same when it takes these steps one at a time: whether it has no memory."""

    def denoise(x_t: Tensor, step: Step) -> Denoised:
        x_0 = x_t.sin() * (1 + step.now.noise)  # any that changes from step to step
        return Denoised(x_0, step.now.eps(x_t, x_0))

    def last(moments: Iterator[Any]) -> Tensor:
        *_, (_, x_t, _) = moments
        return x_t

    x_T = torch.ones(1, dtype=torch.float64)
    x_t = x_T
    for step in steps:
        x_t = last(sampler(denoise, x_t, [step], noise=lambda: x_T))
    return bool((last(sampler(denoise, x_T, steps, noise=lambda: x_T)) - x_t).abs() < 1e-9 * (1 + x_t.abs()))
