"""The figures of a sweep's page: the numbers they plot, and how these are drawn, as SVG for a light and a dark page."""

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes as Plot
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.sweeps.folder import Axes, Cell, Sweep, is_number

WIDTH, HEIGHT = 4.6, 2.9  # inches: 440 CSS pixels, so that text can still be read where a page is 360 wide
MARKERS, DASHES = "osD^vPX", ("-", "-.", ":", (0, (3, 1, 1, 1, 1, 1)))
REFERENCES = ((0, (6, 3)), (0, (2, 2)), (0, (8, 2, 2, 2)))  # dashes of what is no number on a numeric axis
STEP_LINES = 12
COMMON: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
# after Okabe and Ito, told apart without colour vision; deeper on white and lighter on black for contrast
LIGHT = ("#0072b2", "#d55e00", "#00805c", "#b3508c", "#9a6f00", "#5a4fc0", "#3b3f45")
DARK = ("#56b4e9", "#f08a4b", "#35c79b", "#e49ac6", "#e8c04a", "#a79df5", "#c9cdd3")
THEMES = (("#26282c", "#deddd8", LIGHT), ("#dcdcd8", "#34383e", DARK))  # ink, grid, lines


class Interval(NamedTuple):
    """A value and its 95 % interval; None where there is none."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    x: Any
    at: Interval


@dataclass(frozen=True)
class Line:
    """One measure of the cells that differ in the page's x alone, in its order; without an x, it is the cell's name."""

    label: str
    measure: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Spot:
    """A cell by its effective scale; `name` tells it from the others of its group."""

    name: str
    scale: Interval
    found: Interval


@dataclass(frozen=True)
class Group:
    """Cells that differ in numbers alone; `curve` are those of classifier-free guidance, by their effective scale."""

    label: str
    curve: bool
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Drawn:
    """A figure for a light and for a dark page, as SVG."""

    light: bytes
    dark: bytes


def said(axes: Axes, keys: Iterable[str]) -> str:
    """A setting in words, "cfg, scale 3": numbers with their axis's name."""
    words = [(key, axes[key]) for key in keys if key in axes]
    return ", ".join(v if isinstance(v, str) else f"{key.split('.')[-1]} {shown(v)}" for key, v in words)


def shown(value: Any) -> str:
    """An axis's value, as short as it is exact."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def others(sweep: Sweep) -> list[str]:
    """The axes beside the page's x: its `by`, then those that vary."""
    x, by = sweep.page.get("x"), sweep.page.get("by")
    axes = dict.fromkeys(key for cell in sweep.cells for key in cell.axes)
    varying = [key for key in axes if len(sweep.values(key)) > 1 and key not in (x, by)]
    return [*([by] if by in axes else []), *varying]


def x_and_others(sweep: Sweep) -> list[str]:
    """The axes in the order in which a setting is told: by, x, and those that vary besides."""
    x, by = sweep.page.get("x"), sweep.page.get("by")
    return ordered(key for key in (by, x, *others(sweep)) if key)


def lines(sweep: Sweep, measures: Sequence[str]) -> list[Line]:
    """What a curve plots: of each measure one line per `by`, and per combination of the axes that are neither; over the
    page's `mean_over` it is the mean."""
    x, over = sweep.page.get("x"), sweep.page.get("mean_over")
    rest = [key for key in others(sweep) if key != over] if x else others(sweep)[:1] if sweep.page.get("by") else []
    found: dict[tuple[str, str], dict[Any, list[Interval]]] = {}
    for measure in measures:
        for cell in sweep.cells:
            line = found.setdefault((said(cell.axes, rest), measure), {})
            at = cell.axes.get(x) if x else cell.name
            line.setdefault(tuple(at) if isinstance(at, list) else at, []).append(interval(cell, measure))
    return [
        Line(label, measure, tuple(Point(at, mean(intervals)) for at, intervals in points.items()))
        for (label, measure), points in found.items()
        if any(interval.value is not None for intervals in points.values() for interval in intervals)
    ]


def mean(of: Sequence[Interval]) -> Interval:
    """That of independent estimates, whose errors add up in squares; of the one where there is but one."""
    there = [(one.value, one.low, one.high) for one in of if one.value is not None]
    if len(of) == 1 or not there:
        return of[0]
    value = sum(value for value, _, _ in there) / len(there)
    if any(low is None or high is None for _, low, high in there):
        return Interval(value, None, None)
    below = math.hypot(*(value - low for value, low, _ in there if low is not None)) / len(there)
    above = math.hypot(*(high - value for value, _, high in there if high is not None)) / len(there)
    return Interval(value, value - below, value + above)


def interval(cell: Cell, measure: str) -> Interval:
    found = cell.estimate(measure) or {}
    return Interval(found.get("value"), found.get("low"), found.get("high"))


