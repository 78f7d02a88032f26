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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from experiments.files import UserError, atomically, newest
from ldm.text import Tokenizer

Colour = tuple[int, int, int]  # RGB, 0 .. 255
LAYOUTS = {"one": 1, "beside": 2, "above": 2, "three": 3}  # how objects may stand, and how many they are
OTHER_SCENES = 1_000_003  # a seed of scenes that no suite uses


@dataclass(frozen=True)
class World:
    """A kind of scenes and captions: the content of one file in conf/world.

    A caption is a template of the scene's layout with a ground behind it. {0}, {1}, {2} stand for the objects, from
    left to right or from top to bottom, {background} for the background's word.
    """

    name: str
    image_size: int  # pixels, both sides
    concepts: dict[str, str]  # noun in captions -> icon name in the packages
    styles: dict[str, str]  # style word in captions -> npm package under @iconify-json
    colours: dict[str, Colour]  # word -> what an object may be tinted with
    backgrounds: dict[str, Colour]
    sizes_one: dict[str, tuple[int, ...]]  # size word -> sides in pixels of an object that is alone
    sizes_more: dict[str, tuple[int, ...]]  # and of one among others: at most half the image
    layouts: dict[str, float]  # the share of the scenes with each of LAYOUTS
    templates: dict[str, tuple[str, ...]]  # for each layout
    grounds: tuple[str, ...]  # what a caption says of its background
    share_tinted: float = 0.4  # of the objects are tinted, and always told so
    share_styled: float = 0.3  # of the objects are told with their style
    share_sized: float = 0.2  # of the objects are told with their size
    share_held_out: float = 0.12  # of the combinations never appear in training
    split_seed: int = 0  # which those are

    def __post_init__(self) -> None:
        if max(self.sides(1)) > self.image_size or max(self.sides(2)) > self.image_size // 2:
            raise UserError(f"objects do not fit: sizes_one up to {self.image_size}, sizes_more up to half of that")
        if not self.layouts.keys() <= LAYOUTS.keys() or abs(sum(self.layouts.values()) - 1) > 1e-6:
            raise UserError(f"layouts: shares of {', '.join(LAYOUTS)} that sum to 1, not {dict(self.layouts)}")

    def sides(self, count: int) -> list[int]:
        """Returns the sides, in pixels, that an object may have in a scene of `count` objects."""
        return [side for sides in (self.sizes_one if count == 1 else self.sizes_more).values() for side in sides]


@dataclass(frozen=True)
class Look:
    """An object's appearance, before it is placed in a scene."""

    label: str
    style: str
    colour: str | None  # None: as its style draws it
    size: str


@dataclass(frozen=True)
class Object(Look):
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom exclusive
    mask: Tensor  # bool [H, W]
    tokens: tuple[int, int]  # its words' positions in the tokenized caption; the second exclusive
    words: str  # those words


@dataclass(frozen=True)
class Scene:
    image: Tensor  # uint8 [3, H, W]
    caption: str
    objects: tuple[Object, ...]  # from left to right, or from top to bottom
    layout: str
    background: str


# noun, style word, side in pixels -> uint8 [side, side, 4]: RGBA, colours not multiplied by opacity
Atlas = dict[tuple[str, str, int], np.ndarray]
GZIP = b"\x1f\x8b"  # how the bytes of a .tgz begin


def read_package(folder: Path, package: str) -> bytes:
    """Returns the content of an Iconify package: of the .tgz that `npm pack` leaves, or of icons.json, if unpacked.

    Raises UserError if it is missing.
    """
    found = newest(folder.glob(f"iconify-json-{package}-[0-9]*"))
    if found is None:
        raise UserError(f"the icon package {package} is missing: {fetch(folder, package)}")
    try:
        return (found / "package" / "icons.json" if found.is_dir() else found).read_bytes()
    except OSError as error:
        raise UserError(f"the icon package {found} is damaged ({error}): {fetch(folder, package)} again") from error


def parse_package(content: bytes, folder: Path, package: str) -> dict[str, Any]:
    """Returns the icons.json in a package's file. Raises UserError if it is damaged."""
    try:
        if content.startswith(GZIP):
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                file = archive.extractfile("package/icons.json")
                assert file is not None
                content = file.read()
        icons = json.loads(content)
        icons["icons"]
        return icons
    except (OSError, EOFError, KeyError, TypeError, ValueError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"the icon package {package} is damaged ({error}): {fetch(folder, package)} again") from error


def fetch(folder: Path, package: str) -> str:
    """Tells the user how to get a package."""
    return f"run `npm pack @iconify-json/{package}` in {folder}"


