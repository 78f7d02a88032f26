"""The judge of drawings: a small convolutional network that says which class a rendered drawing shows.

It is trained on true renders alone and shares no weights with the models that it judges.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.emoji.judge import read_judge
from ldm.layers import GroupNorm


@dataclass(frozen=True)
class VectorJudgeConfig:
    classes: tuple[str, ...]
    channels: tuple[int, ...]  # of each level; the first works at half of a render's size
    stroke: float | None = None  # of the drawings that it knows: None if they are filled


class VectorJudge(nn.Module):
    """Renders uint8 [B, SIDE, SIDE] -> logits [B, classes] and features [B, channels[-1]], for Frechet distances."""

    def __init__(self, config: VectorJudgeConfig):
        super().__init__()
        self.config = config
        widths = (1, *config.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.refinements = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for width in config.channels)
        self.norms = nn.ModuleList(GroupNorm(8, width) for width in config.channels for _ in range(2))
        self.linear = nn.Linear(config.channels[-1], len(config.classes))

    def forward(self, renders: Tensor) -> tuple[Tensor, Tensor]:
        x = renders[:, None].to(self.linear.weight.dtype) / 127.5 - 1
        for i, (down, refine) in enumerate(zip(self.convolutions, self.refinements, strict=True)):
            x = F.silu(self.norms[2 * i](down(x)))
            x = x + F.silu(self.norms[2 * i + 1](refine(x)))
        features = x.mean(dim=(2, 3))
        return self.linear(features).float(), features.float()


@torch.no_grad()
def judged(judge: VectorJudge, renders: Tensor, rows: int = 512) -> tuple[Tensor, Tensor]:
    """Returns a judge's logits [N, classes] and features [N, width] of any number of renders, `rows` at a time."""
    device = judge.linear.weight.device
    found = [judge(some.to(device)) for some in renders.split(rows)]
    logits, features = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return logits, features


def load_vector_judge(folder: Path, device: torch.device | str = "cpu") -> VectorJudge:
    """Returns the judge of a folder that a training wrote. Raises UserError if there is none."""
    return read_judge(lambda fields: VectorJudge(VectorJudgeConfig(**fields)), folder, device, "vector/judge")
