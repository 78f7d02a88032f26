"""What the arena found: each method's values, and each method against classifier-free guidance under five controls.

Scores of single pictures are compared on the same prompts and seeds; intervals are Student's over prompts, with all
their pictures and whatever control. p is of a difference of nothing, corrected by Holm (1979) over the methods that are
compared with one control in one column: those at their defaults, and apart from them those at further values.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.files import UserError
from experiments.metrics.estimates import LEVEL, TIE, UNTOLD, Estimate, holm, two_way
from experiments.sweeps.claims import reading
from experiments.sweeps.differences import Pooled, by_estimates
from experiments.sweeps.folder import Cell, cells
from experiments.tournament.plan import Method

CONTROLS = {
    "nominal": "classifier-free guidance at the same nominal scale",
    "effective": "classifier-free guidance at the same effective scale",
    "evaluations": "classifier-free guidance of as many evaluations",
    "followed": "classifier-free guidance at the same effective scale step by step",
    "best": "classifier-free guidance at its best scale",
    "parts": "the better of its parts",
}
BEYOND = ("effective", "evaluations", "followed")  # controls of how strong a method is, and of its price
BETTER, WORSE = "better", "worse"
Control = tuple[Pooled | None, str]  # the cells of a control, and how they were found; or why there are none


@dataclass(frozen=True)
class Column:
    """A column of the ranking: where its values lie, which way is better (None: neither), what they are divided by."""

    name: str
    measure: str
    better: str | None
    over: float = 1.0

    @property
    def sign(self) -> int:
        return -1 if self.better == "lower" else 1

    def value(self, cell: Cell) -> Estimate | None:
        found = cell.estimate(self.measure)
        if found is None:
            return None
        low, high = (None if found[edge] is None else found[edge] / self.over for edge in ("low", "high"))
        return Estimate(found["value"] / self.over, low, high, found["count"])


@dataclass(frozen=True)
class Row:
    """A cell in the ranking.

    nominal      its classifier-free scale by name
    effective    the scale of the classifier-free guidance that it amounts to; None: not measured
    evaluations  of the networks, for each picture
    """

    cell: Cell
    role: str
    method: str
    setting: str
    nominal: float | None
    effective: Estimate | None
    cosine: float | None
    evaluations: float | None
    seconds: float | None
    values: Mapping[str, Estimate | None]


@dataclass(frozen=True)
class Duel:
    """A method's cell against a control in one column: the difference, and how often it wins, ties being half.

    verdict  better, worse, cannot be told; None in a column where neither way is better
    """

    row: str
    role: str
    control: str
    column: str
    difference: Estimate | None
    win: Estimate | None
    p: float | None
    holm: float | None
    verdict: str | None
    note: str


@dataclass(frozen=True)
class Findings:
    rows: tuple[Row, ...]
    duels: tuple[Duel, ...]
    columns: tuple[Column, ...]
    best: float | None  # classifier-free guidance's best scale on the prompts for tuning

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.cell.name == name), None)

    def duel(self, like: Duel) -> Duel | None:
        """Returns the duel of the same row, control and column."""
        return self.by_place.get(place_of(like))

    @cached_property
    def by_place(self) -> dict[tuple[str, str, str], Duel]:
        return {place_of(one): one for one in self.duels}


def place_of(one: Duel) -> tuple[str, str, str]:
    return one.row, one.control, one.column


def columns_of(cfg: DictConfig, folder: Path) -> tuple[Column, ...]:
    """Returns the columns for what the model draws. A Frechet ratio is over the distance of true scenes."""
    known = folder / "references" / "distance.json"
    over = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    return tuple(
        Column(str(name), entry.measure, entry.better, over.get(entry.measure, 1.0))
        for name, entry in cfg.table[cfg.model.subject].items()
    )


def findings(folder: Path, columns: Sequence[Column], methods: Sequence[Method], best_by: str) -> Findings:
    """Reads an arena's folder, finished or not."""
    by_name, found = {method.name: method for method in methods}, list(cells(folder / "cells", drawn=False))
    rows = tuple(row_of(cell, by_name, columns) for cell in found)
    curve = {row.nominal: row.cell for row in rows if row.role == "curve" and row.nominal is not None}
    best = best_scale([row for row in rows if row.role == "tuning"], best_by)
    duels = list[Duel]()
    for row in rows:
        if row.role in ("defaults", "knob"):
            controls = dict(controls_of(row, rows, curve, best))
            duels += [duel(row, name, *controls[name], column) for name in controls for column in columns]
            if row.role == "defaults" and (parts := by_name[row.method].parts if row.method in by_name else ()):
                duels += [duel(row, "parts", *better_part(parts, rows, column), column) for column in columns]
    return Findings(rows, tuple(judged(corrected(duels), columns)), tuple(columns), best)


