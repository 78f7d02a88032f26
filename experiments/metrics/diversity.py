"""How much the pictures of one prompt differ between seeds: what guidance takes away beside all else."""

import itertools
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from experiments.metrics import Bench, Result, Unmeasurable
from experiments.metrics.features import extract, load_extractor
from experiments.metrics.folders import FinishedRun


@dataclass(frozen=True)
class Diversity:
    """The Euclidean distance of two pictures of one prompt in an extractor's features, mean over pairs, over prompts.

    A prompt's score stands with its first picture. `features` and `weights` as in `Frechet`; None: the judge for the
    embedded model's runs, else a CLIP's unit vectors, those of `weights` or of the segmentation-free paper's ViT-g-14.
    """

    features: str | None = None
    weights: str | None = None

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        by_prompt = defaultdict[int, list[int]](list)
        for i, record in enumerate(run.records):
            by_prompt[record["prompt_index"]].append(i)
        groups = [group for group in by_prompt.values() if len(group) > 1]
        if not groups:
            raise Unmeasurable("no prompt has pictures of two seeds")
        name = self.features or ("judge" if run.emoji else "clip")
        extractor = load_extractor(name, self.weights, run, bench.device)
        values = extract(extractor, run.pictures, None, bench).values
        scores = [
            fmean((values[i] - values[j]).norm().item() for i, j in itertools.combinations(group, 2))
            for group in groups
        ]
        firsts = [group[0] for group in groups]
        per_image = [{"file": run.records[i]["file"], "value": score} for i, score in zip(firsts, scores, strict=True)]
        estimate = bench.bootstrap.mean(scores, [run.captions[i] for i in firsts])
        return Result(estimate, {}, per_image, {"features": extractor.about}, extractor.warnings)
