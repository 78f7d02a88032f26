"""A model of the family that samples in milliseconds, and what running a verb came to."""

from typing import NamedTuple

import torch

from ldm.config import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from ldm.model import LatentDiffusion, networks

TINY = ModelConfig(
    unet=UNetConfig(channels=(32, 64), blocks_per_level=1, attention=(True, True), heads=(2, 4), text_width=16),
    autoencoder=AutoencoderConfig(channels=(32, 32), blocks_per_level=1),
    text=TextEncoderConfig(width=16, mlp_width=32, layers=1, heads=2),
    image_size=16,
)


def tiny_model(config: ModelConfig = TINY) -> LatentDiffusion:
    """A model of the family, small enough to sample from in milliseconds, its weights random and nowhere zero."""
    g = torch.Generator().manual_seed(0)
    parts = networks(config)
    for network in parts:
        network.eval().requires_grad_(False)
        for name, p in network.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(centre + 0.1 * torch.randn(p.shape, generator=g))
    return LatentDiffusion(*parts, config)


class Outcome(NamedTuple):
    status: int
    out: str
    err: str
