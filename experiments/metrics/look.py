"""How saturated and contrasty pictures are: what guidance raises beside all else, and what biases other scores."""

from dataclasses import dataclass
from typing import Any

from experiments.metrics import Bench, Result
from experiments.metrics.folders import FinishedRun, read, to_tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class Look:
    """value: saturation, the mean over pixels of the largest less the smallest of red, green and blue, 0 to 1.

    contrast: the standard deviation of luma over pixels, 0 to 0.5. Neither is better for being more.
    """

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        per_image = list[dict[str, Any]]()
        for record, path in zip(run.records, run.pictures.files, strict=True):
            rgb = to_tensor(read(path)).double() / 255
            luma = sum(weight * channel for weight, channel in zip(LUMA, rgb, strict=True))
            saturation, contrast = (rgb.amax(dim=0) - rgb.amin(dim=0)).mean(), luma.std(correction=0)  # type: ignore
            per_image.append({"file": record["file"], "value": saturation.item(), "contrast": contrast.item()})
        value, contrast = (
            bench.bootstrap.mean([row[key] for row in per_image], run.captions) for key in ("value", "contrast")
        )
        return Result(value, {"contrast": contrast}, per_image)
