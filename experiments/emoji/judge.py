"""The judge of the emoji world: a network that says which objects a picture shows, where, and in which colours.

It is trained on scenes alone and shares no weights with the models that it judges.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments import files
from experiments.files import UserError, write
from ldm.layers import GroupNorm

J = TypeVar("J", bound=nn.Module)
NATURAL = "natural.json"  # beside a judge's weights: concept -> colour word -> its share in objects that have no tint
WEIGHTS = files.WEIGHTS / files.embedded("judge")


@dataclass(frozen=True)
class JudgeConfig:
    concepts: tuple[str, ...]
    colours: tuple[str, ...]
    image_size: int
    channels: tuple[int, ...]  # of each level; the first works at half of the image's size


@dataclass(frozen=True)
class JudgeOutput:
    """What the judge says of B pictures: logits over K concepts and C colours."""

    presence: Tensor  # [B, K]: whether the concept is in the picture
    labels: Tensor  # [B, 1 + K, H, W]: nothing, or a concept
    colours: Tensor  # [B, C, H, W]: which colour word fits a pixel of an object best
    features: Tensor  # [B, channels[-1]]: what Frechet distances are measured in

    def colour_of(self, concept: int) -> Tensor:
        """Returns probabilities [B, C] of the colour words for a concept, averaged over the pixels that show it."""
        weight = self.labels.softmax(dim=1)[:, 1 + concept, None]
        return (self.colours.softmax(dim=1) * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))


class Block(nn.Module):
    """A convolution block with a residual path."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1)
        self.norm1 = GroupNorm(8, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1)
        self.norm2 = GroupNorm(8, c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        return x + F.silu(self.norm2(self.conv2(x)))


class Judge(nn.Module):
    """A small U-shaped convolutional network: images [B, 3, H, W] in [-1, 1] -> JudgeOutput."""

    def __init__(self, config: JudgeConfig):
        super().__init__()
        self.config = config
        widths = config.channels
        self.down = nn.ModuleList(Block(a, b, 2) for a, b in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(Block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.presence = nn.Linear(2 * widths[-1], len(config.concepts))
        self.pixels = nn.Conv2d(widths[0], 1 + len(config.concepts) + len(config.colours), 1)

    def forward(self, images: Tensor) -> JudgeOutput:
        x, skips = images, []
        for block in self.down:
            x = block(x)
            skips.append(x)
        features = x.mean(dim=(2, 3))
        presence = self.presence(torch.cat([features, x.amax(dim=(2, 3))], dim=1))
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        pixels = F.interpolate(self.pixels(x).float(), scale_factor=2.0, mode="bilinear")
        labels, colours = pixels.split([1 + len(self.config.concepts), len(self.config.colours)], dim=1)
        return JudgeOutput(presence.float(), labels, colours, features.float())


def save_judge(judge: nn.Module, folder: Path) -> None:
    """Writes config.json and the weights in 16 bits, of a judge of pictures or of drawings."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in judge.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    write(folder / "config.json", json.dumps(asdict(cast(Any, judge.config)), indent=1) + "\n")


def load_judge(folder: Path = WEIGHTS, device: torch.device | str = "cpu") -> Judge:
    """Returns the judge of a folder that a training wrote. Raises UserError if there is none."""
    return read_judge(lambda fields: Judge(JudgeConfig(**fields)), folder, device, "small/judge")


def read_judge(make: Callable[[dict[str, Any]], J], folder: Path, device: torch.device | str, part: str) -> J:
    """Returns what `make` makes of the fields of a folder's config, with the folder's weights.

    part  whose training writes such folders
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"no judge in {folder}: `python -m experiments.train part={part}` makes one")
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    judge = make({key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    judge.load_state_dict(load_file(folder / "model.safetensors"))
    return judge.float().to(device).eval().requires_grad_(False)


def load_natural(folder: Path = WEIGHTS) -> dict[str, dict[str, float]] | None:
    """Returns the colours that a judge sees in each concept as its styles draw it, the most of any style, 0 to 1.

    None where they were not measured: `python -m experiments.data.natural` does.
    """
    file = folder / NATURAL
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
