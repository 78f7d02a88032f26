"""Outlines: their points, areas, directions, and the canonical form that gives a shape one sequence and no other."""

from collections.abc import Sequence
from dataclasses import replace

from ldm.svg.drawing import Drawing, Point, Segment, Subpath

SHORT = 0.003  # units of the box: a segment between nearer points is left out
FLAT = 0.005  # units of the box: a curve whose control points lie so near its chord is a line
SLANT = 0.3  # what x counts beside y, where the uppermost point of a path is sought


def flattened(path: Subpath, pieces: int = 8) -> list[Point]:
    """Returns points along a path: its start, and of each segment its end, or `pieces` points of a curve."""
    points, here = [path.start], path.start
    for segment in path.segments:
        if segment.controls is None:
            points.append(segment.end)
        else:
            points += [bezier(here, *segment.controls, segment.end, i / pieces) for i in range(1, pieces + 1)]
        here = segment.end
    return points


def bezier(a: Point, b: Point, c: Point, d: Point, t: float) -> Point:
    """Returns the point of a cubic Bezier curve at t in [0, 1]."""
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    x, y = (sum(w * p[i] for w, p in zip(weights, (a, b, c, d), strict=True)) for i in (0, 1))
    return x, y


def area(points: Sequence[Point]) -> float:
    """Returns the signed area of a polygon, positive if it runs clockwise on a screen (y points down)."""
    ends = [*points[1:], *points[:1]]
    return sum(x * v - u * y for (x, y), (u, v) in zip(points, ends, strict=True)) / 2


def inside(point: Point, polygon: Sequence[Point]) -> bool:
    """Whether a point lies in a polygon, by the even-odd rule."""
    x, y = point
    ends = [*polygon[1:], *polygon[:1]]
    crossed = (
        (b > y) != (v > y) and x < a + (y - b) * (u - a) / (v - b) for (a, b), (u, v) in zip(polygon, ends, strict=True)
    )
    return sum(crossed) % 2 == 1


def reversed_path(path: Subpath) -> Subpath:
    """Returns a path drawn the other way round."""
    points = [path.start, *(segment.end for segment in path.segments)]
    segments = [
        Segment(before, None if segment.controls is None else segment.controls[::-1])
        for before, segment in zip(points, path.segments, strict=False)
    ]
    return Subpath(points[-1], tuple(reversed(segments)), path.closed)


def oriented(paths: Sequence[Subpath]) -> list[Subpath]:
    """Returns closed paths turned so that the nonzero rule fills what the even-odd rule did, if none cross.

    A path within an even number of others runs clockwise, one within an odd number counter-clockwise.
    """
    outlines = [flattened(path) for path in paths]
    turned = []
    for i, (path, outline) in enumerate(zip(paths, outlines, strict=True)):
        depth = sum(inside(middle(path), other) for j, other in enumerate(outlines) if j != i)
        clockwise = area(outline) > 0
        turned.append(path if clockwise == (depth % 2 == 0) else reversed_path(path))
    return turned


def middle(path: Subpath) -> Point:
    """Returns a point in the middle of a path's first segment."""
    one, two = path.start, path.segments[0].end
    controls = path.segments[0].controls
    return bezier(one, *(controls or (one, two)), two, 0.5)


def canonical(drawing: Drawing) -> Drawing:
    """Returns the same shape, to SHORT and FLAT, as the one drawing that stands for all ways to draw it.

    Curves that are lines become lines; a filled drawing has its outer outlines clockwise; a path starts at its
    uppermost point (the left one of two about as high), an open one at its upper end; paths stand in the order of those
    points.
    """
    paths = [path for path in map(simplified, drawing.paths) if path is not None]
    if drawing.stroke is None and sum(area(flattened(path)) for path in paths) < 0:
        paths = [reversed_path(path) for path in paths]
    if drawing.stroke is not None:
        paths = [clockwise(path) for path in paths]
    return replace(drawing, paths=tuple(sorted(map(from_the_top, paths), key=place)))


def simplified(path: Subpath) -> Subpath | None:
    """Returns a path without its short segments and with lines for flat curves; None if nothing is left."""
    here, segments = path.start, list[Segment]()
    for i, segment in enumerate(path.segments):
        points = (*(segment.controls or ()), segment.end)
        if all(distance(point, here) < SHORT for point in points):
            if path.closed and i == len(path.segments) - 1 and segments:
                segments[-1] = replace(segments[-1], end=path.start)
            continue
        flat = segment.controls is None or all(off_chord(c, here, segment.end) < FLAT for c in segment.controls)
        segments.append(Segment(segment.end) if flat else segment)
        here = segment.end
    if not segments or (path.closed and len(segments) < 2 and segments[0].controls is None):
        return None
    return Subpath(path.start, tuple(segments), path.closed)


def distance(a: Point, b: Point) -> float:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


def off_chord(point: Point, start: Point, end: Point) -> float:
    """Returns how far a point is from the segment between two others, beyond its ends too."""
    x, y = end[0] - start[0], end[1] - start[1]
    u, v = point[0] - start[0], point[1] - start[1]
    along = (u * x + v * y) / (x * x + y * y) if (x, y) != (0, 0) else 0.0
    along = min(max(along, 0.0), 1.0)
    return ((u - along * x) ** 2 + (v - along * y) ** 2) ** 0.5


def clockwise(path: Subpath) -> Subpath:
    """Returns a stroked path drawn clockwise if it is closed, from its upper end on if it is open."""
    backwards = area(flattened(path)) < 0 if path.closed else height(path.segments[-1].end) < height(path.start)
    return reversed_path(path) if backwards else path


def from_the_top(path: Subpath) -> Subpath:
    """Returns a closed path that starts at its uppermost point."""
    if not path.closed:
        return path
    first = min(range(len(path.segments)), key=lambda i: height(path.segments[i].end))
    segments = (*path.segments[first + 1 :], *path.segments[: first + 1])
    return Subpath(path.segments[first].end, segments, closed=True)


def place(path: Subpath) -> tuple[float, float]:
    """Returns what orders paths: where they start, and where their first segments end."""
    return height(path.start), height(path.segments[0].end)


def height(point: Point) -> float:
    return point[1] + SLANT * point[0]
