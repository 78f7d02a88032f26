"""The two sides of the benchmark on one diffusers folder: our networks and loop, and diffusers' pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.run import build
from guidance import ClassifierFree, Guidance, guided
from ldm import LatentDiffusion, load_model
from ldm.condition import Condition, stack
from ldm.config import SD1, ModelConfig
from ldm.files import names
from ldm.files.reading import EMBEDDED, on_meta
from ldm.files.writing import write_folder
from samplers import Schedule, as_x_0, ddim

SCALE = 7.5
PROMPT = "a cat next to a dog on a blue background"
SHAPES = {"sd15": SD1}  # drawn at random; other names are embedded models
DOWNSCALE = {"emoji": 4, "sd15": 8}

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Side:
    """What one side does, as functions of tensors and prompts alone."""

    name: str
    unet: Callable[[Tensor, int, Tensor], Tensor]  # x_t [B, C, h, w], t, text [B, 77, D]
    sample: Callable[[Tensor, list[str], int], Tensor]  # x_T, prompts, steps -> pictures [B, 3, H, W] in [0, 1]
    decode: Decode
    text: Callable[[list[str]], Any]
    channels: int  # of a latent


def write_weights(config: ModelConfig, path: Path) -> None:
    """A diffusers folder of random 16-bit weights: std 0.02, norms about 1, so that nothing overflows."""
    torch.manual_seed(0)
    model = on_meta(config)
    for network in names.parts(model).values():
        state = {}
        for name, p in network.state_dict().items():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            state[name] = torch.empty(p.shape).normal_(centre, 0.02).bfloat16()
        network.load_state_dict(state, assign=True)
    write_folder(model, path)


def folder_of(model: str, folder: Path) -> Path:
    """The diffusers folder of an embedded model, or of a shape, which is written below `folder` the first time."""
    if model in EMBEDDED:
        return EMBEDDED[model]
    if not (folder / model).exists():
        write_weights(SHAPES[model], folder / model)
    return folder / model


def compiled(function: Any, wanted: bool) -> Any:
    """torch.compile: inductor, and CUDA graphs on a GPU, as `experiments.run.build.network` compiles our U-Net."""
    mode = "reduce-overhead" if torch.cuda.is_available() else "default"
    return torch.compile(function, mode=mode) if wanted else function


def ours(model: LatentDiffusion, compile: bool) -> Side:
    unet, decode = build.network(model.unet, compile), compiled(model.autoencoder.decode, compile)

    def sample(x_T: Tensor, prompts: list[str], steps: int) -> Tensor:
        x_0 = latents(model, unet, ClassifierFree(SCALE), x_T, prompts, steps)
        return (decode(x_0.to(model.dtype)).float() / 2 + 0.5).clamp(0, 1)

    def text(prompts: list[str]) -> Condition:
        return stack([model.condition(prompts)])  # which keeps its keys and values, as it does while sampling

    return Side("ours", lambda x, t, text: unet(x, t, text, ()), sample, decode, text, model.config.latent_channels)


def latents(
    model: LatentDiffusion, unet: Any, guidance: Guidance, x_T: Tensor, prompts: list[str], steps: int
) -> Tensor:
    """x_0 of DDIM sampling under a guidance, as `experiments.sample` does it."""
    config = model.config.schedule
    denoise = guided(as_x_0(unet, config.prediction), guidance, model.conditions(prompts))
    for _, x_t, _ in ddim(denoise, x_T, Schedule.of(config).steps(steps)):  # noqa: B007
        pass
    return x_t


def pipeline(path: Path, dtype: torch.dtype, device: str) -> Any:
    """diffusers' pipeline, with the sampler that ours runs."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def theirs(path: Path, dtype: torch.dtype, device: str, compile: bool, tuned: bool) -> Side:
    """diffusers as it comes, or `tuned`: channels-last, fused projections (its attention is the fused one anyhow)."""
    pipe = pipeline(path, dtype, device)
    if tuned:
        pipe.fuse_qkv_projections()
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    pipe.unet, pipe.vae.decode = compiled(pipe.unet, compile), compiled(pipe.vae.decode, compile)

    def sample(x_T: Tensor, prompts: list[str], steps: int) -> Tensor:
        asked = {"num_inference_steps": steps, "guidance_scale": SCALE, "output_type": "pt"}
        return pipe(prompts, latents=x_T.to(dtype), **asked).images

    def text(prompts: list[str]) -> Tensor:
        ids = pipe.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return pipe.text_encoder(ids.input_ids.to(device))[0]

    return Side(
        "diffusers, tuned" if tuned else "diffusers",
        lambda x, t, text: pipe.unet(x, t, text, return_dict=False)[0],
        sample,
        lambda z: pipe.vae.decode(z / pipe.vae.config.scaling_factor, return_dict=False)[0],
        text,
        pipe.vae.config.latent_channels,
    )


def load(path: Path, dtype: torch.dtype, device: str) -> LatentDiffusion:
    return load_model(path, dtype=dtype, device=device)