def frontier(sweep: Sweep, measure: str) -> list[Group]:
    """The cells with an effective scale and this measure; the curve of classifier-free guidance first."""
    where = sweep.page.get("frontier_curve")
    found: dict[tuple[bool, str], list[Spot]] = {}
    for cell in sweep.cells:
        scale, at = interval(cell, "effective_scale"), interval(cell, measure)
        if scale.value is None or at.value is None:
            continue
        axes = [key for key in x_and_others(sweep) if key in cell.axes]
        numbers = [key for key in axes if is_number(cell.axes[key])]
        label = said(cell.axes, [key for key in axes if key not in numbers])
        spot = Spot(", ".join(shown(cell.axes[key]) for key in numbers), scale, at)
        found.setdefault((where is not None and cell.is_at(where), label), []).append(spot)
    groups = [Group(label, curve, tuple(sorted(spots, key=by_scale))) for (curve, label), spots in found.items()]
    return sorted(groups, key=lambda group: not group.curve)


def by_scale(spot: Spot) -> float:
    return spot.scale.value or 0.0


def by_step(sweep: Sweep) -> dict[str, list[float]]:
    """The effective scale of each sampling step, by the cell's setting; of at most so many cells, evenly chosen."""
    found = {}
    for cell in sweep.cells:
        curve = cell.results.get("effective_scale", {}).get("about", {}).get("by_step")
        if curve:
            found[said(cell.axes, x_and_others(sweep)) or cell.name] = curve["scale"]
    return {label: found[label] for label in spread(list(found), STEP_LINES)}


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly chosen, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / max(most - 1, 1))] for k in range(most)]


def draw_lines(found: Sequence[Line], x: str | None, ylabel: str) -> Drawn:
    """Curves over numbers, with what is no number as horizontal lines; over words alone, points."""
    labels, measures = ordered(line.label for line in found), ordered(line.measure for line in found)
    names = short(measures)
    numbers = sorted({p.x for line in found for p in line.points if is_number(p.x)})
    numeric, width = bool(numbers), numbers[-1] - numbers[0] if numbers else 0
    words = ordered(shown(p.x) for line in found for p in line.points if not is_number(p.x))
    fixed = words if numeric else []

    def colour(line: Line) -> str:
        return f"C{labels.index(line.label) if len(labels) > 1 else measures.index(line.measure)}"

    def draw(plot: Plot) -> list[Line2D]:
        for i, line in enumerate(found):
            m, aside = measures.index(line.measure), i - (len(found) - 1) / 2
            style = {"color": colour(line), "marker": MARKERS[m % len(MARKERS)], "markersize": 4}
            if not numeric:
                categories(plot, line, aside * 0.6 / len(found), words, style)
                continue
            beside = [
                Point(p.x + aside * min(0.006, 0.03 / len(found)) * width, p.at) for p in line.points if is_number(p.x)
            ]  # all to be seen
            curve(plot, beside, style | {"linestyle": DASHES[m % len(DASHES)]})
            for p in line.points:
                if not is_number(p.x):
                    dash = REFERENCES[fixed.index(shown(p.x)) % len(REFERENCES)]
                    level(plot, p.at, style | {"linestyle": dash} | ({} if len(measures) > 1 else {"marker": ""}))
        if width and min(b - a for a, b in zip(numbers, numbers[1:], strict=False)) > 0.06 * width:
            plot.set_xticks(numbers, [shown(value) for value in numbers])
        plot.set_xlabel((x or "") if numeric else ylabel)
        plot.set_ylabel(ylabel if numeric else "")
        joined = DASHES if numeric else [""] * len(DASHES)
        keys = [handle(label, f"C{i}", "s", "") for i, label in enumerate(labels) if len(labels) > 1]
        for i, name in enumerate(names if len(names) > 1 else []):
            c = matplotlib.rcParams["text.color"] if len(labels) > 1 else f"C{i}"
            keys.append(handle(name, c, MARKERS[i % len(MARKERS)], joined[i % len(DASHES)]))
        grey = matplotlib.rcParams["text.color"]
        return keys + [handle(name, grey, "", REFERENCES[i % len(REFERENCES)]) for i, name in enumerate(fixed)]

    return in_both(draw, HEIGHT if numeric else max(HEIGHT, 0.35 * len(words)))


def curve(plot: Plot, points: Sequence[Point], style: dict[str, Any]) -> None:
    """A line with its intervals; it breaks where a value is missing."""
    nan = float("nan")
    x = [p.x for p in points]
    value, low, high = (
        [nan if v is None else v for v in values] for values in zip(*(p.at for p in points), strict=True)
    )
    plot.fill_between(x, low, high, color=style["color"], alpha=0.14, linewidth=0)
    plot.vlines(x, low, high, color=style["color"], alpha=0.55, linewidth=1)
    plot.plot(x, value, linewidth=1.6, **style)


def level(plot: Plot, at: Interval, style: dict[str, Any]) -> None:
    """A value that holds for the whole width."""
    if at.value is None:
        return
    if at.low is not None and at.high is not None:
        plot.axhspan(at.low, at.high, color=style["color"], alpha=0.08, linewidth=0)
    plot.axhline(at.value, linewidth=1.3, clip_on=False, **style)


