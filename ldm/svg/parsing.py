"""SVG text to a Drawing. The text may come from anyone: nothing in it is fetched, run or expanded.

The XML is read by expat, told to refuse document types and with them all entities; the geometry (path data, arcs,
basic shapes, transforms) by svgelements. Colours are dropped; what is no plain, opaque shape is refused.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from xml.parsers import expat

import svgelements

from ldm.svg.drawing import BOX, Drawing, Point, Segment, Subpath
from ldm.svg.geometry import oriented

LONGEST = 100_000  # characters of an SVG text
MOST = 2000  # commands of a path, and letters of a transform
DEEPEST = 50  # elements within each other
MOST_PATHS = 100  # of a shape with the even-odd rule, of which each is sought within all others
FARTHEST = 1e6  # units from the origin
SNAP = 0.005  # units of the box: a path that ends so near its start is back at it
NAMESPACE = "http://www.w3.org/2000/svg"
SILENT = ("title", "desc", "metadata")  # elements that draw nothing, whatever is in them
REFUSED = ("clip-path", "mask", "filter", "stroke-dasharray", "preserveAspectRatio")  # attributes, unless "none" or ""
# atomic and possessive: a number is read in one way, or long rows of digits take for ever to be refused
NUMBER = r"(?>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
NUMBERS = re.compile(rf"[\s,]*+(?:{NUMBER}[\s,]*+)*+")
PATH_DATA = re.compile(r"\s*[Mm][MmLlHhVvCcSsQqTtAaZz\d\s,.eE+-]*")
TRANSFORM = re.compile(rf"\s*+(?:(?:matrix|translate|scale|rotate|skewX|skewY)\s*+\({NUMBERS.pattern}\)[\s,]*+)*+")


@dataclass(frozen=True)
class Element:
    """An element of SVG's namespace; "" is the name of one of another."""

    name: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)


@dataclass(frozen=True)
class Style:
    """What elements inherit from those around them."""

    matrix: svgelements.Matrix
    fill: str = "black"
    stroke: str = "none"
    stroke_width: str = "1"
    fill_rule: str = "nonzero"


def parse(text: str) -> Drawing:
    """Returns the drawing in an SVG text, its view box scaled to BOX x BOX and centred.

    Every shape must be filled, or every shape stroked, in one width. Raises ValueError, in one line, for a text that is
    damaged, too large, or anything but shapes: scripts, references, images, text, gradients, masks, style sheets.
    """
    root = read_xml(text)
    if root.name != "svg":
        raise ValueError(f"the outermost element is not <svg> but {root.name[:50]!r}")
    shapes = [shape for shape in painted(root, Style(view(root.attributes))) if shape[0]]
    widths = {width for _, width in shapes}
    if None in widths and len(widths) > 1:
        raise ValueError("some shapes are filled and some stroked: a drawing is one or the other")
    stroke = max((width for width in widths if width is not None), default=None)
    if stroke is not None and any(width is None or width < 0.99 * stroke for width in widths):
        raise ValueError("strokes of different widths: a drawing has one")
    return Drawing(tuple(path for paths, _ in shapes for path in paths), stroke)


# --- the XML ----------------------------------------------------------------------------------------------------------


def read_xml(text: str) -> Element:
    """Returns the outermost element. Raises ValueError for damaged XML, document types, too much and too deep."""
    if len(text) > LONGEST:
        raise ValueError(f"an SVG text of {len(text)} characters: at most {LONGEST} are read")
    root = Element("", {})
    stack = [root]

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(stack) > DEEPEST:
            raise ValueError(f"elements within more than {DEEPEST} others")
        namespace, _, local = name.rpartition("|")
        element = Element(local if namespace in ("", NAMESPACE) else "", attributes)
        stack[-1].children.append(element)
        stack.append(element)

    def end(name: str) -> None:
        stack.pop()

    def refuse(*about: object) -> None:
        raise ValueError("a document type or a processing instruction: only elements are read")

    parser = expat.ParserCreate(namespace_separator="|")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = parser.ProcessingInstructionHandler = refuse
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise ValueError(f"damaged XML: {error}") from error
    except UnicodeError as error:
        raise ValueError("damaged XML: characters that are none") from error
    return root.children[0]


def properties(element: Element) -> dict[str, str]:
    """Returns an element's attributes with the declarations of its style attribute laid over them.

    Raises ValueError for those that run, fetch, refer to something or change the shape in a way that is not read.
    """
    found = {name.strip(): value.strip() for name, value in element.attributes.items()}
    for declaration in found.pop("style", "").split(";"):
        name, _, value = declaration.partition(":")
        found[name.strip()] = value.strip()
    for name, value in found.items():
        if name.lower().startswith("on") or name.rpartition("|")[2] == "href" or "url(" in value.lower():
            raise ValueError(f"attribute {name[:50]!r} runs or fetches something: only plain shapes are read")
        if name in REFUSED and value not in ("", "none", "xMidYMid", "xMidYMid meet"):
            raise ValueError(f"attribute {name!r}: not read, since it changes the shape")
        if name.endswith("opacity") and value not in ("", "1"):
            raise ValueError(f"attribute {name!r}: a drawing is opaque")
    return found