def render(icons: dict[str, Any], name: str, side: int) -> np.ndarray:
    """Returns one icon as uint8 [side, side, 4]: RGBA, colours not multiplied by opacity."""
    import resvg_py  # only here, so that a rendered atlas needs no renderer

    icon = icons["icons"][icons.get("aliases", {}).get(name, {"parent": name})["parent"]]
    box = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's defaults, under the package's, under the icon's
    left, top, width, height = (icon.get(key, icons.get(key, default)) for key, default in box.items())
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{side}" height="{side}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def load_atlas(world: World, folder: Path, cache: Path) -> Atlas:
    """Returns every object of the world at every side it may have, rendered from the packages in `folder`.

    What was rendered is stored in `cache` under a hash of the packages' contents and of what the world takes of them.
    Any number of processes may call this at the same time.
    Raises UserError, naming the package, for one that is missing, damaged or without an icon of the world.
    """
    sides = sorted({*world.sides(1), *world.sides(2)})
    packages = {style: read_package(folder, package) for style, package in world.styles.items()}
    content = [(style, hashlib.blake2b(file).hexdigest()) for style, file in packages.items()]
    key = json.dumps([list(world.concepts.items()), content, sides])
    file = cache / f"atlas-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.npz"
    if not file.exists():
        icons = {style: parse_package(packages[style], folder, package) for style, package in world.styles.items()}
        store_atlas(render_atlas(world, icons, sides), file)
    with np.load(file) as stored:
        return {key: stored["|".join(map(str, key))] for key in itertools.product(world.concepts, world.styles, sides)}


def render_atlas(world: World, icons: dict[str, dict[str, Any]], sides: list[int]) -> Atlas:
    """Returns each concept in each style at each side. `icons` holds each style's icons.json.

    Raises UserError, naming the package, for one without an icon of the world.
    """
    for style, package in world.styles.items():
        names = icons[style]["icons"].keys() | icons[style].get("aliases", {}).keys()
        if missing := sorted(set(world.concepts.values()) - names):
            raise UserError(f"the icon package {package} has no icon {', '.join(missing)}")
    return {
        (noun, style, side): render(icons[style], world.concepts[noun], side)
        for noun, style, side in itertools.product(world.concepts, world.styles, sides)
    }


def store_atlas(atlas: Atlas, path: Path) -> None:
    """Writes an atlas atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{"|".join(map(str, key)): a for key, a in atlas.items()})


def is_held_out(world: World, combination: tuple[str, ...]) -> bool:
    """Decides by a hash of its words whether scenes with this combination are kept out of training."""
    text = "|".join([str(world.split_seed), *combination])
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return number / 2**64 < world.share_held_out


def combinations(looks: Sequence[Look], background: str) -> list[tuple[str, ...]]:
    """Returns the combinations that the split decides on: each object with the background, each pair with a colour."""
    found: list[tuple[str, ...]] = [("object", o.label, o.style, o.colour or "", background) for o in looks]
    for one, other in itertools.combinations(looks, 2):
        pair = ("pair", *sorted((one.label, other.label)))
        found += [(*pair, o.colour) if o.colour else (*pair, "", background) for o in (one, other)]
    return found


def tint(rgba: np.ndarray, colour: Colour) -> np.ndarray:
    """Returns an icon in shades of one colour: its median brightness becomes the colour, the rest a ramp around it."""
    brightness = rgba[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    shade = 0.7 + 0.9 * (brightness - np.median(brightness[rgba[..., 3] > 0.5]))
    pure = np.asarray(colour, dtype=np.float32) / 255
    ramp = zip(0.25 * pure, pure, 0.5 * pure + 0.5, strict=True)
    return np.stack([*(np.interp(shade, (0, 0.7, 1), levels) for levels in ramp), rgba[..., 3]], axis=-1)


def phrase(words: str) -> str:
    """Adds the article: "cat" -> "a cat", "emojione cat" -> "an emojione cat"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


SPLITS: dict[
    str, Callable[[Iterable[bool]], bool]
] = {  # whether a scene belongs, of whether its combinations are held out
    "train": lambda held_out: not any(held_out),
    "held_out": any,
    "strict": all,
}


