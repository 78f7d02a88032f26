"""The vector autoencoder: a drawing's sequence of commands to one latent vector, and back.

A residual MLP over the whole sequence, with weights of its own for each position: on glyphs it learns several times
as fast as a transformer over commands (DeepSVG, Carlier et al. 2020), whose losses it shares.
Letters of shapes: B drawings, L commands at most, d numbers of a latent.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import VectorAutoencoderConfig
from ldm.layers import Linear
from ldm.svg.drawing import Drawing
from ldm.svg.sequences import ARGUMENTS, COLUMNS, KINDS, decode_commands


class ResidualMLP(nn.Module):
    """A linear layer in, `blocks` residual blocks of two layers, a linear layer out."""

    def __init__(self, c_in: int, width: int, c_out: int, blocks: int):
        super().__init__()
        self.linear_in = Linear(c_in, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.SiLU(), Linear(width, width))
            for _ in range(blocks)
        )
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = Linear(width, c_out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear_in(x)
        for block in self.blocks:
            h = h + block(h)
        return self.linear_out(F.silu(self.norm_out(h)))


class VectorAutoencoder(nn.Module):
    """Sequences [B, L, COLUMNS] (ldm/svg/sequences.py) to latents [B, d] of about unit variance, and back."""

    def __init__(self, config: VectorAutoencoderConfig):
        super().__init__()
        self.config = config
        self.scale = config.scale
        columns = KINDS + ARGUMENTS * (1 + 2 * config.octaves)
        self.encoder = ResidualMLP(config.commands * columns, config.width, 2 * config.latent_width, config.blocks)
        self.decoder = ResidualMLP(config.latent_width, config.width, config.commands * COLUMNS, config.blocks)

    def encode(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, d] of q(latent | drawing), both in latent units."""
        mean, logvar = self.encoder(self.features(sequences).flatten(1)).chunk(2, dim=1)
        return mean * self.scale, logvar.clamp(-30.0, 20.0) + 2 * math.log(self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Sequences [B, L, COLUMNS] of latents: logits of the kinds, then the arguments, also where a kind has none."""
        return self.decoder(latents / self.scale).unflatten(1, (-1, COLUMNS))

    def draw(self, latents: Tensor, stroke: float | None = None) -> list[Drawing]:
        """Returns the drawings of latents; `stroke` as in Drawing."""
        return [decode_commands(sequence, stroke) for sequence in self.decode(latents).float().cpu()]

    def features(self, sequences: Tensor) -> Tensor:
        """Returns sequences with sines and cosines of their arguments, at 1/2, 1, 2.. periods over the box."""
        arguments = sequences[..., KINDS:]
        angles = [arguments * (math.pi / 2 * 2**octave) for octave in range(self.config.octaves)]
        return torch.cat([sequences, *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], dim=-1)
