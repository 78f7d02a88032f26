"""Train one part of the embedded model: `python -m experiments.train part=autoencoder`, then `part=unet`.

Everything random is a function of (seed, step): the scenes, the noise, the timesteps, the dropped captions. So a run
that was stopped goes on from its checkpoint as if nothing had happened, to the last bit on the same machine.
"""

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from tqdm import tqdm

from experiments import build
from experiments.cli import run, say
from experiments.data.emoji import EmojiScenes, World, batch, load_atlas
from experiments.logger import Logger
from experiments.runs import difference, write
from ldm import LatentDiffusion
from ldm.autoencoder import Autoencoder
from ldm.checkpoint import write_folder
from ldm.config import AutoencoderConfig, ModelConfig, ScheduleConfig, TextEncoderConfig, UNetConfig
from ldm.text import TextEncoder, Tokenizer
from ldm.unet import UNet
from samplers import add_noise

SHARD_BYTES = 14_000_000  # of the exported files


class AutoencoderPart:
    """The KL autoencoder: mean absolute error of a decoded sample of q(z | image), plus a little KL to N(0, I).

    A part has a network, and a loss: a scalar of images [B, 3, H, W] in [-1, 1] and their captions, all of whose chance
    comes from the CPU generator g.
    """

    def __init__(self, cfg: DictConfig):
        self.network = Autoencoder(AutoencoderConfig(**numbers(cfg.autoencoder)))
        self.kl_weight = cfg.kl_weight

    def loss(self, images: Tensor, captions: list[str], g: torch.Generator) -> Tensor:
        mean, logvar = (moment.float() for moment in self.network.encode(images))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        decoded = self.network.decode(sample_posterior(mean, logvar, g)).float()
        return (decoded - images).abs().mean() + self.kl_weight * kl


class DecoderPart(AutoencoderPart):
    """More training for the decoder alone: the encoder stays, and with it the latents that a U-Net learns from."""

    def __init__(self, cfg: DictConfig, autoencoder: dict[str, Tensor]):
        super().__init__(cfg)
        self.network.load_state_dict(autoencoder)
        self.network.encoder.requires_grad_(False)
        self.network.quant_conv.requires_grad_(False)


class UNetPart:
    """The U-Net with the text encoder: L_simple (Ho et al. 2020, eq. 14) on latents of a trained autoencoder.

    Even at the largest t the mean of x_t over its cells betrays that of x_0 (alpha_bar there is not 0): the network
    finds the background's colour in it and does not learn it from the text. `noise_offset` is the standard deviation of
    noise that all cells of a channel share; added to eps in training, it covers the mean. Sampling needs no such thing.
    """

    def __init__(self, cfg: DictConfig, autoencoder: Autoencoder, latents: AutoencoderConfig, image_size: int):
        self.config = ModelConfig(
            UNetConfig(**numbers(cfg.unet)),
            latents,
            TextEncoderConfig(**numbers(cfg.text)),
            ScheduleConfig(**numbers(cfg.schedule)),
            image_size,
        )
        self.autoencoder = autoencoder
        self.unet, self.text_encoder = UNet(self.config.unet), TextEncoder(self.config.text)
        initialise(self.unet, self.text_encoder)
        self.network = nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})
        self.tokenizer = Tokenizer(self.config.text.pad_id)
        self.alpha_bar = build.schedule(self.config.schedule).alpha_bar
        self.caption_dropout = cfg.caption_dropout
        self.noise_offset = cfg.noise_offset

    def model(self, weights: dict[str, Tensor]) -> LatentDiffusion:
        """The whole model, its U-Net and text encoder with these weights (from now on, training's network too)."""
        self.network.load_state_dict(weights)
        return LatentDiffusion(self.unet, self.autoencoder, self.text_encoder, self.config)

    def loss(self, images: Tensor, captions: list[str], g: torch.Generator) -> Tensor:
        with torch.no_grad():
            mean, logvar = self.autoencoder.encode(images)
            x_0 = sample_posterior(mean.float(), logvar.float(), g)
        dropped = torch.rand(len(captions), generator=g) < self.caption_dropout
        texts = ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]
        text = self.text_encoder(self.tokenizer(texts).ids.to(x_0.device))
        t = torch.randint(len(self.alpha_bar), (len(x_0),), generator=g)
        eps = torch.randn(x_0.shape, generator=g)
        eps += self.noise_offset * torch.randn((*x_0.shape[:2], 1, 1), generator=g)
        eps = eps.to(x_0.device)
        x_t = add_noise(x_0, eps, self.alpha_bar[t]).contiguous(memory_format=torch.channels_last)
        return (self.unet(x_t, t.to(x_0.device), text).float() - eps).square().mean()


