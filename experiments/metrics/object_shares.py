"""Which of two objects the emoji world's judge sees in pictures that begin as one and end as the other."""

from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.emoji.judge import WEIGHTS, load_judge
from experiments.files import UserError, sha256
from experiments.metrics import Bench, Result, Unmeasurable
from experiments.metrics.features import judge_outputs
from experiments.metrics.folders import FinishedRun


@dataclass(frozen=True)
class ObjectShares:
    """value: of the pixels that show either object, the share of the first, mean over the pictures that show any.

    Details: of the pictures, those where the judge finds the first, the second, both, and just one of them.
    """

    objects: list[str]
    weights: str | None = None

    @torch.inference_mode()
    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        folder = Path(self.weights) if self.weights else WEIGHTS
        judge = load_judge(folder, bench.device)
        concepts = judge.config.concepts
        if len(self.objects) != 2 or not set(self.objects) <= set(concepts):
            raise UserError(f"objects={self.objects}: must be two of {', '.join(concepts)}")
        one, two = (concepts.index(name) for name in self.objects)
        per_image = []
        for _, output in judge_outputs(judge, run, bench):
            labels = output.labels.argmax(dim=1)
            areas = torch.stack([(labels == 1 + k).sum(dim=(1, 2)) for k in (one, two)]).tolist()
            found = (output.presence[:, [one, two]] > 0).tolist()
            for area_one, area_two, (first, second) in zip(*areas, found, strict=True):
                either = area_one + area_two
                scores = {"value": area_one / either if either else None, "first": first, "second": second}
                per_image.append({**scores, "both": first and second, "one": first != second})
        if all(score["value"] is None for score in per_image):
            raise Unmeasurable(f"no picture shows {' or '.join(self.objects)}")
        captions = run.captions
        details = {
            name: bench.bootstrap.mean([float(score[name]) for score in per_image], captions)
            for name in ("first", "second", "both", "one")
        }
        return Result(
            bench.bootstrap.mean([score["value"] for score in per_image], captions),
            details,
            [{"file": r["file"], **score} for r, score in zip(run.records, per_image, strict=True)],
            {"objects": self.objects, "judge": {"weights_sha256": sha256(folder / "model.safetensors")}},
        )
