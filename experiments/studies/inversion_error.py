"""How near DDIM comes to a picture from the noise that its own steps, undone, led to."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from experiments.files import UserError, as_user_error
from experiments.metrics import Bench, Result
from experiments.pictures import save_png, sheet, to_image
from experiments.studies.inversion import inverted
from experiments.studies.scenes import Scenes
from guidance import ClassifierFree, Guidance, guided
from ldm import LatentDiffusion
from samplers import Schedule, as_x_0

PICTURED = 6  # scenes on the figure


@dataclass(frozen=True)
class InversionError(Scenes):
    """Scenes inverted and drawn again under one guidance, with their captions as prompts (Song et al. 2021, sec. 4.3).

    guidance      both ways the same
    steps         of DDIM, of the model's own spacing or `spacing`; refinements: fixed-point iterations of each of them

    value: |again - x_0| / |x_0| over a scene's latent, mean over scenes. psnr: of the decoded pictures, in dB. x_T:
    root mean square of the noise that was found; 1 for noise as the network was trained on.
    """

    guidance: Guidance = field(default_factory=lambda: ClassifierFree(1.0))
    steps: int = 50
    spacing: str | None = None
    refinements: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("refinements", 0)
        if not hasattr(self.guidance, "combine"):
            raise UserError(f"guidance={self.guidance}: must be a guidance")

    @torch.no_grad()
    def measure(self, model: LatentDiffusion, bench: Bench, folder: Path) -> Result:
        with as_user_error("study: "):
            steps = Schedule.of(model.config.schedule).steps(self.steps, self.spacing)
        predict = as_x_0(model.unet, model.config.schedule.prediction)
        scores, captions, rows = list[dict[str, float]](), list[str](), list[list[Image.Image]]()
        for some in self.encoded(model, bench, f"{self.steps} steps"):
            denoise = guided(predict, self.guidance, some.conditions)
            x_T, again = inverted(denoise, some.x_0, steps, self.refinements)
            before, after = model.decode(some.x_0), model.decode(again)
            scores += scores_of(some.x_0, x_T, again, before, after)
            captions += [scene.caption for scene in some.scenes]
            rows += [[to_image(a), to_image(b)] for a, b in zip(before, after, strict=True)][: PICTURED - len(rows)]
        columns = [list(column) for column in zip(*rows, strict=True)]
        save_png(sheet(columns, ["its latent, decoded", "drawn again"]), folder / "figure.png")
        details = {name: bench.bootstrap.mean([score[name] for score in scores], captions) for name in scores[0]}
        per_image = [{"file": f"scene {i}", **score} for i, score in enumerate(scores)]
        return Result(details.pop("value"), details, per_image, self.about(model))


def scores_of(x_0: Tensor, x_T: Tensor, again: Tensor, before: Tensor, after: Tensor) -> list[dict[str, float]]:
    """Returns each scene's scores, of latents [B, C, h, w] and of pictures [B, 3, H, W] in [0, 1]."""
    error = (again - x_0).flatten(1).norm(dim=1) / x_0.flatten(1).norm(dim=1)
    psnr = -10 * (after - before).square().flatten(1).mean(dim=1).clamp(min=1e-10).log10()
    scale = x_T.square().flatten(1).mean(dim=1).sqrt()
    values = torch.stack([error, psnr, scale], dim=1).tolist()
    return [dict(zip(("value", "psnr", "x_T"), row, strict=True)) for row in values]
