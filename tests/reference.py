"""What the tests compare with: tiny models of the Stable Diffusion family as diffusers and transformers build them."""

import gzip
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm import LatentDiffusion
from ldm.autoencoder import Autoencoder
from ldm.config import AutoencoderConfig, ModelConfig, ScheduleConfig, TextEncoderConfig, UNetConfig
from ldm.files import names
from ldm.files.config_files import to_diffusers
from ldm.model import encoder_of
from ldm.unet import UNet

TINY_SD1 = ModelConfig(
    unet=UNetConfig(
        channels=(32, 64, 64), blocks_per_level=1, attention=(True, True, False), heads=(4, 4, 4), text_width=32
    ),
    autoencoder=AutoencoderConfig(channels=(32, 64), blocks_per_level=1),
    text=TextEncoderConfig(width=32, mlp_width=64, layers=2, heads=2),
    image_size=32,
)
TINY_SD2 = ModelConfig(
    unet=replace(TINY_SD1.unet, heads=(2, 4, 4), linear_projection=True, blocks_per_level=2),
    autoencoder=TINY_SD1.autoencoder,
    text=TextEncoderConfig(width=32, mlp_width=64, layers=2, heads=2, activation="gelu", pad_id=0),
    schedule=ScheduleConfig(prediction="v"),
    image_size=32,
)
TINY_SDXL = ModelConfig(
    unet=UNetConfig(
        channels=(32, 64, 64),
        attention=(False, True, True),
        heads=(2, 4, 8),
        depth=(1, 2, 3),
        text_width=80,
        vector_width=24 + 6 * 8,
        linear_projection=True,
    ),
    autoencoder=AutoencoderConfig(channels=(32, 64), blocks_per_level=1, scale=0.13025, overflows=True),
    text=TextEncoderConfig(32, 64, 3, 2, penultimate=True),
    text_2=TextEncoderConfig(48, 96, 4, 4, activation="gelu", pad_id=0, penultimate=True, projection=24),
    zeros_for_empty=True,
    schedule=ScheduleConfig(ends_clean=True),
    image_size=32,
)

# Stable Diffusion's schedule, as diffusers' schedulers are told of it, and in float64: their own is float32, where
# 1 - alpha_bar at the last timestep is off by 3e-5
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DIFFUSERS_PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}
ALPHA_BAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


@lru_cache
def manifests() -> dict[str, Any]:
    """Keys and shapes of the published checkpoints, and the maps from diffusers' keys to those of single files."""
    return json.loads(gzip.decompress((Path(__file__).parent / "data" / "manifests.json.gz").read_bytes()))


def relative(a: Tensor, b: Tensor) -> float:
    """Root mean square of a - b, relative to that of b."""
    return ((a - b).double().square().mean() / b.double().square().mean()).sqrt().item()


@torch.no_grad()
def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of std 0.05, biases 0.1, norms about 1: a constructor's zeros would hide errors."""
    g = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        noise = torch.empty_like(p).normal_(generator=g)
        if name.endswith("bias"):
            p.copy_(0.1 * noise)
        elif p.ndim == 1:
            p.copy_(1 + 0.1 * noise)
        else:
            p.copy_(0.05 * noise)
    return network.eval().requires_grad_(False)


def tiny_model(config: ModelConfig = TINY_SD1, seed: int = 0) -> LatentDiffusion:
    model = LatentDiffusion(UNet(config.unet), Autoencoder(config.autoencoder), encoder_of(config), config)
    for i, network in enumerate(names.parts(model).values()):
        randomize(network, 3 * seed + i)
    return model


def same_weights(a: LatentDiffusion, b: LatentDiffusion) -> bool:
    """Equal names, shapes and values, bit for bit."""
    pairs = ((a.unet, b.unet), (a.autoencoder, b.autoencoder), (a.text_encoder, b.text_encoder))
    states = [(x.state_dict(), y.state_dict()) for x, y in pairs]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in states)


def settings(config: ModelConfig, part: str) -> dict[str, Any]:
    jsons = to_diffusers(replace(config, schedule=ScheduleConfig()))
    return {k: v for k, v in jsons[f"{part}/config.json"].items() if not k.startswith("_")}


def diffusers_unet(config: ModelConfig) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return randomize(UNet2DConditionModel(**settings(config, "unet")), 10)


def diffusers_vae(config: ModelConfig) -> nn.Module:
    from diffusers import AutoencoderKL

    return randomize(AutoencoderKL(**settings(config, "vae")), 11)


def transformers_text(config: ModelConfig, part: str = "text_encoder") -> nn.Module:
    import transformers

    fields = settings(config, part)
    (architecture,) = fields.pop("architectures")
    del fields["model_type"]
    return randomize(getattr(transformers, architecture)(transformers.CLIPTextConfig(**fields)), 12 + len(part))


def adopt(ours: nn.Module, theirs: nn.Module, table: names.Table) -> nn.Module:
    """`ours` with the very tensors of `theirs`, every one of which must have a place."""
    state = {k: v for k, v in theirs.state_dict().items() if not names.is_constant(k)}
    prefix = "text_model." if any(key.startswith("text_model.") for key in state) else ""
    mine = {name: state.pop(prefix + names.rename(name, table)) for name in ours.state_dict()}
    assert not state, list(state)
    ours.load_state_dict(mine, assign=True)
    return ours.eval().requires_grad_(False)


def write_diffusers_folder(path: Path, config: ModelConfig, **save: Any) -> None:
    """A folder written by the save_pretrained of diffusers and transformers, with random weights."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    diffusers_unet(config).save_pretrained(path / "unet", **save)
    diffusers_vae(config).save_pretrained(path / "vae", **save)
    schedule = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[config.schedule.prediction],
        "steps_offset": 1,
    }
    if config.text_2 is None:
        scheduler = DDIMScheduler(**schedule, set_alpha_to_one=False, clip_sample=False)
    else:
        scheduler = EulerDiscreteScheduler(**schedule, timestep_spacing="leading")
    scheduler.save_pretrained(path / "scheduler")
    if config.text_2 is not None:  # as published: Euler's method never looks at set_alpha_to_one
        file = path / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"set_alpha_to_one": False}))
        (path / "model_index.json").write_text(json.dumps(to_diffusers(config)["model_index.json"]))
    for text, suffix in ((config.text, ""), (config.text_2, "_2")):
        if text is not None:
            transformers_text(config, f"text_encoder{suffix}").save_pretrained(path / f"text_encoder{suffix}", **save)
            pad = {49407: "<|endoftext|>", 0: "!"}[text.pad_id]
            (path / f"tokenizer{suffix}").mkdir()
            (path / f"tokenizer{suffix}" / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
