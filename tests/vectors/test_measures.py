"""What drawings are measured by, against closed forms and stand-ins that know the truth."""

import math

import pytest
import torch
from torch import Tensor, nn

from experiments.vectors import measures
from experiments.vectors.data import STEP, Drawings
from experiments.vectors.judge import VectorJudge, VectorJudgeConfig, judged
from ldm.svg.drawing import BOX, Drawing, Segment, Subpath
from ldm.svg.sequences import ARGUMENTS, CLOSE, COLUMNS, CURVE, END, KINDS, LINE, MOVE


def square(left: float, top: float, side: float) -> Drawing:
    corners = [(left + side, top), (left + side, top + side), (left, top + side), (left, top)]
    return Drawing((Subpath(corners[-1], tuple(map(Segment, corners)), closed=True),))


def squares(count: int) -> Drawings:
    kinds = torch.tensor([MOVE, LINE, LINE, LINE, CLOSE, END, END], dtype=torch.uint8).repeat(count, 1)
    arguments = torch.zeros(count, 7, ARGUMENTS)
    for i in range(count):
        side = 4 + i % 7
        arguments[i, :4, 4:] = torch.tensor([[3, 3], [3 + side, 3], [3 + side, 3 + side], [3, 3 + side]])
    arguments = (arguments / STEP).round().to(torch.int16)
    labels, origins = torch.zeros(count, dtype=torch.int64), ("x",) * count
    return Drawings(("square",), None, kinds, arguments, torch.zeros(count, 32, 32), labels, origins)