# --- what is drawn ----------------------------------------------------------------------------------------------------


def view(attributes: dict[str, str]) -> svgelements.Matrix:
    """Returns the matrix from the units of the <svg> element to those of the box."""
    box = numbers(attributes.get("viewBox", ""))
    if not box:
        box = [0.0, 0.0, length(attributes, "width"), length(attributes, "height")]
    if len(box) != 4 or min(box[2:]) <= 0:
        raise ValueError("no view box: viewBox, or width and height, must give a size")
    left, top, width, height = box
    scale = BOX / max(width, height)
    x, y = BOX / 2 - scale * (left + width / 2), BOX / 2 - scale * (top + height / 2)
    return svgelements.Matrix(scale, 0, 0, scale, x, y)


def painted(element: Element, style: Style) -> Iterator[tuple[list[Subpath], float | None]]:
    """Yields the paths of each visible shape in an element, and its stroke's width, None if it is filled."""
    if element.name in ("", *SILENT):
        return
    found = properties(element)
    if found.get("display") == "none" or found.get("visibility") in ("hidden", "collapse"):
        return
    changed = {key: found[name] for key in ("fill", "stroke") if (name := key) in found}
    changed |= {key.replace("-", "_"): found[key] for key in ("stroke-width", "fill-rule") if key in found}
    style = replace(style, **changed, matrix=transform(found.get("transform", "")) * style.matrix)
    if element.name in ("g", "svg"):
        for child in element.children:
            if child.name == "svg":
                raise ValueError("an <svg> within another")
            yield from painted(child, style)
    else:
        outline = shape(element.name, found)
        filled, stroked = (value not in ("none", "transparent") for value in (style.fill, style.stroke))
        if filled and stroked:
            raise ValueError("a shape both filled and stroked: a drawing is one or the other")
        if filled:
            paths = list(connected(outline, style.matrix, filled=True))
            if style.fill_rule == "evenodd" and len(paths) > MOST_PATHS:
                raise ValueError(f"a shape of {len(paths)} paths with the even-odd rule: at most {MOST_PATHS} are read")
            yield oriented(paths) if style.fill_rule == "evenodd" else paths, None
        elif stroked and (width := width_of(style)) > 0:
            yield list(connected(outline, style.matrix, filled=False)), width


def width_of(style: Style) -> float:
    """Returns the width of a stroke in units of the box."""
    width = length({"stroke-width": style.stroke_width}, "stroke-width")
    return width * math.sqrt(abs(style.matrix.determinant))


def shape(name: str, found: dict[str, str]) -> svgelements.Path:
    """Returns the outline of a basic shape or of path data, untransformed; empty for one without extent."""

    def side(key: str, otherwise: str = "") -> float:
        return length(found, key if key in found or not otherwise else otherwise)

    match name:
        case "path":
            return path_of(found.get("d", ""))
        case "rect":
            x, y, width, height = (side(key) for key in ("x", "y", "width", "height"))
            rx, ry = min(side("rx", "ry"), width / 2), min(side("ry", "rx"), height / 2)
            if min(width, height) <= 0:
                return svgelements.Path()
            return svgelements.Path(svgelements.Rect(x, y, width, height, rx, ry))
        case "circle" | "ellipse":
            rx, ry = (side("r"), side("r")) if name == "circle" else (side("rx", "ry"), side("ry", "rx"))
            if min(rx, ry) <= 0:
                return svgelements.Path()
            return svgelements.Path(svgelements.Ellipse(side("cx"), side("cy"), rx, ry))
        case "line":
            ends = (side(key) for key in ("x1", "y1", "x2", "y2"))
            return path_of("M{} {}L{} {}".format(*ends))
        case "polyline" | "polygon":
            points = numbers(found.get("points", ""))
            if len(points) % 2:
                raise ValueError(f"<{name}> has an odd number of coordinates")
            corners = "L".join(f"{x} {y}" for x, y in zip(points[::2], points[1::2], strict=True))
            return path_of(f"M{corners}{'Z' if name == 'polygon' else ''}" if corners else "")
    raise ValueError(f"<{name[:50]}>: only groups and plain shapes are read")


def path_of(data: str) -> svgelements.Path:
    """Returns parsed path data. Raises ValueError for what is none."""
    if not data.strip() or data == "none":
        return svgelements.Path()
    if sum(map(str.isalpha, data)) > MOST or len(re.findall(NUMBER, data)) > 6 * MOST:
        raise ValueError(f"a path of more than {MOST} commands")
    if not PATH_DATA.fullmatch(data):
        raise ValueError(f"damaged path data {data[:50]!r}")
    try:
        return svgelements.Path(data)
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"damaged path data {data[:50]!r}") from error


