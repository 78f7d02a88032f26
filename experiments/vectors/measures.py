"""How good reconstructed and drawn drawings are. Every function is pure: tensors and drawings in, numbers out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.frechet import frechet_distance, gaussian
from experiments.vectors.data import Drawings
from experiments.vectors.judge import VectorJudge, judged
from experiments.vectors.raster import renders
from ldm.svg.autoencoder import VectorAutoencoder
from ldm.svg.drawing import BOX, Drawing, to_svg
from ldm.svg.geometry import area, flattened
from ldm.svg.parsing import parse
from ldm.svg.sequences import (
    CLOSE,
    CLOSE_CURVE,
    END,
    KINDS,
    MOVE,
    USED,
    decode_commands,
    encode_commands,
    grammatical,
    length,
)

# --- latents ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def latents_of(autoencoder: VectorAutoencoder, drawings: Drawings, rows: Tensor) -> Tensor:
    """Returns the latents [n, d], in float32 on the CPU, of some drawings, told by which of the set they are."""
    weight = next(autoencoder.parameters())
    parts = [drawings.sequences(some).to(weight) for some in rows.split(512) if len(some)]
    latents = [autoencoder.encode(part)[0].float().cpu() for part in parts]
    return torch.cat(latents) if latents else torch.zeros(0, autoencoder.config.latent_width)


# --- reconstruction ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstruction(autoencoder: VectorAutoencoder, drawings: Drawings, chamfers: int = 500) -> dict[str, float]:
    """Returns how well drawings are decoded from the means of their latents, their paths made whole (`grammatical`).

    commands    share of the rows up to the first END whose kind is right
    sequences   share of the drawings with all kinds right
    coordinate  mean absolute error of the arguments that the true kinds have, in units of the box
    valid       share of decoded drawings that are valid (see `valid`)
    unmended    the same of what the decoder says row by row, before paths are made whole
    closed      share of the closed paths that are decoded as one that closes itself
    chamfer     mean Chamfer distance of the first `chamfers` outlines, in units of the box
    """
    names = ("commands", "sequences", "coordinate", "valid", "unmended", "closed")
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    decoded: list[Drawing] = []
    for start in range(0, drawings.count, 512):
        wanted = drawings.sequences(slice(start, start + 512))
        latents = autoencoder.encode(wanted.to(next(autoencoder.parameters())))[0]
        rows = autoencoder.decode(latents).float().cpu()
        got = grammatical(rows, drawings.stroke)
        for name, values in compared(got, wanted).items():
            found[name].append(values)
        found["valid"].append(share_valid(got, drawings.stroke))
        found["unmended"].append(share_valid(rows, drawings.stroke))
        decoded += [decode_commands(sequence, drawings.stroke) for sequence in got[: chamfers - len(decoded)]]
    truth = [decode_commands(sequence, drawings.stroke) for sequence in drawings.sequences(slice(len(decoded)))]
    distances = [chamfer(one, other) for one, other in zip(decoded, truth, strict=True)]
    means = {name: torch.cat(values).mean().item() for name, values in found.items()}
    return means | {"chamfer": sum(distances) / len(distances)}


def compared(got: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Returns, of sequences [B, L, COLUMNS] and true ones, a value for each row, drawing or argument that counts."""
    kinds, guessed = wanted[..., :KINDS].argmax(dim=-1), got[..., :KINDS].argmax(dim=-1)
    counted, right = (kinds == END).cumsum(dim=1) <= 1, kinds == guessed
    errors = (got - wanted)[..., KINDS:].abs() * (BOX / 2)
    closing = (kinds == CLOSE) | (kinds == CLOSE_CURVE)
    return {
        "commands": right[counted].float(),
        "sequences": (right | ~counted).all(dim=1).float(),
        "coordinate": errors[USED.to(kinds.device)[kinds]],
        "closed": ((guessed == CLOSE) | (guessed == CLOSE_CURVE))[closing].float(),
    }


def share_valid(sequences: Tensor, stroke: float | None) -> Tensor:
    """Returns 1 for each sequence [B, L, COLUMNS] that is valid, and 0 for the others."""
    return torch.tensor([valid(sequence, stroke) for sequence in sequences], dtype=torch.float32)


