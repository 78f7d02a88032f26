"""Drawings as grey pictures, which the judge sees."""

import io
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.svg.drawing import Drawing, to_svg

SIDE = 32  # pixels of a picture for the judge


def rendered(drawing: Drawing, side: int = SIDE) -> np.ndarray:
    """Returns a drawing as uint8 [side, side]: how much of each pixel it covers."""
    import resvg_py  # only here, so that drawings need no renderer

    text = to_svg(drawing).replace("<svg ", f'<svg width="{side}" height="{side}" ', 1)
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text))))
    return np.asarray(picture.convert("RGBA"))[..., 3]


def renders(drawings: Iterable[Drawing], side: int = SIDE) -> Tensor:
    """Returns drawings as uint8 [N, side, side]."""
    found = [rendered(drawing, side) for drawing in drawings]
    return torch.from_numpy(np.stack(found)) if found else torch.zeros(0, side, side, dtype=torch.uint8)


def on_paper(drawings: Iterable[Drawing], side: int) -> Tensor:
    """Returns drawings in black on white, [N, 3, side, side] in [0, 1]."""
    return (1 - renders(drawings, side).float() / 255)[:, None].expand(-1, 3, -1, -1)