class EmojiScenes(Dataset):
    """Scenes of a world, each a function of (seed, index).

    `split` is one of SPLITS. Every held-out scene shows a combination that no training scene does, and its caption
    names all of it (styles and background), so the caption too is one that training never sees. Of a strict scene
    training shows no combination at all: neither object with its background, nor the pair with either colour.
    `layouts` and `tinted` narrow the scenes to some kind: every object tinted, or none.
    """

    def __init__(
        self,
        world: World,
        atlas: Atlas,
        split: str = "train",
        seed: int = 0,
        length: int = 1_000_000,
        layouts: tuple[str, ...] = tuple(LAYOUTS),
        tinted: bool | None = None,
    ):
        assert split in SPLITS, split
        self.world, self.atlas, self.split, self.seed, self.length = world, atlas, split, seed, length
        self.tinted = tinted
        self.shares = {layout: share for layout, share in world.layouts.items() if layout in layouts}
        self.nouns, self.styles, self.backgrounds = list(world.concepts), list(world.styles), list(world.backgrounds)
        self.tokenizer = Tokenizer(pad_id=0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        rng, layout, looks, background = self.plan(index)
        caption, phrases = self.tell(rng, layout, looks, background)
        image, boxes, masks = self.compose(rng, layout, looks, background)
        objects = []
        for look, words, box, mask in zip(looks, phrases, boxes, masks, strict=True):
            before, upto = (self.tokenizer.bpe.encode(caption[:end]) for end in words)
            tokens, told = (1 + len(before), 1 + len(upto)), caption[slice(*words)]
            objects.append(Object(**vars(look), box=box, mask=mask, tokens=tokens, words=told))
        return Scene(image, caption, tuple(objects), layout, background)

    def collate(self, scenes: Sequence[Scene]) -> "Batch":
        """Returns scenes as tensors, for a DataLoader."""
        return collate(scenes, self.world)

    def caption(self, index: int) -> tuple[str, list[Look]]:
        """Returns a scene's caption and its objects, without drawing the scene: no atlas is needed."""
        rng, layout, looks, background = self.plan(index)
        return self.tell(rng, layout, looks, background)[0], looks

    def plan(self, index: int) -> tuple[np.random.Generator, str, list[Look], str]:
        """Returns a scene's generator, for all later draws, its layout, its objects and its background."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index, list(SPLITS).index(self.split)])
        shares = np.cumsum(list(self.shares.values()))
        # drawn once, so that the split leaves the shares alone
        layout = list(self.shares)[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]
        for _ in range(1000):
            looks, background = (self.draw_strictly if self.split == "strict" else self.draw)(rng, LAYOUTS[layout])
            held_out = (is_held_out(self.world, c) for c in combinations(looks, background))
            if len(looks) == LAYOUTS[layout] and SPLITS[self.split](held_out):
                return rng, layout, looks, background
        raise UserError(f"share_held_out={self.world.share_held_out} leaves no {self.split} scenes of layout {layout}")

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[Look], str]:
        """Draws objects with different labels, and a background's word."""
        world, looks = self.world, []
        for i in rng.permutation(len(self.nouns))[:count]:
            style = self.styles[rng.integers(len(self.styles))]
            tinted = rng.random() < world.share_tinted if self.tinted is None else self.tinted
            colour = list(world.colours)[rng.integers(len(world.colours))] if tinted else None
            looks.append(Look(self.nouns[i], style, colour, self.draw_size(rng, count)))
        return looks, self.backgrounds[rng.integers(len(self.backgrounds))]

    def draw_size(self, rng: np.random.Generator, count: int) -> str:
        """Draws the word for the size of one of `count` objects: each side in pixels is as probable as the others."""
        sizes = self.world.sizes_one if count == 1 else self.world.sizes_more
        return str(rng.choice([word for word, sides in sizes.items() for _ in sides]))

    def draw_strictly(self, rng: np.random.Generator, count: int) -> tuple[list[Look], str]:
        """Draws only objects that are held out with the background, fewer than `count` where there are no more.

        If `tinted` is None, each colour is as probable as none.
        """
        background = self.backgrounds[rng.integers(len(self.backgrounds))]
        choices, looks = self.held_out_objects[background], dict[str, Look]()
        for i in rng.permutation(len(choices)):
            label, style, colour = choices[i]
            if len(looks) < count and label not in looks:
                looks[label] = Look(label, style, colour, self.draw_size(rng, count))
        return list(looks.values()), background

    @cached_property
    def held_out_objects(self) -> dict[str, list[tuple[str, str, str | None]]]:
        """The objects (concept, style, colour) that training does not show with each background."""
        colours = [] if self.tinted is False else list[str | None](self.world.colours)
        colours += [] if self.tinted else [None]
        objects = list(itertools.product(self.nouns, self.styles, colours))
        return {
            ground: [
                (noun, style, colour)
                for noun, style, colour in objects
                if is_held_out(self.world, ("object", noun, style, colour or "", ground))
            ]
            for ground in self.backgrounds
        }

    def compose(
        self, rng: np.random.Generator, layout: str, looks: list[Look], background: str
    ) -> tuple[Tensor, list[tuple[int, int, int, int]], list[Tensor]]:
        """Returns the picture, and each object's box and mask. Each object lies anywhere inside a cell of its own."""
        size, half = self.world.image_size, self.world.image_size // 2
        canvas = np.empty((size, size, 3), dtype=np.float32)
        canvas[:] = np.asarray(self.world.backgrounds[background], dtype=np.float32) / 255
        cells = {  # left, top, width, height
            "one": [(0, 0, size, size)],
            "beside": [(0, 0, half, size), (half, 0, half, size)],
            "above": [(0, 0, size, half), (0, half, size, half)],
            "three": [(0, 0, half, half), (half, 0, half, half), (half // 2, half, half, half)],
        }[layout]
        sizes = self.world.sizes_one if layout == "one" else self.world.sizes_more
        boxes, masks = [], []
        for look, (x, y, width, height) in zip(looks, cells, strict=True):
            side = int(rng.choice(sizes[look.size]))
            left, top = x + int(rng.integers(width - side + 1)), y + int(rng.integers(height - side + 1))
            rgba = self.atlas[look.label, look.style, side].astype(np.float32) / 255
            if look.colour is not None:
                rgba = tint(rgba, self.world.colours[look.colour])
            patch = canvas[top : top + side, left : left + side]
            patch += rgba[..., 3:] * (rgba[..., :3] - patch)
            mask = np.zeros((size, size), dtype=bool)
            mask[top : top + side, left : left + side] = rgba[..., 3] > 0.5
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
            masks.append(torch.from_numpy(mask))
        pixels = np.ascontiguousarray((canvas * 255).round().astype(np.uint8).transpose(2, 0, 1))
        return torch.from_numpy(pixels), boxes, masks

    def tell(
        self, rng: np.random.Generator, layout: str, looks: list[Look], background: str
    ) -> tuple[str, list[tuple[int, int]]]:
        """Returns a caption, and where in it each object's words begin and end.

        A training caption may leave out styles and background; a held-out one names them all. Both name some sizes.
        """
        world, everything = self.world, self.split != "train"
        phrases = []
        for look in looks:
            size = look.size if rng.random() < world.share_sized else None
            style = look.style if everything or rng.random() < world.share_styled else None
            phrases.append(phrase(" ".join(filter(None, (size, look.colour, style, look.label)))))
        grounds = [ground for ground in world.grounds if "{background}" in ground or not everything]
        templates = world.templates[layout]
        template = templates[rng.integers(len(templates))] + grounds[rng.integers(len(grounds))]
        caption, places = "", {}
        for text, field, _, _ in Formatter().parse(template):
            words = "" if field is None else background if field == "background" else phrases[int(field)]
            places[field] = (len(caption + text), len(caption + text + words))
            caption += text + words
        return caption, [places[str(i)] for i in range(len(looks))]


@dataclass(frozen=True)
class Batch:
    """B scenes as tensors."""

    images: Tensor  # uint8 [B, 3, H, W]
    captions: list[str]
    labels: Tensor  # uint8 [B, H, W]: 1 + the index of the concept at each pixel, 0 where there is none
    colours: Tensor  # uint8 [B, H, W]: 1 + the index of the tint at each pixel, 0 where there is none
    words: list[dict[int, str]]  # what a caption says of each object, by 1 + the index of its concept

    def to(self, device: torch.device) -> "Batch":
        maps = self.labels.to(device), self.colours.to(device)
        return Batch(self.images.to(device), self.captions, *maps, self.words)

    def pixels(self) -> Tensor:
        """Returns the images in [-1, 1], in channels-last memory."""
        return self.images.to(memory_format=torch.channels_last).float() / 127.5 - 1


def collate(scenes: Sequence[Scene], world: World) -> Batch:
    """Returns scenes as tensors, their objects' masks painted into maps of labels and colours."""
    concepts, colours = list(world.concepts), [None, *world.colours]
    maps = torch.zeros(2, len(scenes), world.image_size, world.image_size, dtype=torch.uint8)
    for i, scene in enumerate(scenes):
        for thing in scene.objects:
            maps[0, i][thing.mask] = 1 + concepts.index(thing.label)
            maps[1, i][thing.mask] = colours.index(thing.colour)
    images = torch.stack([scene.image for scene in scenes])
    words = [{1 + concepts.index(thing.label): thing.words for thing in scene.objects} for scene in scenes]
    return Batch(images, [scene.caption for scene in scenes], maps[0], maps[1], words)


def batch_of(scenes: EmojiScenes, indices: range) -> Batch:
    """Returns the scenes at some indices as tensors."""
    return collate([scenes[i] for i in indices], scenes.world)


def first_images(scenes: EmojiScenes, count: int) -> Iterator[Tensor]:
    """Yields the images of the first `count` scenes, in [-1, 1], at most 32 at a time."""
    for i in range(0, count, 32):
        yield batch_of(scenes, range(i, min(i + 32, count))).pixels()


def settings_of(cfg: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """Returns a config group as keyword arguments for a frozen dataclass: its lists become tuples."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
