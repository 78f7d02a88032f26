"""How far diffusion on latents of vector drawings carries: whether it remembers drawings, and draws new ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from experiments.emoji.world import settings_of
from experiments.files import UserError, sha256
from experiments.metrics import Bench, Result
from experiments.metrics.estimates import Bootstrap, Estimate
from experiments.pictures import save_png, sheet, to_image
from experiments.vectors.data import Drawings, Source, load_drawings
from experiments.vectors.judge import VectorJudge, judged, load_vector_judge
from experiments.vectors.measures import (
    coverage,
    frechet_ratio,
    judge_features,
    latents_of,
    named_right,
    nearest,
    reconstruction,
    share_valid,
)
from experiments.vectors.raster import on_paper
from guidance import ClassifierFree, Interval, guided
from ldm import LatentDiffusion
from ldm.svg.autoencoder import VectorAutoencoder
from ldm.svg.drawing import BOX, Drawing
from ldm.svg.sequences import KINDS, USED, decode_commands, grammatical
from samplers import ImageNoise, Schedule, as_x_0, ddim

SHOWN = 12  # classes of the figure, six drawings of each
NEIGHBOURS = 5  # of a true latent, among which a drawn one covers it
SAME = 0.5  # units of the box: the mean error of coordinates up to which a drawing is a training drawing again


@dataclass(frozen=True)
class DrawingStudy:
    """Draws `per_class` drawings of every class, and compares them with those that were learnt and those held out.

    value: the share of classes, each `per_class` times, that the judge names; without a judge, `again`.
    again: the share that are a training drawing of their class again: the same commands, coordinates within 0.5 of the
    box of 24 on average; new: the others. found: the share of training drawings (the first 2,000) that are drawn so at
    least once. valid: of the drawings; unmended: before their paths are made whole. nearest, nearest_held_out: the
    mean distance of latents to the nearest training latent, of drawn ones and of true ones that were held out; their
    ratio tells memory (towards 0) from drawings as new as true ones (1). coverage: the share of the held-out latents
    (without any, of the training's) that have a drawn one among their nearest five. frechet: the Frechet distance of
    drawn to true drawings in the judge's features, over that of two true sets. reconstruction_*: of drawings decoded
    from their latents, held out if any are.

    source   what was learnt: a file of conf/drawings
    folder   with the packages; cache, of what is prepared of them
    judge    a folder that part=vector/judge wrote; None for none
    eta      of DDIM: 0 draws no noise on the way, 1 as much as DDPM
    interval of the steps, in which guidance acts (Kynkaanniemi et al. 2024): its start and stop, fractions of them
    """

    latents: ClassVar[str] = "drawings"  # what it studies: models of pictures are refused

    source: dict[str, Any]
    folder: str
    cache: str
    judge: str | None = None
    per_class: int = 4
    scale: float = 2.0
    steps: int = 50
    eta: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        self.guidance()
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta={self.eta}: must be 0 to 1")
        if min(self.per_class, self.steps) < 1:
            raise UserError(f"per_class={self.per_class} steps={self.steps}: must be whole numbers of at least 1")

    def guidance(self) -> Interval:
        start, stop = self.interval
        return Interval(ClassifierFree(self.scale), start, stop)

    @torch.no_grad()
    def measure(self, model: LatentDiffusion, bench: Bench, folder: Path) -> Result:
        training, held_out = load_drawings(Source(**settings_of(self.source)), Path(self.folder), Path(self.cache))
        if training.classes != model.config.classes.names:
            raise UserError(f"the model was trained on other classes than source={self.source['name']}")
        autoencoder = model.autoencoder
        if not isinstance(autoencoder, VectorAutoencoder):
            raise UserError("this study is of models of drawings, and the model makes pictures")
        labels = torch.arange(len(training.classes)).repeat_interleave(self.per_class)
        names = [(training.classes[label],) for label in labels.tolist()]
        latents = self.draw(model, [name for (name,) in names], bench)
        rows = autoencoder.decode(latents.to(model.dtype)).float().cpu()
        sequences = grammatical(rows, training.stroke)

        def share(flags: Tensor) -> Estimate:
            return bench.bootstrap.mean(flags.double().tolist(), names)

        same = same_as(sequences, labels, training)  # [N, training drawings]
        again = same.any(dim=1)
        details = {"again": share(again), "new": share(~again)}
        details["found"] = plain(same.any(dim=0)[:2000].float().mean().item(), same.shape[1])
        for name, written in (("valid", sequences), ("unmended", rows)):
            details[name] = share(share_valid(written, training.stroke))
        details |= distances(autoencoder, latents.cpu(), names, training, held_out, bench.bootstrap)
        true = held_out if held_out.count else training
        decoded = reconstruction(autoencoder, true)
        details |= {f"reconstruction_{name}": plain(value, true.count) for name, value in decoded.items()}
        save_png(figure(sequences, labels, training), folder / "figure.png")
        about = {"classes": len(training.classes), "drawings": training.count, "held_out": held_out.count}
        if self.judge is None:
            return Result(details["again"], details, about=about)
        judge, weights = load_vector_judge(Path(self.judge)), sha256(Path(self.judge) / "model.safetensors")
        if judge.config.classes != training.classes:
            raise UserError(f"judge={self.judge}: knows other classes than the drawings have")
        drawings = [decode_commands(sequence, training.stroke) for sequence in sequences]
        details |= as_judged(judge, drawings, training, true)
        named = named_right(judge, drawings, labels)
        return Result(share(named), details, about={**about, "judge": {"weights_sha256": weights}})

    def draw(self, model: LatentDiffusion, prompts: list[str], bench: Bench) -> Tensor:
        """Returns latents [N, d] of classes by their names; the seed of each is its position."""
        predict, steps = as_x_0(model.unet, model.config.schedule.prediction), Schedule.of(model.config.schedule)
        found = []
        for i in range(0, len(prompts), rows := 16 * bench.batch_size):
            some = prompts[i : i + rows]
            denoise = guided(predict, self.guidance(), model.conditions(some))
            noise = ImageNoise(range(i, i + len(some)), (model.config.latent_channels,), model.device)
            *_, (_, x_t, _) = ddim(denoise, noise(), steps.steps(self.steps), noise, self.eta)
            found.append(x_t)
        return torch.cat(found)


def as_judged(
    judge: VectorJudge, drawings: Sequence[Drawing], training: Drawings, true: Drawings
) -> dict[str, Estimate]:
    """Returns how often the judge names true drawings, and how far the drawn lie from true ones in its features."""
    known = judged(judge, true.renders)[0].argmax(dim=1) == true.labels
    found = {"judge_on_true": plain(known.float().mean().item(), true.count)}
    count = min(len(drawings), training.count // 2)
    if count > 1:
        order = torch.randperm(training.count, generator=torch.Generator().manual_seed(0))
        one, other = (judged(judge, training.renders[some])[1] for some in order[: 2 * count].chunk(2))
        chosen = torch.linspace(0, len(drawings) - 1, count).long().tolist()  # of all classes
        drawn = judge_features(judge, [drawings[i] for i in chosen])
        found["frechet"] = plain(frechet_ratio(drawn, one, other), count)
    return found


def figure(sequences: Tensor, labels: Tensor, training: Drawings) -> Image.Image:
    """Returns drawings of some classes, beside a training drawing of each."""
    count = len(training.classes)
    rows, classes = [], torch.linspace(0, count - 1, min(SHOWN, count)).round().long().tolist()
    for label in classes:
        learnt = training.sequences((training.labels == label).nonzero()[:1, 0])
        some = torch.cat([learnt, sequences[labels == label][:6]])
        drawn = on_paper([decode_commands(sequence, training.stroke) for sequence in some], 64)
        rows.append([to_image(image) for image in drawn])
    return sheet(rows, [training.classes[label] for label in classes], ["learnt", "drawn"], cell=64)


def plain(value: float, count: int) -> Estimate:
    """A number without an interval."""
    return Estimate(value, None, None, count)


def distances(
    autoencoder: VectorAutoencoder,
    drawn: Tensor,
    names: Sequence[tuple[str, ...]],
    training: Drawings,
    held_out: Drawings,
    bootstrap: Bootstrap,
) -> dict[str, Estimate]:
    """Returns how near drawn latents [N, d] lie to those of training, and how well they cover true ones.

    names  of the classes of the drawn ones, [N]
    """
    learnt, apart = (latents_of(autoencoder, some, torch.arange(some.count)) for some in (training, held_out))
    found = {"nearest": bootstrap.mean(nearest(drawn, learnt).tolist(), names)}
    if len(apart):
        of = [(held_out.classes[label],) for label in held_out.labels.tolist()]
        found["nearest_held_out"] = bootstrap.mean(nearest(apart, learnt).tolist(), of)
    true = apart if len(apart) > NEIGHBOURS else learnt
    if len(true) > NEIGHBOURS:
        found["coverage"] = plain(coverage(drawn, true[:4096], NEIGHBOURS), min(len(true), 4096))
    return found


def same_as(sequences: Tensor, labels: Tensor, training: Drawings) -> Tensor:
    """Returns [N, M], whether each of N drawn sequences is each of M training drawings again, within SAME."""
    out = torch.zeros(len(sequences), training.count, dtype=torch.bool)
    kinds = sequences[..., :KINDS].argmax(dim=-1)
    for label in labels.unique().tolist():
        drawn, learnt = (labels == label).nonzero()[:, 0], (training.labels == label).nonzero()[:, 0]
        true = training.sequences(learnt)
        of_true = true[..., :KINDS].argmax(dim=-1)
        used = USED[of_true]
        for n in drawn.tolist():
            errors = (sequences[n, :, KINDS:] - true[..., KINDS:]).abs() * used
            mean = errors.sum(dim=(1, 2)) / used.sum(dim=(1, 2)) * (BOX / 2)
            out[n, learnt] = (kinds[n] == of_true).all(dim=1) & (mean <= SAME)
    return out
