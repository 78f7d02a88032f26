"""Folders of pictures: finished runs, and references."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.files import UserError, read_lines

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises of a broken file


@dataclass(frozen=True)
class Pictures:
    """The files of a folder that can be read, and what there is to say of those that cannot."""

    folder: Path
    files: tuple[Path, ...]
    sizes: dict[tuple[int, int], int]  # width, height -> how many
    sha256: str  # of the files' contents, whatever their names and order
    warnings: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """Returns what identifies the pictures, without the folder's path, which differs from machine to machine."""
        sizes = {f"{w}x{h}": n for (w, h), n in self.sizes.items()}
        return {"name": self.folder.name, "sha256": self.sha256, "count": len(self.files), "sizes": sizes}

    def batches(self, batch_size: int, resize: int | None = None) -> Iterator[Tensor]:
        """Yields uint8 [B, 3, H, W], in order. `resize` makes squares of so many pixels, cut from the centre, bicubic.

        Raises UserError for pictures of several sizes, unless they are resized.
        """
        if len(self.sizes) > 1 and resize is None:
            sizes = ", ".join(f"{w}x{h} ({n})" for (w, h), n in sorted(self.sizes.items())[:8])
            raise UserError(f"{self.folder}: pictures of mixed sizes, {sizes}: say resize=PIXELS in the metric")
        for i in range(0, len(self.files), batch_size):
            images = [read(path) for path in self.files[i : i + batch_size]]
            yield torch.stack([to_tensor(image if resize is None else square(image, resize)) for image in images])


@dataclass(frozen=True)
class FinishedRun:
    """A run folder of `experiments.sample`: its pictures that can be read, and their records in the same order."""

    folder: Path
    config: dict[str, Any]
    records: tuple[dict[str, Any], ...]
    pictures: Pictures

    @property
    def emoji(self) -> bool:
        """Whether a model of emoji drew it, so that the judge and the embedded CLIP know what is in it."""
        return self.config["model"]["subject"] == "emoji"

    @cached_property
    def captions(self) -> list[tuple[str, ...]]:
        """Returns what each picture should show: its prompt or, if it has none, the prompts of its stages."""
        return [(r["prompt"],) if "prompt" in r else tuple(s["prompt"] for s in r["stages"]) for r in self.records]

    @cached_property
    def texts(self) -> list[tuple[str, ...]]:
        """Returns all the prompts of each picture, those of its stages too."""
        stages = [[stage["prompt"] for stage in record.get("stages", [])] for record in self.records]
        return [tuple(dict.fromkeys([*c, *s])) for c, s in zip(self.captions, stages, strict=True)]


def open_run(folder: Path) -> FinishedRun:
    """Raises UserError if it is no run folder, or a run that did not get to its end."""
    if not (folder / "run.json").is_file() or not (folder / "samples.jsonl").is_file():
        raise UserError(f"run={folder}: no run folder of experiments.sample (no run.json and samples.jsonl in it)")
    records = read_lines(folder / "samples.jsonl")
    missing = [record["file"] for record in records if not (folder / record["file"]).is_file()]
    if not (folder / "grid.png").is_file() or not records or missing:
        raise UserError(
            f"run={folder}: unfinished, {len(records) - len(missing)} pictures so far: its own command goes on with it"
        )
    config = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
    pictures = survey(folder, [folder / record["file"] for record in records])
    readable = set(pictures.files)
    return FinishedRun(folder, config, tuple(r for r in records if folder / r["file"] in readable), pictures)


def open_reference(folder: Path) -> Pictures:
    """Returns all the pictures that lie in a folder, by name. Raises UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"reference folder {folder}: there is no such folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"reference folder {folder}: holds no images ({', '.join(SUFFIXES)})")
    return survey(folder, files)


def survey(folder: Path, files: list[Path]) -> Pictures:
    """Reads every file once, and tells which are whole and of which size. Raises UserError if none is."""
    readable, broken, sizes, digests = [], [], Counter[tuple[int, int]](), []
    for path in files:
        content = path.read_bytes()
        try:
            sizes[decode(content).size] += 1
        except UNREADABLE:
            broken.append(path.name)
            continue
        readable.append(path)
        digests.append(hashlib.sha256(content).hexdigest())
    if not readable:
        raise UserError(f"{folder}: none of its {len(files)} images can be read")
    more = ", ..." if len(broken) > 5 else ""
    warnings = (f"{folder.name}: {len(broken)} unreadable images left out: {', '.join(broken[:5])}{more}",)
    digest = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return Pictures(folder, tuple(readable), dict(sizes), digest, warnings if broken else ())


def decode(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def read(path: Path) -> Image.Image:
    return decode(path.read_bytes())


def square(image: Image.Image, side: int) -> Image.Image:
    """Cuts the largest square about the centre and resizes it."""
    half, x, y = min(image.size) / 2, image.width / 2, image.height / 2
    return image.resize((side, side), Image.Resampling.BICUBIC, box=(x - half, y - half, x + half, y + half))


def to_tensor(image: Image.Image) -> Tensor:
    """Returns uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