class Off(nn.Module):
    """An autoencoder that remembers, and moves every argument by `shift` units of the box."""

    def __init__(self, shift: float):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift), requires_grad=False)

    def encode(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        return sequences, sequences

    def decode(self, latents: Tensor) -> Tensor:
        moved = latents.clone()
        moved[..., KINDS:] += self.shift * 2 / BOX
        return moved


def test_reconstruction_of_what_is_moved() -> None:
    found = measures.reconstruction(Off(0.5), squares(20))  # type: ignore[arg-type]
    assert found["coordinate"] == pytest.approx(0.5, abs=1e-5)
    assert found["commands"] == found["sequences"] == found["valid"] == found["closed"] == 1
    # of a square moved by (d, d): each side is d from the other's, but for a corner's d at an end, farther away
    assert 0.3 < found["chamfer"] < 0.75
    exact = measures.reconstruction(Off(0.0), squares(20))  # type: ignore[arg-type]
    assert exact["coordinate"] == 0 and exact["chamfer"] < 1e-6


def test_commands_are_counted_up_to_the_first_end() -> None:
    wanted = squares(1).sequences()
    got = wanted.clone()
    got[0, 2, :KINDS] = torch.eye(KINDS)[CURVE]
    got[0, 6, :KINDS] = torch.eye(KINDS)[LINE]  # beyond the first END: nobody reads it
    found = measures.compared(got, wanted)
    assert found["commands"].tolist() == [1, 1, 0, 1, 1, 1]
    assert found["sequences"].tolist() == [0]
    assert len(found["coordinate"]) == 8, "four points"
    got = wanted.clone()
    got[0, 4, :KINDS] = torch.eye(KINDS)[LINE]
    assert measures.compared(got, wanted)["closed"].tolist() == [0]


@pytest.mark.parametrize(
    ("kinds", "filled", "stroked"),
    [
        ((MOVE, LINE, LINE, CLOSE, END), True, True),
        ((MOVE, LINE, LINE, CLOSE), True, True),
        ((MOVE, LINE, LINE, END, LINE), False, True),
        ((MOVE, LINE, LINE, MOVE, LINE, LINE, CLOSE), False, True),
        ((MOVE, LINE, LINE, CLOSE, LINE), False, False),
        ((MOVE, LINE, LINE, CLOSE, MOVE), False, False),
        ((MOVE, MOVE, LINE, LINE, CLOSE), False, False),
        ((LINE, LINE, CLOSE), False, False),
        ((MOVE, LINE, CLOSE), False, True),  # a line and back: no area
        ((END, MOVE, LINE, CLOSE), False, False),
    ],
)
def test_validity(kinds: tuple[int, ...], filled: bool, stroked: bool) -> None:
    sequence = torch.zeros(len(kinds), COLUMNS)
    sequence[range(len(kinds)), list(kinds)] = 5
    sequence[:, KINDS + 4 :] = torch.tensor([[math.cos(2 * i), math.sin(2 * i)] for i in range(len(kinds))]) / 2
    assert measures.valid(sequence, None) == filled
    assert measures.valid(sequence, 2.0) == stroked


def test_chamfer_of_two_lines_is_their_distance() -> None:
    def line(y: float) -> Drawing:
        return Drawing((Subpath((2.0, y), (Segment((20.0, y)),), closed=False),), stroke=1.0)

    assert measures.chamfer(line(5), line(8)) == pytest.approx(3)
    assert measures.chamfer(line(5), line(5)) == 0
    assert measures.chamfer(line(5), Drawing((), 1.0)) == pytest.approx(BOX * math.sqrt(2))


def test_a_round_trip_loses_what_rounding_takes() -> None:
    assert measures.round_trip(square(1.0, 2.0, 5.0)) < 1e-5
    assert measures.round_trip(square(1.00049, 2.0, 5.0)) == pytest.approx(0.00049, abs=1e-5)


def test_nearest_and_coverage() -> None:
    g = torch.Generator().manual_seed(0)
    true = torch.randn(200, 6, generator=g)
    assert measures.nearest(true[:5], true).max() < 1e-2
    shifted = measures.nearest(true + torch.tensor([100.0, 0, 0, 0, 0, 0]), true)
    assert shifted.min() > 90
    assert measures.coverage(true, true) == 1
    assert measures.coverage(true[:1].expand(200, -1), true) < 0.1, "one of all is drawn"
    assert measures.coverage(torch.randn(200, 6, generator=g), true) > 0.8
    assert measures.coverage(true + 100, true) == 0


def test_the_frechet_ratio_is_one_for_true_sets() -> None:
    g = torch.Generator().manual_seed(0)
    one, other, drawn = (torch.randn(4000, 4, generator=g) for _ in range(3))
    assert 0.3 < measures.frechet_ratio(drawn, one, other) < 3
    assert measures.frechet_ratio(other, one, other) == 1
    assert measures.frechet_ratio(drawn + 1, one, other) > 100


def test_a_judge_names_drawings_by_their_renders() -> None:
    """A stand-in that tells big squares from small ones by their ink."""
    drawings = [square(2, 2, side) for side in (4.0, 18.0, 5.0, 17.0)]

    class ByInk(VectorJudge):
        def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
            ink = pictures.float().mean(dim=(1, 2))[:, None] / 255
            return torch.cat([0.2 - ink, ink - 0.2], dim=1), ink

    judge = ByInk(VectorJudgeConfig(("small", "big"), (8,)))
    assert measures.named_right(judge, drawings, torch.tensor([0, 1, 1, 1])).tolist() == [True, True, False, True]
    ink = measures.judge_features(judge, drawings).flatten().tolist()
    assert ink == pytest.approx([(side / BOX) ** 2 for side in (4, 18, 5, 17)], abs=1e-2)


def test_judging_many_is_judging_each() -> None:
    torch.manual_seed(0)
    judge = VectorJudge(VectorJudgeConfig(("a", "b"), (8, 8)))
    pictures = torch.randint(0, 256, (7, 32, 32), dtype=torch.uint8)
    together, apart = judged(judge, pictures, rows=3), [judged(judge, picture[None]) for picture in pictures]
    for i in (0, 1):
        assert torch.allclose(together[i], torch.cat([each[i] for each in apart]), atol=1e-5)
