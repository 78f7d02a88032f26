"""What can be trained: the parts of the embedded model, and its judge."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from experiments.emoji.judge import Judge, JudgeConfig, JudgeOutput, save_judge
from experiments.emoji.truth import device_of, judge_scores, psnr
from experiments.emoji.world import Batch, EmojiScenes, batch_of, first_images, settings_of
from experiments.files import UserError, as_user_error, write
from experiments.pictures import sheet, to_image
from experiments.training.tokens import WorldTable, tokens_of
from guidance import ClassifierFree, guided
from ldm import LatentDiffusion
from ldm.autoencoder import Autoencoder
from ldm.condition import Condition
from ldm.config import AutoencoderConfig, ModelConfig, ScheduleConfig, TextEncoderConfig, UNetConfig
from ldm.files import names
from ldm.files.config_files import to_diffusers
from ldm.files.reading import read_autoencoder
from ldm.files.tensors import tensors_in
from ldm.files.writing import write_folder, write_shards
from ldm.text import TextEncoder, Tokenizer
from ldm.unet import UNet
from samplers import ImageNoise, Schedule, add_noise, as_x_0, ddim
from samplers.predict import target

SHARD_BYTES = 14_000_000  # of the exported files
PAD_ID = 0
MEASURED_TENTHS = (1, 3, 5, 7, 9)  # of the timesteps, at which a U-Net's estimate of x_0 is measured


def read_checkpoint(path: Path, part: str) -> dict[str, Any]:
    """Returns the checkpoint of a trained part. Raises UserError if there is none."""
    if not path.is_file():
        raise UserError(f"no {part} at {path}: `python -m experiments.train part=SIZE/{part}` makes one")
    return torch.load(path, map_location="cpu", weights_only=True)


class Part(nn.Module):
    """A module whose forward is a training loss: a scalar of a batch and the CPU generator of all its chance."""

    network: nn.Module  # what is trained

    def picture(self, held_out: Any) -> Image.Image | None:
        """Returns a sheet that shows what the network can do by now on a few held-out examples, or None."""
        raise NotImplementedError

    def measures(self, held_out: Any) -> dict[str, float]:
        """Returns what can be compared between recipes whose losses cannot, by name; nothing for most parts."""
        return {}

    def finish(self, held_out: Any, out: Path) -> str:
        """Writes into `out`/model what others use of the trained network. Returns a line that says how good it is."""
        raise NotImplementedError


class AutoencoderPart(Part):
    """The KL autoencoder: mean absolute error of a decoded sample of q(z | image), plus a little KL to N(0, I)."""

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes):
        super().__init__()
        self.config = AutoencoderConfig(**settings_of(cfg.autoencoder))
        self.network: Autoencoder = Autoencoder(self.config)
        self.kl_weight = cfg.kl_weight
        self.scenes = scenes

    def forward(self, scenes: Batch, g: torch.Generator) -> Tensor:
        images = scenes.pixels()
        mean, logvar = (moment.float() for moment in self.network.encode(images))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        decoded = self.network.decode(sample_posterior(mean, logvar, g)).float()
        return (decoded - images).abs().mean() + self.kl_weight * kl

    @torch.no_grad()
    def picture(self, scenes: EmojiScenes) -> Image.Image:
        """Returns scenes, and below them what is decoded of their latents."""
        images = batch_of(scenes, range(8)).to(device_of(self)).pixels()
        decoded = self.network.decode(self.network.encode(images)[0]).clamp(-1, 1)
        rows = [[to_image(image / 2 + 0.5) for image in row] for row in (images, decoded)]
        return sheet(rows, ["scene", "decoded"])

    def finish(self, held_out: EmojiScenes, out: Path) -> str:
        """Writes the autoencoder in diffusers' layout (AutoencoderKL), in 16 bits."""
        config = replace(self.config, scale=unit_variance_scale(self.network, self.config, self.scenes))
        settings = to_diffusers(ModelConfig(autoencoder=config, image_size=held_out.world.image_size))
        weights = {
            names.rename(name, names.DIFFUSERS): value.half() for name, value in self.network.state_dict().items()
        }
        folder = out / "model"
        write_shards(weights, folder, "diffusion_pytorch_model", SHARD_BYTES)
        write(folder / "config.json", json.dumps(settings["vae/config.json"], indent=1) + "\n")
        value = fmean(psnr(self.network, held_out, 500))
        return f"PSNR on 500 held-out scenes, decoded from the means of q: {value:.2f} dB: {folder}"


