"""Held-out scenes on their way to noise, and their true masks: what the studies of this package look at.

Letters of shapes: B scenes, C channels, h x w cells of the latent or patches of an attention layer, H x W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from torch import Tensor
from tqdm import tqdm

from experiments.attention.sheets import HEAT, NO_WORD, PALETTE, enlarge, join, legend, text_lines, tinted
from experiments.emoji.world import EmojiScenes, Object, Scene, World, collate, load_atlas, settings_of
from experiments.files import UserError
from experiments.metrics import Bench
from experiments.pictures import sheet
from experiments.run import build
from guidance import Branch, guided
from ldm import LatentDiffusion
from ldm.condition import Conditions, Span
from samplers import ImageNoise, Schedule, Step, as_x_0
from samplers.predict import Predict
from samplers.schedule import CLEAN

Range = tuple[int, int]  # positions of tokens; the second exclusive
PICTURED = 4  # scenes on a figure
OWNERS = {"object 1": f"#{PALETTE[0]}", "object 2": f"#{PALETTE[3]}", "object 3": f"#{PALETTE[1]}"}  # red, blue, green
OWNERS["other words"] = "#fff2a8"


@dataclass(frozen=True)
class Noised:
    """B scenes at a timestep: x_0 and x_t [B, C, h, w] in float32, their captions' conditions, and t as a lone step."""

    scenes: list[Scene]
    x_0: Tensor
    x_t: Tensor
    conditions: Conditions
    step: Step


@dataclass(frozen=True)
class Encoded:
    """B scenes, their places among all, x_0 [B, C, h, w] in float32, and their captions' conditions."""

    indices: range
    scenes: list[Scene]
    x_0: Tensor
    conditions: Conditions


@dataclass(frozen=True)
class Scenes:
    """The settings that studies share: which scenes.

    world         the content of a file in conf/world; icons, cache: the icon packages' folder, the rendered atlas's
    count, seed   held-out scenes 0 .. count - 1 of the scenes' seed
    layouts       kinds of scenes; tinted: every object tinted (true), none (false), or as it comes
    """

    world: dict[str, Any]
    icons: str = "icons"
    cache: str = "outputs/cache"
    count: int = 100
    seed: int = 0
    layouts: Sequence[str] = ("beside", "above")
    tinted: bool | None = None

    def __post_init__(self) -> None:
        self.check_whole("count", 2)
        self.check_whole("seed", 0)
        known = self.world["layouts"]
        if not self.layouts or isinstance(self.layouts, str) or not set(self.layouts) <= set(known):
            raise UserError(f"layouts={self.layouts}: must be a list of some of {', '.join(known)}")

    def check_whole(self, name: str, least: int) -> None:
        """Raises UserError unless a setting is a whole number of at least so many."""
        if type(getattr(self, name)) is not int or getattr(self, name) < least:
            raise UserError(f"{name}={getattr(self, name)}: must be a whole number of at least {least}")

    def encoded(self, model: LatentDiffusion, bench: Bench, told: str) -> Iterator[Encoded]:
        """Yields the scenes in order, x_0 being the autoencoder's mean. Raises UserError for missing icons."""
        world = World(**settings_of(self.world))
        build.size(model, world.image_size, world.image_size)
        atlas = load_atlas(world, Path(self.icons), Path(self.cache))
        drawn = EmojiScenes(world, atlas, "held_out", self.seed, layouts=tuple(self.layouts), tinted=self.tinted)
        for i in tqdm(range(0, self.count, bench.batch_size), desc=told, leave=False):
            indices = range(i, min(i + bench.batch_size, self.count))
            scenes = [drawn[j] for j in indices]
            pixels = collate(scenes, world).pixels().to(model.device, model.dtype)
            x_0 = model.autoencoder.encode(pixels)[0].float()
            yield Encoded(indices, scenes, x_0, model.conditions([scene.caption for scene in scenes]))

    def about(self, model: LatentDiffusion) -> dict[str, Any]:
        """Returns what the numbers depend on."""
        scenes = {"world": self.world["name"], "split": "held_out", "count": self.count, "seed": self.seed}
        return {"scenes": {**scenes, "layouts": list(self.layouts), "tinted": self.tinted}}


