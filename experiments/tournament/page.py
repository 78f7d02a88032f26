"""The arena's page and files: a ranking to sort and filter in a browser, every number behind it, and a short table.

OUT/report.html needs no other file and no network; OUT/verdicts.json holds values and comparisons; OUT/ranking.md is a
table for a README.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes as Plot
from matplotlib.lines import Line2D
from omegaconf import DictConfig
from PIL import Image

from experiments import files
from experiments.files import UserError
from experiments.metrics.estimates import Estimate
from experiments.metrics.folders import read
from experiments.pictures import fit, svg_uri, webp_uri
from experiments.sweeps.figures import Drawn, handle, in_both
from experiments.sweeps.folder import Cell
from experiments.sweeps.tables import with_table
from experiments.tournament.plan import CFG, Method, entry_of, method_of
from experiments.tournament.verdicts import (
    BETTER,
    CONTROLS,
    WORSE,
    Duel,
    Findings,
    Row,
    beyond,
    columns_of,
    findings,
    lacking,
    together,
)

SHOWN, SIDE = 12, 128  # pictures of each cell, of different prompts; pixels of the longer side, at most
MARKS = {"better": "+", "worse": "\u2212", "cannot be told": ""}


def write_page(out: Path, cfg: DictConfig) -> Path:
    """Writes the page and its files from what is in an arena's folder, finished or not."""
    told = json.loads((out / "arena.json").read_text(encoding="utf-8"))
    subject = cfg.model.subject
    methods = [method_of(name, entry_of(cfg, name), subject) for name in told["methods"]]
    found = findings(out, columns_of(cfg, out), methods, cfg.best_by[subject])
    second = of_second(cfg, methods)
    summary = summary_of(found, second) | {"arena": told}
    files.write(out / "verdicts.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    frontier = draw_frontier(found, *cfg.frontier[subject])
    files.write(out / "frontier.svg", frontier.light.decode())
    tables = short_table(found, second, str(cfg.frontier[subject][1])), beyond_table(found, second)
    files.write(out / "ranking.md", "\n".join(tables))
    files.write(out / "report.html", render(found, second, told, frontier, list(cfg.frontier[subject])))
    if cfg.results is not None:
        into_results(Path(cfg.results), str(cfg.league.name), tables, frontier)
    return out / "report.html"


def into_results(page: Path, league: str, tables: tuple[str, str], frontier: Drawn) -> None:
    """Writes the short tables where a page has marks for this league's, and the figure beside it. Raises UserError."""
    if not page.is_file():
        raise UserError(f"results={page}: there is no such page")
    text = page.read_text(encoding="utf-8")
    for name, table in zip((f"arena {league}", f"arena {league} beyond"), tables, strict=True):
        if f"<!-- {name} -->" not in text:
            raise UserError(f"results={page}: has no mark <!-- {name} -->, ended by <!-- end -->")
        text = with_table(text, name, table.rstrip())
    files.write(page, text)
    files.write(page.parent / f"arena_{league}.svg", frontier.light.decode())


def of_second(cfg: DictConfig, methods: Sequence[Method]) -> Findings | None:
    """Returns what a second model's arena found of these methods. Raises UserError where there is none."""
    if cfg.second is None:
        return None
    folder = Path(cfg.second)
    if not (folder / "arena.json").is_file():
        raise UserError(f"second={folder}: holds no arena of experiments.arena")
    ours, theirs = (asked_of_both(one) for one in (Path(cfg.out), folder))
    if differs := files.difference(ours, theirs):
        raise UserError(f"second={folder}: is of other settings than {cfg.out} ({differs}): draw both alike")
    return findings(folder, columns_of(cfg, folder), methods, cfg.best_by[cfg.model.subject])


def asked_of_both(folder: Path) -> dict[str, Any]:
    """Returns the settings in which two models' arenas must agree."""
    told = json.loads((folder / "arena.json").read_text(encoding="utf-8"))
    base = [one for one in told["base"] if not one.startswith(("model=", "model.", "+model."))]
    league = {key: told["league"][key] for key in ("prompts", "tuning_prompts", "curve")}
    return {"nominal": told["nominal"], "base": base, **league}


def summary_of(found: Findings, second: Findings | None) -> dict[str, Any]:
    """Returns all that was found, in JSON's types, without the scores of single pictures.

    Of a second model each row has the values, and each duel what that model's says, and what both do.
    """
    rows = [
        {
            "name": row.cell.name,
            "role": row.role,
            "method": row.method,
            "setting": row.setting,
            "nominal": row.nominal,
            "effective": numbers(row.effective),
            "cosine": row.cosine,
            "evaluations": row.evaluations,
            "seconds": row.seconds,
            "pictures": len(row.cell.records),
            "values": values_of(row),
            "second": values_of(None if second is None else second.row(row.cell.name)),
            "error": row.cell.error,
            "unmeasured": row.cell.unmeasured,
            "command": command_of(row.cell),
        }
        for row in found.rows
    ]
    duels = [told_of(one) for one in found.duels]
    if second is not None:
        for told, one in zip(duels, found.duels, strict=True):
            other = second.duel(one)
            told |= {"second": other and told_of(other), "together": together(one, other)}
    columns = [asdict(column) for column in found.columns]
    return {"best_scale": found.best, "columns": columns, "controls": controls_in(found), "rows": rows, "duels": duels}


def controls_in(found: Findings) -> dict[str, str]:
    """Returns the controls of this arena, in their order, and what they are."""
    met = {one.control for one in found.duels}
    return {control: told for control, told in CONTROLS.items() if control in met}


def values_of(row: Row | None) -> dict[str, list[float | None] | None]:
    return {} if row is None else {name: numbers(value) for name, value in row.values.items()}


def told_of(one: Duel) -> dict[str, Any]:
    return {**asdict(one), "difference": numbers(one.difference), "win": numbers(one.win)}


def numbers(estimate: Estimate | None) -> list[float | None] | None:
    """Returns value, low, high and count."""
    return None if estimate is None else [estimate.value, estimate.low, estimate.high, estimate.count]


def command_of(cell: Cell) -> str:
    told = json.loads((cell.folder / "cell.json").read_text(encoding="utf-8"))
    return str(told["command"])


# --- the page ---------------------------------------------------------------------------------------------------------


def render(
    found: Findings, second: Findings | None, told: Mapping[str, Any], frontier: Drawn, axes: Sequence[str]
) -> str:
    shown = [row for row in found.rows if row.role != "tuning"]
    names = {row.cell.name for row in shown}
    data = summary_of(found, second)
    data["rows"] = [row for row in data["rows"] if row["name"] in names]
    data["pictures"] = {row.cell.name: strip(row.cell) for row in shown if is_drawn(row.cell)}
    data["beside"] = {row.cell.name: beside(row, found) for row in shown}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"uri": svg_uri}
    return environment.get_template("page.html.j2").render(
        told=told,
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        frontier=frontier,
        axes=axes,
        controls=controls_in(found),
        best=found.best,
        beyond=what_is_beyond(found, second),
        two=second is not None,
        methods=sum(row.role == "defaults" for row in shown),
        failed=[row for row in shown if row.cell.error],
    )