def row_of(cell: Cell, methods: Mapping[str, Method], columns: Sequence[Column]) -> Row:
    role, method, setting = (cell.axes[key] for key in ("role", "method", "setting"))
    run = cell.folder / "run.json"
    guidance = json.loads(run.read_text(encoding="utf-8"))["config"]["guidance"] if run.is_file() else {}
    scale, cosine = cell.estimate("effective_scale"), cell.estimate("effective_scale/cosine")
    nominal = methods[method].scale_of(guidance) if method in methods else guidance.get("scale")
    exact = nominal if role in ("curve", "tuning") else None
    known = None if exact is None else Estimate(exact, None, None, len(cell.records))
    return Row(
        cell,
        role,
        method,
        setting,
        nominal,
        Estimate(*(scale[key] for key in ("value", "low", "high", "count"))) if scale else known,
        1.0 if known else cosine["value"] if cosine else None,
        mean_of(cell, "evaluations"),
        mean_of(cell, "seconds"),
        {column.name: column.value(cell) for column in columns},
    )


def mean_of(cell: Cell, key: str) -> float | None:
    return fmean(record[key] for record in cell.records) if cell.records else None


def best_scale(tuning: Sequence[Row], best_by: str) -> float | None:
    """Returns the scale at which classifier-free guidance does best on other prompts; None if it was not measured.

    Of several that do equally well it is the smallest.
    """
    worth = {
        row.nominal: found["value"]
        for row in tuning
        if row.nominal is not None and (found := row.cell.estimate(best_by)) is not None
    }
    return max(sorted(worth), key=lambda scale: worth[scale]) if worth else None


def controls_of(
    row: Row, rows: Sequence[Row], curve: Mapping[float, Cell], best: float | None
) -> Iterator[tuple[str, Control]]:
    """Yields a row's controls; those of a drawing of their own are of defaults alone."""
    nominal: Control = (None, "it goes by no scale") if row.nominal is None else on_curve(curve, row.nominal)
    effective: Control = (None, "its effective scale was not measured")
    if row.effective is not None:
        effective = on_curve(curve, row.effective.value)
    yield "nominal", nominal
    yield "effective", effective
    if row.role == "defaults":
        own = {other.role: other.cell for other in rows if other.method == row.method}
        of_cfg = max((mean_of(cell, "evaluations") or 0 for cell in curve.values()), default=0)
        if "evaluations" in own:
            yield "evaluations", (Pooled((own["evaluations"],)), f"{mean_of(own['evaluations'], 'evaluations'):g} each")
        elif abs((row.evaluations or 0) - of_cfg) <= 1:  # half a step
            same, note = effective if row.nominal is None else nominal
            yield "evaluations", (same, f"it takes as many by itself; {note}")
        else:
            yield "evaluations", (None, "was not drawn")
        followed = own.get("followed")
        yield "followed", (None, "was not drawn") if followed is None else (Pooled((followed,)), "")
    yield "best", (None, "the prompts for tuning were not drawn") if best is None else on_curve(curve, best)


def better_part(parts: Sequence[str], rows: Sequence[Row], column: Column) -> Control:
    """Returns of the methods that a method is put together from the one that does best in a column by itself."""
    own = {row.method: row for row in rows if row.role == "defaults" and row.method in parts}
    values = {name: found.value for name, row in own.items() if (found := row.values.get(column.name)) is not None}
    if missing := [name for name in parts if name not in values]:
        return None, f"{', '.join(missing)} was not measured"
    best = max(parts, key=lambda name: column.sign * values[name])
    return Pooled((own[best].cell,)), best


def on_curve(curve: Mapping[float, Cell], scale: float) -> Control:
    """Returns the curve at a scale: a cell of it, or the two on either side, weighted as the scale lies between."""
    if scale in curve:
        return Pooled((curve[scale],)), f"scale {scale:g}"
    below, above = [s for s in curve if s < scale], [s for s in curve if s > scale]
    if not below or not above:
        return None, f"scale {scale:.3g} lies outside the curve"
    low, high = max(below), min(above)
    share = (scale - low) / (high - low)
    return Pooled((curve[low], curve[high]), (1 - share, share)), f"scale {scale:.3g}, between {low:g} and {high:g}"


