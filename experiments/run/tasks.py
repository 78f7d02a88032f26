"""What a run is given beside words: pictures and masks.

Every task comes to three things: where the loop starts, what is concatenated to x_t, and what is kept of x_t.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from experiments.files import UserError, as_user_error, say
from experiments.run.build import Machine, Request
from experiments.run.images import GivenImage, read_image, read_images, resized
from ldm import LatentDiffusion
from samplers import KeyedNoise
from samplers.inpainting import Known, Sampler, replacing, resampling, takes_single_steps

SMALLEST = 64  # pixels a side, of a picture that is not to be enlarged
SETTINGS = ("strength", "resample", "blend", "noise_level")


@dataclass(frozen=True)
class Task:
    """A task: its settings, as conf/task explains them, and its pictures as the model is to see them.

    images  [K, 3, H, W] in [0, 1]; for upscale H and W are those of the latent
    masks   [K, 1, H, W], 1 where a pixel is drawn anew
    files   of each picture its file's name and hash, and its mask's
    which   of each prompt the position of its picture
    """

    name: str = "text"
    strength: float = 1.0
    resample: int = 1
    blend: bool = True
    noise_level: float = 0.0
    images: Tensor | None = None
    masks: Tensor | None = None
    files: tuple[dict[str, str], ...] = ()
    which: tuple[int, ...] = ()

    @property
    def contents(self) -> dict[str, str]:
        """Hashes of all the files, by what they are."""
        if not self.files:
            return {}
        kinds = [key for key in self.files[0] if key.endswith("_sha256")]
        joined = {kind: "".join(file[kind] for file in self.files) for kind in kinds}
        return {f"task.{kind}": hashlib.sha256(text.encode()).hexdigest() for kind, text in joined.items()}

    def about(self, p: int) -> dict[str, str]:
        """The names and hashes of the p-th prompt's files."""
        return self.files[self.which[p]] if self.files else {}

    def determining(self, p: int) -> dict[str, Any]:
        """What the p-th prompt's pictures depend on: settings and contents, and no path."""
        if not self.files:
            return {}
        hashes = {key: value for key, value in self.about(p).items() if key.endswith("_sha256")}
        return {"task": {"name": self.name, **{key: getattr(self, key) for key in SETTINGS}, **hashes}}


# --- reading ----------------------------------------------------------------------------------------------------------


