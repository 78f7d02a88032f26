"""A negative prompt that is the prompt less one word: the experiment that motivates segmentation-free guidance.

In names of numbers, "own" is the object whose noun is left out, "other" the other one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.emoji.world import LAYOUTS, Object, Scene
from experiments.files import UserError
from experiments.metrics import Bench, Result
from experiments.metrics.estimates import Bootstrap, Estimate, interval
from experiments.pictures import save_png, to_image
from experiments.studies.scenes import (
    PICTURED,
    Noised,
    SceneStudy,
    figure,
    heat_image,
    on_grid,
    predict_each,
    predictor,
)
from guidance import Branch, ClassifierFree, guided
from ldm import LatentDiffusion
from ldm.condition import Condition
from ldm.text import Tokenizer
from samplers import Flow, Schedule, Step, ddim
from samplers.schedule import steps_through

Numbers = dict[str, float]
TINY = 1e-12  # the least energy, so that a direction that is zero everywhere has equal shares


@dataclass(frozen=True)
class Motivation(SceneStudy):
    """Azarian et al. 2024, fig. 1: the positive prompt stays; the negative prompt is empty, or lacks one object's noun.

    A negative prompt is encoded anew, as a user would write it: "a red cat next to a blue dog" without "dog" is "a red
    cat next to a blue". Each of a scene's two objects is left out in its turn; cells and pixels are told apart by the
    true masks.

    One evaluation at x_t: the energy of d = eps(c) - eps(negative), its square per cell of the latent, inside the own
    object's mask over that inside the other's; the gain is this ratio over the same of the empty negative.
    value: the share of left-out objects with a gain above 1. log2_gain, log2_gain_median: its mean and median.
    over_background, log2_gain_over_background: the same, with the background in place of the other object.

    Whole pictures of the first `finish` scenes: DDIM under classifier-free guidance of `scale` from x_t at t to the
    end, in those of `steps` sampling steps that are below t. Detail is the mean length of the gradient of the pixels
    (in 0..1, per pixel; RGB's mean). detail_own, detail_other, detail_background: how much more of it there is without
    the noun than with the empty negative; detail_gain: own less other; detail_gain_share: how often that is above 0;
    detail_empty: inside the own mask with the empty negative. A picture from a large t need not keep to the masks.
    """

    scale: float = 6.0
    steps: int = 20
    finish: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        ClassifierFree(self.scale)
        if any(LAYOUTS[layout] != 2 for layout in self.layouts):
            raise UserError(f"layouts={self.layouts}: scenes must have two objects")
        for name, least in (("steps", 1), ("finish", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UserError(f"{name}={value}: must be a whole number of at least {least}")

    @torch.no_grad()
    def measure(self, model: LatentDiffusion, bench: Bench, folder: Path) -> Result:
        scenes, rows = list[Scene](), list[list[Image.Image | None]]()
        gains, details = list[list[Numbers]](), list[list[Numbers]]()  # of each scene, of each left-out object
        for noised in self.batches(model, bench):
            negatives = negative_texts(model, noised)
            energy = direction_energies(model, noised, negatives)
            drawn = self.draw(model, noised, negatives, max(0, self.finish - len(scenes)))
            for b, scene in enumerate(noised.scenes):
                images = drawn[:, b] if b < drawn.shape[1] else None
                gains.append(energy_gains(scene, energy[:, b]))
                if images is not None:
                    details.append(detail_gains(scene, images))
                if len(rows) < PICTURED:
                    rows.append(pictures(scene, energy[:, b], images))
            scenes += noised.scenes
        captions, bootstrap = [scene.caption for scene in scenes], bench.bootstrap
        estimates = {
            "log2_gain": mean_over_objects(gains, "log2_gain", captions, bootstrap),
            "log2_gain_median": median(gains, "log2_gain", captions, bootstrap),
            "over_background": share(gains, "log2_gain_over_background", captions, bootstrap),
            "log2_gain_over_background": mean_over_objects(gains, "log2_gain_over_background", captions, bootstrap),
        }
        if details:
            some = captions[: len(details)]
            estimates |= {name: mean_over_objects(details, name, some, bootstrap) for name in details[0][0]}
            estimates["detail_gain_share"] = share(details, "detail_gain", some, bootstrap)
        columns = ["scene", "empty negative", "without 1", "without 2", "length, without 1", "length, without 2"]
        title = f"Drawn from x_t, t={self.timestep}, and the lengths of the directions (pale: a picture's longest)"
        save_png(figure(rows, scenes[:PICTURED], columns, title, {}), folder / "figure.png")
        return Result(share(gains, "log2_gain", captions, bootstrap), estimates, about=self.about(model))

    def draw(self, model: LatentDiffusion, noised: Noised, negatives: Sequence[Condition], count: int) -> Tensor:
        """Draws the first `count` pictures [negatives, count or less, 3, H, W], in 0..1, that x_t becomes."""
        steps = steps_from(self.timestep, Schedule.of(model.config.schedule), self.steps)
        x_t = noised.x_t[:count]
        if not len(x_t):
            return torch.empty(len(negatives), 0)
        drawn = []
        for negative in negatives:
            some = slice(count)
            cond, negative = noised.conditions.cond.rows(some), negative.rows(some)
            conditions = replace(noised.conditions, cond=cond, negative=negative)
            denoise = guided(predictor(model), ClassifierFree(self.scale), conditions)
            *_, (_, x_0, _) = ddim(denoise, x_t, steps)
            drawn.append(model.decode(x_0).cpu())
        return torch.stack(drawn)


def steps_from(timestep: int, schedule: Schedule | Flow, n: int) -> list[Step]:
    """Returns the steps from this timestep to the end, by those of n sampling steps that are below it."""
    steps = schedule.steps(n)
    below = [step.now for step in steps if step.now.t < timestep]
    return steps_through([schedule.level(timestep), *below, steps[-1].to])


def without(caption: str, thing: Object) -> str:
    """Returns the caption less an object's noun: "a red cat and a dog", "a red and a dog"."""
    for match in re.finditer(re.escape(thing.label), caption):
        if 1 + len(Tokenizer(pad_id=0).bpe.encode(caption[: match.end()])) == thing.tokens[1]:
            return " ".join((caption[: match.start()] + caption[match.end() :]).split())
    raise UserError(f"'{caption}' does not name its object '{thing.label}'")


def negative_texts(model: LatentDiffusion, noised: Noised) -> list[Condition]:
    """Returns the negative prompts: empty, without the first object's noun, without the second's."""
    lacking = [[without(scene.caption, scene.objects[i]) for scene in noised.scenes] for i in range(2)]
    return [noised.conditions.negative, *(model.condition(captions) for captions in lacking)]


def direction_energies(model: LatentDiffusion, noised: Noised, negatives: Sequence[Condition]) -> Tensor:
    """Returns the squared length [negatives, B, h, w] of eps(c) - eps(negative) in each cell."""
    branches = {"cond": Branch(noised.conditions.cond)} | {f"{i}": Branch(text) for i, text in enumerate(negatives)}
    eps = predict_each(model, noised, branches)
    return torch.stack([(eps["cond"] - eps[f"{i}"]).square().sum(dim=1) for i in range(len(negatives))]).cpu()


def regions(scene: Scene, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the masks [height, width] of the first object, of the second, and of neither."""
    one, two = (on_grid(thing.mask, height, width) for thing in scene.objects)
    return one, two, ~(one | two)


def energy_gains(scene: Scene, energy: Tensor) -> list[Numbers]:
    """Returns log2 of the gains of energies [negatives, h, w] for each left-out object that has a cell."""
    one, two, background = regions(scene, *energy.shape[1:])
    found = []
    for lacking, own, other in ((energy[1], one, two), (energy[2], two, one)):
        if own.any() and other.any() and background.any():
            over = {"log2_gain": other, "log2_gain_over_background": background}
            found.append(
                {name: log2_ratio(lacking, own, rest) - log2_ratio(energy[0], own, rest) for name, rest in over.items()}
            )
    return found


def log2_ratio(energy: Tensor, inside: Tensor, rest: Tensor) -> float:
    """Returns log2 of the mean energy in one region over that in another."""
    a, b = (energy[region].mean().clamp(min=TINY) for region in (inside, rest))
    return (a / b).log2().item()


def detail_gains(scene: Scene, drawn: Tensor) -> list[Numbers]:
    """Returns how much more detail pictures [negatives, 3, H, W] have in each region, for each left-out object."""
    empty, *lacking = (detail(picture) for picture in drawn)
    one, two, background = regions(scene, *drawn.shape[-2:])
    found = []
    for picture, own, other in zip(lacking, (one, two), (two, one), strict=True):
        where = {"detail_own": own, "detail_other": other, "detail_background": background}
        more = {name: (picture - empty)[region].mean().item() for name, region in where.items()}
        gain = more["detail_own"] - more["detail_other"]
        found.append({**more, "detail_gain": gain, "detail_empty": empty[own].mean().item()})
    return found


def detail(picture: Tensor) -> Tensor:
    """Returns the gradient's length [H, W] of a picture [3, H, W], by central differences; the mean of RGB."""
    down, right = torch.gradient(picture, dim=(1, 2))
    return (down.square() + right.square()).sqrt().mean(dim=0)


def mean_over_objects(
    found: Sequence[list[Numbers]], name: str, captions: Sequence[str], bootstrap: Bootstrap
) -> Estimate:
    """Returns the mean of a number over all left-out objects; scenes are what is drawn again."""
    return bootstrap.ratio([sum(n[name] for n in of) for of in found], [len(of) for of in found], captions)


def share(found: Sequence[list[Numbers]], name: str, captions: Sequence[str], bootstrap: Bootstrap) -> Estimate:
    """Returns the share of the left-out objects whose number is above 0."""
    return bootstrap.ratio([sum(n[name] > 0 for n in of) for of in found], [len(of) for of in found], captions)


def median(found: Sequence[list[Numbers]], name: str, captions: Sequence[str], bootstrap: Bootstrap) -> Estimate:
    values = [[n[name] for n in of] for of in found]
    drawn = [np.median(np.concatenate([values[i] for i in some])) for some in bootstrap.draws(captions)]
    return interval(np.median(np.concatenate(values)), drawn, sum(len(of) > 0 for of in found))


def pictures(scene: Scene, energy: Tensor, drawn: Tensor | None) -> list[Image.Image | None]:
    finished = [None] * len(energy) if drawn is None else [to_image(picture) for picture in drawn]
    lengths = energy[1:].sqrt()
    return [
        to_image(scene.image / 255),
        *finished,
        *(heat_image(scene, length, length.max().item()) for length in lengths),
    ]
