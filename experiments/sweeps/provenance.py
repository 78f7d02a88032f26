"""How a sweep's cells were measured: which of them differ in a metric's settings, its bootstrap, counts or commit.

A sweep may be gone on with under other settings of its metrics, so its cells need not be alike. What differs because an
axis says so is meant (the two objects of each pair of objects); anything else makes cells that must not be pooled.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from experiments.sweeps.differences import some
from experiments.sweeps.folder import Cell, Sweep

WRITTEN = "the text of its settings"


def unequal(sweep: Sweep, cells: Sequence[Cell], measure: str) -> list[str]:
    """Returns a line for everything in which a measure's metric was not measured alike in the cells."""
    metric = measure.partition("/")[0]
    everywhere = [cell for cell in sweep.cells if metric in cell.results]
    among = list({cell.folder: cell for cell in cells if metric in cell.results}.values())
    known = {cell.folder: dict(entries(cell, metric)) for cell in everywhere}
    names = dict.fromkeys(name for cell in among for name in known[cell.folder])
    return [
        f"{metric} was not measured alike: {differing(name, among, known)}"
        for name in names
        if len({known[cell.folder].get(name) for cell in among}) > 1 and not by_an_axis(name, everywhere, known)
    ]


def not_alike(sweep: Sweep) -> list[str]:
    """Returns a line for everything in which a sweep's cells were not measured alike, the commit among it."""
    metrics = dict.fromkeys(metric for cell in sweep.cells for metric in cell.results)
    found = [line for metric in metrics for line in unequal(sweep, sweep.cells, metric)]
    commits: dict[str, dict[str, None]] = {}
    for cell in sweep.cells:
        for result in cell.results.values():
            commits.setdefault(str(result.get("commit")), {})[cell.name] = None
    if len(commits) > 1:
        parts = [f"{commit[:12]} in {some(names)}" for commit, names in commits.items()]
        found.append(f"cells were measured at several commits: {'; '.join(parts)}")
    return found


def entries(cell: Cell, metric: str) -> Iterator[tuple[str, Hashable]]:
    """Yields what a result depends on, as names and texts."""
    result = cell.results[metric]
    yield WRITTEN, repr(cell.written.get(metric))
    yield from flat("settings", result.get("settings") or {})
    yield from flat("bootstrap", result.get("bootstrap") or {})
    yield "pictures scored", len(cell.measured_files(metric))


def flat(name: str, value: Any) -> Iterator[tuple[str, Hashable]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from flat(f"{name}.{key}", entry)
    else:
        yield name, value if isinstance(value, int | float) else repr(value)


def by_an_axis(name: str, cells: Sequence[Cell], known: dict[Any, dict[str, Hashable]]) -> bool:
    """Whether an entry follows from the cells' values of one axis.

    Where cells do not say how their settings were written, a number must be the axis's own value: nothing else tells
    one that an axis sets from one that was changed between two runs along that axis.
    """
    if name == WRITTEN or name.startswith("bootstrap"):
        return False
    found = [known[cell.folder].get(name) for cell in cells]
    unclear = name.startswith("settings") and any(cell.written == {} for cell in cells)
    if unclear and any(isinstance(value, int | float) for value in found):
        return any([cell.axes.get(axis) for cell in cells] == found for axis in cells[0].axes)
    return any(determines([str(cell.axes.get(axis)) for cell in cells], found) for axis in cells[0].axes)


def determines(causes: Sequence[Hashable], effects: Sequence[Hashable]) -> bool:
    return len(set(zip(causes, effects, strict=True))) == len(set(causes))


def differing(name: str, cells: Sequence[Cell], known: dict[Any, dict[str, Hashable]]) -> str:
    """Says which cells have which value of an entry."""
    groups: dict[Hashable, list[str]] = {}
    for cell in cells:
        groups.setdefault(known[cell.folder].get(name), []).append(cell.name)
    return f"{name} is " + ", and ".join(f"{value} in {some(names)}" for value, names in groups.items())
