"""How far a sweep is: one bar where this process runs the cells itself, a line per cell where a launcher does."""

import json
import time
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm import tqdm

from experiments.files import read_lines, say
from experiments.run.logger import Logger
from experiments.sweeps.folder import planned


def in_this_process(config: DictConfig) -> bool:
    """Whether Hydra runs the cells of this sweep one after another in the process that began it."""
    return bool(config.hydra.launcher._target_.endswith("BasicLauncher"))


class SweepBar(Callback):
    """Hydra's callback that shows the bar of the sweep whose cells this process runs one after another."""

    bar: ClassVar[Any] = None
    done: ClassVar[int] = 0
    failed: ClassVar[int] = 0
    pictures: ClassVar[int] = 0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if in_this_process(config):
            cells = planned(config.hydra.sweeper.get("params"), config.hydra.overrides.task)
            SweepBar.done = SweepBar.failed = SweepBar.pictures = 0
            SweepBar.bar = tqdm(total=len(cells), bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}")
            show()


class CellLogger(Logger):
    """A cell's logger, which also tells the sweep's bar how many of the cell's pictures are there."""

    def __init__(self, cfg: DictConfig, config: dict[str, Any], folder: Path, pictures: int):
        super().__init__(cfg, config, folder)
        self.pictures = pictures

    def log(self, metrics: dict[str, Any]) -> None:
        super().log(metrics)
        show(metrics["images"], self.pictures)


def show(drawn: int = 0, of: int = 0) -> None:
    """Moves the bar, to so many pictures of a cell that wants `of`."""
    bar = SweepBar.bar
    if bar is not None:
        bar.set_description_str(
            status(SweepBar.done, SweepBar.failed, bar.total, SweepBar.pictures + drawn), refresh=False
        )
        bar.n = SweepBar.done + (drawn / of if of else 0)
        bar.refresh()


def cell_done(sweep: Path, folder: Path) -> None:
    """Moves the bar, or says in a line how far the sweep is."""
    if SweepBar.bar is not None:
        SweepBar.done += 1
        SweepBar.pictures += len(read_lines(folder / "samples.jsonl"))
        show()
    elif (sweep / "multirun.yaml").is_file():
        say(state_of(sweep))


def cell_failed() -> None:
    """Counts a cell that failed; the bar's line is free for the error, and the next cell draws it anew."""
    if SweepBar.bar is not None:
        SweepBar.done += 1
        SweepBar.failed += 1
        clear()


def clear() -> None:
    """Clears the bar's line for another that is about to be written."""
    if SweepBar.bar is not None:
        SweepBar.bar.clear()


def close() -> None:
    if SweepBar.bar is not None:
        SweepBar.bar.close()
        SweepBar.bar = None


def state_of(sweep: Path) -> str:
    """Returns a line: cells and pictures done, as all of the sweep's processes left them, and the time left."""
    began = (sweep / "multirun.yaml").stat().st_mtime
    total = len(json.loads((sweep / "sweep.json").read_text())["planned"])
    cells = list(sweep.rglob("cell.json"))
    failed = [path for path in cells if (path.parent / "error.txt").exists()]
    finished = [
        *failed,
        *(path for path in cells if path not in failed and "unmeasured" in json.loads(path.read_text())),
    ]
    pictures = sum(len(read_lines(path.parent / "samples.jsonl")) for path in finished)
    now = sum(path.stat().st_mtime >= began for path in finished)
    seconds = (time.time() - began) / now * (total - len(finished)) if now else None
    left = "" if seconds is None or seconds <= 0 else f", about {tqdm.format_interval(int(seconds))} left"
    return status(len(finished), len(failed), total, pictures) + left


def status(done: int, failed: int, total: int, pictures: int) -> str:
    more = [*([f"{failed} failed"] if failed else []), *([f"{pictures} pictures"] if pictures else [])]
    return ", ".join([f"sweep: {done} of {total} cells", *more])