def transform(text: str) -> svgelements.Matrix:
    """Returns the matrix of a transform attribute. Raises ValueError for what is none."""
    if len(text) > MOST or not TRANSFORM.fullmatch(text):
        raise ValueError(f"damaged transform {text[:50]!r}")
    try:
        return svgelements.Matrix(text)
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"damaged transform {text[:50]!r}") from error


def length(found: dict[str, str], name: str) -> float:
    """Returns a length in user units, 0 if it is not given. Raises ValueError for one in other units."""
    text = found.get(name, "0").strip().removesuffix("px")
    if not re.fullmatch(NUMBER, text):
        raise ValueError(f"{name}={text[:50]!r}: a plain number is needed")
    return bounded(float(text))


def numbers(text: str) -> list[float]:
    """Returns a list of numbers. Raises ValueError for what is none."""
    if not NUMBERS.fullmatch(text):
        raise ValueError(f"damaged numbers {text[:50]!r}")
    return [bounded(float(number)) for number in re.findall(NUMBER, text)]


def bounded(value: float) -> float:
    if not abs(value) <= FARTHEST:
        raise ValueError(f"a number beyond {FARTHEST:g}")
    return value


# --- from svgelements' segments to paths ------------------------------------------------------------------------------


def connected(outline: svgelements.Path, matrix: svgelements.Matrix, filled: bool) -> Iterator[Subpath]:
    """Yields the connected paths of an outline in units of the box, closed if `filled`."""
    start: Point | None = None
    segments = list[Segment]()
    for piece in outline:
        if isinstance(piece, svgelements.Move):
            yield from joined(start, segments, filled)
            start, segments = mapped(piece.end, matrix), []
        elif isinstance(piece, svgelements.Close):
            yield from joined(start, segments, True)
            segments = []  # what follows without a move begins at the same start
        else:
            segments += segments_of(piece, matrix)
    yield from joined(start, segments, filled)


def joined(start: Point | None, segments: list[Segment], closed: bool) -> Iterator[Subpath]:
    """Yields the path of segments, if there are any, with the closing one that it lacks."""
    if start is None or not segments:
        return
    if closed:
        last = segments[-1]
        near = math.dist(last.end, start) <= SNAP
        segments = [*segments[:-1], replace(last, end=start)] if near else [*segments, Segment(start)]
    yield Subpath(start, tuple(segments), closed)


def segments_of(piece: svgelements.PathSegment, matrix: svgelements.Matrix) -> list[Segment]:
    """Returns a line, a Bezier curve or an arc as lines and cubic curves."""
    if isinstance(piece, svgelements.Arc):
        return arc_curves(piece, matrix)
    if isinstance(piece, svgelements.CubicBezier):
        return [curve(piece.control1, piece.control2, piece.end, matrix)]
    if isinstance(piece, svgelements.QuadraticBezier):
        one, two = (end + (piece.control - end) * (2 / 3) for end in (piece.start, piece.end))
        return [curve(one, two, piece.end, matrix)]
    return [Segment(mapped(piece.end, matrix))]


def arc_curves(arc: svgelements.Arc, matrix: svgelements.Matrix) -> list[Segment]:
    """Returns an elliptical arc as cubic curves of up to a quarter each, off by 2.7e-4 of its radius at most."""
    if arc.rx == 0 or arc.ry == 0 or arc.sweep == 0:
        return [Segment(mapped(arc.end, matrix))]
    count = math.ceil(abs(arc.sweep) / (math.pi / 2) - 1e-6)
    start, step = arc.get_start_t(), arc.sweep / count
    handle = 4 / 3 * math.tan(step / 4)
    cos, sin = math.cos(arc.get_rotation()), math.sin(arc.get_rotation())

    def at(x: float, y: float) -> svgelements.Point:  # of the unit circle
        x, y = arc.rx * x, arc.ry * y
        return svgelements.Point(arc.center.x + cos * x - sin * y, arc.center.y + sin * x + cos * y)

    curves = []
    for i in range(count):
        a, b = start + i * step, start + (i + 1) * step
        one = at(math.cos(a) - handle * math.sin(a), math.sin(a) + handle * math.cos(a))
        two = at(math.cos(b) + handle * math.sin(b), math.sin(b) - handle * math.cos(b))
        end = arc.end if i == count - 1 else at(math.cos(b), math.sin(b))
        curves.append(curve(one, two, end, matrix))
    return curves


def curve(
    one: svgelements.Point, two: svgelements.Point, end: svgelements.Point, matrix: svgelements.Matrix
) -> Segment:
    return Segment(mapped(end, matrix), (mapped(one, matrix), mapped(two, matrix)))


def mapped(point: svgelements.Point, matrix: svgelements.Matrix) -> Point:
    x, y = matrix.point_in_matrix_space(point)
    return bounded(x), bounded(y)
