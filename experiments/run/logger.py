"""Logs to Weights & Biases. Whatever goes wrong there, a run neither fails nor waits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.files import say


class Logger:
    """Records a run's config, metrics and images, until it is finished or its `with` ends.

    Without a W&B run (logger=none, or after a failure) it does nothing.
    """

    def __init__(self, cfg: DictConfig, config: dict[str, Any], folder: Path):
        self.run: Any = None
        if cfg.name == "wandb":
            modes = [cfg.mode, "offline"] if cfg.mode == "online" else [cfg.mode]
            for mode in modes:
                if self.run is None:
                    self.run = self.attempt(partial(start, cfg, config, folder, mode), f"start W&B {mode}")

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind: type | None, error: object, traceback: object) -> None:
        self.finish(failed=kind is not None)

    def finish(self, failed: bool = False) -> None:
        if self.run is not None:
            self.attempt(lambda: self.run.finish(exit_code=int(failed)), "finish the W&B run")

    def summary(self, values: dict[str, Any]) -> None:
        """Records values of the run as a whole."""
        if self.run is not None:
            self.attempt(lambda: self.run.summary.update(values), "log to W&B")

    def log(self, metrics: dict[str, Any]) -> None:
        if self.run is not None:
            self.attempt(lambda: self.run.log(metrics), "log to W&B")

    def images(self, name: str, records: list[dict[str, Any]], folder: Path) -> None:
        """Records a table of pictures, each with the fields of its record."""
        if self.run is not None:
            self.attempt(lambda: self.run.log({name: image_table(records, folder)}), "log images to W&B")

    def attempt(self, call: Callable[[], Any], what: str) -> Any:
        try:
            return call()
        except Exception as error:  # whatever W&B raises: the experiment matters more than its log
            say(f"warning: could not {what}: {error}; the run goes on")
            return None


def start(cfg: DictConfig, config: dict[str, Any], folder: Path, mode: Any) -> Any:
    import wandb

    return wandb.init(
        project=cfg.project,
        entity=cfg.entity,
        group=cfg.group,
        name=cfg.run_name,
        mode=mode,
        dir=str(folder),
        config=config,
        settings=wandb.Settings(init_timeout=cfg.timeout, silent=True),
    )


def image_table(records: list[dict[str, Any]], folder: Path) -> Any:
    import wandb

    columns = sorted({key for record in records for key in record})
    rows = [
        [wandb.Image(str(folder / record["file"])), *(str(record.get(key, "")) for key in columns)]
        for record in records
    ]
    return wandb.Table(columns=["image", *columns], data=rows)
