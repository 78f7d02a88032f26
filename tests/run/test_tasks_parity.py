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
from ldm.files.config_files import to_yaml
from ldm.files.writing import write_file

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


def ours(
    cli: Callable[..., Outcome], folder: Path, out: Path, task: str, strength: float, model: list[str]
) -> tuple[Tensor, list[np.ndarray]]:
    """Latents, and images [H, W, 3] in 0 .. 255, by the verb."""
    files = [f"task.image={folder / 'picture.png'}"]
    files += [f"task.mask={folder / 'mask.png'}"] if task == "inpaint" else []
    outcome = cli(
        "sample", "model=file", *model, f"task={task}", *files, f"task.strength={strength}",
        "prompt=a cat", "negative_prompt=blurry", f"seeds={list(SEEDS)}", f"sampler.steps={STEPS}",
        f"guidance.scale={SCALE}", "save_latents=true", f"hydra.run.dir={out}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    images = [np.asarray(Image.open(out / "images" / f"00000_{seed}.png")).astype(int) for seed in SEEDS]
    return load_file(out / "latents.safetensors")["x_0"], images


@pytest.mark.parametrize("folder", [9], indirect=True)
def test_an_inpainting_model_of_a_single_file_as_diffusers(
    cli: Callable[..., Outcome], folder: Path, tmp_path: Path
) -> None:
    """The same weights in CompVis's layout, read back by its own reader."""
    model = load_model(folder)
    write_file(model, tmp_path / "model.safetensors")
    (tmp_path / "model.yaml").write_text(to_yaml(model.config))
    files = [f"model.path={tmp_path / 'model.safetensors'}", f"model.config={tmp_path / 'model.yaml'}"]
    x_0, images = ours(cli, folder, tmp_path / "run", "inpaint", 1.0, files)
    latents, expected = theirs(folder, "StableDiffusionInpaintPipeline", 1.0, masked=True)
    assert reference.relative(x_0, latents) < 1e-4
    inside = mask() > 127
    assert all(np.abs(a - b.numpy())[inside].max() <= 1 for a, b in zip(images, expected, strict=True))
    assert all((image == drawing())[~inside].all() for image in images)


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
    x_0, drawn = ours(cli, folder, tmp_path / "run", task, strength, [f"model.path={folder}"])
    latents, images = theirs(folder, name, strength, masked)
    assert reference.relative(x_0, latents) < 1e-4
    inside = mask() > 127 if masked else np.full((HEIGHT, WIDTH), True)
    for one, other in zip(drawn, images, strict=True):
        assert np.abs(one - other.numpy())[inside].max() <= 1
        assert (one == drawing())[~inside].all()
