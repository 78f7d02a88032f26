"""Tasks against diffusers' pipelines, from a picture's file to pixels, on folders that diffusers wrote.

The pipelines are handed latents in the place of pictures: so their first draw is x_T, as ours is, and the posterior's
mean what they begin with. Masks lie on the cells of the latent, where both rules for a cell agree.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import Outcome
from torch import Tensor

from ldm import load_model

HEIGHT, WIDTH, SEEDS = 64, 96, (3, 4)
STEPS, SCALE = 5, 4.0


def drawing() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([2 * y, x * 2, (x + y) % 255], axis=-1).astype(np.uint8)


def mask() -> np.ndarray:
    found = np.zeros((HEIGHT, WIDTH), np.uint8)
    found[16:44, 20:70] = 255
    return found


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, written by diffusers, and files of a picture and its mask beside it."""
    config = reference.TINY_SD1
    path = tmp_path_factory.mktemp("diffusers") / str(request.param)
    reference.write_diffusers_folder(path, replace(config, unet=replace(config.unet, in_channels=request.param)))
    Image.fromarray(drawing()).save(path / "picture.png")
    Image.fromarray(mask()).save(path / "mask.png")
    return path


def pipeline(folder: Path, name: str) -> Any:
    import diffusers

    parts = {
        "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        "vae": diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        "scheduler": diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
    }
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    made = getattr(diffusers, name)(**parts, **none, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def theirs(folder: Path, name: str, strength: float, masked: bool) -> tuple[Tensor, Tensor]:
    """Latents, and images [B, H, W, 3] in 0 .. 255, by diffusers' pipeline."""
    pipe, model = pipeline(folder, name), load_model(folder)
    embeds = {
        "prompt_embeds": model.condition(["a cat"] * 2).tokens,
        "negative_prompt_embeds": model.condition(["blurry"] * 2).tokens,
    }

    def encode(pixels: np.ndarray) -> Tensor:
        image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        return (pipe.vae.encode(image).latent_dist.mean * pipe.vae.config.scaling_factor).repeat(2, 1, 1, 1)

    given: dict[str, Any] = {"image": encode(drawing())}
    if masked:
        hidden = drawing().astype(np.float32)
        hidden[mask() > 127] = 127.5
        given |= {"mask_image": Image.fromarray(mask()), "masked_image_latents": encode(hidden)}
        given |= {"height": HEIGHT, "width": WIDTH}
    generator = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    common = {"strength": strength, "num_inference_steps": STEPS, "guidance_scale": SCALE, "generator": generator}
    latents = pipe(**given, **embeds, **common, output_type="latent").images
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return latents, ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("folder", "task", "name", "strength"),
    [  # channels of the network, and so on
        (4, "image", "StableDiffusionImg2ImgPipeline", 0.6),
        (4, "image", "StableDiffusionImg2ImgPipeline", 1.0),
        (4, "inpaint", "StableDiffusionInpaintPipeline", 1.0),
        (4, "inpaint", "StableDiffusionInpaintPipeline", 0.6),
        (9, "inpaint", "StableDiffusionInpaintPipeline", 1.0),
    ],
    indirect=["folder"],
)
def test_as_diffusers(
    cli: Callable[..., Outcome], folder: Path, tmp_path: Path, task: str, name: str, strength: float
) -> None:
    masked = task == "inpaint"
    files = [f"task.image={folder / 'picture.png'}", *([f"task.mask={folder / 'mask.png'}"] if masked else [])]
    outcome = cli(
        "sample", "model=file", f"model.path={folder}", f"task={task}", *files, f"task.strength={strength}",
        "prompt=a cat", "negative_prompt=blurry", f"seeds={list(SEEDS)}", f"sampler.steps={STEPS}",
        f"guidance.scale={SCALE}", "save_latents=true", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    latents, images = theirs(folder, name, strength, masked)
    ours = load_file(tmp_path / "run" / "latents.safetensors")["x_0"]
    assert reference.relative(ours, latents) < 1e-4
    for seed, image in zip(SEEDS, images, strict=True):
        drawn = np.asarray(Image.open(tmp_path / "run" / "images" / f"00000_{seed}.png"))
        inside = mask() > 127 if masked else np.full((HEIGHT, WIDTH), True)
        assert np.abs(drawn.astype(int) - image.numpy())[inside].max() <= 1
        assert (drawn == drawing())[~inside].all()
