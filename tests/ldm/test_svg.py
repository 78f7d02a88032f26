"""SVG text, drawings and sequences, against resvg's renders of the same text, closed forms, and each other."""

import io
import itertools
import math
import random
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import resvg_py
import svg_fuzz
import torch
from PIL import Image

from ldm.config import VectorAutoencoderConfig
from ldm.files.vectors import read_vector_autoencoder, write_vector_autoencoder
from ldm.svg.autoencoder import VectorAutoencoder
from ldm.svg.drawing import BOX, Drawing, Segment, Subpath, to_svg
from ldm.svg.geometry import area, canonical, flattened, reversed_path
from ldm.svg.parsing import parse
from ldm.svg.sequences import (
    CLOSE,
    CLOSE_CURVE,
    COLUMNS,
    CURVE,
    END,
    KINDS,
    LINE,
    MOVE,
    decode_commands,
    encode_commands,
    grammatical,
    length,
)

TEXTS = {
    "relative, smooth and arcs": '<path d="M3 3h14v6a5 3 20 0 1-4 4s-3 2-5 0-4-4-4-6q2-2 0-4z'
    'm3 3 4 0 0 3q-1 2-2 0t-2-1z"/>',
    "arcs both ways round": '<path d="M4 12A8 5 30 1 0 20 12A8 5 30 1 0 4 12ZM12 9a3 3 0 1 0 0 6a3 3 0 0 0 0-6"/>',
    "arcs with flags run together": '<path d="M2 2h9a4 4 0 014 4v5.5.5a3 3 0 01-3 3H2z"/>',
    "arcs too small for their ends": '<path d="M4 12A1 1 0 0 1 20 12A1 2 0 0 1 4 12Z"/>',
    "after z without a move": '<path d="M2 2h8v8zl4 12h12z"/>',
    "even-odd": '<path fill-rule="evenodd" d="M2 2h20v20H2zM6 6h12v12H6zM9 9h6v6H9z"/>',
    "not closed": '<path d="M2 2h12l4 9"/>',
    "transforms": '<g transform="translate(4 3) rotate(20)"><rect x="1" y="2" width="9" height="7" rx="2" '
    'transform="skewX(15) scale(1.5,.75)"/></g>',
    "a matrix with arcs": '<circle cx="5" cy="6" r="4" transform="matrix(1.5 .3 -.4 .8 3 2)"/>',
    "a round rectangle": '<rect x="2" y="3" width="19" height="14" ry="5"/>',
    "an ellipse": '<ellipse cx="12" cy="11" rx="9" ry="4"/>',
    "polygons": '<polygon points="3,4 20,6 9,20"/><polyline points="1,1 4,1 4,4"/>',
    "strokes": '<g fill="none" stroke="red" stroke-width="2" stroke-linecap="round" stroke-linejoin="round">'
    '<path d="M3 12h.01M5 4c3 9 9-3 12 9"/><line x1="3" y1="20" x2="20" y2="17"/><circle cx="18" cy="6" r="2"/></g>',
    "styles": '<path style="fill:none;stroke:#000;stroke-width:3px" stroke-linecap="round" stroke-linejoin="round" '
    'd="M4 4l9 9v7"/><path d="M0 0h24v24H0z" fill="none"/>',
}


def svg(body: str, view: str = "0 0 24 24") -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{body}</svg>'


def covered(text: str, side: int = 96) -> np.ndarray:
    """How much of each pixel an SVG text covers, by resvg."""
    text = text.replace("<svg ", f'<svg width="{side}" height="{side}" ', 1)
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text))))
    return np.asarray(picture.convert("RGBA"))[..., 3] / 255


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("view", ["0 0 24 24", "-6 -3 36 30"])
def test_a_parsed_text_looks_like_itself(name: str, view: str) -> None:
    text = svg(TEXTS[name], view)
    drawing = parse(text)
    written = decode_commands(encode_commands(canonical(drawing), 80), drawing.stroke)
    original = covered(text)
    assert original.mean() > 0.01
    assert np.abs(covered(to_svg(drawing)) - original).mean() < 2e-4
    assert np.abs(covered(to_svg(written)) - original).mean() < 5e-4


@pytest.mark.parametrize("name", TEXTS)
def test_text_to_tensors_to_text(name: str) -> None:
    text = to_svg(parse(svg(TEXTS[name])))
    drawing = parse(text)
    sequence = encode_commands(drawing, length(drawing) + 2)
    assert to_svg(decode_commands(sequence, drawing.stroke)) == text
    assert torch.equal(encode_commands(decode_commands(sequence, drawing.stroke), len(sequence)), sequence)


