"""A drawing of one colour: outlines that are filled, or lines that are stroked, in a square box; and its SVG text."""

from dataclasses import dataclass

BOX = 24.0  # width and height of every drawing's view box; x points right, y down
DECIMALS = 3  # of a coordinate in SVG text, so it moves by 0.0005 at most

Point = tuple[float, float]


@dataclass(frozen=True)
class Segment:
    """A straight line to `end`, or a cubic Bezier curve with two control points."""

    end: Point
    controls: tuple[Point, Point] | None = None


@dataclass(frozen=True)
class Subpath:
    """One connected outline. The last segment of a closed one ends at `start` exactly, so that closing is no luck."""

    start: Point
    segments: tuple[Segment, ...]
    closed: bool

    def __post_init__(self) -> None:
        if not self.segments or (self.closed and self.segments[-1].end != self.start):
            raise ValueError(f"a path from {self.start}: no segment, or closed and not back at its start")


@dataclass(frozen=True)
class Drawing:
    """Paths in a box of BOX x BOX: one filled shape by the nonzero rule, or lines of width `stroke` with round ends."""

    paths: tuple[Subpath, ...]
    stroke: float | None = None  # in units of the box; None: filled


def to_svg(drawing: Drawing) -> str:
    """Returns the SVG text of a drawing: one <path>, its coordinates absolute and rounded to DECIMALS."""
    if drawing.stroke is None:
        paint = 'fill="black"'
    else:
        width = number(drawing.stroke)
        paint = f'fill="none" stroke="black" stroke-width="{width}" stroke-linecap="round" stroke-linejoin="round"'
    data = "".join(map(path_data, drawing.paths))
    box = f"0 0 {number(BOX)} {number(BOX)}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><path d="{data}" {paint}/></svg>\n'


def path_data(path: Subpath) -> str:
    """Returns the commands M, L, C, Z of a path. A straight line back to the start is Z alone."""
    back = path.closed and path.segments[-1].controls is None
    drawn = path.segments[:-1] if back else path.segments
    return "".join([f"M{pair(path.start)}", *map(segment_data, drawn), "Z" if path.closed else ""])


def segment_data(segment: Segment) -> str:
    if segment.controls is None:
        return f"L{pair(segment.end)}"
    return "C" + " ".join(map(pair, (*segment.controls, segment.end)))


def pair(point: Point) -> str:
    return f"{number(point[0])} {number(point[1])}"


def number(value: float) -> str:
    """Returns a number rounded to DECIMALS, without zeros that say nothing."""
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
