"""The figures of a sweep's page: the numbers they plot, and how these are drawn, as SVG for a light and a dark page."""

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
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


class ErrorBar(NamedTuple):
    """A value and its 95 % interval; None where there is none."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    x: Any
    at: ErrorBar


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
    scale: ErrorBar
    found: ErrorBar


@dataclass(frozen=True)
class FrontierSeries:
    """Cells that differ in numbers alone; `curve` marks those of classifier-free guidance, by their effective scale."""

    label: str
    curve: bool
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Drawn:
    """A figure for a light and for a dark page, as SVG."""

    light: bytes
    dark: bytes


def setting_text(axes: Axes, keys: Iterable[str]) -> str:
    """Returns a setting in words, as in "cfg, scale 3": numbers with their axis's name."""
    words = [(key, axes[key]) for key in keys if key in axes]
    return ", ".join(v if isinstance(v, str) else f"{key.split('.')[-1]} {value_text(v)}" for key, v in words)


def value_text(value: Any) -> str:
    """Returns an axis's value as text, as short as it is exact."""
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def other_axes(sweep: Sweep) -> list[str]:
    """Returns the axes beside the page's x: its `by`, then those that vary."""
    x, by = sweep.page.get("x"), sweep.page.get("by")
    axes = dict.fromkeys(key for cell in sweep.cells for key in cell.axes)
    varying = [key for key in axes if len(sweep.values(key)) > 1 and key not in (x, by)]
    return [*([by] if by in axes else []), *varying]


def x_and_others(sweep: Sweep) -> list[str]:
    """Returns the axes in the order in which a setting is told: by, x, and those that vary besides."""
    x, by = sweep.page.get("x"), sweep.page.get("by")
    return unique(key for key in (by, x, *other_axes(sweep)) if key)


def lines(sweep: Sweep, measures: Sequence[str]) -> list[Line]:
    """Returns what a curve plots: of each measure one line per `by` and per combination of the axes that are neither.

    Over the page's `mean_over` a line is the mean.
    """
    x, over = sweep.page.get("x"), sweep.page.get("mean_over")
    rest = (
        [key for key in other_axes(sweep) if key != over]
        if x
        else other_axes(sweep)[:1]
        if sweep.page.get("by")
        else []
    )
    found: dict[tuple[str, str], dict[Any, list[ErrorBar]]] = {}
    for measure in measures:
        for cell in sweep.cells:
            line = found.setdefault((setting_text(cell.axes, rest), measure), {})
            at = cell.axes.get(x) if x else cell.name
            line.setdefault(tuple(at) if isinstance(at, list) else at, []).append(bar_of(cell, measure))
    return [
        Line(label, measure, tuple(Point(at, mean_bar(bars)) for at, bars in points.items()))
        for (label, measure), points in found.items()
        if any(bar.value is not None for bars in points.values() for bar in bars)
    ]


def mean_bar(of: Sequence[ErrorBar]) -> ErrorBar:
    """Returns the mean of independent estimates, whose errors add up in squares; one alone stays as it is."""
    there = [(one.value, one.low, one.high) for one in of if one.value is not None]
    if len(of) == 1 or not there:
        return of[0]
    value = sum(value for value, _, _ in there) / len(there)
    if any(low is None or high is None for _, low, high in there):
        return ErrorBar(value, None, None)
    below = math.hypot(*(value - low for value, low, _ in there if low is not None)) / len(there)
    above = math.hypot(*(high - value for value, _, high in there if high is not None)) / len(there)
    return ErrorBar(value, value - below, value + above)


def bar_of(cell: Cell, measure: str) -> ErrorBar:
    found = cell.estimate(measure) or {}
    return ErrorBar(found.get("value"), found.get("low"), found.get("high"))


def frontier(sweep: Sweep, measure: str) -> list[FrontierSeries]:
    """Returns the cells with an effective scale and this measure; the curve of classifier-free guidance first."""
    where = sweep.page.get("frontier_curve")
    found: dict[tuple[bool, str], list[Spot]] = {}
    for cell in sweep.cells:
        scale, at = bar_of(cell, "effective_scale"), bar_of(cell, measure)
        if scale.value is None or at.value is None:
            continue
        axes = [key for key in x_and_others(sweep) if key in cell.axes]
        numbers = [key for key in axes if is_number(cell.axes[key])]
        label = setting_text(cell.axes, [key for key in axes if key not in numbers])
        spot = Spot(", ".join(value_text(cell.axes[key]) for key in numbers), scale, at)
        found.setdefault((where is not None and cell.is_at(where), label), []).append(spot)
    groups = [
        FrontierSeries(label, curve, tuple(sorted(spots, key=by_scale))) for (curve, label), spots in found.items()
    ]
    return sorted(groups, key=lambda group: not group.curve)


