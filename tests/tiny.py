"""A model of the family that samples in milliseconds, and what running a verb came to."""

from dataclasses import replace
from typing import NamedTuple

import torch

from ldm.config import (
    AutoencoderConfig,
    ClassesConfig,
    DiTConfig,
    ModelConfig,
    ScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
    VectorAutoencoderConfig,
)
from ldm.files import names
from ldm.model import LatentDiffusion, autoencoder_of, denoiser_of, encoder_of

TINY = ModelConfig(
    unet=UNetConfig(channels=(32, 64), blocks_per_level=1, attention=(True, True), heads=(2, 4), text_width=16),
    autoencoder=AutoencoderConfig(channels=(32, 32), blocks_per_level=1),
    text=TextEncoderConfig(width=16, mlp_width=32, layers=1, heads=2),
    image_size=16,
)
CLASSES = ClassesConfig(("A", "B", "a", "light bulb", "7"), width=16)
WORDLESS = replace(TINY, text=TextEncoderConfig())
TOLD = {  # that model, told something else
    "token": replace(WORDLESS, condition="classes", classes=CLASSES),
    "vector": replace(
        WORDLESS,
        unet=replace(TINY.unet, text_width=None, vector_width=16),
        condition="classes",
        classes=replace(CLASSES, as_vector=True),
    ),
    "nothing": replace(WORDLESS, unet=replace(TINY.unet, text_width=None), condition="nothing"),
}
DRAWN = ModelConfig(  # vector drawings by classes
    dit=DiTConfig(in_channels=12, width=32, layers=2, heads=4, tokens=1),
    drawings=VectorAutoencoderConfig(commands=6, latent_width=12, width=16, blocks=1),
    classes=replace(CLASSES, width=32, as_vector=True),
    schedule=ScheduleConfig(prediction="x0"),
    image_size=16,
    condition="classes",
    denoiser="dit",
    latents="drawings",
)


def tiny_model(config: ModelConfig = TINY) -> LatentDiffusion:
    """A model of the family, small enough to sample from in milliseconds, its weights random and nowhere zero."""
    g = torch.Generator().manual_seed(0)
    model = LatentDiffusion(denoiser_of(config), autoencoder_of(config), encoder_of(config), config)
    for network in names.parts(model).values():
        network.eval().requires_grad_(False)
        for name, p in network.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(centre + 0.1 * torch.randn(p.shape, generator=g))
    return model


class Outcome(NamedTuple):
    status: int
    out: str
    err: str
