"""What can be trained: the parts of the embedded model, and its judge."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from experiments.emoji.judge import Judge, JudgeConfig, Judgement, save_judge
from experiments.emoji.truth import judge_scores, psnr
from experiments.emoji.world import Batch, EmojiScenes, batch, numbers, pixels
from experiments.files import write
from experiments.pictures import sheet, to_image
from experiments.run import build
from guidance import ClassifierFree, guided
from ldm import LatentDiffusion
from ldm.autoencoder import Autoencoder
from ldm.checkpoint import write_folder, write_shards
from ldm.config import AutoencoderConfig, ModelConfig, ScheduleConfig, TextEncoderConfig, UNetConfig
from ldm.names import OPENCLIP, open_clip_source
from ldm.text import TextEncoder, Tokenizer
from ldm.unet import UNet
from samplers import ImageNoise, add_noise, as_eps, ddim

SHARD_BYTES = 14_000_000  # of the exported files
PAD_ID = 0


def stored(path: Path, part: str) -> dict[str, Any]:
    """The checkpoint of a trained part. Raises ValueError if there is none."""
    if not path.is_file():
        raise ValueError(f"no {part} at {path}: `python -m experiments.train part=SIZE/{part}` makes one")
    return torch.load(path, map_location="cpu", weights_only=True)


class Part(nn.Module):
    """A module whose forward is a training loss: a scalar of a Batch and the CPU generator of all its chance."""

    network: nn.Module  # what is trained

    def picture(self, scenes: EmojiScenes) -> Image.Image | None:
        """What the network can do by now, on the first eight scenes."""
        raise NotImplementedError

    def finish(self, held_out: EmojiScenes, out: Path) -> str:
        """Write what others use of the trained network, and say how good it is."""
        raise NotImplementedError


class AutoencoderPart(Part):
    """The KL autoencoder: mean absolute error of a decoded sample of q(z | image), plus a little KL to N(0, I)."""

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes):
        super().__init__()
        self.config = AutoencoderConfig(**numbers(cfg.autoencoder))
        self.network: Autoencoder = Autoencoder(self.config)
        self.kl_weight = cfg.kl_weight

    def forward(self, scenes: Batch, g: torch.Generator) -> Tensor:
        images = scenes.pixels()
        mean, logvar = (moment.float() for moment in self.network.encode(images))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        decoded = self.network.decode(sample_posterior(mean, logvar, g)).float()
        return (decoded - images).abs().mean() + self.kl_weight * kl

    @torch.no_grad()
    def picture(self, scenes: EmojiScenes) -> Image.Image:
        """Scenes, and below them what is decoded of their latents."""
        images = batch(scenes, range(8)).to(device_of(self)).pixels()
        decoded = self.network.decode(self.network.encode(images)[0]).clamp(-1, 1)
        rows = [[to_image(image / 2 + 0.5) for image in row] for row in (images, decoded)]
        return sheet(rows, ["scene", "decoded"])

    def finish(self, held_out: EmojiScenes, out: Path) -> str:
        value = mean(psnr(self.network, held_out, 500))
        return f"PSNR on 500 held-out scenes, decoded from the means of q: {value:.2f} dB"


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
            "vision_cfg": {**numbers(cfg.vision), "image_size": scenes.world.image_size},
            "text_cfg": numbers(cfg.text),
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
        """Write the whole model as open_clip does, open_clip_config.json and the weights, but in shards."""
        folder = out / "model"
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.half() for name, value in self.network.state_dict().items()}
        write_shards(weights, folder, "open_clip_model", SHARD_BYTES)
        about = {"model_cfg": self.config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        write(folder / "open_clip_config.json", json.dumps(about, indent=1) + "\n")
        return f"of 50 held-out scenes, the right caption for {self.accuracy(held_out):.1%}: {folder}"

    @torch.no_grad()
    def accuracy(self, scenes: EmojiScenes, count: int = 500, among: int = 50) -> float:
        """The share of scenes to which the network gives their own caption among those of `among` scenes."""
        right = 0
        for i in range(0, count, among):
            some = batch(scenes, range(i, i + among)).to(device_of(self))
            out = self.network(some.pixels(), self.tokenizer(some.captions).ids.to(some.images.device))
            similarity = out["image_features"] @ out["text_features"].T
            right += (similarity.argmax(dim=1).cpu() == torch.arange(among)).sum().item()
        return right / count


class UNetPart(Part):
    """The U-Net with the text encoder: L_simple (Ho et al. 2020, eq. 14) on latents of a trained autoencoder.

    The target is what the schedule's prediction names: the noise, v (Salimans & Ho 2022) or x_0. The text encoder
    begins as CLIP's text tower and learns on, unless `train_text` is off.

    Even at the largest t the mean of x_t over its cells betrays that of x_0 (alpha_bar there is not 0): the network
    finds the background's colour in it and does not learn it from the text. `noise_offset` is the standard deviation of
    noise that all cells of a channel share; added to eps in training, it covers the mean. Sampling needs no such thing.
    """

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes, autoencoder: Path, clip: Path):
        super().__init__()
        self.autoencoder, latents = load_autoencoder(autoencoder, scenes)
        text, tower = load_text_tower(clip)
        self.config = ModelConfig(
            UNetConfig(**numbers(cfg.unet)),
            latents,
            text,
            ScheduleConfig(**numbers(cfg.schedule)),
            scenes.world.image_size,
        )
        self.unet, self.text_encoder = UNet(self.config.unet), TextEncoder(text)
        initialise(self.unet)
        self.text_encoder.load_state_dict(tower)
        self.text_encoder.requires_grad_(cfg.train_text)
        self.network = nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})
        self.tokenizer = Tokenizer(PAD_ID)
        self.schedule = build.schedule(self.config.schedule)
        self.caption_dropout = cfg.caption_dropout
        self.noise_offset = cfg.noise_offset

    def forward(self, scenes: Batch, g: torch.Generator) -> Tensor:
        with torch.no_grad():
            mean, logvar = self.autoencoder.encode(scenes.pixels())
            x_0 = sample_posterior(mean.float(), logvar.float(), g)
        dropped = torch.rand(len(scenes.captions), generator=g) < self.caption_dropout
        captions = ["" if drop else caption for drop, caption in zip(dropped, scenes.captions, strict=True)]
        text = self.text_encoder(self.tokenizer(captions).ids.to(x_0.device))
        t = torch.randint(self.schedule.num_timesteps, (len(x_0),), generator=g)
        eps = torch.randn(x_0.shape, generator=g)
        eps += self.noise_offset * torch.randn((*x_0.shape[:2], 1, 1), generator=g)
        eps = eps.to(x_0.device)
        alpha_bar = self.schedule.alpha_bar[t]
        x_t = add_noise(x_0, eps, alpha_bar).contiguous(memory_format=torch.channels_last)
        a = alpha_bar.float().to(x_0.device)[:, None, None, None]
        target = {"eps": eps, "x0": x_0, "v": a.sqrt() * eps - (1 - a).sqrt() * x_0}[self.config.schedule.prediction]
        return (self.unet(x_t, t.to(x_0.device), text).float() - target).square().mean()

    def model(self) -> LatentDiffusion:
        return LatentDiffusion(self.unet, self.autoencoder, self.text_encoder, self.config)

    @torch.no_grad()
    def picture(self, scenes: EmojiScenes) -> Image.Image:
        """What 20 classifier-free steps make of the captions of eight scenes."""
        model, captions = self.model(), [scenes.caption(i)[0] for i in range(8)]
        predict = as_eps(model.unet, self.config.schedule.prediction, self.schedule.alpha_bar)
        denoise = guided(predict, ClassifierFree(3.0), model.texts(captions))
        size = self.config.image_size
        x_T = ImageNoise(list(range(8)), model.latent_shape(size, size), model.device)()
        *_, (_, x_t, _) = ddim(denoise, x_T, self.schedule.steps(20), self.schedule.alpha_bar)
        return sheet([[to_image(image) for image in model.decode(x_t)]], [""], captions)

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
        verdict: Judgement = self.network(images.contiguous(memory_format=torch.channels_last))
        labels, colours = scenes.labels.long(), scenes.colours.long()
        present = F.one_hot(labels.flatten(1), verdict.labels.shape[1]).amax(dim=1)[:, 1:].float()
        presence = F.binary_cross_entropy_with_logits(verdict.presence, present)
        shape = F.cross_entropy(verdict.labels, labels)
        # of tinted pixels alone; a sum, since there may be none
        colour = F.cross_entropy(verdict.colours, colours - 1, ignore_index=-1, reduction="sum")
        return presence + shape + colour / (colours > 0).sum().clamp(min=1)

    @torch.no_grad()
    def picture(self, scenes: EmojiScenes) -> Image.Image:
        """Scenes, and below them where the judge sees something."""
        images = batch(scenes, range(8)).to(device_of(self)).pixels()
        seen = self.network(images).labels.argmax(dim=1, keepdim=True) > 0
        rows = [[to_image(image / 2 + 0.5) for image in row] for row in (images, torch.where(seen, images, -1.0))]
        return sheet(rows, ["scene", "seen"])

    def finish(self, held_out: EmojiScenes, out: Path) -> str:
        save_judge(self.network, out / "model")
        scores = judge_scores(self.network, held_out, 500)
        return ", ".join(f"{name} {mean(values):.2%}" for name, values in scores.items()) + f": {out / 'model'}"


def sample_posterior(mean: Tensor, logvar: Tensor, g: torch.Generator) -> Tensor:
    """A draw of q(z | image)."""
    return mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=g).to(mean.device)


def device_of(module: nn.Module) -> str:
    return str(next(module.parameters()).device)


def initialise(unet: UNet) -> None:
    """As in the original code: each residual branch of the U-Net, and its output, begin at zero."""
    for name, module in unet.named_modules():
        if name == "conv_out" or name.endswith((".conv2", ".proj_out")) and ".ff." not in name:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def load_autoencoder(path: Path, scenes: EmojiScenes) -> tuple[Autoencoder, AutoencoderConfig]:
    """A trained autoencoder (its EMA weights, frozen), its scale set so that the scenes' latents have unit variance."""
    checkpoint = stored(path, "autoencoder")
    config = AutoencoderConfig(**numbers(checkpoint["recipe"]["part"]["autoencoder"]))
    autoencoder = Autoencoder(config).to(memory_format=torch.channels_last)
    autoencoder.load_state_dict(checkpoint["ema"])
    autoencoder.requires_grad_(False)
    std = torch.cat([autoencoder.encode(images)[0] for images in pixels(scenes, 512)]).std().item()
    autoencoder.scale = config.scale / std
    return autoencoder, replace(config, scale=autoencoder.scale)


def load_text_tower(path: Path) -> tuple[TextEncoderConfig, dict[str, Tensor]]:
    """The text tower of a trained CLIP (its EMA weights) as a TextEncoder's configuration and weights."""
    checkpoint = stored(path, "clip")
    text = checkpoint["recipe"]["part"]["text"]
    width = text["width"]
    config = TextEncoderConfig(width, 4 * width, text["layers"], text["heads"], activation="gelu", pad_id=PAD_ID)
    weights = {}
    for name in TextEncoder(config).state_dict():
        source = open_clip_source(name)
        weights[name] = checkpoint["ema"][source.key.removeprefix(OPENCLIP)].chunk(source.parts)[source.part]
    return config, weights


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
