"""What a recipe of conf/part trains, and what it learns from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from experiments.emoji.world import LAYOUTS, EmojiScenes, World, load_atlas, settings_of
from experiments.training.classifier import ClassifierPart
from experiments.training.parts import AutoencoderPart, ClipPart, JudgePart, Part, UNetPart
from experiments.training.tasks import BESIDE, InpaintPart, TaskPart
from experiments.training.vector_dit import DiTPart
from experiments.training.vector_parts import VectorAutoencoderPart, VectorJudgePart
from experiments.vectors.data import Source, load_drawings


class Examples(Protocol):
    """A dataset of which step n takes the n-th batch, and which makes a batch of its items."""

    def __getitem__(self, index: int) -> Any: ...
    def __len__(self) -> int: ...
    def collate(self, items: Sequence[Any]) -> Any: ...


def data_group(cfg: DictConfig) -> str:
    """Returns the config group that says what a part learns from."""
    return "drawings" if cfg.part.size == "vector" else "world"


def load_examples(cfg: DictConfig) -> tuple[Examples, Examples]:
    """Returns what a part learns from, and what is held out.

    Raises UserError for packages that are missing or damaged.
    """
    if data_group(cfg) == "drawings":
        source = Source(**settings_of(cfg.drawings))
        return load_drawings(source, Path(cfg.icons), Path(cfg.cache), max(cfg.workers, 1), cfg.seed)
    world = World(**settings_of(cfg.world))
    atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
    layouts = tuple(cfg.part.get("layouts") or LAYOUTS)
    length = max(cfg.part.steps * cfg.part.batch, 512)
    scenes = EmojiScenes(world, atlas, "train", cfg.seed, length, layouts)
    return scenes, EmojiScenes(world, atlas, "held_out", layouts=layouts)


def build_part(cfg: DictConfig, examples: Any) -> Part:
    """Returns the part that the config names, with its initial weights."""
    autoencoder, clip = Path(cfg.autoencoder), Path(cfg.clip)
    match data_group(cfg), cfg.part.name:
        case "world", "inpaint":
            return InpaintPart(cfg.part, examples, autoencoder, clip)
        case "world", name if name in BESIDE:
            return TaskPart(cfg.part, examples, autoencoder)
        case "world", _ if "unet" in cfg.part:
            return UNetPart(cfg.part, examples, autoencoder, clip)
        case "world", "autoencoder":
            return AutoencoderPart(cfg.part, examples)
        case "world", "clip":
            return ClipPart(cfg.part, examples)
        case "world", "judge":
            return JudgePart(cfg.part, examples)
        case "world", "classifier":
            return ClassifierPart(cfg.part, examples)
        case "drawings", "autoencoder":
            return VectorAutoencoderPart(cfg.part, examples)
        case "drawings", "judge":
            return VectorJudgePart(cfg.part, examples)
        case "drawings", "dit":
            return DiTPart(cfg.part, examples, autoencoder)
    raise AssertionError(f"{cfg.part.size}/{cfg.part.name}")
