"""What the tests of studies share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.files import CONF
from experiments.rating.store import Store
from experiments.rating.study import Study, open_study

WORDS = ["a red cat", "a dragon", "a fish and a bat", "a light bulb", "a blue fish", "two dogs", "a pear", "a heart"]
MakeStudy = Callable[..., Path]


def settings(*overrides: str) -> dict[str, Any]:
    """The config of the verb, composed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("raters", ["action=make", "study=x", *overrides])
    return OmegaConf.to_container(cfg, resolve=True)


def stored(folder: Path, path: Path, simulated: bool = False) -> Store:
    return Store(path, *open_study(folder), simulated)


def items_of(study: Study, slot: int, role: str = "main") -> list[tuple[int, tuple[int, ...]]]:
    return [(item, order) for item, order in study.slots[slot - 1].plan if study.items[item].role == role]
