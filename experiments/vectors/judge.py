"""The judge of drawings: a small convolutional network that says which class a rendered drawing shows.

It is trained on true renders alone and shares no weights with the models that it judges.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.files import UserError, write
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


def save_vector_judge(judge: VectorJudge, folder: Path) -> None:
    """Writes config.json and the weights in 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in judge.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    write(folder / "config.json", json.dumps(asdict(judge.config), indent=1) + "\n")


def load_vector_judge(folder: Path, device: torch.device | str = "cpu") -> VectorJudge:
    """Returns the judge of a folder that a training wrote. Raises UserError if there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"no judge in {folder}: `python -m experiments.train part=vector/judge` makes one")
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    judge = VectorJudge(VectorJudgeConfig(**fields))
    judge.load_state_dict(load_file(folder / "model.safetensors"))
    return judge.float().to(device).eval().requires_grad_(False)