def valid(sequence: Tensor, stroke: float | None) -> bool:
    """Whether a sequence needs no mending: paths begin with MOVE, are closed if filled, and something is drawn.

    Every path has a segment; a filled drawing covers at least 0.1 % of the box.
    """
    kinds = sequence[:, :KINDS].argmax(dim=1).tolist()
    kinds = kinds[: kinds.index(END)] if END in kinds else kinds
    drawing, length, closed = False, 0, True
    for kind in kinds:
        if kind == MOVE:
            if drawing and (length == 0 or stroke is None):
                return False
            drawing, length, closed = True, 0, False
        elif not drawing:
            return False
        else:
            length += 1
            closed = kind in (CLOSE, CLOSE_CURVE)
            drawing = not closed
    if not kinds or length == 0 or (stroke is None and not closed):
        return False
    paths = decode_commands(sequence, stroke).paths
    return stroke is not None or abs(sum(area(flattened(path)) for path in paths)) > 0.001 * BOX**2


def round_trip(drawing: Drawing) -> float:
    """Returns how far the coordinates of a drawing move from SVG text to a sequence and back to SVG text.

    In units of the box; infinity if a command changes.
    """
    text = to_svg(drawing)
    before = parse(text)
    after = parse(to_svg(decode_commands(encode_commands(before, length(before)), before.stroke)))
    if [length(d) for d in (before, after)] != [length(drawing)] * 2:
        return math.inf
    one, other = (encode_commands(d, length(drawing)) for d in (drawing, after))
    if not torch.equal(one[:, :KINDS], other[:, :KINDS]):
        return math.inf
    return (one - other).abs().max().item() * (BOX / 2)


def chamfer(one: Drawing, other: Drawing) -> float:
    """Returns the mean distance from points along either drawing's outlines to the nearest of the other's.

    In units of the box; the longest possible distance where one of them is empty.
    """
    if not one.paths or not other.paths:
        return BOX * math.sqrt(2)
    a, b = (torch.cat([evenly(flattened(path)) for path in drawing.paths]) for drawing in (one, other))
    distances = torch.cdist(a, b)
    return (distances.amin(dim=1).mean() + distances.amin(dim=0).mean()).item() / 2


def evenly(points: Sequence[tuple[float, float]], gap: float = 0.25) -> Tensor:
    """Returns points [N, 2] along a polyline, about `gap` units apart."""
    corners = torch.tensor(points, dtype=torch.float64)
    pieces = zip(corners[:-1], corners[1:], strict=True)
    counts = [(a, b, max(1, round((b - a).norm().item() / gap))) for a, b in pieces]
    return torch.cat([a + (b - a) * (torch.arange(n)[:, None] / n) for a, b, n in counts] + [corners[-1:]])


# --- what is drawn ----------------------------------------------------------------------------------------------------


def named_right(judge: VectorJudge, drawings: Sequence[Drawing], labels: Tensor) -> Tensor:
    """Returns for each drawing whether the judge names its class, bool [N]."""
    return judged(judge, renders(drawings))[0].argmax(dim=1) == labels


def judge_features(judge: VectorJudge, drawings: Sequence[Drawing]) -> Tensor:
    """Returns a judge's features [N, width] of drawings."""
    return judged(judge, renders(drawings))[1]


def frechet_ratio(drawn: Tensor, one: Tensor, other: Tensor) -> float:
    """Returns the Frechet distance of drawn features to `one`, over that between two true sets of the same size.

    1 says that what is drawn is as near to true drawings as true drawings are to each other.
    """
    assert len(drawn) == len(one) == len(other), "the distance falls with the count"
    return frechet_distance(gaussian(drawn), gaussian(one)) / frechet_distance(gaussian(other), gaussian(one))


def nearest(latents: Tensor, training: Tensor) -> Tensor:
    """Returns the distance [N] of each latent [N, d] to the nearest training latent [M, d]: 0 says memory."""
    return torch.cat([torch.cdist(some, training).amin(dim=1) for some in latents.split(512)])


def coverage(drawn: Tensor, true: Tensor, neighbours: int = 5) -> float:
    """Returns the share of true latents with a drawn one nearer than their k-th true neighbour.

    Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", eq. 5; k = `neighbours`.
    """
    within = torch.cdist(true, true).kthvalue(neighbours + 1, dim=1).values  # the first is the latent itself
    return (torch.cdist(true, drawn).amin(dim=1) < within).float().mean().item()