def categories(plot: Plot, line: Line, shift: float, words: Sequence[str], style: dict[str, Any]) -> None:
    """Points beside their words, and a little below those of the line before."""
    for p in line.points:
        spot(plot, p.at, Interval(words.index(shown(p.x)) + shift, None, None), style)
    plot.set_yticks(range(len(words)), [textwrap.fill(word, 20, break_long_words=False) for word in words])
    plot.set_ylim(len(words) - 0.5, -0.5)


def spot(plot: Plot, x: Interval, y: Interval, style: dict[str, Any]) -> None:
    """A point with its intervals."""
    if x.value is None or y.value is None:
        return
    if x.low is not None and x.high is not None:
        plot.hlines(y.value, x.low, x.high, color=style["color"], alpha=0.55, linewidth=1.2)
    if y.low is not None and y.high is not None:
        plot.vlines(x.value, y.low, y.high, color=style["color"], alpha=0.55, linewidth=1.2)
    plot.plot([x.value], [y.value], linestyle="", **style)


def draw_frontier(groups: Sequence[Group], ylabel: str) -> Drawn:
    def draw(plot: Plot) -> list[Line2D]:
        keys = []
        for i, group in enumerate(groups):
            style: dict[str, Any] = {"color": f"C{i}", "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
            label = group.label or ("classifier-free guidance" if group.curve else "other settings")
            keys.append(handle(label, f"C{i}", style["marker"], "-" if group.curve else ""))
            if group.curve:
                curve(plot, [Point(s.scale.value, s.found) for s in group.spots], style)
            for s in group.spots:
                spot(plot, s.scale, s.found, style)
                at, beside = (s.scale.value or 0.0, s.found.value or 0.0), (4, -10) if group.curve else (4, 4)
                plot.annotate(s.name, at, beside, textcoords="offset points", fontsize=8, color=f"C{i}")
        plot.set_xlabel("effective classifier-free scale")
        plot.set_ylabel(ylabel)
        return keys

    return in_both(draw)


def draw_steps(found: dict[str, list[float]]) -> Drawn:
    def draw(plot: Plot) -> list[Line2D]:
        keys = []
        for i, (label, scales) in enumerate(found.items()):
            dash = DASHES[i // len(LIGHT) % len(DASHES)]
            plot.plot(range(1, len(scales) + 1), scales, color=f"C{i}", linestyle=dash, linewidth=1.6)
            keys.append(handle(label, f"C{i}", "", dash))
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.set_xlabel("sampling step, from noise to picture")
        plot.set_ylabel("effective scale")
        return keys

    return in_both(draw)


def in_both(draw: Callable[[Plot], list[Line2D]], height: float = HEIGHT) -> Drawn:
    """What `draw` plots, so many inches high, above a legend of what it returns."""
    svg = []
    for ink, grid, palette in THEMES:
        colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        theme: dict[Any, Any] = {
            **dict.fromkeys(colours, ink),
            "grid.color": grid,
            "axes.prop_cycle": cycler(color=palette),
        }
        with matplotlib.rc_context({**COMMON, **theme}):
            figure = Figure(layout="constrained")
            plot = figure.add_subplot()
            keys = draw(plot)
            plot.set_xlim(wide(plot.get_xlim()))
            plot.set_ylim(wide(plot.get_ylim()))
            texts = [str(key.get_label()) for key in keys]
            columns = max(1, min(3, 66 // (max(map(len, texts), default=0) + 9), len(keys)))
            rows = sum(text.count("\n") for text in texts) + -(-len(keys) // columns)
            figure.set_size_inches(WIDTH, height + 0.19 * rows)
            if keys:
                figure.legend(handles=keys, loc="outside lower center", ncols=columns, handlelength=2.4)
            file = io.BytesIO()
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        svg.append(file.getvalue().replace(b"'DejaVu Sans'", b"system-ui, 'DejaVu Sans'"))
    return Drawn(*svg)


def wide(limits: tuple[float, float]) -> tuple[float, float]:
    """Wide enough that differences by arithmetic alone look like none."""
    low, high = limits
    lack = 0.02 * max(abs(low), abs(high)) - abs(high - low)
    return (low - lack / 2, high + lack / 2) if lack > 0 else limits


def handle(label: str, colour: str, marker: str, dash: Any) -> Line2D:
    """A line of the legend."""
    text = "\n".join(textwrap.wrap(label, 50)) or "all"
    return Line2D([], [], color=colour, marker=marker, markersize=5, linestyle=dash, linewidth=1.6, label=text)


def short(measures: Sequence[str]) -> list[str]:
    """Without the metric's name, where all are of one."""
    if len({measure.partition("/")[0] for measure in measures}) > 1:
        return list(measures)
    return [measure.partition("/")[2] or measure for measure in measures]


def ordered(items: Iterable[Any]) -> list[Any]:
    """Each once, as they come."""
    return list(dict.fromkeys(items))
