"""The emoji world: scenes composed of emoji, of which the whole truth is known (caption, objects, boxes, masks).

Icons come from npm packages of Iconify (never committed here), are rendered once into an atlas, and a scene is then a
deterministic function of (seed, index), made in a fraction of a millisecond.
"""

import hashlib
import io
import itertools
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class World:
    """What there is to see and how it is told: the content of one file in conf/world.

    In a template, {0} and {1} stand for the objects from left to right and {background} for the background's word.
    """

    image_size: int  # pixels, both sides
    concepts: dict[str, str]  # noun in captions -> icon name in the packages
    styles: dict[str, str]  # style word in captions -> npm package under @iconify-json
    backgrounds: dict[str, tuple[int, int, int]]  # word -> RGB, 0 .. 255
    sizes_one: tuple[int, ...]  # sides in pixels of an object that is alone
    sizes_two: tuple[int, ...]  # and of two side by side: at most half the image
    templates_one: tuple[str, ...]
    templates_two: tuple[str, ...]
    share_two: float = 0.4  # of the scenes have two objects
    share_styled: float = 0.5  # of the objects are told with their style
    share_held_out: float = 0.12  # of the combinations never appear in training
    split_seed: int = 0  # which those are

    def __post_init__(self) -> None:
        if max(self.sizes_one) > self.image_size or max(self.sizes_two) > self.image_size // 2:
            raise ValueError(f"objects do not fit: sizes_one up to {self.image_size}, sizes_two up to half of that")


@dataclass(frozen=True)
class Object:
    label: str
    style: str
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom exclusive
    mask: Tensor  # bool [H, W]


@dataclass(frozen=True)
class Scene:
    image: Tensor  # uint8 [3, H, W]
    caption: str
    objects: tuple[Object, ...]
    background: str


# noun, style word, side in pixels -> float32 [side, side, 4]: RGBA in [0, 1], colours multiplied by opacity
Atlas = dict[tuple[str, str, int], np.ndarray]


def load_icons(folder: Path, package: str) -> dict[str, Any]:
    """icons.json of an Iconify package in the folder: the .tgz that `npm pack` leaves there, or unpacked beside it."""
    command = f"run `npm pack @iconify-json/{package}` in {folder}"
    found = sorted(folder.glob(f"iconify-json-{package}-[0-9]*"))
    if not found:
        raise ValueError(f"the icon package {package} is missing: {command}")
    try:
        if found[-1].is_dir():
            icons = json.loads((found[-1] / "package" / "icons.json").read_text(encoding="utf-8"))
        else:
            with tarfile.open(found[-1]) as archive:
                file = archive.extractfile("package/icons.json")
                assert file is not None
                icons = json.load(file)
        icons["icons"]
        return icons
    except (OSError, EOFError, KeyError, TypeError, ValueError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"the icon package {found[-1]} is damaged ({error}): {command} again") from error


def render(icons: dict[str, Any], name: str, side: int) -> np.ndarray:
    """One icon as uint8 [side, side, 4]: RGBA, colours not multiplied by opacity."""
    import resvg_py  # only here, so that a rendered atlas needs no renderer

    icon = icons["icons"][name]
    box = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's defaults, under the package's, under the icon's
    left, top, width, height = (icon.get(key, icons.get(key, default)) for key, default in box.items())
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{side}" height="{side}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def load_atlas(world: World, folder: Path, cache: Path) -> Atlas:
    """Every object of the world at every side it may have: rendered from the packages in `folder`, kept in `cache`.

    Raises ValueError, naming the package, for one that is missing, damaged or without an icon of the world.
    """
    sides = sorted({*world.sizes_one, *world.sizes_two})
    packages = sorted(path.name for path in folder.glob("*"))
    what = json.dumps([world.concepts, world.styles, sides, packages])
    file = cache / f"atlas-{hashlib.blake2b(what.encode(), digest_size=8).hexdigest()}.npz"
    if not file.exists():
        rendered = {}
        for style, package in world.styles.items():
            icons = load_icons(folder, package)
            missing = sorted(set(world.concepts.values()) - set(icons["icons"]))
            if missing:
                raise ValueError(f"the icon package {package} has no icon {', '.join(missing)}")
            for noun, side in itertools.product(world.concepts, sides):
                rendered[f"{noun}|{style}|{side}"] = render(icons, world.concepts[noun], side)
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".tmp.npz")
        np.savez_compressed(part, allow_pickle=False, **rendered)
        part.replace(file)
    atlas = {}
    with np.load(file) as stored:
        for noun, style, side in itertools.product(world.concepts, world.styles, sides):
            rgba = stored[f"{noun}|{style}|{side}"].astype(np.float32) / 255
            rgba[..., :3] *= rgba[..., 3:]
            atlas[noun, style, side] = rgba
    return atlas


