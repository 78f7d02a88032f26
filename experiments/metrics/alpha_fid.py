"""alpha-FID (Qi, Deng, Li, FITEE 25(1), 2024): how near pictures of two objects in one are to both, and how evenly."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.files import UserError
from experiments.frechet import Gaussian, frechet_distance, gaussian
from experiments.metrics import Bench, Result, Unmeasurable
from experiments.metrics.estimates import CENTRED, Bootstrap, Estimate, interval
from experiments.metrics.features import extract, load_extractor, rank_warnings
from experiments.metrics.folders import FinishedRun, open_reference


@dataclass
class Caption:
    """The prompts of some pictures, the two objects that are to be in them, and which pictures they are."""

    prompts: tuple[str, ...]
    objects: tuple[str, str]
    indices: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class AlphaFid:
    """The mean over captions of alpha(x, y), x and y the Frechet distances of a caption's pictures to its two objects'.

    `references` holds one folder of pictures for each object, by the object's name. A caption's objects are `objects`,
    or those of its prompt suite, or those whose names its prompts hold. The detail "pooled" takes the pictures of all
    captions as one set, and so the references of their first objects, and of their second. The interval draws each
    caption's pictures again (unit "pictures") or the captions (unit "prompts"), and keeps the references.
    """

    references: str | None
    objects: list[str] | None = None
    features: str | None = None
    weights: str | None = None
    resize: int | None = None
    resamples: int = 100

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        known = object_folders(self.references)
        captions, left_out = self.captions(run, list(known))
        extractor = load_extractor(self.features, self.weights, run, bench.device)
        ours = extract(extractor, run.pictures, self.resize, bench).values
        used = sorted({name for caption in captions for name in caption.objects})
        folders = {name: open_reference(known[name]) for name in used}
        seen = {name: extract(extractor, folders[name], self.resize, bench) for name in used}
        references = {name: features.values for name, features in seen.items()}

        bootstrap = bench.bootstrap.at_most(self.resamples)
        rows = [described(caption, ours, references) for caption in captions]
        about: dict[str, Any] = {"features": extractor.about, "resize": self.resize, "captions": rows}
        about |= {"references": {name: folder.described() for name, folder in folders.items()}}
        about |= {"interval": CENTRED} if bootstrap.unit == "pictures" else {}
        warnings = [*extractor.warnings, *few_pictures(captions, ours.shape[1])]
        for name in used:
            warnings += [*rank_warnings(folders[name], seen[name]), *folders[name].warnings]
        if left_out:
            warnings.append(f"{left_out} pictures left out: they are not of two of {', '.join(known)}")
        value = mean_over_captions(captions, ours, references, bootstrap)
        details = {"pooled": pooled(captions, ours, references, bootstrap)}
        return Result(value, details, about=about, warnings=warnings)

    def captions(self, run: FinishedRun, known: list[str]) -> tuple[list[Caption], int]:
        """Returns the captions of two known objects, and how many pictures have none. Raises Unmeasurable if all."""
        if self.objects is not None and (len(self.objects) != 2 or not set(self.objects) <= set(known)):
            raise UserError(f"objects={self.objects}: must be two of {', '.join(known)}")
        found: dict[tuple[str, ...], Caption] = {}
        for i, (prompts, record) in enumerate(zip(run.texts, run.records, strict=True)):
            objects = self.objects or record.get("objects") or named(prompts, known)
            if len(objects) == 2 and set(objects) <= set(known):
                found.setdefault(prompts, Caption(prompts, (objects[0], objects[1]))).indices.append(i)
        if not found:
            raise Unmeasurable(f"no picture of the run is of two of the objects {', '.join(known)}")
        for caption in found.values():
            if len(caption.indices) < 2:
                raise Unmeasurable(f"{' > '.join(caption.prompts)!r} has 1 picture, and a distance needs at least 2")
        return list(found.values()), len(run.records) - sum(len(caption.indices) for caption in found.values())


def object_folders(references: str | None) -> dict[str, Path]:
    """Returns the folders of the objects by their names. Raises Unmeasurable if there are fewer than two."""
    paths = sorted(Path(references).iterdir()) if references and Path(references).is_dir() else []
    known = {path.name: path for path in paths if path.is_dir()}
    if len(known) < 2:
        raise Unmeasurable(f"references={references}: must hold a folder of pictures for each object, by its name")
    return known


def named(texts: tuple[str, ...], names: list[str]) -> list[str]:
    """Returns the names that the texts hold as whole words, in their order; the longer of two that overlap."""
    either = "|".join(re.escape(name.lower()) for name in sorted(names, key=len, reverse=True))
    lower = {name.lower(): name for name in names}
    return list(dict.fromkeys(lower[m] for text in texts for m in re.findall(rf"\b(?:{either})\b", text.lower())))


def alpha(x: float, y: float) -> float:
    """Returns sqrt((x^2 + y^2 + (x - y)^2) / 2): small if both are, and alike."""
    return ((x**2 + y**2 + (x - y) ** 2) / 2) ** 0.5


def distances(values: Tensor, one: Gaussian, other: Gaussian) -> dict[str, float]:
    """Returns x, y and alpha of features [N, D]."""
    ours = gaussian(values)
    x, y = frechet_distance(ours, one), frechet_distance(ours, other)
    return {"x": x, "y": y, "alpha": alpha(x, y)}


def alpha_of(values: Tensor, objects: tuple[Tensor, Tensor]) -> Callable[[Any], float]:
    """Returns a function of indices: alpha of those of the features [N, D], against each object's [R, D]."""
    pair = gaussian(objects[0]), gaussian(objects[1])
    return lambda indices: distances(values[indices], *pair)["alpha"]


