"""python -m experiments.raters action=ACTION study=FOLDER: a study with human raters, from pictures to figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from experiments.rating import make as making
from experiments.run import cli


def make(cfg: DictConfig) -> None:
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    study, made = making.study(settings)
    making.write(Path(cfg.study), study, made)
    print(making.described(study))


ACTIONS: dict[str, Callable[[DictConfig], None]] = {"make": make}


def main(cfg: DictConfig) -> None:
    if cfg.action not in ACTIONS:
        raise ValueError(f"action={cfg.action}: must be one of {', '.join(ACTIONS)}")
    ACTIONS[cfg.action](cfg)


if __name__ == "__main__":
    cli.run(main, "raters")