def sample_posterior(mean: Tensor, logvar: Tensor, g: torch.Generator) -> Tensor:
    """A draw of q(z | image)."""
    return mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=g).to(mean.device)


def initialise(unet: UNet, text_encoder: TextEncoder) -> None:
    """As in the original code: each residual branch of the U-Net and its output begin at zero, the embeddings small."""
    for name, module in unet.named_modules():
        if name == "conv_out" or name.endswith((".conv2", ".proj_out")) and ".ff." not in name:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(text_encoder.token_embedding.weight, std=0.02)
    nn.init.normal_(text_encoder.position_embedding.weight, std=0.01)


def plain(cfg: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def numbers(cfg: DictConfig) -> dict[str, Any]:
    """A group's values, with lists as the tuples that frozen dataclasses hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain(cfg).items()}


def stored_autoencoder(path: Path, device: str) -> dict[str, Any]:
    """The checkpoint of a trained autoencoder. Raises ValueError if there is none."""
    if not path.is_file():
        raise ValueError(f"no autoencoder at {path}: `python -m experiments.train part=autoencoder` makes one")
    return torch.load(path, map_location=device, weights_only=True)


@torch.no_grad()
def load_autoencoder(path: Path, scenes: EmojiScenes, device: str) -> tuple[Autoencoder, AutoencoderConfig]:
    """A trained autoencoder (its EMA weights, frozen), its scale set so that the scenes' latents have unit variance."""
    stored = stored_autoencoder(path, device)
    config = AutoencoderConfig(**numbers(OmegaConf.create(stored["recipe"]["part"]["autoencoder"])))
    autoencoder = Autoencoder(config).to(device).to(memory_format=torch.channels_last)
    autoencoder.load_state_dict(stored["ema"])
    autoencoder.requires_grad_(False)
    images = (batch(scenes, range(i, i + 32))[0] for i in range(0, 512, 32))
    std = torch.cat([autoencoder.encode(x.to(device))[0] for x in images]).std().item()
    autoencoder.scale = config.scale / std
    return autoencoder, replace(config, scale=autoencoder.scale)


@torch.no_grad()
def psnr(autoencoder: Autoencoder, scenes: EmojiScenes, count: int) -> float:
    """Of the decoded posterior means against the scenes, in dB, averaged over scenes; pixels in [0, 1]."""
    total = 0.0
    for i in range(0, count, 20):
        images = batch(scenes, range(i, min(i + 20, count)))[0].to(autoencoder.quant_conv.weight.device)
        decoded = autoencoder.decode(autoencoder.encode(images)[0]).clamp(-1, 1)
        error = ((decoded - images) / 2).square().mean(dim=(1, 2, 3))
        total += (-10 * error.log10()).sum().item()
    return total / count


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """A linear rise to `peak` over the warm-up, times a cosine that ends at 0."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Whatever happens meanwhile, `path` holds a whole checkpoint: the last one, or this."""
    part = path.with_name(path.name + ".tmp")
    try:
        torch.save(state, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def train(cfg: DictConfig) -> None:
    """Run the training that the config describes, or go on with it, from and to `out`/checkpoint.pt.

    Raises ValueError for missing icons, a missing autoencoder, and a checkpoint in `out` that another config made.
    """
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda is not available here: use device=cpu")
    world = World(**numbers(cfg.world))
    atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
    scenes = EmojiScenes(world, atlas, "train", cfg.seed, length=max(cfg.part.steps * cfg.part.batch, 512))
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(cfg.seed)  # of the initial weights
    if cfg.part.name == "autoencoder":
        part: AutoencoderPart | UNetPart = AutoencoderPart(cfg.part)
    elif cfg.part.name == "decoder":
        part = DecoderPart(cfg.part, stored_autoencoder(Path(cfg.autoencoder), cfg.device)["ema"])
    else:
        part = UNetPart(cfg.part, *load_autoencoder(Path(cfg.autoencoder), scenes, cfg.device), world.image_size)
    network = part.network.to(cfg.device).to(memory_format=torch.channels_last)
    weights = dict(network.named_parameters())
    ema = {name: weight.detach().clone() for name, weight in weights.items()}
    # without weight decay, which would shrink the embeddings of all the tokens that no caption contains
    optimizer = torch.optim.AdamW(weights.values(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    start, seconds, history, losses = 0, 0.0, [], []

    # a checkpoint goes on only under the recipe that made it; where things lie is no part of that
    recipe = plain(OmegaConf.masked_copy(cfg, ["part", "world", "seed", "bf16"]))
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        stored = torch.load(checkpoint, map_location=cfg.device, weights_only=True)
        if changed := difference(stored["recipe"], recipe):
            raise ValueError(f"{checkpoint} is of another config ({changed}): choose another out=FOLDER")
        network.load_state_dict(stored["network"])
        optimizer.load_state_dict(stored["optimizer"])
        ema, start, seconds, history, losses = (stored[k] for k in ("ema", "step", "seconds", "history", "losses"))
    logger = Logger(cfg.logger, plain(cfg), out)

    stop = min(cfg.part.steps, cfg.stop_after or cfg.part.steps)
    began = saved = time.time()
    bar = tqdm(range(start, stop), initial=start, total=cfg.part.steps, desc=cfg.part.name, mininterval=1)
    for step in bar:
        g = torch.Generator("cpu").manual_seed(cfg.seed * 2**32 + step)
        images, captions = batch(scenes, range(step * cfg.part.batch, (step + 1) * cfg.part.batch))
        with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.bf16):
            loss = part.loss(images.to(cfg.device), captions, g)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, cfg.part.steps, cfg.part.warmup, cfg.part.lr)
        optimizer.step()
        decay = min(cfg.part.ema_decay, (1 + step) / (10 + step))  # at first the average forgets faster
        torch._foreach_lerp_(list(ema.values()), [weight.detach() for weight in weights.values()], 1 - decay)

        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is not finite at step {step}; {checkpoint} holds the state before")
        if (step + 1) % cfg.log_every == 0:
            history.append({"step": step + 1, "loss": sum(losses) / len(losses)})
            logger.log(history[-1])
            bar.set_postfix(loss=f"{history[-1]['loss']:.4f}")
            losses = []
        if step + 1 == stop or time.time() - saved > cfg.save_seconds:
            spent = seconds + time.time() - began
            state = {"recipe": recipe, "step": step + 1, "seconds": spent, "history": history, "losses": losses}
            state |= {"network": network.state_dict(), "ema": ema, "optimizer": optimizer.state_dict()}
            save_atomically(state, checkpoint)
            write(out / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
            saved = time.time()
    logger.finish()
    if stop == cfg.part.steps:
        finish(part, ema, EmojiScenes(world, atlas, "held_out"), out)


def finish(part: AutoencoderPart | UNetPart, ema: dict[str, Tensor], held_out: EmojiScenes, out: Path) -> None:
    """Say how good a trained autoencoder is; write a trained U-Net with all it needs as a diffusers folder."""
    if isinstance(part, AutoencoderPart):
        part.network.load_state_dict(ema)
        say(f"PSNR on 500 held-out scenes, decoded from the means of q: {psnr(part.network, held_out, 500):.2f} dB")
    elif not (out / "model").exists():
        write_folder(part.model(ema), out / "model", SHARD_BYTES, torch.float16)
        say(f"the model: {out / 'model'}")


if __name__ == "__main__":
    run(train, "train")