def test_coordinates_move_by_half_a_thousandth_at_most() -> None:
    draw = random.Random(0)
    points = [(draw.uniform(0, BOX), draw.uniform(0, BOX)) for _ in range(60)]
    curves = tuple(Segment(points[i + 2], (points[i], points[i + 1])) for i in range(0, 60, 3))
    drawing = Drawing((Subpath((1.0, 2.0), curves, closed=False),), stroke=2.0)
    again = parse(to_svg(decode_commands(encode_commands(drawing, 21), 2.0)))
    one, other = encode_commands(drawing, 21), encode_commands(again, 21)
    assert 0 < (one - other).abs().max() * BOX / 2 <= 0.0005 + 2e-6


def test_a_circle_is_a_circle() -> None:
    (path,) = parse(svg('<circle cx="12" cy="12" r="10"/>')).paths
    distances = [math.dist(point, (12, 12)) for point in flattened(path, 50)]
    assert path.closed and len(path.segments) == 4
    assert max(abs(distance - 10) for distance in distances) < 0.003  # of a quarter by one cubic: 2.7e-4 of r


def test_a_quadratic_curve_is_exact() -> None:
    (path,) = parse(svg('<path d="M2 3Q10 20 19 5" fill="none" stroke="black"/>')).paths
    points = flattened(path, 10)
    for i, (x, y) in enumerate(points):
        t = i / 10
        assert x == pytest.approx((1 - t) ** 2 * 2 + 2 * t * (1 - t) * 10 + t * t * 19, abs=1e-12)
        assert y == pytest.approx((1 - t) ** 2 * 3 + 2 * t * (1 - t) * 20 + t * t * 5, abs=1e-12)


def test_the_view_box_is_scaled_and_centred() -> None:
    (path,) = parse(svg('<path d="M10 5h20v10H10z"/>', "10 5 20 10")).paths
    assert [path.start, *(segment.end for segment in path.segments)] == [(0, 6), (24, 6), (24, 18), (0, 18), (0, 6)]
    (same,) = parse('<svg width="20px" height="10"><path d="M0 0h20v10H0z"/></svg>').paths
    assert same == path


def test_a_stroke_is_scaled_with_the_view_box() -> None:
    assert parse(svg('<path d="M0 0h9" fill="none" stroke="black" stroke-width="3"/>', "0 0 48 48")).stroke == 1.5


# --- canonical form ---------------------------------------------------------------------------------------------------


def shuffled(drawing: Drawing, draw: random.Random) -> Drawing:
    """The same shape drawn in another way: other starts, another order, all of it the other way round."""
    paths = list(drawing.paths)
    draw.shuffle(paths)
    turned = []
    for path in paths:
        if path.closed:
            i = draw.randrange(len(path.segments))
            segments = (*path.segments[i:], *path.segments[:i])
            path = Subpath(segments[-1].end, segments, closed=True)
        turned.append(path)
    if draw.random() < 0.5:
        turned = [reversed_path(path) for path in turned]
    return replace(drawing, paths=tuple(turned))


@pytest.mark.parametrize("name", TEXTS)
def test_one_shape_has_one_sequence(name: str) -> None:
    drawing, draw = canonical(parse(svg(TEXTS[name]))), random.Random(1)
    for _ in range(8):
        again = canonical(shuffled(drawing, draw))
        assert torch.allclose(encode_commands(again, 80), encode_commands(drawing, 80), atol=1e-6)


def test_outer_outlines_run_clockwise_and_counters_the_other_way() -> None:
    paths = canonical(parse(svg(TEXTS["even-odd"]))).paths
    assert [area(flattened(path)) > 0 for path in paths] == [True, False, True]


def test_a_curve_that_is_a_line_becomes_one() -> None:
    (path,) = canonical(parse(svg('<path d="M2 2C5 2 9 2 20 2C20 3 20 9 20 20C29 29 2 9 2 2z"/>'))).paths
    assert [segment.controls is None for segment in path.segments] == [True, True, False]


# --- sequences --------------------------------------------------------------------------------------------------------