def is_drawn(cell: Cell) -> bool:
    return bool(cell.records) and (cell.folder / cell.records[0]["file"]).is_file()


def strip(cell: Cell) -> dict[str, Any]:
    """Returns the pictures of a cell's first prompts in a row, as one WebP, and what they were to show."""
    firsts = {record["prompt_index"]: record for record in reversed(cell.records)}
    records = [firsts[index] for index in sorted(firsts)[:SHOWN]]
    pictures = [read(cell.folder / record["file"]) for record in records]
    side = min(SIDE, max(pictures[0].size))
    row = Image.new("RGB", (side * len(pictures), side), "white")
    for i, picture in enumerate(pictures):
        row.paste(fit(picture, side), (i * side, 0))
    told = [f"{record.get('prompt', '')} (seed {record['seed']})" for record in records]
    return {"uri": webp_uri(row, 82), "count": len(pictures), "told": told}


def beside(row: Row, found: Findings) -> list[str]:
    """Returns the cells whose pictures are shown under a row's: its controls, nearest on the curve where between."""
    curve = [other for other in found.rows if other.role == "curve" and is_drawn(other.cell)]
    wanted = [row.nominal, None if row.effective is None else row.effective.value, found.best]
    near = [nearest(curve, scale).cell.name for scale in wanted if scale is not None and curve]
    own = [f"{row.method}/{role}" for role in ("followed", "evaluations")] if row.role == "defaults" else []
    drawn = {other.cell.name for other in found.rows if is_drawn(other.cell)}
    return [name for name in dict.fromkeys([*near, *own]) if name in drawn and name != row.cell.name]


def nearest(curve: Sequence[Row], scale: float) -> Row:
    return min(curve, key=lambda row: abs((row.nominal or 0) - scale))