def by_scale(spot: Spot) -> float:
    return spot.scale.value or 0.0


def by_step(sweep: Sweep) -> dict[str, list[float]]:
    """Returns the effective scale of each sampling step, by the cell's setting, of some cells evenly chosen."""
    found = {}
    for cell in sweep.cells:
        curve = cell.results.get("effective_scale", {}).get("about", {}).get("by_step")
        if curve:
            found[setting_text(cell.axes, x_and_others(sweep)) or cell.name] = curve["scale"]
    return {label: found[label] for label in evenly(list(found), STEP_LINES)}


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Returns at most so many of the items, evenly chosen, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / max(most - 1, 1))] for k in range(most)]


@dataclass(frozen=True)
class Look:
    """How lines are told apart: by colour for the label; by marker and dash for the measure, and as colours repeat."""

    labels: tuple[str, ...]
    measures: tuple[str, ...]

    def colour(self, line: Line) -> str:
        several = len(self.labels) > 1
        return f"C{self.labels.index(line.label) if several else self.measures.index(line.measure)}"

    def style(self, line: Line) -> dict[str, Any]:
        return {"color": self.colour(line), "marker": MARKERS[self.kind(line) % len(MARKERS)], "markersize": 4}

    def dash(self, line: Line) -> Any:
        return DASHES[self.kind(line) % len(DASHES)]

    def kind(self, line: Line) -> int:
        """Returns which marker and dash are a line's: those of its measure, and others as the colours repeat."""
        return self.measures.index(line.measure) + self.repeats(self.labels.index(line.label))

    def repeats(self, label: int) -> int:
        return label // len(LIGHT) * len(self.measures)

    def keys(self, joined: bool) -> list[Line2D]:
        """Returns the legend's entries, with dashes where the points are joined."""
        keys = []
        for i, label in enumerate(self.labels if len(self.labels) > 1 else ()):
            dash = DASHES[self.repeats(i) % len(DASHES)] if joined else ""
            look = (MARKERS[self.repeats(i) % len(MARKERS)], dash) if len(self.labels) > len(LIGHT) else ("s", "")
            keys.append(handle(label, f"C{i}", *look))
        names = short(self.measures)
        for i, name in enumerate(names if len(names) > 1 else []):
            colour = matplotlib.rcParams["text.color"] if len(self.labels) > 1 else f"C{i}"
            keys.append(handle(name, colour, MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)] if joined else ""))
        return keys


def draw_lines(found: Sequence[Line], x: str | None, ylabel: str) -> Drawn:
    """Draws curves where the page's x has numbers, and points beside words where it has none."""
    look = Look(tuple(unique(line.label for line in found)), tuple(unique(line.measure for line in found)))
    numbers = sorted({p.x for line in found for p in line.points if is_number(p.x)})
    words = unique(value_text(p.x) for line in found for p in line.points if not is_number(p.x))
    if numbers:
        return in_both(partial(plot_over_numbers, found, look, numbers, words, x or "", ylabel))
    height = max(HEIGHT, 0.35 * len(words))
    return in_both(partial(plot_over_words, found, look, words, ylabel), height)


