"""Draws and measures the arena's cells, each an ordinary run folder with a cell.json that says how to draw it again."""

import json
import shlex
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from experiments import files
from experiments.files import UserError, one_line, read_lines, say
from experiments.metrics import Bench, Unmeasurable
from experiments.metrics.measuring import evaluate, read_result
from experiments.run import draw
from experiments.run.cli import USER_ERRORS
from experiments.sweeps.cells import chosen
from experiments.tournament.plan import CFG, Method, Plan, Planned
from experiments.tournament.references import OTHER

OF_METHODS = ("effective_scale",)  # of classifier-free guidance it is the scale
OF_ALL_PROMPTS = ("frechet",)  # grows as pictures get fewer


@dataclass(frozen=True)
class Arena:
    """A folder of cells, and how they are measured.

    metrics  settings by name, as in conf/metrics
    failed   names of cells that failed, for the end
    """

    folder: Path
    plan: Plan
    metrics: dict[str, Any]
    bench: Bench
    failed: list[str]

    def folder_of(self, cell: Planned) -> Path:
        return self.folder / "cells" / cell.method / cell.setting

    def draw(self, cell: Planned) -> bool:
        """Draws and measures a cell, unless that is done. Returns whether it succeeded; another error is not lost.

        What fails is told and noted in error.txt; the other cells go on. A cell whose scores were kept without its
        pictures is done.
        """
        folder = self.folder_of(cell)
        if (folder / "cell.json").is_file() and not any((folder / name).exists() for name in ("images", "error.txt")):
            return True
        folder.mkdir(parents=True, exist_ok=True)
        try:
            drawn(cell, folder)
            note(cell, folder, self.measured(cell, folder))
        except Exception as error:
            if not isinstance(error, USER_ERRORS):
                traceback.print_exc()
            files.write(folder / "error.txt", f"{type(error).__name__}: {one_line(error)}\n")
            say(f"error in {cell.name}: {one_line(error)}")
            self.failed.append(cell.name)
            note(cell, folder, {})
            return False
        (folder / "error.txt").unlink(missing_ok=True)
        return True

    def measured(self, cell: Planned, folder: Path) -> dict[str, str]:
        """Measures a cell. Returns why a metric has no result: it cannot be measured here."""
        missing = {}
        for name, settings in self.metrics.items():
            if name in OF_METHODS and cell.role not in ("defaults", "knob"):
                continue
            if name in OF_ALL_PROMPTS and cell.role in ("knob", "tuning"):
                continue
            try:
                evaluate(folder, {name: settings}, self.bench, again=False)
            except Unmeasurable as error:
                missing[name] = one_line(error)
                say(f"warning: {cell.name}: not measured: {missing[name]}")
        return missing

    def draw_method(self, method: Method) -> None:
        """Draws a method at its defaults, and what follows from them: as many evaluations, and step by step."""
        defaults = self.plan.defaults(method)
        folder = self.folder_of(defaults)
        if not self.draw(defaults) or not self.plan.league.controls:
            return
        try:
            if cell := self.of_same_evaluations(method, folder):
                self.draw(cell)
        except UserError as error:
            say(f"error in {method.name}/evaluations: {one_line(error)}")
            self.failed.append(f"{method.name}/evaluations")
        scale = read_result(folder, "effective_scale")
        if scale is not None:
            self.draw(self.plan.followed(method, scale["about"]["by_step"]["scale"]))

    def draw_knob(self, method: Method) -> None:
        for cell in self.plan.knob(method):
            self.draw(cell)

    def of_same_evaluations(self, method: Method, folder: Path) -> Planned | None:
        """Returns None where the method takes as many evaluations as classifier-free guidance, or has no scale."""
        config = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
        scale, steps = method.scale_of(config["guidance"]), config["sampler"]["steps"]
        if scale is None:
            measured = read_result(folder, "effective_scale")
            scale = None if measured is None else measured["value"]
        if scale is None:
            return None
        curve = [path for path in (self.folder / "cells" / CFG).glob("*") if path.name != "1"]  # which has one pass
        of_cfg = max(map(evaluations, curve), default=0.0)
        if not of_cfg:
            raise UserError(f"{self.folder}: there is no curve yet, which another shard draws: run the command again")
        same = round(steps * evaluations(folder) / of_cfg)
        return None if same == steps else self.plan.same_evaluations(method, scale, same)


def drawn(cell: Planned, folder: Path) -> None:
    """Draws what is missing of a cell's run. Raises UserError for one that cannot be drawn."""
    draw.draw_run(compose("sample", list(cell.overrides)), folder)


def note(cell: Planned, folder: Path, missing: dict[str, str]) -> None:
    """Writes cell.json, as `experiments.sweeps.folder` reads it, with the command that draws the cell anew."""
    axes = {"role": cell.role, "method": cell.method, "setting": cell.setting}
    told = {"name": cell.name, "axes": axes, "unmeasured": missing, "command": command(cell)}
    files.write(folder / "cell.json", json.dumps(told, indent=1) + "\n")


def command(cell: Planned) -> str:
    return shlex.join(["python", "-m", "experiments.sample", *cell.overrides, "hydra.run.dir=FOLDER"])


def evaluations(folder: Path) -> float:
    """Returns the networks' evaluations of each picture, mean over a run; 0 if it has no pictures yet."""
    found = [record["evaluations"] for record in read_lines(folder / "samples.jsonl")]
    return sum(found) / len(found) if found else 0.0


def metrics_of(cfg: DictConfig, references: Path | None) -> dict[str, Any]:
    """Returns the metrics' settings; Frechet distances only where there are references."""
    found = chosen(cfg)
    return {name: one for name, one in found.items() if name != "frechet" or references is not None or given(one)}


def given(frechet: dict[str, Any]) -> bool:
    """Whether the user named a reference of their own."""
    return not str(frechet["reference"]).endswith(f"references/{OTHER}")


def begin(folder: Path, plan: Plan, names: Sequence[str]) -> None:
    """Writes arena.json. Raises UserError where the folder holds an arena of other settings."""
    league = OmegaConf.to_container(plan.league, resolve=True)
    now: dict[str, Any] = {"base": list(plan.base), "league": league, "nominal": plan.nominal}
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        file = folder / "arena.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {**now, "methods": []}
        if differs := files.difference({key: before.get(key) for key in now}, now):
            raise UserError(f"{folder} holds an arena of other settings ({differs}): choose another out=FOLDER")
        methods = list(dict.fromkeys([*before["methods"], *names]))
        files.write(file, json.dumps({**now, "methods": methods, "commit": files.commit()}, indent=1) + "\n")