def is_held_out(world: World, combination: tuple[str, ...]) -> bool:
    """Whether scenes with this combination are kept out of training: a coin thrown by a hash of its words."""
    text = "|".join([str(world.split_seed), *combination])
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return number / 2**64 < world.share_held_out


def combinations(labels: list[str], styles: list[str], background: str) -> list[tuple[str, ...]]:
    """What the split looks at: (label, style, background) of each object, and (two labels, background)."""
    pair = [("pair", *sorted(labels), background)] if len(labels) == 2 else []
    return [("one", label, style, background) for label, style in zip(labels, styles, strict=True)] + pair


def phrase(words: str) -> str:
    """ "cat" -> "a cat", "emojione cat" -> "an emojione cat"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


class EmojiScenes(Dataset):
    """Scenes of a world, each a function of (seed, index).

    `split` is "train" or "held_out". Every held-out scene shows a combination that no training scene does, and its
    caption names all of it (styles and background), so the caption too is one that training never sees.
    """

    def __init__(self, world: World, atlas: Atlas, split: str = "train", seed: int = 0, length: int = 1_000_000):
        assert split in ("train", "held_out"), split
        self.world, self.atlas, self.split, self.seed, self.length = world, atlas, split, seed, length
        self.nouns, self.styles, self.backgrounds = list(world.concepts), list(world.styles), list(world.backgrounds)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index, self.split == "held_out"])
        count = 1 + int(rng.random() < self.world.share_two)  # drawn once, so that the split leaves the share alone
        for _ in range(1000):
            labels, styles, background = self.draw(rng, count)
            held_out = any(is_held_out(self.world, c) for c in combinations(labels, styles, background))
            if held_out == (self.split == "held_out"):
                break
        else:
            raise ValueError(
                f"share_held_out={self.world.share_held_out} leaves no {self.split} scenes of {count} objects"
            )
        image, objects = self.compose(rng, labels, styles, background)
        return Scene(image, self.tell(rng, labels, styles, background), objects, background)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[str], list[str], str]:
        """What is in a scene, from left to right: labels (all different), styles, background."""
        labels = [self.nouns[i] for i in rng.permutation(len(self.nouns))[:count]]
        styles = [self.styles[i] for i in rng.integers(len(self.styles), size=count)]
        return labels, styles, self.backgrounds[rng.integers(len(self.backgrounds))]

    def compose(
        self, rng: np.random.Generator, labels: list[str], styles: list[str], background: str
    ) -> tuple[Tensor, tuple[Object, ...]]:
        """The picture, and the objects in it. Each has its own column of the image and lies anywhere inside that."""
        size = self.world.image_size
        canvas = np.empty((size, size, 3), dtype=np.float32)
        canvas[:] = np.asarray(self.world.backgrounds[background], dtype=np.float32) / 255
        column = size // len(labels)
        sides = self.world.sizes_one if len(labels) == 1 else self.world.sizes_two
        objects = []
        for i, (label, style) in enumerate(zip(labels, styles, strict=True)):
            side = int(sides[rng.integers(len(sides))])
            left = i * column + int(rng.integers(column - side + 1))
            top = int(rng.integers(size - side + 1))
            rgba = self.atlas[label, style, side]
            patch = canvas[top : top + side, left : left + side]
            patch *= 1 - rgba[..., 3:]
            patch += rgba[..., :3]
            mask = np.zeros((size, size), dtype=bool)
            mask[top : top + side, left : left + side] = rgba[..., 3] > 0.5
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            objects.append(Object(label, style, box, torch.from_numpy(mask)))
        pixels = np.ascontiguousarray((canvas * 255).round().astype(np.uint8).transpose(2, 0, 1))
        return torch.from_numpy(pixels), tuple(objects)

    def tell(self, rng: np.random.Generator, labels: list[str], styles: list[str], background: str) -> str:
        """A caption of the scene. In training it may leave out styles and background; held out, it names everything."""
        everything = self.split == "held_out"
        templates = self.world.templates_one if len(labels) == 1 else self.world.templates_two
        if everything:
            templates = tuple(template for template in templates if "{background}" in template)
        phrases = [
            phrase(f"{style} {label}" if everything or rng.random() < self.world.share_styled else label)
            for label, style in zip(labels, styles, strict=True)
        ]
        return templates[rng.integers(len(templates))].format(*phrases, background=background)


def batch(scenes: EmojiScenes, indices: range) -> tuple[Tensor, list[str]]:
    """Images [B, 3, H, W] in [-1, 1], in channels-last memory, and their captions."""
    chosen = [scenes[i] for i in indices]
    images = torch.stack([scene.image for scene in chosen]).to(memory_format=torch.channels_last)
    return images.float() / 127.5 - 1, [scene.caption for scene in chosen]