class ClipPart(Part):
    """A tiny CLIP (Radford et al. 2021), open_clip's model and loss: images beside their captions.

    The captions of a micro-batch are each other's alternatives. The text tower becomes the model's text encoder.
    """

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes):
        super().__init__()
        from open_clip.loss import ClipLoss
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        self.config = {
            "embed_dim": cfg.embed_dim,
            "vision_cfg": {**settings_of(cfg.vision), "image_size": scenes.world.image_size},
            "text_cfg": settings_of(cfg.text),
        }
        vision, text = CLIPVisionCfg(**self.config["vision_cfg"]), CLIPTextCfg(**self.config["text_cfg"])
        self.network = CLIP(cfg.embed_dim, vision, text, output_dict=True)
        self.loss = ClipLoss()
        self.tokenizer = Tokenizer(PAD_ID)

    def forward(self, scenes: Batch, g: torch.Generator) -> Tensor:
        images = scenes.pixels()
        out = self.network(images, self.tokenizer(scenes.captions).ids.to(images.device))
        return self.loss(out["image_features"].float(), out["text_features"].float(), out["logit_scale"])

    def picture(self, scenes: EmojiScenes) -> None:
        return None

    def finish(self, held_out: EmojiScenes, out: Path) -> str:
        """Writes the whole model in open_clip's layout: open_clip_config.json, and the weights in shards."""
        folder = out / "model"
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.half() for name, value in self.network.state_dict().items()}
        write_shards(weights, folder, "open_clip_model", SHARD_BYTES)
        about = {"model_cfg": self.config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        write(folder / "open_clip_config.json", json.dumps(about, indent=1) + "\n")
        return f"of 50 held-out scenes, the right caption for {self.accuracy(held_out):.1%}: {folder}"

    @torch.no_grad()
    def accuracy(self, scenes: EmojiScenes, count: int = 500, among: int = 50) -> float:
        """Returns the share of scenes to which the network gives their own caption among those of `among` scenes."""
        right = 0
        for i in range(0, count, among):
            some = batch_of(scenes, range(i, i + among)).to(device_of(self))
            out = self.network(some.pixels(), self.tokenizer(some.captions).ids.to(some.images.device))
            similarity = out["image_features"] @ out["text_features"].T
            right += (similarity.argmax(dim=1).cpu() == torch.arange(among)).sum().item()
        return right / count


class UNetPart(Part):
    """The U-Net with the text encoder: L_simple (Ho et al. 2020, eq. 14) on latents of a trained autoencoder.

    The target is what the schedule's prediction names: the noise, v (Salimans & Ho 2022), x_0, or, on a flow, the
    velocity eps - x_0 (Liu et al. 2022). `min_snr` is the gamma of Hang et al. 2023, None for no weights. The U-Net has
    the latents' channels, unless its settings say otherwise. The text encoder begins as CLIP's text tower and learns
    on, unless `train_text` is off.

    Even at the largest t the mean of x_t over its cells betrays that of x_0 (alpha_bar there is not 0): the network
    finds the background's colour in it and does not learn it from the text. `noise_offset` is the standard deviation of
    noise that all cells of a channel share; added to eps in training, it covers the mean. Sampling needs no such thing.
    """

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes, autoencoder: Path, clip: Path):
        super().__init__()
        self.autoencoder, latents = load_autoencoder(autoencoder, scenes)
        text, tower = load_text_tower(clip)
        self.config = ModelConfig(
            UNetConfig(**{**self.channels(latents.latent_channels), **settings_of(cfg.unet)}),
            latents,
            text,
            ScheduleConfig(**settings_of(cfg.schedule)),
            scenes.world.image_size,
        )
        self.unet, self.text_encoder = UNet(self.config.unet), TextEncoder(text)
        initialise(self.unet)
        self.tokenizer = Tokenizer(PAD_ID, text.context)
        self.text_encoder.load_state_dict(tower)
        self.table = WorldTable(tower["token_embedding.weight"], tokens_of(scenes.world, self.tokenizer))
        self.text_encoder.token_embedding = self.table  # type: ignore[assignment]
        self.text_encoder.requires_grad_(cfg.train_text)
        self.network = nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})
        with as_user_error("part.schedule: "):
            self.schedule = Schedule.of(self.config.schedule)
        self.caption_dropout = cfg.caption_dropout
        self.noise_offset = cfg.noise_offset
        self.min_snr = cfg.min_snr

    def forward(self, scenes: Batch, g: torch.Generator) -> Tensor:
        with torch.no_grad():
            mean, logvar = self.autoencoder.encode(scenes.pixels())
            x_0 = sample_posterior(mean.float(), logvar.float(), g)
        dropped = torch.rand(len(scenes.captions), generator=g) < self.caption_dropout
        condition = self.condition_of(scenes, dropped, g)
        t = self.schedule.draw_t(len(x_0), g)
        eps = torch.randn(x_0.shape, generator=g)
        eps += self.noise_offset * torch.randn((*x_0.shape[:2], 1, 1), generator=g)
        eps = eps.to(x_0.device)
        t = t.to(x_0.device)
        signal, noise = self.schedule.at(t)
        x_t = add_noise(x_0, eps, signal, noise).contiguous(memory_format=torch.channels_last)
        prediction = self.config.schedule.prediction
        wanted = target(prediction, x_0, eps, signal, noise)
        errors = (self.unet(x_t, t, condition).float() - wanted).square().mean(dim=(1, 2, 3))
        if self.min_snr is not None:
            errors = errors * min_snr_weights(prediction, signal, noise, self.min_snr).to(errors.dtype)
        return errors.mean()

    def channels(self, latent: int) -> dict[str, Any]:
        """Returns what of the U-Net's config follows from the channels of its latent, unless the recipe says it."""
        return {"in_channels": latent, "out_channels": latent}

    def condition_of(self, scenes: Batch, dropped: Tensor, g: torch.Generator) -> Condition:
        """Returns what the U-Net is told of scenes; of those that are `dropped` [B], no text."""
        captions = ["" if drop else caption for drop, caption in zip(dropped, scenes.captions, strict=True)]
        return Condition(self.text_encoder(self.tokenizer(captions).ids.to(device_of(self))))

    def model(self) -> LatentDiffusion:
        """Returns the model that the U-Net belongs to, with the weights of the moment."""
        text_encoder = TextEncoder(self.config.text).to(self.table.weight.device)
        weights = self.text_encoder.state_dict() | {"token_embedding.weight": self.table.whole()}
        text_encoder.load_state_dict(weights)
        return LatentDiffusion(self.unet, self.autoencoder, text_encoder.eval(), self.config)

    @torch.no_grad()
    def picture(self, scenes: EmojiScenes) -> Image.Image:
        """Returns what 20 classifier-free steps make of the captions of eight scenes."""
        model, captions = self.model(), [scenes.caption(i)[0] for i in range(8)]
        predict = as_x_0(model.unet, self.config.schedule.prediction)
        denoise = guided(predict, ClassifierFree(3.0), model.conditions(captions))
        size = self.config.image_size
        x_T = ImageNoise(list(range(8)), model.latent_shape(size, size), model.device)()
        *_, (_, x_t, _) = ddim(denoise, x_T, self.schedule.steps(20))
        return sheet([[to_image(image) for image in model.decode(x_t)]], [""], captions)

    @torch.no_grad()
    def measures(self, held_out: EmojiScenes, count: int = 128) -> dict[str, float]:
        """Returns the mean squared error of x_0 at five levels of noise: the same scenes and noise for every recipe."""
        scenes, g = batch_of(held_out, range(count)).to(device_of(self)), torch.Generator().manual_seed(0)
        x_0 = self.autoencoder.encode(scenes.pixels())[0].float()
        condition = self.condition_of(scenes, torch.zeros(count, dtype=torch.bool), g)
        predict, errors = as_x_0(self.unet, self.config.schedule.prediction), {}
        for tenth in MEASURED_TENTHS:
            level = self.schedule.level(tenth * self.config.schedule.num_timesteps // 10)
            eps = torch.randn(x_0.shape, generator=g).to(x_0.device)
            x_t = level.signal * x_0 + level.noise * eps
            errors[f"x_0 error at {level.t:g}"] = F.mse_loss(predict(x_t, level, condition), x_0).item()
        return errors

    def finish(self, held_out: EmojiScenes, out: Path) -> str:
        if not (out / "model").exists():
            write_folder(self.model(), out / "model", SHARD_BYTES, torch.float16)
        return f"the model: {out / 'model'}"


class JudgePart(Part):
    """The judge: presence of each concept, the concept at each pixel, the colour at each tinted pixel.

    Half of the scenes are blurred or noised a little, since the pictures to be judged are not as clean as scenes.
    """

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes):
        super().__init__()
        world = scenes.world
        concepts, colours = tuple(world.concepts), tuple(world.colours)
        self.network: Judge = Judge(JudgeConfig(concepts, colours, world.image_size, tuple(cfg.channels)))
        self.noise, self.blurred = cfg.noise, cfg.blurred

    def forward(self, scenes: Batch, g: torch.Generator) -> Tensor:
        images = scenes.pixels()
        blurred = (torch.rand(len(images), generator=g) < self.blurred).to(images.device)[:, None, None, None]
        images = torch.where(blurred, F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear"), images)
        level = self.noise * (2 * torch.rand((len(images), 1, 1, 1), generator=g) - 1).clamp(min=0)
        images = images + (level * torch.randn(images.shape, generator=g)).to(images.device)
        output: JudgeOutput = self.network(images.contiguous(memory_format=torch.channels_last))
        labels, colours = scenes.labels.long(), scenes.colours.long()
        present = F.one_hot(labels.flatten(1), output.labels.shape[1]).amax(dim=1)[:, 1:].float()
        presence = F.binary_cross_entropy_with_logits(output.presence, present)
        shape = F.cross_entropy(output.labels, labels)
        # of tinted pixels alone; a sum, since there may be none
        colour = F.cross_entropy(output.colours, colours - 1, ignore_index=-1, reduction="sum")
        return presence + shape + colour / (colours > 0).sum().clamp(min=1)

    @torch.no_grad()
    def picture(self, scenes: EmojiScenes) -> Image.Image:
        """Returns scenes, and below them the pixels at which the judge sees an object."""
        images = batch_of(scenes, range(8)).to(device_of(self)).pixels()
        seen = self.network(images).labels.argmax(dim=1, keepdim=True) > 0
        rows = [[to_image(image / 2 + 0.5) for image in row] for row in (images, torch.where(seen, images, -1.0))]
        return sheet(rows, ["scene", "seen"])

    def finish(self, held_out: EmojiScenes, out: Path) -> str:
        save_judge(self.network, out / "model")
        scores = judge_scores(self.network, held_out, 500)
        return ", ".join(f"{name} {fmean(values):.2%}" for name, values in scores.items()) + f": {out / 'model'}"


def sample_posterior(mean: Tensor, logvar: Tensor, g: torch.Generator) -> Tensor:
    """Draws a latent from q(z | image)."""
    return mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=g).to(mean.device)


