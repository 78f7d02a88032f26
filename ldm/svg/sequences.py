"""A drawing as a sequence of commands, which networks read and write.

Letters of shapes: B drawings, L commands at most. A row has COLUMNS numbers: KINDS of a one-hot (of a network: logits)
over END, MOVE, LINE, CURVE, CLOSE, CLOSE_CURVE, then x1, y1, x2, y2, x, y in [-1, 1] over the box, 0 where its kind has
no such number. The rows after the last command are END. Both closing commands end at the start of their path and
have no x, y of their own: a closed path is closed whatever the numbers are.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.svg.drawing import BOX, Drawing, Point, Segment, Subpath

END, MOVE, LINE, CURVE, CLOSE, CLOSE_CURVE = range(6)
KINDS = 6
ARGUMENTS = 6
COLUMNS = KINDS + ARGUMENTS
USED = torch.tensor(  # [KINDS, ARGUMENTS]: which arguments a kind has
    [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
    ],
    dtype=torch.bool,
)
FOLLOWS = torch.tensor(  # [KINDS, KINDS]: which kinds may come after which, in a filled drawing
    [
        [1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
    ],
    dtype=torch.bool,
)


def length(drawing: Drawing) -> int:
    """Returns the number of commands of a drawing: one for each path and one for each segment."""
    return sum(1 + len(path.segments) for path in drawing.paths)


def encode_commands(drawing: Drawing, commands: int) -> Tensor:
    """Returns a drawing as a sequence [L, COLUMNS] of float32, L = `commands`; its stroke is not in it.

    Raises ValueError if the drawing has more commands.
    """
    rows = [row for path in drawing.paths for row in path_rows(path)]
    if len(rows) > commands:
        raise ValueError(f"a drawing of {len(rows)} commands: at most {commands} fit")
    sequence = torch.zeros(commands, COLUMNS)
    sequence[len(rows) :, END] = 1
    for i, (kind, points) in enumerate(rows):
        sequence[i, kind] = 1
        numbers = torch.tensor([value for point in points for value in point], dtype=torch.float64)
        sequence[i, KINDS:][USED[kind]] = (2 * numbers / BOX - 1).float()
    return sequence


def path_rows(path: Subpath) -> Iterator[tuple[int, tuple[Point, ...]]]:
    """Yields kind and points of each command of a path."""
    yield MOVE, (path.start,)
    for i, segment in enumerate(path.segments):
        closes = path.closed and i == len(path.segments) - 1
        if segment.controls is None:
            yield (CLOSE, ()) if closes else (LINE, (segment.end,))
        else:
            yield (CLOSE_CURVE, segment.controls) if closes else (CURVE, (*segment.controls, segment.end))


def grammatical(sequences: Tensor, stroke: float | None = None) -> Tensor:
    """Returns sequences [B, L, COLUMNS] with, in the place of their logits, the likeliest kinds that form paths.

    That is, of all ways to write whole paths, the one whose log-probabilities have the greatest sum (Viterbi 1967): the
    first row moves; a path has a segment, and in a filled drawing (`stroke` None) it closes; after END comes END.
    """
    follows = FOLLOWS.to(sequences.device).clone()
    if stroke is not None:
        follows[LINE : CURVE + 1, [END, MOVE]] = True  # a stroked path may stay open
    scores = sequences[..., :KINDS].float().log_softmax(dim=-1)
    best = scores[:, 0].masked_fill(torch.arange(KINDS, device=scores.device) != MOVE, -math.inf)
    before = []  # of each row but the first, the best kind before each kind [B, KINDS]
    for row in scores[:, 1:].unbind(dim=1):
        best, kinds = best[:, :, None].masked_fill(~follows, -math.inf).max(dim=1)
        best = best + row
        before.append(kinds)
    kind = best.masked_fill(~follows[:, END], -math.inf).argmax(dim=1)
    path = [kind]
    for kinds in reversed(before):
        path.append(kind := kinds.gather(1, kind[:, None])[:, 0])
    one_hot = F.one_hot(torch.stack(path[::-1], dim=1), KINDS)
    return torch.cat([one_hot.to(sequences), sequences[..., KINDS:]], dim=-1)


def decode_commands(sequence: Tensor, stroke: float | None = None) -> Drawing:
    """Returns the drawing of a sequence [L, COLUMNS] whose one-hots may be logits; `stroke` as in Drawing.

    Whatever the numbers are, there is a drawing: it ends at the first END; a segment outside a path is skipped; a path
    without segments is skipped; a path of a filled drawing that was not closed is closed by a straight line.
    """
    kinds = sequence[:, :KINDS].argmax(dim=1).tolist()
    numbers = (sequence[:, KINDS:].double() + 1) * (BOX / 2)
    paths: list[Subpath] = []
    start: Point = (0.0, 0.0)
    segments: list[Segment] | None = None  # of the path that is being drawn
    for kind, (x_1, y_1, x_2, y_2, x, y) in zip(kinds, numbers.tolist(), strict=True):
        if kind in (END, MOVE):
            paths += ended(start, segments, stroke)
            start, segments = (x, y), []
        elif segments is not None:
            controls = ((x_1, y_1), (x_2, y_2)) if kind in (CURVE, CLOSE_CURVE) else None
            closes = kind in (CLOSE, CLOSE_CURVE)
            segments.append(Segment(start if closes else (x, y), controls))
            if closes:
                paths.append(Subpath(start, tuple(segments), closed=True))
                segments = None
        if kind == END:
            return Drawing(tuple(paths), stroke)
    return Drawing((*paths, *ended(start, segments, stroke)), stroke)


def ended(start: Point, segments: list[Segment] | None, stroke: float | None) -> list[Subpath]:
    """Returns the path, if there is one, that ends without a closing command."""
    if not segments:
        return []
    closing = [] if stroke is not None else [Segment(start)]
    return [Subpath(start, (*segments, *closing), closed=stroke is None)]
