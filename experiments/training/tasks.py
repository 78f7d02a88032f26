"""U-Nets of tasks beside text to image: what they are told of a scene, and what lies beside its noisy latent."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from experiments.emoji.truth import device_of
from experiments.emoji.world import Batch, EmojiScenes, batch_of, settings_of
from experiments.files import UserError
from experiments.pictures import sheet, to_image
from experiments.run.tasks import small_picture
from experiments.training.parts import UNetPart, initialise, load_autoencoder
from guidance import ClassifierFree, guided
from ldm import LatentDiffusion
from ldm.autoencoder import Autoencoder
from ldm.boxes import Box, write_layout
from ldm.condition import Condition
from ldm.config import BoxesConfig, ClassesConfig, ModelConfig, ScheduleConfig, UNetConfig
from ldm.files.reading import load_model
from ldm.model import encoder_of
from ldm.unet import UNet
from samplers import ImageNoise, Schedule, as_x_0, ddim

BESIDE = {"upscale": 4, "classes": 0, "boxes": 0}  # channels beside the latent's: of inpainting, a mask and a latent


class InpaintPart(UNetPart):
    """The U-Net with the text encoder, that sees a mask and the latent of the picture hidden by it.

    A mask is the grown box of one of the scene's objects, or, as often as `share_random` says, any box. What is told is
    the hidden object's own words, as often as `share_own` says, else the whole caption. The text encoder's token table
    stays CLIP's, so that it need not be written again.
    """

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes, autoencoder: Path, clip: Path, begins_with: Path | None):
        super().__init__(cfg, scenes, autoencoder, clip)
        self.share_random, self.share_own = cfg.share_random, cfg.share_own
        self.table.requires_grad_(False)
        if begins_with is not None:
            begin_with(self.unet, begins_with)

    def channels(self, latent: int) -> dict[str, Any]:
        return {"in_channels": 2 * latent + 1, "out_channels": latent}

    def condition_of(self, scenes: Batch, dropped: Tensor, g: torch.Generator) -> Condition:
        masks, things = masks_of(scenes, self.share_random, g)
        own = (torch.rand(len(things), generator=g) < self.share_own).tolist()
        parts = zip(own, things, scenes.words, scenes.captions, strict=True)
        captions = [words[thing] if alone and thing else caption for alone, thing, words, caption in parts]
        text = super().condition_of(replace(scenes, captions=captions), dropped, g).tokens
        return Condition(text, channels=hidden(self.autoencoder, scenes, masks))

    def picture(self, scenes: EmojiScenes) -> Image.Image:
        return drawn(self.model(), self, scenes)


class TaskPart(UNetPart):
    """The U-Net of a task without text: upscaling is told nothing, the others classes or boxes.

    It is trained as `UNetPart`, whose settings it has; `noise_level` is the most noise on upscaling's small pictures.
    """

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes, autoencoder: Path, begins_with: Path | None):
        nn.Module.__init__(self)
        self.autoencoder, latents = load_autoencoder(autoencoder, scenes)
        self.task = str(cfg.name)
        labels = tuple(scenes.world.concepts)
        channels, width = latents.latent_channels, cfg.unet.text_width
        self.config = ModelConfig(
            UNetConfig(channels + BESIDE[self.task], channels, **settings_of(cfg.unet)),
            latents,
            schedule=ScheduleConfig(**settings_of(cfg.schedule)),
            image_size=scenes.world.image_size,
            condition="nothing" if self.task == "upscale" else self.task,
            classes=ClassesConfig(labels, width) if self.task == "classes" else ClassesConfig(),
            boxes=BoxesConfig(labels, width, cfg.most) if self.task == "boxes" else BoxesConfig(),
        )
        self.unet, encoder = UNet(self.config.unet), encoder_of(self.config)
        initialise(self.unet)
        if begins_with is not None:
            begin_with(self.unet, begins_with)
        self.encoder = encoder
        self.network = nn.ModuleDict({"unet": self.unet} | ({} if encoder is None else {"told": encoder}))
        self.schedule = Schedule.of(self.config.schedule)
        self.caption_dropout, self.noise_offset, self.min_snr = cfg.caption_dropout, cfg.noise_offset, cfg.min_snr
        self.noise_level = cfg.get("noise_level", 0.0)

    def condition_of(self, scenes: Batch, dropped: Tensor, g: torch.Generator) -> Condition:
        if self.task == "upscale":
            level = self.noise_level * torch.rand(len(scenes.captions), generator=g)
            return Condition(channels=shrunk(scenes, self.config.downscale, level, g))
        tell = class_of if self.task == "classes" else layout_of
        names = list(scenes_labels(self.config))
        prompts = ["" if drop else tell(labels, names) for drop, labels in zip(dropped, scenes.labels, strict=True)]
        return self.model().condition(prompts)

    def model(self) -> LatentDiffusion:
        return LatentDiffusion(self.unet, self.autoencoder, self.encoder, self.config)

    def picture(self, scenes: EmojiScenes) -> Image.Image:
        return drawn(self.model(), self, scenes)


def scenes_labels(config: ModelConfig) -> tuple[str, ...]:
    return config.classes.names or config.boxes.names


@torch.no_grad()
def begin_with(unet: UNet, folder: Path) -> None:
    """Gives a U-Net the weights of a trained model's that has the same layers.

    Channels of its input that the other does not have begin as if they were not there. Raises UserError if there is no
    such model, or if it has other layers.
    """
    if not folder.is_dir():
        raise UserError(f"begins_with: no model in {folder}: train that part first, or set part.begins_with=null")
    weights = load_model(folder).unet.state_dict()
    mine, known = unet.state_dict(), weights["conv_in.weight"]
    beside = mine["conv_in.weight"].shape[1] - known.shape[1]
    weights["conv_in.weight"] = torch.cat([known, known.new_zeros(len(known), max(beside, 0), 3, 3)], dim=1)
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in mine.items()}:
        raise UserError(f"begins_with={folder}: its U-Net has other layers than this part's")
    unet.load_state_dict(weights)


# --- of scenes --------------------------------------------------------------------------------------------------------


def objects_of(labels: Tensor) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Returns the objects in a map of labels [H, W]: 1 + the index of each one's concept, and its box in pixels.

    A box is left, top, right and bottom, the last two exclusive. No scene shows a concept twice.
    """
    found = []
    for k in labels.unique().tolist():
        if k:
            rows, columns = ((labels == k).any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
            found.append((k, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))
    return found


def class_of(labels: Tensor, names: list[str]) -> str:
    """Returns the name of the object that covers most of a map of labels [H, W]."""
    counts = torch.bincount(labels.flatten().long(), minlength=1 + len(names))[1:]
    return names[int(counts.argmax())]


def layout_of(labels: Tensor, names: list[str]) -> str:
    """Returns the prompt that tells the boxes in a map of labels [H, W], to a thousandth of the picture."""
    height, width = labels.shape
    boxes = []
    for k, (left, top, right, bottom) in objects_of(labels):
        corners = (round(x / side, 3) for x, side in zip((left, top, right, bottom), (width, height) * 2, strict=True))
        boxes.append(Box(names[k - 1], *corners))
    return write_layout(boxes)


def masks_of(scenes: Batch, share_random: float, g: torch.Generator) -> tuple[Tensor, list[int]]:
    """Returns masks [B, 1, H, W], 1 where a picture is to be drawn anew: grown boxes of objects, or any boxes.

    With them, which objects: 1 + the index of each one's concept; 0 for any box.
    """
    count, size = len(scenes.captions), scenes.labels.shape[-1]
    draws = torch.rand(count, 6, generator=g).tolist()
    masks, hidden_things = torch.zeros(count, 1, size, size), []
    for mask, labels, (which, which_object, *corners) in zip(masks, scenes.labels, draws, strict=True):
        things, thing = objects_of(labels), 0
        if things and which >= share_random:
            thing, box = things[int(which_object * len(things))]
            box = grown(box, size, round(6 * corners[0]))
        else:
            left, right, top, bottom = (int(size * corner) for corner in sorted(corners[:2]) + sorted(corners[2:]))
            box = left, top, max(right, left + size // 8), max(bottom, top + size // 8)
        mask[:, box[1] : box[3], box[0] : box[2]] = 1
        hidden_things.append(thing)
    return masks, hidden_things


def grown(box: tuple[int, int, int, int], size: int, by: int) -> tuple[int, int, int, int]:
    """Returns a box with so many pixels more on each side, within the picture."""
    left, top, right, bottom = box
    return max(left - by, 0), max(top - by, 0), min(right + by, size), min(bottom + by, size)


@torch.no_grad()
def hidden(autoencoder: Autoencoder, scenes: Batch, masks: Tensor) -> Tensor:
    """Returns what an inpainting network sees [B, 1 + C, h, w]: the masks' cells, and the hidden picture's latent."""
    pixels = scenes.pixels()
    masks = masks.to(pixels.device)
    latents = autoencoder.encode(torch.where(masks.bool(), 0, pixels))[0].float()
    return torch.cat([F.max_pool2d(masks, pixels.shape[-1] // latents.shape[-1]), latents], dim=1)


def shrunk(scenes: Batch, factor: int, level: Tensor, g: torch.Generator) -> Tensor:
    """Returns what an upscaling network sees [B, 4, h, w]: means of pixels, noised to `level` [B], and it."""
    small = F.avg_pool2d(scenes.pixels(), factor)
    noise = torch.randn(small.shape, generator=g).to(small.device)
    return small_picture(small, level.to(small.device), noise, told=True)


@torch.no_grad()
def drawn(model: LatentDiffusion, part: UNetPart, scenes: EmojiScenes, count: int = 8) -> Image.Image:
    """Returns scenes, and below them what 20 classifier-free steps make of what the network is told of them."""
    batch, g = batch_of(scenes, range(count)).to(device_of(part)), torch.Generator().manual_seed(0)
    told, untold = (part.condition_of(batch, torch.full((count,), drop), g.manual_seed(0)) for drop in (False, True))
    size = model.config.image_size
    conditions = replace(model.conditions([""] * count), cond=told, negative=untold)
    denoise = guided(as_x_0(model.unet, model.config.schedule.prediction), ClassifierFree(3.0), conditions)
    x_T = ImageNoise(list(range(count)), model.latent_shape(size, size), model.device)()
    *_, (_, x_t, _) = ddim(denoise, x_T, Schedule.of(model.config.schedule).steps(20))
    rows = [batch.pixels() / 2 + 0.5, model.decode(x_t)]
    return sheet([[to_image(image) for image in row] for row in rows], ["scene", "drawn"])