def min_snr_weights(prediction: str, signal: Tensor, noise: Tensor, gamma: float) -> Tensor:
    """Returns the weight [B] of each row's squared error: min(SNR, gamma) for x_0 (Hang et al. 2023, section 3.4).

    In terms of another prediction the same loss has that divided by SNR (eps), or by SNR + 1 (v, flow).
    """
    snr = (signal / noise).square()
    scale = {"x0": torch.ones_like(snr), "eps": snr, "v": snr + 1, "flow": (signal + noise).square() / noise.square()}
    return snr.clamp(max=gamma) / scale[prediction]


def initialise(unet: UNet) -> None:
    """Sets the last layer of each residual branch of the U-Net, and its output, to zero, as the original code does."""
    for name, module in unet.named_modules():
        if name == "conv_out" or name.endswith((".conv2", ".proj_out")) and ".ff." not in name:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def load_autoencoder(path: Path, scenes: EmojiScenes) -> tuple[Autoencoder, AutoencoderConfig]:
    """Returns a trained autoencoder, frozen, whose scale gives the scenes' latents unit variance.

    path  a checkpoint, of which the EMA weights are taken, or the folder that was written of it
    """
    if path.is_dir():
        with as_user_error():
            return read_autoencoder(path)
    checkpoint = read_checkpoint(path, "autoencoder")
    config = AutoencoderConfig(**settings_of(checkpoint["recipe"]["part"]["autoencoder"]))
    autoencoder = Autoencoder(config).to(memory_format=torch.channels_last)
    autoencoder.load_state_dict(checkpoint["ema"])
    autoencoder.requires_grad_(False)
    autoencoder.scale = unit_variance_scale(autoencoder, config, scenes)
    return autoencoder, replace(config, scale=autoencoder.scale)


