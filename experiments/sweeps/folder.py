"""A sweep's folder as experiments.ablate leaves it, finished or not."""

import itertools
import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.files import UserError, read_lines

Axes = dict[str, Any]  # a key of the config -> a cell's value of it


@dataclass(frozen=True)
class Cell:
    """One setting: its axes' values, what was measured, by metric, and the records of its pictures so far."""

    folder: Path
    name: str
    axes: Axes
    results: dict[str, dict[str, Any]]
    records: tuple[dict[str, Any], ...]
    error: str | None  # of a cell that failed
    unmeasured: dict[str, str]  # metrics that could not be had, and why
    written: dict[str, Any] = field(default_factory=dict)  # the metrics' settings as the config writes them

    def asked(self) -> dict[str, tuple[Hashable, Hashable]]:
        """Returns what each picture shows, its prompt or its stages' prompts, and its seed, by its file."""
        return {record["file"]: (prompts_of(record), record["seed"]) for record in self.records}

    def estimate(self, measure: str) -> dict[str, Any] | None:
        """Returns value, low, high and count of "METRIC" or "METRIC/DETAIL"; None if it was not measured."""
        metric, _, detail = measure.partition("/")
        found = self.results.get(metric)
        return found["details"].get(detail) if found is not None and detail else found

    def scores(self, measure: str) -> dict[str, float]:
        """Returns the scores of single pictures by their files, which tell prompt and seed; empty if there are none."""
        metric, _, detail = measure.partition("/")
        rows = self.results.get(metric, {}).get("per_image", [])
        score = detail or "value"
        return {row["file"]: float(row[score]) for row in rows if isinstance(row.get(score), int | float)}

    def measured_files(self, measure: str) -> set[str]:
        """Returns the files of the pictures that a measure's metric looked at one by one."""
        return {row["file"] for row in self.results.get(measure.partition("/")[0], {}).get("per_image", [])}

    def is_at(self, where: Axes) -> bool:
        """Whether these axes have these values, or one of these where a list stands."""
        return all(self.axes.get(key) in (v if isinstance(v, list) else [v]) for key, v in where.items())


@dataclass(frozen=True)
class Sweep:
    folder: Path
    name: str
    claim: str | None
    claims: list[dict[str, Any]]
    page: dict[str, Any]
    command: str
    commit: str | None
    config: dict[str, Any]  # what all cells share
    cells: tuple[Cell, ...]
    planned: list[Axes] = field(default_factory=list)  # cells that the last command asked for

    def at(self, where: Axes) -> list[Cell]:
        return [cell for cell in self.cells if cell.is_at(where)]

    def narrowed(self, where: Axes) -> "Sweep":
        """Returns the sweep of these cells alone."""
        return replace(self, cells=tuple(self.at(where)))

    def values(self, axis: str | None) -> list[Any]:
        """Returns an axis's values, numbers in their order before words as they come."""
        found: list[Any] = list(dict.fromkeys(cell.axes[axis] for cell in self.cells if axis in cell.axes))
        return sorted(v for v in found if is_number(v)) + [v for v in found if not is_number(v)]


def open_sweep(folder: Path) -> Sweep:
    """Raises UserError if there is none."""
    if not (folder / "sweep.json").is_file():
        raise UserError(f"sweep={folder}: no folder of a sweep of experiments.ablate (no sweep.json in it)")
    told = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    return Sweep(folder=folder, cells=tuple(sorted(cells(folder), key=by_numbers)), **told)


def cells(folder: Path, drawn: bool = True) -> Iterator[Cell]:
    """Yields a sweep's cells in the order of their names.

    drawn  leaves out pictures whose file is not there; False: scores may be kept without their pictures
    """
    for path in sorted(folder.rglob("cell.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        stored = sorted((path.parent / "metrics").glob("*.json"))
        results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in stored}
        records = [
            r for r in read_lines(path.parent / "samples.jsonl") if not drawn or (path.parent / r["file"]).is_file()
        ]
        failed = path.parent / "error.txt"
        error = failed.read_text(encoding="utf-8").strip() if failed.is_file() else None
        missing, written = told.get("unmeasured", {}), told.get("measures", {})  # a cell that is not done yet has none
        yield Cell(path.parent, told["name"], told["axes"], results, tuple(records), error, missing, written)


def prompts_of(record: dict[str, Any]) -> tuple[str, ...]:
    stages = tuple(stage["prompt"] for stage in record.get("stages", []))
    return stages or (record.get("prompt", ""),)


def with_planned(sweep: Sweep) -> Sweep:
    """Adds the settings that the last command asked for and that have no cell yet."""
    begun = [{key: str(value) for key, value in cell.axes.items()} for cell in sweep.cells]
    missing = [axes for axes in sweep.planned if {key: str(value) for key, value in axes.items()} not in begun]
    names = [",".join(map(str, axes.values())) for axes in missing]
    cells = [
        Cell(sweep.folder / "not begun" / name, name, axes, {}, (), None, {})
        for name, axes in zip(names, missing, strict=True)
    ]
    return replace(sweep, cells=(*sweep.cells, *cells))


def planned(params: dict[str, Any] | None, typed: Sequence[str]) -> list[Axes]:
    """Returns the axes' values of each cell of a sweep."""
    parsed = overrides(params, typed)
    swept = {o.get_key_element() for o in parsed if o.is_sweep_override()}
    choices: dict[str, list[Any]] = {}
    for o in parsed:
        if o.get_key_element() in swept:
            values = list(o.sweep_iterator()) if o.is_sweep_override() else [o.value()]
            choices[o.get_key_element()] = [axis_value(unquoted(value)) for value in values]
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def unquoted(value: Any) -> Any:
    """Returns a value as Hydra's grammar reads it, its quoted texts as text."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {unquoted(key): unquoted(entry) for key, entry in value.items()}
    return [unquoted(entry) for entry in value] if isinstance(value, list) else value


def axis_value(value: Any) -> Any:
    """Returns a cell's value of an axis; of lists and groups of settings, their text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def overrides(params: dict[str, Any] | None, typed: Sequence[str]) -> list[Override]:
    """Returns the overrides of an experiment's own sweep, then those of the command line; a later one holds."""
    own = [f"{key}={value}" for key, value in (params or {}).items()]
    return OverridesParser.create().parse_overrides([*own, *typed])


def by_numbers(cell: Cell) -> list[tuple[bool, float]]:
    """Sorts cells along their numeric axes; among words their names' order stays."""
    return [(not is_number(v), float(v) if is_number(v) else 0.0) for v in cell.axes.values()]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Begun(Callback):
    """Hydra's callback that tells this process where the sweep lies that it began."""

    folders: ClassVar[list[Path]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.folders.append(Path(config.hydra.sweep.dir))
