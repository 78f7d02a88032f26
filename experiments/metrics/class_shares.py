"""Which of two classes the judge of drawings sees in drawings that begin as one and end as the other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from experiments.files import WEIGHTS, UserError, sha256
from experiments.metrics import Bench, Result
from experiments.metrics.folders import FinishedRun, read
from experiments.vectors.judge import judged, load_vector_judge
from experiments.vectors.raster import SIDE

JUDGE = WEIGHTS / "glyphs_judge"


@dataclass(frozen=True)
class ClassShares:
    """value: the judge's probability of the first class, over that of either, mean over the drawings.

    Details: of the drawings, those that it names the first, the second, or something else.
    """

    classes: list[str]
    weights: str | None = None

    @torch.inference_mode()
    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        folder = Path(self.weights) if self.weights else JUDGE
        judge = load_vector_judge(folder, bench.device)
        known = judge.config.classes
        names = [str(name) for name in self.classes]  # YAML reads a class 7 as a number
        if len(names) != 2 or not set(names) <= set(known):
            raise UserError(f"classes={names}: must be two of {', '.join(known)}")
        pictures = [read(path).convert("L").resize((SIDE, SIDE)) for path in run.pictures.files]
        covered = 255 - torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        logits = judged(judge, covered)[0]
        one, two = (known.index(name) for name in names)
        shares = logits[:, [one, two]].softmax(dim=1)[:, 0].tolist()
        named = logits.argmax(dim=1)
        scores = {
            "value": shares,
            "first": (named == one).double().tolist(),
            "second": (named == two).double().tolist(),
            "neither": ((named != one) & (named != two)).double().tolist(),
        }
        details = {k: bench.bootstrap.mean(v, run.captions) for k, v in scores.items() if k != "value"}
        per_image = [
            {"file": record["file"], **{name: values[i] for name, values in scores.items()}}
            for i, record in enumerate(run.records)
        ]
        about = {"classes": names, "judge": {"weights_sha256": sha256(folder / "model.safetensors")}}
        return Result(bench.bootstrap.mean(shares, run.captions), details, per_image, about)
