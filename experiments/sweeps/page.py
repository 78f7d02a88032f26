"""One page of a sweep of experiments.ablate, finished or not: see experiments.report.

The page is one file that needs no other and no network: claims, pictures of the same seed under each setting, curves,
attention maps, and every number with its interval.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from experiments import files
from experiments.metrics.folders import UNREADABLE, read
from experiments.pictures import svg_uri, webp_uri
from experiments.sweeps import figures
from experiments.sweeps.claims import p_text, verdicts
from experiments.sweeps.figures import Drawn, evenly, other_axes, setting_text, short, unique, value_text
from experiments.sweeps.folder import Cell, Sweep, open_sweep, with_planned
from experiments.sweeps.provenance import not_alike

THUMBNAIL, SHEET = 256, 1400  # pixels of the longer side, at most
MAPS = 8  # cells whose attention is shown


@dataclass(frozen=True)
class Picture:
    """A picture as the page holds it: a data URI, its size there in pixels, and what is said of it."""

    uri: str
    size: tuple[int, int]
    alt: str
    title: str


@dataclass(frozen=True)
class Column:
    label: str
    title: str  # what all its pictures were asked for, if that is one thing
    state: str


@dataclass(frozen=True)
class Grid:
    """Pictures by the same prompt and seed in a row, and by setting in a column; None where there is none."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Picture | None, ...]], ...]


@dataclass(frozen=True)
class Curve:
    """A figure, and what it lacks; without a figure there was nothing to plot."""

    title: str
    drawn: Drawn | None
    alt: str
    lacks: str


@dataclass(frozen=True)
class NumberColumn:
    """A column of a table: for each cell the value, its text, its interval and its count; None if not measured."""

    name: str
    count: int | None  # if it is the same for all
    entries: tuple[dict[str, Any] | None, ...]


def write_page(sweep: Path, out: Path | None = None, pictures: int = 200) -> Path:
    """Writes SWEEP/report.html or `out`, with at most so many pictures. Raises UserError without a sweep."""
    page = render(open_sweep(sweep), pictures)
    out = out or sweep / "report.html"
    files.write(out, page)
    return out


def render(sweep: Sweep, pictures: int) -> str:
    found = verdicts(sweep)
    sweep = whole(sweep)
    grids = grids_of(sweep, pictures)
    main_measures, details = measures_of(sweep)
    mapped = [cell for cell in sweep.cells if any((cell.folder / f"{s}.png").is_file() for s in ("semantics", "maps"))]
    figures = [(name_of(cell, sweep), embedded_sheet(cell.folder / "figure.png")) for cell in sweep.cells]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"uri": svg_uri, "p_text": p_text}
    return environment.get_template("page.html.j2").render(
        sweep=sweep,
        verdicts=found,
        states=[(name_of(cell, sweep), state(cell, sweep), cell.error) for cell in sweep.cells],
        warnings=warnings(sweep),
        not_alike=not_alike(sweep),
        axes=axes_of(sweep),
        x=sweep.page.get("x"),
        grids=grids,
        shown=sum(picture is not None for grid in grids for _, row in grid.rows for picture in row),
        drawn=sum(len(cell.records) for cell in sweep.cells),
        curves=curves(sweep),
        frontiers=frontiers(sweep),
        mapped=len(mapped),
        maps=[
            (
                name_of(cell, sweep),
                embedded_sheet(cell.folder / "semantics.png"),
                embedded_sheet(cell.folder / "maps.png"),
            )
            for cell in evenly(mapped, MAPS)
        ],
        figures=[(name, figure) for name, figure in figures if figure is not None],
        tables=[[number_column(sweep, m) for m in measures] for measures in (main_measures, details)],
    )


def whole(sweep: Sweep) -> Sweep:
    """Adds the cells that were not begun, and sorts all in the page's order: by, then x, then the other axes."""
    sweep = with_planned(sweep)
    keys = axes_of(sweep)
    places = {key: [value_text(value) for value in sweep.values(key)] for key in keys}

    def place(cell: Cell) -> list[int]:
        return [places[key].index(value_text(cell.axes[key])) if key in cell.axes else -1 for key in keys]

    return replace(sweep, cells=tuple(sorted(sweep.cells, key=place)))


def axes_of(sweep: Sweep) -> list[str]:
    found = unique(key for cell in sweep.cells for key in cell.axes)
    first = [key for key in (sweep.page.get("by"), sweep.page.get("x")) if key in found]
    return unique([*first, *found])