def read_task(cfg: DictConfig | None, request: Request, model: LatentDiffusion) -> tuple[Task, Request]:
    """Returns the task with its files read, and the request with each picture's prompts, at the pictures' size.

    Raises UserError, or OSError of a file, for files and settings that do not fit each other or the model.
    """
    if cfg is None or cfg.name == "text":
        return Task(), request
    images = read_images(needed(cfg, "image"), "task.image")
    masks = read_masks(needed(cfg, "mask"), images) if cfg.name == "inpaint" else None
    request, which = paired(request, len(images), cfg.match)
    height, width = size_of(cfg.name, images, request, model)
    cell = model.config.downscale if cfg.name == "upscale" else 1
    task = Task(
        name=cfg.name,
        images=torch.stack([resized(image.image, height // cell, width // cell) for image in images]) / 255,
        masks=torch.stack([spread(mask, height, width) for mask in masks]) if masks else None,
        files=tuple(map(named, images, masks or itertools.repeat(None))),
        which=which,
        **{key: cfg[key] for key in SETTINGS if key in cfg},
    )
    check_masks(task)
    return task, replace(request, height=height, width=width)


def needed(cfg: DictConfig, key: str) -> Path:
    """Returns the path in a setting that the task cannot do without. Raises UserError where there is none."""
    if cfg[key] is None:
        white = ", as large as the picture; white is redrawn" if key == "mask" else ""
        raise UserError(f"task={cfg.name} needs task.{key}=FILE, or a folder{white}")
    return Path(str(cfg[key]))


def read_masks(path: Path, images: Sequence[GivenImage]) -> list[GivenImage]:
    """Reads each picture's mask: of its name in a folder, or one for all. Raises UserError for one of another size."""
    found = {file.stem: file for file in path.iterdir()} if path.is_dir() else {}
    masks = []
    for image in images:
        file = found.get(Path(image.name).stem) if path.is_dir() else path
        if file is None:
            raise UserError(f"task.mask={path}: there is no mask for {image.name} in it")
        mask = read_image(file, "task.mask")
        if mask.size != image.size:
            raise UserError(
                f"task.mask={file}: is {in_pixels(mask.size)}, and {image.name} is {in_pixels(image.size)}: "
                "a mask must be as large as its picture"
            )
        masks.append(replace(mask, image=mask.image.convert("L")))
    return masks


def spread(mask: GivenImage, height: int, width: int) -> Tensor:
    """Returns a mask [1, height, width]: 1 where any of the pixels that come to lie there is white."""
    return F.adaptive_max_pool2d((resized(mask.image, *mask.size)[:1] >= 128).float(), (height, width))


def check_masks(task: Task) -> None:
    """Raises UserError for a mask that leaves nothing to draw; warns of one that keeps nothing."""
    for mask, file in zip(task.masks if task.masks is not None else [], task.files, strict=False):
        if not mask.any():
            raise UserError(f"task.mask: {file['mask']} has no white in it, and white is what is redrawn")
        if mask.all():
            say(f"warning: task.mask: {file['mask']} is all white, so that nothing is kept")


def named(image: GivenImage, mask: GivenImage | None) -> dict[str, str]:
    about = {"image": image.name, "image_sha256": image.sha256}
    return about | ({} if mask is None else {"mask": mask.name, "mask_sha256": mask.sha256})


def paired(request: Request, count: int, match: str) -> tuple[Request, tuple[int, ...]]:
    """Returns the request for so many given pictures, and the position of each prompt's.

    match  "every": every prompt for each picture; "in_order": the i-th for the i-th
    Raises UserError where their numbers do not fit.
    """
    prompts = len(request.prompts)
    if match == "in_order":
        if prompts != count:
            raise UserError(f"task.match=in_order: there are {count} pictures and {prompts} prompts")
        return request, tuple(range(count))
    pictures = [(k * prompts + p, seed) for k in range(count) for p, seed in request.pictures]
    which = tuple(k for k in range(count) for _ in range(prompts))
    return replace(request, prompts=request.prompts * count, pictures=pictures), which


def size_of(task: str, images: Sequence[GivenImage], request: Request, model: LatentDiffusion) -> tuple[int, int]:
    """Returns height and width of the pictures to be drawn, and says how they come from the given ones'.

    They are the request's, or else the given pictures' own (for upscale enlarged), rounded down to what the model can
    take. Raises UserError for pictures that are too small, and for different ones without a common size.
    """
    sizes = {image.size: image.name for image in images}
    own = images[0].size
    for size, name in sizes.items():
        if task != "upscale" and min(size) < SMALLEST:
            raise UserError(f"task.image: {name} is {in_pixels(size)}: at least {SMALLEST} a side are needed")
        if size != own and (request.height is None or request.width is None):
            raise UserError(
                f"task.image: {images[0].name} is {in_pixels(own)}, and {name} is {in_pixels(size)}: "
                "give height and width, which all are resized to"
            )
    factor = model.config.downscale if task == "upscale" else 1
    rounded = [side * factor // model.config.size_multiple * model.config.size_multiple for side in own]
    height, width = request.height or rounded[0], request.width or rounded[1]
    with as_user_error():
        model.latent_shape(height, width)
    what = f"{images[0].name}, {in_pixels(own)}," if len(images) == 1 else f"each of {len(images)} pictures"
    say(f"task={task}: {what} is drawn at {in_pixels((height, width))}")
    return height, width


def in_pixels(size: tuple[int, int]) -> str:
    """A height and a width as people write them."""
    return f"{size[1]} x {size[0]} px"


# --- drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What a task gives to pictures that are drawn together.

    start     [B, C, h, w], where the loop starts: x_T, or a noised latent
    channels  [B, c, h, w], concatenated to x_t
    known     what is kept of the latent, and `times`, how often each step is taken for it
    kept      images [B, 3, H, W] in [0, 1] and masks [B, 1, H, W]: what the finished images are outside of the masks
    """

    start: Tensor
    channels: Tensor | None = None
    known: Known | None = None
    times: int = 1
    kept: tuple[Tensor, Tensor] | None = None

    def around(self, sampler: Sampler) -> Sampler:
        """The sampler, within what is known."""
        if self.known is None:
            return sampler
        return replacing(sampler, self.known) if self.times == 1 else resampling(sampler, self.known, self.times)

    def finished(self, images: Tensor) -> Tensor:
        """The decoded images [B, 3, H, W] in [0, 1], with what is kept of the given ones."""
        if self.kept is None:
            return images
        given, masks = self.kept
        return torch.where(masks.bool(), images, given)


@torch.no_grad()
def given(task: Task, machine: Machine, prompts: Sequence[int], seeds: Sequence[int], x_T: Tensor) -> Given:
    """Returns what the task gives to pictures of these prompts (by position) and seeds, whose first draws are x_T."""
    if task.images is None:
        return Given(x_T)
    which, model = [task.which[p] for p in prompts], machine.model
    images = task.images[which]
    if task.name == "upscale":
        noise = KeyedNoise(seeds)("upscale", tuple(images.shape[1:]))
        level = torch.full((len(images),), task.noise_level)
        told = model.config.in_channels - model.config.latent_channels == 4
        return Given(x_T, small_picture(2 * images - 1, level, noise, told).to(x_T.device))
    x_0 = model.encode(images)
    begun = machine.steps[0].now.x_t(x_0, x_T) if machine.steps else x_0
    if task.masks is None:
        return Given(begun)
    masks = task.masks[which]
    cells = F.max_pool2d(masks, model.config.downscale).to(x_T.device)
    start, kept = begun if task.strength < 1 else x_T, (images, masks) if task.blend else None
    if model.config.in_channels == model.config.latent_channels:
        return Given(start, None, Known(x_0, x_T, cells), task.resample, kept)
    grey = torch.where(masks.bool(), 0.5, images)
    return Given(start, torch.cat([cells, model.encode(grey)], dim=1), kept=kept)


def small_picture(picture: Tensor, level: Tensor, noise: Tensor, told: bool) -> Tensor:
    """What an upscaling network sees beside x_t: a small picture [B, 3, h, w] in [-1, 1], noised to s = level [B] as
    sqrt(1 - s^2) picture + s noise (conditioning augmentation, Ho et al. 2021, section 4), and, where it is told so,
    s as a channel of its own.
    """
    s = level[:, None, None, None]
    noised = (1 - s.square()).sqrt() * picture + s * noise
    return torch.cat([noised, s.expand(-1, 1, *picture.shape[2:])], dim=1) if told else noised


def check_resampling(task: Task, machine: Machine) -> None:
    """Raises UserError for a task whose steps cannot be taken several times."""
    if task.resample == 1 or not machine.steps:
        return
    if machine.model.config.in_channels != machine.model.config.latent_channels:
        raise UserError(f"task.resample={task.resample}: an inpainting model sees the mask itself: leave it at 1")
    if not machine.steps[0].now.signal:
        raise UserError(f"task.resample={task.resample}: no noise leads back to a level without signal")
    if not takes_single_steps(machine.sampler, machine.steps):
        raise UserError(
            f"task.resample={task.resample}: this sampler remembers earlier steps: use ddim, ddpm, euler, "
            "euler_ancestral, euler_maruyama, heun or langevin"
        )