def described(caption: Caption, ours: Tensor, references: dict[str, Tensor]) -> dict[str, Any]:
    one, other = (gaussian(references[name]) for name in caption.objects)
    measured = distances(ours[caption.indices], one, other)
    return {"prompts": caption.prompts, "objects": caption.objects, "count": len(caption.indices), **measured}


def mean_over_captions(
    captions: list[Caption], ours: Tensor, references: dict[str, Tensor], bootstrap: Bootstrap
) -> Estimate:
    """Returns the mean of alpha; the count is that of the captions."""
    values, drawn = [], []
    pictures = replace(bootstrap, unit="pictures")
    for caption in captions:
        statistic = alpha_of(ours[caption.indices], (references[caption.objects[0]], references[caption.objects[1]]))
        every = range(len(caption.indices))
        values.append(statistic(list(every)))
        drawn.append([statistic(i) for i in pictures.draws(every)] if bootstrap.unit == "pictures" else [])
    if bootstrap.unit == "prompts":
        return bootstrap.mean(values, [caption.prompts for caption in captions])
    return interval(float(np.mean(values)), np.mean(drawn, axis=0), len(values), least=0)


def pooled(captions: list[Caption], ours: Tensor, references: dict[str, Tensor], bootstrap: Bootstrap) -> Estimate:
    """Returns alpha of all pictures as one set; the count is that of the pictures."""
    sides = [dict.fromkeys(caption.objects[side] for caption in captions) for side in range(2)]
    first, second = (torch.cat([references[name] for name in side]) for side in sides)
    indices = [i for caption in captions for i in caption.indices]
    statistic = alpha_of(ours[indices], (first, second))
    prompts = [caption.prompts for caption in captions for _ in caption.indices]
    return bootstrap.distance(statistic(list(range(len(indices)))), statistic, prompts)


def few_pictures(captions: list[Caption], width: int) -> list[str]:
    """Warns of captions with no more pictures than features."""
    counts = sorted({len(caption.indices) for caption in captions})
    if counts[0] > width:
        return []
    few = counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return [
        f"{few} pictures of a caption are no more than the {width} features, so their covariance has rank "
        f"{counts[0] - 1} at most and the distances are too high: compare them at these counts alone"
    ]
