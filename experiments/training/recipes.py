"""What a recipe of conf/part trains, and what it learns from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from experiments.emoji.world import LAYOUTS, EmojiScenes, World, load_atlas, settings_of
from experiments.training.classifier import ClassifierPart
from experiments.training.parts import AutoencoderPart, ClipPart, JudgePart, Part, UNetPart
from experiments.training.tasks import InpaintPart, TaskPart
from experiments.training.vector_dit import DiTPart
from experiments.training.vector_parts import VectorAutoencoderPart, VectorJudgePart
from experiments.vectors.data import Drawings, Source, load_drawings


class Examples(Protocol):
    """A dataset of which step n takes the n-th batch, and which makes a batch of its items."""

    def __getitem__(self, index: int) -> Any: ...
    def __len__(self) -> int: ...
    def collate(self, items: Sequence[Any]) -> Any: ...


def data_group(cfg: DictConfig) -> str:
    """Returns the config group that says what a part learns from."""
    return "drawings" if cfg.part.size == "vector" else "world"


def load_examples(cfg: DictConfig) -> tuple[Examples, Examples]:
    """Returns what a part learns from, and what is held out: where no drawings are, those that it learns from.

    Raises UserError for packages that are missing or damaged.
    """
    if data_group(cfg) == "drawings":
        source = Source(**settings_of(cfg.drawings))
        learnt, apart = load_drawings(source, Path(cfg.icons), Path(cfg.cache), max(cfg.workers, 1), cfg.seed)
        return learnt, apart if apart.count else learnt
    world = World(**settings_of(cfg.world))
    atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
    layouts = tuple(cfg.part.get("layouts") or LAYOUTS)
    length = max(cfg.part.steps * cfg.part.batch, 512)
    train = EmojiScenes(world, atlas, "train", cfg.seed, length, layouts)
    return train, EmojiScenes(world, atlas, "held_out", layouts=layouts)


def build_part(cfg: DictConfig, examples: Any) -> Part:
    """Returns the part that the config names, with its initial weights."""
    return (drawing_part if data_group(cfg) == "drawings" else scene_part)(cfg, examples)


def scene_part(cfg: DictConfig, scenes: EmojiScenes) -> Part:
    autoencoder, clip = Path(cfg.autoencoder), Path(cfg.clip)
    if cfg.part.size == "tasks" and "unet" in cfg.part:
        begins_with = Path(cfg.out).parent / cfg.part.begins_with if cfg.part.begins_with else None
        if cfg.part.name == "inpaint":
            return InpaintPart(cfg.part, scenes, autoencoder, clip, begins_with)
        return TaskPart(cfg.part, scenes, autoencoder, begins_with)
    if "unet" in cfg.part:
        return UNetPart(cfg.part, scenes, autoencoder, clip)
    kinds: dict[str, Callable[[DictConfig, EmojiScenes], Part]]
    kinds = {"autoencoder": AutoencoderPart, "clip": ClipPart, "judge": JudgePart, "classifier": ClassifierPart}
    return kinds[cfg.part.name](cfg.part, scenes)


def drawing_part(cfg: DictConfig, drawings: Drawings) -> Part:
    kinds: dict[str, Callable[[DictConfig, Drawings], Part]]
    kinds = {"autoencoder": VectorAutoencoderPart, "judge": VectorJudgePart}
    if cfg.part.name == "dit":
        return DiTPart(cfg.part, drawings, Path(cfg.autoencoder))
    return kinds[cfg.part.name](cfg.part, drawings)
