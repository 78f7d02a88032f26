"""From a picture back to the noise that DDIM draws it from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from experiments.run.images import read_image
from guidance import ClassifierFree, guided
from ldm import LatentDiffusion
from samplers import Step, as_x_0, ddim, ddim_inverse
from samplers.predict import Denoise


def read_picture(path: Path, height: int, width: int) -> Tensor:
    """[1, 3, height, width] in [-1, 1]: the middle of a picture in a file, scaled to this size.

    Raises UserError for a file that is none.
    """
    picture = read_image(path, "image").image
    scale = max(width / picture.width, height / picture.height)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return to_tensor(picture.crop((left, top, left + width, top + height)))[None] * 2 - 1


def denoiser(model: LatentDiffusion, prompt: str, negative: str, scale: float) -> Denoise:
    """Classifier-free guidance for one prompt; a scale of 1 is none."""
    predict = as_x_0(model.unet, model.config.schedule.prediction)
    return guided(predict, ClassifierFree(scale), model.conditions([prompt], [negative]))


def inverted(denoise: Denoise, x_0: Tensor, steps: Sequence[Step], refinements: int) -> tuple[Tensor, Tensor]:
    """x_T [B, ...], and what DDIM draws from it: x_0 again, but for the error of the inversion."""
    with torch.no_grad():
        *_, (_, x_T, _) = ddim_inverse(denoise, x_0, steps, refinements)
        *_, (_, again, _) = ddim(denoise, x_T, steps)
    return x_T, again