@torch.no_grad()
def unit_variance_scale(autoencoder: Autoencoder, config: AutoencoderConfig, scenes: EmojiScenes) -> float:
    """Returns the scale that gives the latents of the first 512 scenes unit variance."""
    device = device_of(autoencoder)
    latents = [autoencoder.encode(images.to(device))[0] for images in first_images(scenes, 512)]
    return config.scale / torch.cat(latents).std().item()


def load_text_tower(path: Path) -> tuple[TextEncoderConfig, dict[str, Tensor]]:
    """Returns the text tower of a trained CLIP as a TextEncoder's configuration and weights.

    path  a checkpoint, of which the EMA weights are taken, or the folder that was written of it
    """
    if path.is_dir():
        text, found = read_clip(path)
    else:
        checkpoint = read_checkpoint(path, "clip")
        text, found = checkpoint["recipe"]["part"]["text"], checkpoint["ema"]
    width = text["width"]
    config = TextEncoderConfig(width, 4 * width, text["layers"], text["heads"], activation="gelu", pad_id=PAD_ID)
    weights = {}
    for name in TextEncoder(config).state_dict():
        source = names.open_clip_source(name)
        weights[name] = found[source.key.removeprefix(names.OPENCLIP)].chunk(source.parts)[source.part]
    return config, weights


def read_clip(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the text settings and the weights, in float32, of a folder in open_clip's layout."""
    file = folder / "open_clip_config.json"
    if not file.is_file():
        raise UserError(f"no CLIP in {folder}: there is no {file.name}")
    shards = sorted(folder.glob("open_clip_model*.safetensors"))
    weights = {name: tensor.float() for shard in shards for name, tensor in tensors_in(shard).items()}
    return json.loads(file.read_text())["model_cfg"]["text_cfg"], weights
