"""Glyphs of font families as drawings."""

import io
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fontTools.pens.basePen import AbstractPen
from fontTools.pens.qu2cuPen import Qu2CuPen
from fontTools.pens.recordingPen import DecomposingRecordingPen, RecordingPen
from fontTools.pens.transformPen import TransformPen
from fontTools.ttLib import TTFont

from experiments.vectors.packages import Package
from ldm.svg.drawing import BOX, Drawing, Point, Segment, Subpath

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
CAPITALS = 14.0  # units of the box: how high an H is
BASELINE = 18.0  # units of the box below its upper edge
TOLERANCE = 0.02  # units of the box: how far one cubic curve may be from the quadratic ones that it replaces

Pieces = list[tuple[str, tuple[Any, ...]]]  # what a pen was told: the name of a command, and its points


@dataclass(frozen=True)
class Glyph:
    character: str
    face: str  # its package, weight and style
    drawing: Drawing


def faces(package: Package) -> list[str]:
    """Returns the files of a package's Latin faces: every weight and style."""
    pattern = re.compile(rf"package/(files/{re.escape(package.short)}-latin-\d+-(?:normal|italic)\.woff2)")
    return sorted(match[1] for match in map(pattern.fullmatch, package.names()) if match)


def glyphs(package: Package) -> Iterator[Glyph]:
    """Yields digits and letters of every face of a package; those that a face lacks are left out."""
    names = faces(package)
    for name, content in zip(names, package.read(*names), strict=True):
        font = TTFont(io.BytesIO(content))
        outlines, of_character = font.getGlyphSet(), font.getBestCmap()
        heights = [y for _, y in points(pieces_of(outlines, of_character[ord("H")]))]
        scale = CAPITALS / (max(heights) - min(heights))
        for character in CHARACTERS:
            if ord(character) in of_character:
                drawing = placed(pieces_of(outlines, of_character[ord(character)]), scale)
                yield Glyph(character, name.removeprefix("files/").removesuffix(".woff2"), drawing)


def pieces_of(outlines: Mapping[str, Any], glyph: str) -> Pieces:
    """Returns what a glyph tells a pen, in the font's units, every outline begun by a point that lies on it."""
    pen = DecomposingRecordingPen(outlines)
    outlines[glyph].draw(pen)
    pieces: Pieces = []
    for name, arguments in pen.value:
        if name == "qCurveTo" and arguments[-1] is None:  # TrueType: between two controls there is a point
            (a, b), (u, v) = arguments[-2], arguments[0]
            start = ((a + u) / 2, (b + v) / 2)
            pieces += [("moveTo", (start,)), (name, (*arguments[:-1], start))]
        else:
            pieces.append((name, arguments))
    return pieces


def points(pieces: Pieces) -> list[Point]:
    return [point for _, arguments in pieces for point in arguments if point is not None]


def placed(pieces: Pieces, scale: float) -> Drawing:
    """Returns an outline as a drawing: scaled, on the baseline, in the middle of the box from left to right."""
    across = [x for x, _ in points(pieces)] or [0.0]
    left = BOX / 2 - scale * (min(across) + max(across)) / 2
    pen = RecordingPen()
    cubic: AbstractPen = Qu2CuPen(pen, TOLERANCE, all_cubic=True)
    into_the_box = TransformPen(cubic, (scale, 0, 0, -scale, left, BASELINE))
    for name, arguments in pieces:
        getattr(into_the_box, name)(*arguments)
    return Drawing(tuple(closed(pen.value)))


def closed(pieces: Pieces) -> Iterator[Subpath]:
    """Yields the closed paths that a pen was told of, in lines and cubic curves."""
    start: Point = (0.0, 0.0)
    segments = list[Segment]()
    for name, arguments in pieces:
        match name, arguments:
            case "moveTo", (first,):
                start, segments = first, []
            case "lineTo", (end,):
                segments.append(Segment(end))
            case "curveTo", (one, two, end):
                segments.append(Segment(end, (one, two)))
            case "closePath" | "endPath", _ if segments:
                back = [] if segments[-1].end == start else [Segment(start)]
                yield Subpath(start, (*segments, *back), closed=True)
            case _ if segments:
                raise AssertionError(f"a pen was told {name} {arguments}")