@dataclass(frozen=True)
class SceneStudy(Scenes):
    """And how noisy.

    timestep      t of x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps; x_0 is the autoencoder's mean, and the
                  noise of scene i the first draw of a generator whose seed is i
    """

    timestep: int = 501

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("timestep", 0)

    def batches(self, model: LatentDiffusion, bench: Bench) -> Iterator[Noised]:
        """Yields the scenes in order. Raises UserError for a timestep beyond the model's, and for missing icons."""
        schedule = Schedule.of(model.config.schedule)
        if self.timestep >= schedule.num_timesteps:
            raise UserError(f"timestep={self.timestep}: the model's are 0 to {schedule.num_timesteps - 1}")
        step = Step(0, 1, schedule.level(self.timestep), CLEAN)
        for some in self.encoded(model, bench, f"t={self.timestep}"):
            eps = ImageNoise(some.indices, tuple(some.x_0.shape[1:]), model.device)()
            yield Noised(some.scenes, some.x_0, step.now.x_t(some.x_0, eps), some.conditions, step)

    def about(self, model: LatentDiffusion) -> dict[str, Any]:
        """Returns what the numbers depend on. Sampling begins at the largest t: few steps come before a large one."""
        before = 1 - (self.timestep + 1) / model.config.schedule.num_timesteps
        return {**super().about(model), "timestep": self.timestep, "share_of_steps_before": before}


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises UserError unless the value is one of the choices."""
    if value not in choices:
        raise UserError(f"{name}={value}: must be {' or '.join(choices)}")


@dataclass(frozen=True)
class Passes:
    """A guidance made of given passes, that keeps what each predicts: eps [B, C, h, w] by the branches' names."""

    wanted: dict[str, Branch]
    eps: dict[str, Tensor] = field(default_factory=dict)
    space = "eps"

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return self.wanted

    def combine(self, eps: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        self.eps.update(eps)
        return next(iter(eps.values()))


def predictor(model: LatentDiffusion) -> Predict:
    """The model's clean estimate x_0 of (x_t, level, condition, edits)."""
    return as_x_0(model.unet, model.config.schedule.prediction)


def predict_each(model: LatentDiffusion, noised: Noised, branches: dict[str, Branch]) -> dict[str, Tensor]:
    """eps [B, C, h, w] of the scenes' x_t, in float32, under each branch; one forward of the U-Net."""
    passes = Passes(branches)
    guided(predictor(model), passes, noised.conditions)(noised.x_t, noised.step)
    return passes.eps


def on_grid(mask: Tensor, height: int, width: int) -> Tensor:
    """Returns the patches [height, width] of a mask [H, W]: those of whose pixels at least half are in it."""
    return F.adaptive_avg_pool2d(mask[None].float(), (height, width))[0] >= 0.5


def in_spoken_order(scene: Scene) -> list[Object]:
    """Returns the scene's objects in the order of its caption."""
    return sorted(scene.objects, key=lambda thing: thing.tokens)


def owners(k: Tensor, objects: Sequence[Range], words: Sequence[Span]) -> Tensor:
    """Returns the owner of each token position in k: an object's index, 3 for other words, 4 for no word."""
    found = torch.full_like(k, len(OWNERS))
    for word in words:
        found[(word.start <= k) & (k < word.stop)] = len(OWNERS) - 1
    for i, (start, stop) in enumerate(objects):
        found[(start <= k) & (k < stop)] = i
    return found


def true_owners(scene: Scene, height: int, width: int) -> Tensor:
    """Returns the owners [height, width] by the true masks; 4 where there is no object."""
    found = torch.full((height, width), len(OWNERS))
    for i, thing in enumerate(scene.objects):
        found[on_grid(thing.mask, height, width)] = i
    return found


def owners_image(scene: Scene, index: Tensor) -> Image.Image:
    """Draws the scene in grey, its patches in their owners' colours [h, w]; mixed, if there are several [H, h, w]."""
    image = scene.image / 255
    table = torch.tensor([ImageColor.getrgb(colour) for colour in (*OWNERS.values(), NO_WORD)]) / 255
    mixed = table[index.reshape(-1, *index.shape[-2:])].mean(dim=0)
    return tinted(image, torch.stack([enlarge(channel, image) for channel in mixed.unbind(dim=-1)]), 0.75)


def heat_image(scene: Scene, values: Tensor, most: float) -> Image.Image:
    """Draws the scene in grey under values [h, w] from 0, black, to `most`, pale yellow."""
    image = scene.image / 255
    ramp = F.interpolate(HEAT.T[None], 256, mode="linear", align_corners=True)[0]  # [3, 256]
    heat = enlarge((values / max(most, 1e-12)).clamp(0, 1).cpu(), image)
    return tinted(image, ramp[:, (255 * heat).long()], 0.75)


def row_label(scene: Scene) -> str:
    """Returns the caption, and the objects' numbers on the figure."""
    numbered = ", ".join(f"{i + 1} {thing.label}" for i, thing in enumerate(scene.objects))
    return f"{scene.caption} ({numbered})"


def figure(
    rows: Sequence[Sequence[Image.Image | None]],
    scenes: Sequence[Scene],
    columns: Sequence[str],
    title: str,
    colours: dict[str, str] = OWNERS,
) -> Image.Image:
    """Draws a row for each scene, below the title and what the colours mean, if any."""
    body = sheet(rows, [row_label(scene) for scene in scenes], columns)
    above = [text_lines(title, body.width), *([legend(colours, body.width)] if colours else [])]
    return join([*above, body])
