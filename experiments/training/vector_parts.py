"""What can be trained on drawings: the vector autoencoder, and the judge."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from experiments.emoji.judge import save_judge
from experiments.emoji.world import settings_of
from experiments.files import UserError
from experiments.pictures import sheet
from experiments.training.parts import Part, sample_posterior
from experiments.vectors.data import DrawingBatch, Drawings
from experiments.vectors.judge import VectorJudge, VectorJudgeConfig, judged
from experiments.vectors.measures import latents_of, reconstruction
from experiments.vectors.raster import rendered
from ldm.config import VectorAutoencoderConfig
from ldm.files.vectors import write_vector_autoencoder
from ldm.svg.autoencoder import VectorAutoencoder
from ldm.svg.sequences import END, KINDS, USED, decode_commands

COMPONENTS = 20_000  # drawings, repeated if there are fewer, with whose components the autoencoder begins
SOME = 4096  # drawings whose latents tell the scale of all
PADDING = 0.05  # the weight of an END after the first one, in the loss of the kinds


class VectorAutoencoderPart(Part):
    """The vector autoencoder: cross-entropy of the kinds, error of the arguments that a kind has, and a little KL.

    Drawings are scaled and shifted by chance, up to `scaled` and `shifted`, so that positions are not learnt by heart.
    """

    def __init__(self, cfg: DictConfig, drawings: Drawings):
        super().__init__()
        self.config = VectorAutoencoderConfig(**settings_of(cfg.autoencoder))
        if drawings.kinds.shape[1] != self.config.commands:
            found, wanted = drawings.kinds.shape[1], self.config.commands
            raise UserError(f"drawings of {found} commands, part.autoencoder.commands={wanted}: they must be equal")
        self.network: VectorAutoencoder = VectorAutoencoder(self.config)
        many = spread(drawings.count, COMPONENTS).repeat(math.ceil(COMPONENTS / drawings.count))
        some = drawings.sequences(many[:COMPONENTS])
        self.network.begin_with_components(moved(some, cfg.scaled, cfg.shifted, torch.Generator().manual_seed(0)))
        self.drawings = drawings
        self.kind_weight, self.argument_weight, self.kl_weight = cfg.kind_weight, cfg.argument_weight, cfg.kl_weight
        self.scaled, self.shifted = cfg.scaled, cfg.shifted

    def forward(self, drawings: DrawingBatch, g: torch.Generator) -> Tensor:
        wanted = moved(drawings.sequences, self.scaled, self.shifted, g)
        mean, logvar = (moment.float() for moment in self.network.encode(wanted))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
        decoded = self.network.decode(sample_posterior(mean, logvar, g)).float()
        kinds = wanted[..., :KINDS].argmax(dim=-1)
        used = USED.to(kinds.device)[kinds]
        errors = F.cross_entropy(decoded[..., :KINDS].flatten(0, 1), kinds.flatten(), reduction="none").view_as(kinds)
        counted = ((kinds == END).cumsum(dim=1) <= 1) * (1 - PADDING) + PADDING
        arguments = ((decoded - wanted)[..., KINDS:].abs() * used).sum() / used.sum()
        kind_error = (errors * counted).sum() / counted.sum()
        return self.kind_weight * kind_error + self.argument_weight * arguments + self.kl_weight * kl

    @torch.no_grad()
    def picture(self, held_out: Drawings) -> Image.Image:
        """Returns drawings, and below them what is decoded of their latents."""
        device = self.network.decoder.linear_out.weight.device
        sequences = held_out.sequences(spread(held_out.count, 16))
        decoded = self.network.draw(self.network.encode(sequences.to(device))[0], held_out.stroke)
        drawings = [decode_commands(sequence, held_out.stroke) for sequence in sequences]
        return sheet([[white(rendered(d, 64)) for d in row] for row in (drawings, decoded)], ["drawing", "decoded"])

    def finish(self, held_out: Drawings, out: Path) -> str:
        """Writes the autoencoder with the scale that gives its latents unit variance."""
        found = reconstruction(self.network, held_out)
        measured = VectorAutoencoder(unit_variance(self.network, self.config, self.drawings))
        measured.load_state_dict(self.network.state_dict())
        if not (out / "model").exists():
            write_vector_autoencoder(measured, out / "model")
        return ", ".join(f"{name} {value:.4g}" for name, value in found.items()) + f": {out / 'model'}"


class VectorJudgePart(Part):
    """The judge: cross-entropy of the class of a true render that is scaled, shifted, noised and blurred a little."""

    def __init__(self, cfg: DictConfig, drawings: Drawings):
        super().__init__()
        config = VectorJudgeConfig(drawings.classes, tuple(cfg.channels), drawings.stroke)
        self.network: VectorJudge = VectorJudge(config)
        self.scaled, self.shifted, self.noise = cfg.scaled, cfg.shifted, cfg.noise

    def forward(self, drawings: DrawingBatch, g: torch.Generator) -> Tensor:
        count = len(drawings.classes)
        draw = 2 * torch.rand((count, 4), generator=g) - 1
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = (1 + self.scaled * draw[:, :2]).unbind(dim=1)
        theta[:, :, 2] = self.shifted * draw[:, 2:]
        renders = drawings.renders[:, None].float()
        grid = F.affine_grid(theta.to(renders.device), list(renders.shape), align_corners=False)
        pictures = F.grid_sample(renders, grid, align_corners=False)
        level = 255 * self.noise * torch.rand((count, 1, 1, 1), generator=g)
        pictures = pictures + (level * torch.randn(pictures.shape, generator=g)).to(renders.device)
        logits, _ = self.network(pictures[:, 0])
        return F.cross_entropy(logits, drawings.classes)

    def picture(self, held_out: Drawings) -> None:
        return None

    def finish(self, held_out: Drawings, out: Path) -> str:
        save_judge(self.network, out / "model")
        logits, _ = judged(self.network, held_out.renders)
        right = (logits.argmax(dim=1) == held_out.labels).float().mean().item()
        return f"of {held_out.count} drawings (held out, if any are) {right:.2%} named right: {out / 'model'}"


def moved(sequences: Tensor, scaled: float, shifted: float, g: torch.Generator) -> Tensor:
    """Returns sequences scaled in x and y by up to 1 +- `scaled` and shifted by up to `shifted` half boxes."""
    count = len(sequences)
    draw = (2 * torch.rand((count, 2, 1, 1, 2), generator=g) - 1).to(sequences.device)
    points = sequences[..., KINDS:].unflatten(-1, (-1, 2))
    points = points * (1 + scaled * draw[:, 0]) + shifted * draw[:, 1]
    used = USED.to(sequences.device)[sequences[..., :KINDS].argmax(dim=-1)]
    return torch.cat([sequences[..., :KINDS], points.flatten(-2) * used], dim=-1)


def unit_variance(
    autoencoder: VectorAutoencoder, config: VectorAutoencoderConfig, drawings: Drawings
) -> VectorAutoencoderConfig:
    """Returns an autoencoder's config with the scale that gives its latents unit variance."""
    latents = latents_of(autoencoder, drawings, spread(drawings.count, SOME))
    return replace(config, scale=config.scale / latents.std().item())


def spread(count: int, most: int) -> Tensor:
    """Returns up to `most` indices, evenly spread over `count`."""
    return torch.linspace(0, count - 1, min(count, most)).long()


def white(render: np.ndarray) -> Image.Image:
    """Returns a render as black on white."""
    return Image.fromarray(255 - render).convert("RGB")