def state(cell: Cell, sweep: Sweep) -> str:
    """Returns what is the matter with a cell; "" if nothing is."""
    drawn = (cell.folder / "grid.png").is_file()  # the last thing that a run writes
    if cell.error is not None:
        return "failed"
    if not cell.folder.is_dir():
        return "not begun"
    if cell.records and not drawn:
        return f"unfinished, {len(cell.records)} pictures so far"
    if not cell.results and not drawn:
        return "unfinished"
    return "not measured" if not cell.results and any(other.results for other in sweep.cells) else ""


def name_of(cell: Cell, sweep: Sweep) -> str:
    """Returns a cell's setting in words."""
    return setting_text(cell.axes, axes_of(sweep)) or cell.name


def warnings(sweep: Sweep) -> list[tuple[str, str, int]]:
    """Returns what the metrics warn of: metric, text, and in how many cells."""
    found = [
        (metric, text)
        for cell in sweep.cells
        for metric, result in cell.results.items()
        for text in unique(result.get("warnings", []))
    ]
    found += [(name, f"not measured: {why}") for cell in sweep.cells for name, why in cell.unmeasured.items()]
    return [(*warning, count) for warning, count in Counter(found).items()]


def grids_of(sweep: Sweep, most: int) -> list[Grid]:
    """Returns a grid for each value of the page's `by`, with at most so many pictures in all."""
    by = sweep.page.get("by")
    parts: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        parts.setdefault(value_text(cell.axes[by]) if by in cell.axes else "", []).append(cell)
    parts = {title: parts[title] for title in evenly([t for t in parts if any(c.records for c in parts[t])], most)}
    return [grid_of(sweep, title, cells, most // len(parts)) for title, cells in parts.items()]


def grid_of(sweep: Sweep, title: str, cells: Sequence[Cell], most: int) -> Grid:
    """Returns the pictures that all finished cells have; if none is finished, all that have some."""
    finished = [cell for cell in cells if cell.records and (cell.folder / "grid.png").is_file()]
    records = {cell.folder: {record["file"]: record for record in cell.records} for cell in cells}
    counted = [records[cell.folder] for cell in finished or cells if cell.records]
    common = [file for file in counted[0] if all(file in others for others in counted)]
    some = evenly(cells, most)
    files = evenly(common, max(1, most // len(some)))

    x = sweep.page.get("x")
    keys = ([x] if x else []) + [key for key in other_axes(sweep) if key != sweep.page.get("by")]

    def column(cell: Cell) -> Column:
        asked = {asked_text(record) for record in cell.records}
        label = (value_text(cell.axes.get(x)) if keys == [x] else setting_text(cell.axes, keys)) if x else cell.name
        return Column(label, asked.pop() if len(asked) == 1 else "", state(cell, sweep))

    notes = {cell.folder: scores(cell) for cell in some}
    rows = []
    for file in files:
        seen = [records[cell.folder].get(file) for cell in some]
        pictures = tuple(
            None if record is None else cell_picture(cell, record, notes[cell.folder].get(file, []))
            for cell, record in zip(some, seen, strict=True)
        )
        rows.append(
            (row_label([r for r in seen if r is not None], len({f.split("_")[0] for f in common}) > 1), pictures)
        )
    return Grid(title, tuple(column(cell) for cell in some), tuple(rows))


def row_label(records: Sequence[dict[str, Any]], several: bool) -> str:
    """Returns prompt and seed; where the columns have their own prompts, the seed, and which of several it is."""
    asked = {asked_text(record) for record in records}
    seed = f"seed\N{NO-BREAK SPACE}{records[0]['seed']}"
    if len(asked) == 1:
        return f"{asked.pop()}, {seed}"
    return f"prompt {records[0]['prompt_index'] + 1}, {seed}" if several else seed


def asked_text(record: dict[str, Any]) -> str:
    """Returns what a picture was asked for: its prompt, or its stages'."""
    if "prompt" in record:
        return str(record["prompt"])
    return " > ".join(f"{stage['prompt']} ({stage['steps']} steps)" for stage in record.get("stages", []))


def cell_picture(cell: Cell, record: dict[str, Any], notes: Sequence[str]) -> Picture | None:
    setting = ", ".join(f"{key} {value_text(value)}" for key, value in cell.axes.items())
    alt = f"{asked_text(record)}; seed {record['seed']}" + (f"; {setting}" if setting else "")
    return embedded(cell.folder / record["file"], THUMBNAIL, 90, alt, "\n".join([alt, *notes]))


def scores(cell: Cell) -> dict[str, list[str]]:
    """Returns what each metric says of each picture alone, by its file."""
    found: dict[str, list[str]] = {}
    for metric, result in cell.results.items():
        for row in result.get("per_image", []):
            known = {k: v for k, v in row.items() if k != "file" and isinstance(v, int | float)}
            said = [f"{'' if k == 'value' else f'{k} '}{value_text(score(v))}" for k, v in known.items()]
            if said:
                found.setdefault(row.get("file", ""), []).append(f"{metric}: {', '.join(said)}")
    return found


def score(value: float | bool) -> float | bool:
    return value if isinstance(value, bool) else float(f"{value:.4g}")


def embedded_sheet(path: Path) -> Picture | None:
    return embedded(path, SHEET, 85) if path.is_file() else None


def embedded(path: Path, side: int, quality: int, alt: str = "", title: str = "") -> Picture | None:
    """Returns a picture as WebP of at most so many pixels a side; None if the file cannot be read."""
    try:
        image = read(path)
    except UNREADABLE:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Picture(webp_uri(image, quality), image.size, alt, title)


def curves(sweep: Sweep) -> list[Curve]:
    """Returns the curves that the page asks for."""
    x = sweep.page.get("x")
    found = []
    for asked in sweep.page.get("curves") or []:
        measures = asked["measures"]
        lines = figures.lines(sweep.narrowed(asked.get("at", {})), measures)
        ylabel = asked.get("ylabel") or (short(measures)[0] if len(measures) == 1 else "")
        have = {line.measure for line in lines}
        alt = f"{', '.join(measures)} by {x or 'cell'}, with 95 % intervals; the numbers are in the table below."
        drawn = figures.draw_lines(lines, x, ylabel) if lines else None
        lacks = ", ".join(measure for measure in measures if measure not in have)
        found.append(Curve(asked.get("title") or ", ".join(measures), drawn, alt, lacks))
    return found


def frontiers(sweep: Sweep) -> list[Curve]:
    """Returns each measure against the effective scale, and this scale by sampling step."""
    if not any("effective_scale" in cell.results for cell in sweep.cells):
        return []
    found = []
    for measure in sweep.page.get("frontier") or []:
        groups = figures.frontier(sweep, measure)
        drawn = figures.draw_frontier(groups, measure) if groups else None
        alt = f"{measure} by effective classifier-free scale, with 95 % intervals; the numbers are in the tables below."
        found.append(Curve(f"{measure} by effective scale", drawn, alt, "" if groups else measure))
    if steps := figures.by_step(sweep):
        alt = f"Effective scale at each sampling step, of {len(steps)} settings."
        found.append(Curve("Effective scale by sampling step", figures.draw_steps(steps), alt, ""))
    return found


def measures_of(sweep: Sweep) -> tuple[list[str], list[str]]:
    """Returns the measures that the page names, and every metric's value; then all details not among these."""
    named = [m for asked in sweep.page.get("curves") or [] for m in asked["measures"]] + (sweep.page.get("table") or [])
    results = [(name, result) for cell in sweep.cells for name, result in cell.results.items()]
    first = unique([*named, *(name for name, _ in results)])
    details = unique(f"{name}/{detail}" for name, result in results for detail in result["details"])
    have: Callable[[str], bool] = lambda m: any(cell.estimate(m) is not None for cell in sweep.cells)  # noqa: E731
    return [m for m in first if have(m)], [m for m in details if m not in first]


def number_column(sweep: Sweep, measure: str) -> NumberColumn:
    found = [cell.estimate(measure) for cell in sweep.cells]
    known = [e[key] for e in found if e is not None for key in ("value", "low", "high") if e[key] is not None]
    counts = {e["count"] for e in found if e is not None}
    text = rounded(known)

    def entry(e: dict[str, Any]) -> dict[str, Any]:
        between = None if e["low"] is None else f"{text(e['low'])} to {text(e['high'])}"
        return {**e, "text": text(e["value"]), "interval": between}

    return NumberColumn(
        measure, counts.pop() if len(counts) == 1 else None, tuple(None if e is None else entry(e) for e in found)
    )


def rounded(values: Sequence[float]) -> Callable[[float], str]:
    """Returns a format with as many decimals as give the largest value three or four digits, so that they align."""
    order = math.floor(math.log10(max(map(abs, values), default=0) or 1))
    decimals = 3 - max(order, 0) if order >= -1 else 2 - order
    return lambda value: f"{value:.3g}" if decimals > 6 else f"{value:.{max(decimals, 0)}f}"
