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
from ldm.text import TextEncoder
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
    networks = UNet(config.unet), Autoencoder(config.autoencoder), TextEncoder(config.text)
    for i, network in enumerate(networks):
        randomize(network, 3 * seed + i)
    return LatentDiffusion(*networks, config)


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


def transformers_text(config: ModelConfig) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    fields = {k: v for k, v in settings(config, "text_encoder").items() if k not in ("model_type", "architectures")}
    return randomize(CLIPTextModel(CLIPTextConfig(**fields)), 12)


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
    from diffusers import DDIMScheduler

    diffusers_unet(config).save_pretrained(path / "unet", **save)
    diffusers_vae(config).save_pretrained(path / "vae", **save)
    transformers_text(config).save_pretrained(path / "text_encoder", **save)
    DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[config.schedule.prediction],
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    ).save_pretrained(path / "scheduler")
    pad = {49407: "<|endoftext|>", 0: "!"}[config.text.pad_id]
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
