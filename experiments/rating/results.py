"""The page of a study's results: one file that needs no other and no network."""

import math
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from experiments.metrics.estimates import Estimate
from experiments.metrics.folders import UNREADABLE, read
from experiments.pictures import webp_uri
from experiments.rating.analysis import Analysed, Disputed
from experiments.rating.study import Study
from experiments.rating.tables import Labels, Table

THUMBNAIL = 256  # pixels of the longer side, at most
SHADES = 5  # of the bars' colours that go from one side to the other, or from low to high
PERCENT = "\N{NARROW NO-BREAK SPACE}%"
WRITTEN = 0.09  # a part of a bar that is smaller has no room for its number


@dataclass(frozen=True)
class Part:
    """Of a bar."""

    name: str
    share: float
    colour: str
    text: str


@dataclass(frozen=True)
class Spot:
    """A point with its interval on a track, all in percent of its length; None where there is no interval."""

    name: str
    at: float
    low: float | None
    width: float | None
    text: str


@dataclass(frozen=True)
class Track:
    """Spots below each other, and what stands at the track's ends and at the line of no effect."""

    title: str
    spots: tuple[Spot, ...]
    null: float | None
    ends: tuple[str, str]
    middle: str


@dataclass(frozen=True)
class Picture:
    label: str
    uri: str | None  # None if the file cannot be read
    size: tuple[int, int]


@dataclass(frozen=True)
class Dispute:
    text: str
    question: str
    pictures: tuple[Picture, ...]
    said: tuple[tuple[str, int], ...]


def render(study: Study, name: str, pictures: Path, found: Analysed, labels: Labels, simulated: bool) -> str:
    """Returns the page, with the disputed items' pictures of the folder `pictures`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"cell": cell, "interval": interval, "bars": bars, "tracks": tracks, "colours": colours}
    return environment.get_template("results.html.j2").render(
        study=study,
        name=name,
        simulated=simulated,
        found=found,
        measure=study.asks.analysis.measure,
        left_out=[rater for rater in found.raters if rater.left_out],
        disputes=[dispute(one, study, pictures, labels) for one in found.disputed] if study.asks.pictures else [],
    )


def number(value: float, unit: str) -> str:
    """Returns a value as the page writes it."""
    text = f"{value:.2f}" if unit == "number" else f"{100 * value:.1f}{PERCENT}"
    return typeset(text)


def mark(value: float, unit: str) -> str:
    """Returns a value as an axis writes it."""
    text = f"{value:.1f}" if unit == "number" else f"{100 * value:.0f}{PERCENT}"
    return typeset(text)


def typeset(number: str) -> str:
    """Returns it with a minus, and zero without."""
    return number.replace("-", "\N{MINUS SIGN}" if any(digit in number for digit in "123456789") else "")


def cell(e: Estimate, unit: str) -> str:
    return f"{round(e.value * e.count)} of {e.count}" if unit == "votes" else number(e.value, unit)


def interval(e: Estimate, unit: str) -> str:
    """Returns an interval in words, with the share before it where the cell tells votes."""
    share = f"{number(e.value, unit)}, " if unit == "votes" else ""
    if e.low is None or e.high is None:
        return f"{share}no interval"
    if math.isclose(e.low, e.high):
        return f"{share}all alike"
    return f"{share}{number(e.low, unit).rstrip(PERCENT)} to {number(e.high, unit)}"


def colours(table: Table) -> dict[str, str]:
    """Returns the class of each stacked column's colour: evenly from five shades, or one after the other."""
    n = len(table.stacked)
    shades = [round(i * (SHADES - 1) / max(n - 1, 1)) if table.colours != "names" else i % 8 for i in range(n)]
    return {column: f"{table.colours}{shade}" for column, shade in zip(table.stacked, shades, strict=True)}


def bars(table: Table) -> list[tuple[str, list[Part]]]:
    """Returns the parts of each row's bar."""
    colour, found = colours(table), []
    for name, cells in table.rows:
        shares = {c: e.value for c, e in zip(table.columns, cells, strict=True) if e is not None and c in colour}
        parts = [Part(c, v, colour[c], f"{100 * v:.0f}" if v >= WRITTEN else "") for c, v in shares.items() if v > 0]
        found.append((name, parts))
    return found


def tracks(table: Table) -> list[Track]:
    """Returns the drawings of a table's points."""
    points = table.points
    if points is None:
        return []
    places = [table.columns.index(column) for column in points.columns]
    if points.by_row:
        drawn = [(row, [(table.columns[i], cells[i]) for i in places]) for row, cells in table.rows]
    else:
        drawn = [(table.columns[i], [(row, cells[i]) for row, cells in table.rows]) for i in places]
    unit = "number" if table.unit == "number" else "share"
    length = (points.high - points.low) or 1.0

    def at(value: float) -> float:
        return round(min(max(100 * (value - points.low) / length, 0), 100), 2)

    def spot(name: str, e: Estimate) -> Spot:
        if e.low is None or e.high is None:
            return Spot(name, at(e.value), None, None, number(e.value, unit))
        return Spot(name, at(e.value), at(e.low), round(at(e.high) - at(e.low), 2), number(e.value, unit))

    null = None if points.null is None else at(points.null)
    low, middle, high = ("" if end is None else mark(end, unit) for end in (points.low, points.null, points.high))
    found = [(title, tuple(spot(name, e) for name, e in some if e is not None)) for title, some in drawn]
    return [Track(title, spots, null, (low, high), middle) for title, spots in found]


def dispute(one: Disputed, study: Study, folder: Path, labels: Labels) -> Dispute:
    item = study.items[one.item]
    shown = [(labels.get(name, name), picture) for name, picture in item.shows.items() if picture is not None]
    return Dispute(
        item.text or "",
        study.questions[item.question]["text"],
        tuple(embedded(label, folder / f"{picture}.png") for label, picture in shown),
        one.said,
    )


def embedded(label: str, path: Path) -> Picture:
    """Returns the picture as WebP, in the page itself."""
    try:
        image = read(path)
    except UNREADABLE:
        return Picture(label, None, (THUMBNAIL, THUMBNAIL))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return Picture(label, webp_uri(image, 90), image.size)