def sequence_of(*kinds: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    sequence = torch.rand(len(kinds), COLUMNS, generator=g)
    sequence[range(len(kinds)), list(kinds)] = 9
    return sequence


def test_closing_is_no_coordinate() -> None:
    """Whatever the arguments are, a closed path ends where it began, in the drawing and in the text."""
    drawing = decode_commands(sequence_of(MOVE, CURVE, CURVE, CLOSE_CURVE, MOVE, LINE, LINE, CLOSE, END))
    assert len(drawing.paths) == 2
    for path in drawing.paths:
        assert path.closed and path.segments[-1].end == path.start
    assert all(path.closed for path in parse(to_svg(drawing)).paths)


@pytest.mark.parametrize(
    ("kinds", "paths"),
    [
        ((END, MOVE, LINE, CLOSE), []),
        ((LINE, CLOSE, MOVE, LINE, LINE, CLOSE, END), [3]),
        ((MOVE, MOVE, LINE, CURVE, CLOSE, LINE, END), [3]),
        ((MOVE, LINE, LINE, MOVE, LINE, CURVE), [3, 3]),
        ((MOVE, END), []),
    ],
)
def test_any_sequence_is_a_drawing_of_closed_paths(kinds: tuple[int, ...], paths: list[int]) -> None:
    drawing = decode_commands(sequence_of(*kinds))
    assert [len(path.segments) for path in drawing.paths] == paths
    assert all(path.closed for path in drawing.paths)
    to_svg(drawing)


def test_an_open_stroke_stays_open() -> None:
    (path,) = decode_commands(sequence_of(MOVE, LINE, LINE, END), stroke=2.0).paths
    assert not path.closed and len(path.segments) == 2


WHOLE = {  # paths as words of the letters end, move, line, curve, close, close by a curve
    None: re.compile("(m[lk]*([lk]z|c))+e*"),
    2.0: re.compile("(m[lk]*([lk]z|c|[lk]))+e*"),
}


@pytest.mark.parametrize("stroke", WHOLE)
def test_paths_are_made_whole_in_the_likeliest_way(stroke: float | None) -> None:
    """All words of five letters are tried, and those that spell whole paths compared."""
    words = list(itertools.product(range(KINDS), repeat=5))
    whole = torch.tensor([w for w in words if WHOLE[stroke].fullmatch("".join("emlkzc"[k] for k in w))])
    sequences = torch.randn(40, 5, COLUMNS, generator=torch.Generator().manual_seed(1))
    found = grammatical(sequences, stroke)
    chances = sequences[:, None, :, :KINDS].log_softmax(dim=-1).expand(-1, len(whole), -1, -1)
    sums = chances.gather(3, whole[None, :, :, None].expand(40, -1, -1, -1)).sum(dim=(2, 3))
    assert torch.equal(found[..., :KINDS].argmax(dim=-1), whole[sums.argmax(dim=1)])
    assert torch.equal(found[..., KINDS:], sequences[..., KINDS:])
    assert torch.equal(grammatical(found, stroke), found)


def test_a_drawing_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="a drawing of 19 commands: at most 18 fit"):
        encode_commands(parse(svg(TEXTS["even-odd"].replace("M9 9h6v6H9z", "M9 9h6v6H9zM1 1h1v1z"))), 18)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (svg_fuzz.HOSTILE[0], "a document type"),
        (svg("<script/>"), "<script>: only groups and plain shapes"),
        (svg('<path d="M0 0h1z" onclick="x()"/>'), "'onclick' runs or fetches"),
        (svg('<path d="M0 0h1z" fill="url(#a)"/>'), "'fill' runs or fetches"),
        (svg('<path d="M0 0h1z" mask="m"/>'), "'mask': not read"),
        (svg('<path d="M0 0h1z" opacity=".5"/>'), "a drawing is opaque"),
        (svg('<path d="M0 0h1z"/><path d="M0 0h1" fill="none" stroke="red"/>'), "some shapes are filled and some"),
        (svg('<path d="M0 0h1" fill="red" stroke="red"/>'), "both filled and stroked"),
        (
            svg('<g fill="none" stroke="red"><path d="M0 0h1"/><path stroke-width="3" d="M0 0h1"/></g>'),
            "different widths",
        ),
        (svg('<path d="M0 0Lx"/>'), "damaged path data 'M0 0Lx'"),
        (svg('<path d="M0 0L1"/>'), "damaged path data 'M0 0L1'"),
        (svg('<path d="M0 0h1z" transform="turn(3)"/>'), "damaged transform"),
        (svg('<circle r="5%"/>'), "r='5%': a plain number"),
        (svg("", "0 0 0 9"), "no view box"),
        ("<svg/>", "no view box"),
        ("<g/>", "the outermost element is not <svg> but 'g'"),
        ("<svg", "damaged XML"),
    ],
)
def test_a_text_is_refused_in_a_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse(text)


