"""Two images, their conditions and ten steps, small enough to sample in milliseconds; and what guidances make of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from tiny import tiny_model
from torch import Tensor

from guidance import Guidance, guided
from ldm.classifier import ClassifierConfig, LatentClassifier
from ldm.condition import Condition, Conditions, Span
from ldm.unet import UNet
from samplers import Denoised, ImageNoise, KeyedNoise, Schedule, Step, as_x_0, ddim

SHAPE = (4, 8, 12)  # not square, so that height and width cannot be mixed up
STEPS = Schedule().steps(10)
FOUR = Schedule().steps(4)
SEEDS = (5, 6)
NOISE = ImageNoise(SEEDS, SHAPE)()


def condition(seed: int, rows: int = 2) -> Condition:
    tokens = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(seed)).expand(rows, -1, -1)
    return Condition(tokens, spans=((Span("a", 1, 2), Span("fish", 2, 4)),) * rows)


PROMPTS = {"a dragon": condition(3), "a fish": condition(4)}
CONDITIONS = Conditions(condition(1), condition(2), PROMPTS.__getitem__, KeyedNoise(SEEDS))


def told(prompt: str) -> Conditions:
    """The same with this prompt in the place of the images' own."""
    return replace(CONDITIONS, cond=PROMPTS[prompt])


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def small_unet() -> UNet:
    return tiny_model().unet


def networks(unet: UNet | Mapping[str, UNet]) -> Any:
    """What `guided` takes: each of these U-Nets predicts eps."""
    if isinstance(unet, Mapping):
        return {name: as_x_0(network, "eps") for name, network in unet.items()}
    return as_x_0(unet, "eps")


def denoised(
    unet: UNet | Mapping[str, UNet],
    guidance: Guidance,
    step: Step = STEPS[0],
    conditions: Conditions = CONDITIONS,
    x_t: Tensor = NOISE,
) -> Denoised:
    return guided(networks(unet), guidance, conditions)(x_t, step)


def run(
    unet: UNet | Mapping[str, UNet],
    guidance: Guidance,
    conditions: Conditions = CONDITIONS,
    x_T: Tensor = NOISE,
    steps: Sequence[Step] = STEPS,
) -> Tensor:
    """The end of a sampling."""
    *_, (_, x_t, _) = ddim(guided(networks(unet), guidance, conditions), x_T, steps)
    return x_t


def passes(guidance: Guidance) -> list[int]:
    return [len(guidance.branches(CONDITIONS, step)) for step in STEPS]


@dataclass(frozen=True)
class Tiny:
    """A CLIP with random weights, of pictures of 8 px."""

    size: int = 8

    def images(self, pictures: Tensor) -> Tensor:
        weights = torch.randn(3 * self.size**2, 6, generator=torch.Generator().manual_seed(1))
        return F.normalize(torch.tanh(pictures.flatten(1)) @ weights, dim=1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        streams = [torch.Generator().manual_seed(sum(prompt.encode())) for prompt in prompts]
        return F.normalize(torch.stack([torch.randn(6, generator=stream) for stream in streams]), dim=1)


def small_classifier() -> LatentClassifier:
    torch.manual_seed(0)
    return LatentClassifier(ClassifierConfig(("fish", "light bulb"), 4, (16, 16))).requires_grad_(False)
