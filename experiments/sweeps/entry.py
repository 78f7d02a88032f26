"""What a job of Hydra's knows of its sweep: the sweep's folder, its axes, the command, and what all cells share."""

import json
import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments import files
from experiments.files import UserError
from experiments.sweeps.claims import claim_of
from experiments.sweeps.folder import Axes, axis_value, overrides, planned

MAY_DIFFER = (  # between the cells of a sweep; how each cell was measured is stored with it, see `provenance`
    *("cell", "out", "shard", "device", "logger", "icons", "cache", "maps"),
    *("claim", "claims", "page", "measures", "metrics", "references", "again", "bootstrap"),
)


@dataclass(frozen=True)
class Entry:
    """A cell that is about to be drawn and measured."""

    sweep: Path
    folder: Path
    name: str
    axes: Axes

    def note(self, **more: Any) -> None:
        """Writes cell.json."""
        cell = {"name": self.name, "axes": self.axes, **more}
        files.write(self.folder / "cell.json", json.dumps(cell, indent=1) + "\n")


def enter(cfg: DictConfig, hydra: HydraConf) -> Entry:
    """Notes in sweep.json what all cells share.

    Raises UserError, naming the difference, where they share another, and for a claim that is none.
    """
    for record in resolved(cfg.claims):
        claim_of(record)
    sweep, folder = folders(cfg, hydra)
    keys = swept(hydra.sweeper.get("params"), sweep / "multirun.yaml" if in_multirun(hydra) else None)
    choices = hydra.runtime.choices
    axes = {key: choices.get(key) or axis_value(resolved(OmegaConf.select(cfg, path))) for key, path in keys.items()}
    shared = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))  # as written, so that what hangs on an
    for path in (*MAY_DIFFER, *keys.values()):  # axis is the same in all cells
        remove(shared, path.split("."))
    sweep.mkdir(parents=True, exist_ok=True)
    with files.locked(sweep):
        file = sweep / "sweep.json"
        former = json.loads(file.read_text()) if file.exists() else {"config": shared}
        if differs := files.difference(former["config"], shared):
            raise UserError(f"{sweep} holds a sweep of another config ({differs}): choose another out=FOLDER")
        told = {key: resolved(cfg[key]) for key in ("name", "claim", "claims", "page")}
        told |= {"command": command(hydra), "commit": files.commit(), "config": shared}
        told["planned"] = wanted(hydra) if in_multirun(hydra) else former.get("planned", [])
        files.write(file, json.dumps(told, indent=1) + "\n")
    return Entry(sweep, folder, str(cfg.cell), axes)


def wanted(hydra: HydraConf) -> list[Axes]:
    """Returns the axes' values of each cell that the command asks for."""
    return planned(resolved(hydra.sweeper.get("params")), recorded(Path(hydra.sweep.dir) / "multirun.yaml").task)


def in_multirun(hydra: HydraConf) -> bool:
    return hydra.mode == RunMode.MULTIRUN


def folders(cfg: DictConfig, hydra: HydraConf) -> tuple[Path, Path]:
    """Returns the sweep's folder and the cell's: hydra.sweep.dir and a folder in it, or hydra.run.dir.

    A single run in out/CELL belongs to the sweep in `out`; one anywhere else is a sweep of its own.
    """
    folder = Path(hydra.runtime.output_dir)
    if in_multirun(hydra):
        return Path(hydra.sweep.dir), folder
    return (Path(cfg.out) if folder.resolve() == (Path(cfg.out) / cfg.cell).resolve() else folder), folder


def swept(params: DictConfig | None, record: Path | None) -> dict[str, str]:
    """Returns the keys that a sweep varies, and where in the config each lies.

    They are the experiment's own, `hydra.sweeper.params`, and those of the command line, in Hydra's record of it.
    """
    typed = [] if record is None else recorded(record).task
    found = overrides(resolved(params), typed)
    return {o.get_key_element(): o.package or o.key_or_group for o in found if o.is_sweep_override()}


def recorded(file: Path) -> Any:
    """Returns the overrides in Hydra's record of a sweep, which is large, and read once a sweep."""
    return overrides_at(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def overrides_at(file: Path, time: int) -> Any:
    return OmegaConf.load(file).hydra.overrides


def remove(config: dict[str, Any], path: list[str]) -> None:
    """Removes the entry at a path, if it is there."""
    for key in path[:-1]:
        config = config.get(key) or {}
        if not isinstance(config, dict):  # an interpolation stands here
            return
    config.pop(path[-1], None)


def command(hydra: HydraConf) -> str:
    """Returns what was typed, near enough to be typed again."""
    multirun = in_multirun(hydra)
    typed = recorded(Path(hydra.sweep.dir) / "multirun.yaml") if multirun else hydra.overrides
    words = [word for word in [*typed.hydra, *typed.task] if not word.startswith("hydra.mode=")]
    return shlex.join(["python", "-m", "experiments.ablate", *(["-m"] if multirun else []), *words])


def resolved(value: Any) -> Any:
    """Returns a config's node in Python's types, without interpolations."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
