"""The vector autoencoder: a drawing's sequence of commands to one latent vector, and back.

Each direction is a linear map of the whole sequence plus a residual MLP: on glyphs that learns many times as fast as a
transformer over commands (DeepSVG, Carlier et al. 2020), whose losses it shares, because the linear maps begin as
principal components (`begin_with_components`), which alone decode nearly all of a glyph.
Letters of shapes: B drawings, L commands at most, d numbers of a latent.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import VectorAutoencoderConfig
from ldm.layers import Linear
from ldm.svg.drawing import Drawing
from ldm.svg.sequences import ARGUMENTS, COLUMNS, KINDS, decode_commands, grammatical

LEAST_VARIANCE = 1e-6  # of a component, so that what drawings lack is not blown up
FIRST_LOGVAR = -3.0  # of q, with which training begins


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
        entries = config.commands * COLUMNS
        self.to_latent, self.from_latent = Linear(entries, config.latent_width), Linear(config.latent_width, entries)
        self.encoder = ResidualMLP(config.commands * columns, config.width, 2 * config.latent_width, config.blocks)
        self.decoder = ResidualMLP(config.latent_width, config.width, entries, config.blocks)

    def encode(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, d] of q(latent | drawing), both in latent units."""
        correction, logvar = self.encoder(self.features(sequences).flatten(1)).chunk(2, dim=1)
        mean = self.to_latent(sequences.flatten(1)) + correction
        return mean * self.scale, logvar.clamp(-30.0, 20.0) + 2 * math.log(self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Sequences [B, L, COLUMNS] of latents: logits of the kinds, then the arguments, also where a kind has none."""
        latents = latents / self.scale
        return (self.from_latent(latents) + self.decoder(latents)).unflatten(1, (-1, COLUMNS))

    def draw(self, latents: Tensor, stroke: float | None = None) -> list[Drawing]:
        """Returns the drawings of latents, their paths whole whatever the logits are; `stroke` as in Drawing."""
        sequences = grammatical(self.decode(latents).float().cpu(), stroke)
        return [decode_commands(sequence, stroke) for sequence in sequences]

    def features(self, sequences: Tensor) -> Tensor:
        """Returns sequences with sines and cosines of their arguments, at 1/2, 1, 2.. periods over the box."""
        arguments = sequences[..., KINDS:]
        angles = [arguments * (math.pi / 2 * 2**octave) for octave in range(self.config.octaves)]
        return torch.cat([sequences, *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], dim=-1)

    @torch.no_grad()
    def begin_with_components(self, sequences: Tensor) -> None:
        """Sets the weights with which training begins, from sequences [N, L, COLUMNS].

        A latent's mean is the sequence's principal components, each divided by the root of its standard deviation: the
        large ones stay the large ones, the small ones rise above the noise of q. Both MLPs begin by saying nothing.
        """
        flat = sequences.flatten(1).double()  # in float32 the many numbers that are always zero do not converge
        centre = flat.mean(dim=0)
        covariance = (flat - centre).T @ (flat - centre) / len(flat)
        variances, directions = torch.linalg.eigh(covariance)
        width = self.config.latent_width
        directions, roots = directions.flip(1)[:, :width], variances.flip(0)[:width].clamp(min=LEAST_VARIANCE) ** 0.25
        self.to_latent.weight.copy_((directions / roots).T)
        self.to_latent.bias.copy_(-(directions / roots).T @ centre)
        self.from_latent.weight.copy_(directions * roots)
        self.from_latent.bias.copy_(centre)
        for mlp in (self.encoder, self.decoder):
            nn.init.zeros_(mlp.linear_out.weight)
            nn.init.zeros_(mlp.linear_out.bias)
        self.encoder.linear_out.bias[width:] = FIRST_LOGVAR