def duel(row: Row, control: str, against: Pooled | None, note: str, column: Column) -> Duel:
    """Returns a comparison, not yet corrected for the others."""
    name = f"{row.method}/{row.setting}"
    nothing = Duel(name, row.role, control, column.name, None, None, None, None, None, note)
    if against is None:
        return nothing
    mine, theirs = row.cell.scores(column.measure), against.scores(column.measure)
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        if column.value(row.cell) is None or any(column.value(cell) is None for cell in against.cells):
            return replace(nothing, note=f"{column.name} was not measured; {note}")
        if mine or theirs:
            return replace(nothing, note=f"no picture has this score on both sides; {note}")
        return of_whole_cells(nothing, row, against, column)
    prompts = prompts_of(row.cell, against, common)
    differences = np.array([mine[file] - theirs[file] for file in common])
    # against each cell of a control by itself: a mean of two, which is no score that a picture can have, never ties
    apart = [cell.scores(column.measure) for cell in against.cells]
    ahead = [[column.sign * (mine[file] - scores[file]) for file in common] for scores in apart]
    wins = np.average((np.sign(ahead) * (np.abs(ahead) > TIE) + 1) / 2, axis=0, weights=against.weights or None)
    mean, rate = two_way(differences, prompts, prompts), two_way(wins, prompts, prompts)
    return replace(
        nothing,
        difference=Estimate(mean.value, mean.low, mean.high, mean.count),
        win=Estimate(rate.value, rate.low, rate.high, rate.count),
        p=mean.p(),
    )


def of_whole_cells(nothing: Duel, row: Row, against: Pooled, column: Column) -> Duel:
    """Compares values of all of a cell's pictures, such as Frechet distances, as independent and normal."""
    counts = {cell.estimate(column.measure)["count"] for cell in (row.cell, *against.cells)}  # type: ignore[index]
    if len(counts) > 1:
        return replace(nothing, note=f"of unequal numbers of pictures, which it does not bear; {nothing.note}")
    found = by_estimates([(Pooled((row.cell,)), against)], column.measure, column.measure)
    if found.estimate is None:
        return replace(nothing, note="; ".join(found.lacking))
    value, low, high = ((edge or 0.0) / column.over for edge in (found.estimate.value, found.estimate.low,
                                                               found.estimate.high))  # fmt: skip
    return replace(nothing, difference=Estimate(value, low, high, counts.pop()), p=found.p)


def prompts_of(cell: Cell, against: Pooled, files: Sequence[str]) -> list[Any]:
    """Returns the pictures' prompts. Raises UserError where a control shows others under the same names."""
    mine, theirs = cell.asked(), against.asked()
    if any(mine[file] != theirs[file] for file in files):
        raise UserError(f"{cell.name} and {against.name} are of different prompts: choose another out=FOLDER")
    return [mine[file][0] for file in files]


def corrected(duels: Sequence[Duel]) -> list[Duel]:
    """Returns the duels with Holm's p, over the methods of one role that meet one control in one column."""
    families: dict[tuple[str, str, str], list[int]] = {}
    for i, one in enumerate(duels):
        families.setdefault((one.role, one.control, one.column), []).append(i)
    found = list(duels)
    for indices in families.values():
        for i, p in zip(indices, holm([duels[i].p for i in indices]), strict=True):
            found[i] = replace(duels[i], holm=p)
    return found


def judged(duels: Sequence[Duel], columns: Sequence[Column]) -> list[Duel]:
    """Returns the duels with verdicts: better or worse where Holm's p is below 5 %."""
    by_name = {column.name: column for column in columns}
    return [replace(one, verdict=verdict(one, by_name[one.column])) for one in duels]


def beyond(found: Findings, row: Row, verdict: str) -> list[str]:
    """Returns the columns in which a method is better, or worse, under each of the controls BEYOND."""

    def said(column: Column) -> set[str | None]:
        met = [found.by_place.get((row.cell.name, control, column.name)) for control in BEYOND]
        return {None if one is None else one.verdict for one in met}

    return [column.name for column in found.columns if said(column) == {verdict}]


def lacking(found: Findings, row: Row) -> list[str]:
    """Returns the controls BEYOND that a method met in no column, so that nothing can be said beyond them."""
    met = {one.control for one in found.duels if one.row == row.cell.name and one.verdict is not None}
    return [control for control in BEYOND if control not in met]


def together(first: Duel, second: Duel | None) -> str | None:
    """Returns what two models say of one comparison; None where the first says nothing."""
    if first.verdict is None:
        return None
    if second is None or second.verdict is None:
        return "one model"
    return reading(first.verdict, second.verdict, f"{first.verdict} on both")


def verdict(one: Duel, column: Column) -> str | None:
    if column.better is None or one.difference is None:
        return None
    if one.holm is None or one.holm >= LEVEL:
        return UNTOLD
    return BETTER if column.sign * one.difference.value > 0 else WORSE
