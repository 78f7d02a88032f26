"""Packages of fonts and icons of our own making, as `npm pack` leaves them."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from experiments.vectors.data import Source

STROKES = 'fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round"'
LETTERS = Source("letters", "characters", {"@fontsource/one": "", "@fontsource/two": ""}, None, paths=4, commands=12)
LINES = Source("lines", "names", {"@iconify-json/thin": "", "@iconify-json/round": "-line"}, 2.0, 4, 12, least=2)


def pack(folder: Path, name: str, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.removeprefix('@').replace('/', '-')}-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for file, content in files.items():
            entry = tarfile.TarInfo(f"package/{file}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def font(width: int) -> bytes:
    """A font of H (a box 700 units high), O (a disc of quadratic curves with a hole), x and an empty y."""
    pens = {name: TTGlyphPen(None) for name in ("H", "O", "x", "y")}
    rectangle(pens["H"], 50, 0, 50 + width, 700)
    disc(pens["O"], 350, 350, 300)
    disc(pens["O"], 350, 350, -width)
    rectangle(pens["x"], 0, -100, width, 400)
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *pens])
    builder.setupCharacterMap({ord(name): name for name in pens})
    glyphs = {".notdef": TTGlyphPen(None).glyph(), **{name: pen.glyph() for name, pen in pens.items()}}
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Own"})
    builder.setupOS2()
    builder.setupPost()
    builder.font.flavor = "woff2"
    file = io.BytesIO()
    builder.save(file)
    return file.getvalue()


def rectangle(pen: TTGlyphPen, left: int, bottom: int, right: int, top: int) -> None:
    pen.moveTo((left, bottom))
    for corner in ((left, top), (right, top), (right, bottom)):
        pen.lineTo(corner)
    pen.closePath()


def disc(pen: TTGlyphPen, x: int, y: int, r: int) -> None:
    """An outline without a point on it: four controls, the points lie between them."""
    corners = [(x - abs(r), y + r), (x + abs(r), y + r), (x + abs(r), y - r), (x - abs(r), y - r)]
    pen.qCurveTo(*corners, None)
    pen.closePath()


def write_font(folder: Path, name: str, widths: Mapping[str, int]) -> Path:
    """A package with a face for each weight and style ("400-normal": 200)."""
    faces = {f"files/{name}-latin-{face}.woff2": font(width) for face, width in widths.items()}
    about = {"family": name.title(), "license": {"type": "OFL-1.1"}}
    files = {**faces, f"files/{name}-greek-400-normal.woff2": b"", "metadata.json": json.dumps(about).encode()}
    return pack(folder, f"@fontsource/{name}", {**files, "LICENSE": b"Copyright Own Authors (https://x)\nOFL"})


def write_icons(folder: Path, name: str, bodies: Mapping[str, str]) -> Path:
    icons = {key: {"body": f"<g {STROKES}>{body}</g>"} for key, body in bodies.items()}
    content = {"icons": icons, "width": 24, "height": 24}
    about = {"name": name.title(), "author": {"name": "Own"}, "license": {"spdx": "MIT"}}
    files = {"icons.json": json.dumps(content).encode(), "info.json": json.dumps(about).encode()}
    return pack(folder, f"@iconify-json/{name}", files)


def write_all(folder: Path) -> None:
    """What LETTERS and LINES are made of."""
    write_font(folder, "one", {"400-normal": 200, "400-italic": 220, "700-normal": 260})
    write_font(folder, "two", {"400-normal": 150, "900-normal": 280})
    thin = {
        "home": '<path d="M4 12l8-8 8 8v8H4z"/>',
        "home-2": '<path d="M5 12l7-8 7 8v8H5z"/>',
        "dot": '<path d="M9 9h6"/>',
    }
    thin |= {"arrow-left": '<path d="M3 12h18M3 12l6-6"/>', "sheet": "<text>x</text>", "far": '<path d="M20 3h9"/>'}
    write_icons(folder, "thin", thin)
    curved = {"home-line": '<path d="M4 12l8-7 8 7v9H4z"/>', "dot-line": '<path d="M9 10h6"/>', "dot-bold": "<circle/>"}
    write_icons(folder, "round", curved | {"arrow-up-line": '<path d="M12 3v18"/>'})