def plot_over_numbers(
    found: Sequence[Line],
    look: Look,
    numbers: Sequence[float],
    words: Sequence[str],
    xlabel: str,
    ylabel: str,
    plot: Plot,
) -> list[Line2D]:
    """Plots curves over numbers, each a little aside so that all are seen; what is a word lies across."""
    width = numbers[-1] - numbers[0]
    for i, line in enumerate(found):
        aside = (i - (len(found) - 1) / 2) * min(0.006, 0.03 / len(found)) * width
        points = [Point(p.x + aside, p.at) for p in line.points if is_number(p.x)]
        curve(plot, points, look.style(line) | {"linestyle": look.dash(line)})
        for p in line.points:
            if not is_number(p.x):
                bare = {} if len(look.measures) > 1 else {"marker": ""}
                level(plot, p.at, look.style(line) | {"linestyle": reference(words, value_text(p.x))} | bare)
    if width and min(b - a for a, b in zip(numbers, numbers[1:], strict=False)) > 0.06 * width:
        plot.set_xticks(numbers, [value_text(value) for value in numbers])
    plot.set_xlabel(xlabel)
    plot.set_ylabel(ylabel)
    grey = matplotlib.rcParams["text.color"]
    return look.keys(joined=True) + [handle(word, grey, "", reference(words, word)) for word in words]


def plot_over_words(found: Sequence[Line], look: Look, words: Sequence[str], xlabel: str, plot: Plot) -> list[Line2D]:
    """Plots points beside words, each line's a little below those of the line before."""
    for i, line in enumerate(found):
        shift = (i - (len(found) - 1) / 2) * 0.6 / len(found)
        for p in line.points:
            spot(plot, p.at, ErrorBar(words.index(value_text(p.x)) + shift, None, None), look.style(line))
    plot.set_yticks(range(len(words)), [textwrap.fill(word, 20, break_long_words=False) for word in words])
    plot.set_ylim(len(words) - 0.5, -0.5)
    plot.set_xlabel(xlabel)
    return look.keys(joined=False)


def reference(words: Sequence[str], word: str) -> Any:
    """Returns the dash of a word on an axis of numbers."""
    return REFERENCES[words.index(word) % len(REFERENCES)]


def curve(plot: Plot, points: Sequence[Point], style: dict[str, Any]) -> None:
    """Plots a line with its intervals; it breaks where a value is missing."""
    nan = float("nan")
    x = [p.x for p in points]
    value, low, high = (
        [nan if v is None else v for v in values] for values in zip(*(p.at for p in points), strict=True)
    )
    plot.fill_between(x, low, high, color=style["color"], alpha=0.14, linewidth=0)
    plot.vlines(x, low, high, color=style["color"], alpha=0.55, linewidth=1)
    plot.plot(x, value, linewidth=1.6, **style)


def level(plot: Plot, at: ErrorBar, style: dict[str, Any]) -> None:
    """Plots a value that holds for the whole width."""
    if at.value is None:
        return
    if at.low is not None and at.high is not None:
        plot.axhspan(at.low, at.high, color=style["color"], alpha=0.08, linewidth=0)
    plot.axhline(at.value, linewidth=1.3, clip_on=False, **style)


def spot(plot: Plot, x: ErrorBar, y: ErrorBar, style: dict[str, Any]) -> None:
    """Plots a point with its intervals."""
    if x.value is None or y.value is None:
        return
    if x.low is not None and x.high is not None:
        plot.hlines(y.value, x.low, x.high, color=style["color"], alpha=0.55, linewidth=1.2)
    if y.low is not None and y.high is not None:
        plot.vlines(x.value, y.low, y.high, color=style["color"], alpha=0.55, linewidth=1.2)
    plot.plot([x.value], [y.value], linestyle="", **style)


def draw_frontier(groups: Sequence[FrontierSeries], ylabel: str) -> Drawn:
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
    """Draws what `draw` plots, so many inches high, above a legend of what it returns."""
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
    """Widens limits so far that differences by arithmetic alone look like none."""
    low, high = limits
    lack = 0.02 * max(abs(low), abs(high)) - abs(high - low)
    return (low - lack / 2, high + lack / 2) if lack > 0 else limits


def handle(label: str, colour: str, marker: str, dash: Any) -> Line2D:
    """Returns a line of the legend."""
    text = "\n".join(textwrap.wrap(label, 50)) or "all"
    return Line2D([], [], color=colour, marker=marker, markersize=5, linestyle=dash, linewidth=1.6, label=text)


def short(measures: Sequence[str]) -> list[str]:
    """Returns the measures' names, without the metric's where all are of one."""
    if len({measure.partition("/")[0] for measure in measures}) > 1:
        return list(measures)
    return [measure.partition("/")[2] or measure for measure in measures]


def unique(items: Iterable[Any]) -> list[Any]:
    """Returns each item once, in order of appearance."""
    return list(dict.fromkeys(items))