def draw_frontier(found: Findings, x: str, y: str) -> Drawn:
    """Draws one column against another: classifier-free guidance's curve, and each method at its defaults."""
    curve = sorted((row for row in found.rows if row.role == "curve"), key=lambda row: row.nominal or 0)
    methods = [row for row in found.rows if row.role == "defaults"]

    def draw(plot: Plot) -> list[Line2D]:
        points = [(f"{row.nominal:g}", *at) for row in curve if (at := spot(row, x, y))]
        plot.plot([a.value for _, a, _ in points], [b.value for _, _, b in points], "o-", color="C0", markersize=4)
        for scale, a, b in points:
            plot.annotate(scale, (a.value, b.value), (4, -10), textcoords="offset points", color="C0", fontsize=8)
        spots = [(row.method, *at) for row in methods if (at := spot(row, x, y))]
        spots.sort(key=lambda one: one[2].value, reverse=True)
        for i, (name, a, b) in enumerate(spots):
            intervals(plot, a, b)
            aside = (1.04, 1 - (i + 0.5) / len(spots))  # names in a column of their own, where none covers another
            line = {"arrowstyle": "-", "linewidth": 0.4, "color": "C1", "alpha": 0.5, "relpos": (0, 0.5)}
            text: dict[str, Any] = {"color": "C1", "fontsize": 7, "va": "center"}
            plot.annotate(name, (a.value, b.value), aside, textcoords="axes fraction", arrowprops=line, **text)
        plot.set_xlabel(x)
        plot.set_ylabel(y)
        return [
            handle("classifier-free guidance, by scale", "C0", "o", "-"),
            handle("methods at their defaults", "C1", "D", ""),
        ]

    return in_both(draw, max(4.0, 0.2 * len(methods)))


def spot(row: Row, x: str, y: str) -> tuple[Estimate, Estimate] | None:
    a, b = row.values.get(x), row.values.get(y)
    return (a, b) if a is not None and b is not None else None


def intervals(plot: Plot, x: Estimate, y: Estimate) -> None:
    """Plots a point with its intervals."""
    if x.low is not None and x.high is not None:
        plot.hlines(y.value, x.low, x.high, color="C1", alpha=0.25, linewidth=1)
    if y.low is not None and y.high is not None:
        plot.vlines(x.value, y.low, y.high, color="C1", alpha=0.25, linewidth=1)
    plot.plot([x.value], [y.value], "D", color="C1", markersize=4)


# --- the short table --------------------------------------------------------------------------------------------------


def short_table(found: Findings, second: Findings | None, column: str) -> str:
    """Returns the methods at their defaults, the best first: what they cost, and one column under each control.

    In a second model's, what it says stands after the first's.
    """
    controls = [control for control in controls_in(found) if control != "nominal"]
    against = [f"against {CONTROLS[control].replace('classifier-free guidance', CFG)}" for control in controls]
    heads = ["method", "evaluations", "effective scale", "cosine", column, *against]
    rows = [row for row in found.rows if row.role in ("defaults", "curve")]
    duels = {(one.row, one.control): one for one in found.duels if one.column == column}
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in sorted(rows, key=lambda row: -value_of(row, column)):
        name = row.method if row.role == "defaults" else f"*{CFG}, scale {row.nominal:g}*"
        scale = "" if row.effective is None else f"{row.effective.value:.2f}"
        cosine = "" if row.cosine is None else f"{row.cosine:.2f}"
        told = [name, f"{row.evaluations or 0:g}", scale, cosine, interval_text(row.values.get(column))]
        met = [duels.get((row.cell.name, control)) for control in controls]
        told += map(duel_text, met)
        if second is not None:
            other, like = second.row(row.cell.name), [one and second.duel(one) for one in met]
            theirs = ["", "", "", "", interval_text(other.values.get(column) if other else None), *map(duel_text, like)]
            told = [text + (f"; second {more}" if more else "") for text, more in zip(told, theirs, strict=True)]
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def what_is_beyond(found: Findings, second: Findings | None) -> list[tuple[str, str, str, str]]:
    """Returns each method, in which columns it gains and loses more than strength and price explain, and why not.

    Of a second model, which has no controls of its own, it is what that says at the same effective scale.
    """
    rows = [row for row in found.rows if row.role == "defaults"]
    better, worse = ([told_beyond(found, second, row, way) for row in rows] for way in (BETTER, WORSE))
    without = [", ".join(lacking(found, row)) for row in rows]
    return list(zip([row.method for row in rows], better, worse, without, strict=True))


def told_beyond(found: Findings, second: Findings | None, row: Row, way: str) -> str:
    told = []
    for column in beyond(found, row, way):
        other = second and second.by_place.get((row.cell.name, "effective", column))
        told.append(column + (" (second, too)" if other and other.verdict == way else ""))
    return ", ".join(told)


def beyond_table(found: Findings, second: Findings | None) -> str:
    heads = f"| method | better than {CFG} in | worse in | without a control of |\n| --- | --- | --- | --- |\n"
    return heads + "".join(f"| {' | '.join(row)} |\n" for row in what_is_beyond(found, second))


def value_of(row: Row, column: str) -> float:
    found = row.values.get(column)
    return -float("inf") if found is None else found.value


def interval_text(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{found.value:.3g}" + ("" if found.low is None else f" ({found.low:.3g} to {found.high:.3g})")


def duel_text(one: Duel | None) -> str:
    if one is None or one.difference is None:
        return ""
    difference, mark = one.difference, MARKS.get(one.verdict or "", "")
    interval = "" if difference.low is None else f" ({difference.low:+.3g} to {difference.high:+.3g})"
    return f"{difference.value:+.3g}{interval}" + (f" **{mark}**" if mark else "")