@pytest.mark.parametrize("row", ["9" * 3000 + "x", "1.1" * 1000 + "x", "1e1 " * 1000 + "x", "-1" * 1000 + "x"])
def test_a_long_row_of_damaged_numbers_is_refused_at_once(row: str) -> None:
    start = time.process_time()
    for attributes in (f'viewBox="{row}"', f'viewBox="0 0 24 24" transform="translate({row})"'):
        with pytest.raises(ValueError):
            parse(f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}><path d="M1 1h2v2z"/></svg>')
    assert time.process_time() - start < 1


def test_a_few_hundred_damaged_texts() -> None:
    """`python tests/ldm/svg_fuzz.py` has the other ten thousand."""
    counts, bad = svg_fuzz.run(first=0, cases=200, seed=1)
    assert not bad, "\n".join(bad)
    assert counts["refused"] > 80 and counts["parsed"] > 20


def test_the_fuzz_hears_what_reaches_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg_fuzz, "parse", lambda text: open("/dev/null").close())
    svg_fuzz.run(0, 0, 0)
    assert svg_fuzz.outcome(svg_fuzz.WHOLE[0])[0] == "reached out: open"


# --- the autoencoder --------------------------------------------------------------------------------------------------

TINY = VectorAutoencoderConfig(commands=12, latent_width=8, width=16, blocks=1)


def low_rank(count: int, rank: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    flat = torch.randn(count, rank, generator=g) @ torch.randn(rank, 12 * COLUMNS, generator=g) + 0.3
    return flat.unflatten(1, (12, COLUMNS))


def test_it_begins_as_principal_components() -> None:
    """Sequences of rank d come back exactly; of those of a higher rank, what numpy's SVD leaves."""
    autoencoder = VectorAutoencoder(TINY)
    for rank in (8, 20):
        sequences = low_rank(200, rank)
        autoencoder.begin_with_components(sequences)
        with torch.no_grad():
            error = (autoencoder.decode(autoencoder.encode(sequences)[0]) - sequences).square().sum().item()
        flat = sequences.flatten(1).double().numpy()
        left = (np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)[8:] ** 2).sum()
        assert error == pytest.approx(left, rel=1e-3, abs=1e-2)


def test_latents_and_their_variances_are_scaled() -> None:
    one = VectorAutoencoder(TINY)
    other = VectorAutoencoder(replace(TINY, scale=2.5))
    other.load_state_dict(one.state_dict())
    sequences = low_rank(5, 12)
    (mean, logvar), (scaled, scaled_logvar) = one.encode(sequences), other.encode(sequences)
    assert torch.allclose(scaled, 2.5 * mean)
    assert torch.allclose(scaled_logvar.exp(), 2.5**2 * logvar.exp())
    assert torch.allclose(other.decode(scaled), one.decode(mean), atol=1e-5)


def test_a_written_autoencoder_is_read_again(tmp_path: Path) -> None:
    autoencoder = VectorAutoencoder(replace(TINY, scale=1.5))
    write_vector_autoencoder(autoencoder, tmp_path / "model")
    again = read_vector_autoencoder(tmp_path / "model")
    assert again.config == autoencoder.config
    for name, value in autoencoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float())
    with pytest.raises(FileExistsError):
        write_vector_autoencoder(autoencoder, tmp_path / "model")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "no JSON"),
        ("[]", "not a mapping"),
        ('{"width": 0}', "width=0 should be a whole number"),
        ('{"wide": 3}', "unknown field"),
        ('{"commands": 12, "latent_width": 8, "width": 24, "blocks": 1}', "the weights are not those"),
    ],
)
def test_a_damaged_autoencoder_is_refused(tmp_path: Path, config: str, message: str) -> None:
    write_vector_autoencoder(VectorAutoencoder(TINY), tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        read_vector_autoencoder(tmp_path / "model")


def test_the_one_hots_are_what_decoding_reads() -> None:
    sequence = encode_commands(parse(svg(TEXTS["even-odd"])), 20)
    assert sequence[:, :KINDS].sum(dim=1).eq(1).all()
    assert sequence[:16, :KINDS].argmax(dim=1).tolist()[::5] == [MOVE, MOVE, MOVE, END]
    assert CLOSE in sequence[:, :KINDS].argmax(dim=1).tolist()
    assert CLOSE_CURVE not in sequence[:, :KINDS].argmax(dim=1).tolist()
