"""Icons of Iconify's packages as drawings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.vectors.packages import Package
from ldm.svg.drawing import Drawing
from ldm.svg.parsing import parse

NUMBERED = re.compile(r"(-\d+)+$")  # "home-02" is one more icon of the name "home"


@dataclass(frozen=True)
class Icon:
    name: str  # without the set's suffix and without a number
    original: str  # its name in the set
    drawing: Drawing | str  # or why its SVG text is none


def svg_of(icons: dict[str, Any], name: str) -> str:
    """Returns the SVG text of an icon of an icons.json."""
    icon = icons["icons"][name]
    box = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's defaults, under the set's, under the icon's
    view = " ".join(str(icon.get(key, icons.get(key, default))) for key, default in box.items())
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{view}">{icon["body"]}</svg>'


def icons_of(package: Package, suffix: str) -> Iterator[Icon]:
    """Yields the icons of a set whose names end in `suffix`."""
    icons = package.json("icons.json")
    for original in sorted(icons["icons"]):
        if original.endswith(suffix):
            drawing: Drawing | str
            try:
                drawing = parse(svg_of(icons, original))
            except ValueError as error:
                drawing = str(error)
            yield Icon(NUMBERED.sub("", original.removesuffix(suffix)), original, drawing)
