"""Conditions that are layouts: labelled boxes, one token each (layout to image, Rombach et al. 2022, section 4.3.2).

A layout is a prompt, "LABEL LEFT TOP RIGHT BOTTOM; ...", in shares of the picture: "cat 0.1 0.2 0.5 1; dog 0.5 0 1 1".
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.classes import nearest
from ldm.condition import Condition, Span, Unfit
from ldm.config import BoxesConfig
from ldm.layers import Embedding, Linear

WAVES = 6  # sines and cosines of each coordinate, at frequencies pi, 2 pi, 4 pi ...
NUMBER = r"(-?\d*\.?\d+)"
OBJECT = re.compile(rf"(.+?)\s+{NUMBER}\s+{NUMBER}\s+{NUMBER}\s+{NUMBER}")


@dataclass(frozen=True)
class Box:
    """A label, and where its object is: shares of the picture's width and height, 0 at the left and at the top."""

    label: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.right, self.bottom

    def __str__(self) -> str:
        return " ".join([self.label, *(f"{corner:g}" for corner in self.corners)])


def read_layout(prompt: str) -> list[Box]:
    """Returns the boxes that a prompt tells; "" tells none. Raises Unfit for one that is none, in one line."""
    boxes = []
    for part in filter(None, (part.strip() for part in prompt.split(";"))):
        match = OBJECT.fullmatch(part)
        if match is None:
            raise Unfit(f"{part!r} is no box: write LABEL LEFT TOP RIGHT BOTTOM, with a semicolon between boxes")
        box = Box(match[1], *(float(number) for number in match.groups()[1:]))
        if not (0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1):
            raise Unfit(f"{part!r}: a box has 0 <= left < right <= 1 and 0 <= top < bottom <= 1, in shares")
        boxes.append(box)
    return boxes


def write_layout(boxes: Sequence[Box]) -> str:
    """Returns the prompt that tells these boxes."""
    return "; ".join(map(str, boxes))


class BoxEncoder(nn.Module):
    """A token for each of `most` boxes: its label's learnt vector, plus two layers of its corners' sines and cosines.

    forward(ids [B, most], corners [B, most, 4]) -> tokens [B, most, width]. Where there is no box, the token is the
    vector of the null label alone; the empty layout, which classifier-free guidance needs, has no other.
    """

    def __init__(self, config: BoxesConfig):
        super().__init__()
        self.names = config.names
        self.most = config.most
        self.null = len(config.names)
        self.embedding = Embedding(len(config.names) + 1, config.width)
        self.linear_1 = Linear(4 * 2 * WAVES, config.width)
        self.linear_2 = Linear(config.width, config.width)

    def forward(self, ids: Tensor, corners: Tensor) -> Tensor:
        frequencies = math.pi * 2.0 ** torch.arange(WAVES, device=corners.device)
        angles = (corners[..., None] * frequencies).flatten(-2)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.linear_1.weight.dtype)
        where = self.linear_2(F.silu(self.linear_1(waves)))
        return self.embedding(ids) + torch.where((ids == self.null)[..., None], 0, where)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Returns the tokens of layouts, each box's label a word. Raises Unfit as `boxes`."""
        layouts = [self.boxes(prompt) for prompt in prompts]
        ids = torch.full((len(layouts), self.most), self.null)
        corners = torch.zeros(len(layouts), self.most, 4)
        for row, layout in enumerate(layouts):
            for i, box in enumerate(layout):
                ids[row, i] = self.names.index(box.label)
                corners[row, i] = torch.tensor(box.corners)
        device = self.embedding.weight.device
        spans = tuple(tuple(Span(box.label, i, i + 1) for i, box in enumerate(layout)) for layout in layouts)
        return Condition(self(ids.to(device), corners.to(device)), spans=spans)

    def boxes(self, prompt: str) -> list[Box]:
        """Returns a layout's boxes. Raises Unfit for one that cannot be read, and for unknown labels and too many."""
        layout = read_layout(prompt)
        for box in layout:
            if box.label not in self.names:
                raise Unfit(f"there is no label {box.label!r}: {nearest(box.label, self.names)}")
        if len(layout) > self.most:
            raise Unfit(f"{len(layout)} boxes: this model is told {self.most} at most")
        return layout
