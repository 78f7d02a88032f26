"""Sets of drawings from packages of fonts and icons: prepared once, package by package, and split the same every time.

A prepared package is a file in the cache: sequences, renders, names. Preparing is shared by several processes and goes
on where it was interrupted, since every package is written whole or not at all.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiments.files import UserError, atomically, say, sha256
from experiments.vectors.fonts import CHARACTERS, glyphs
from experiments.vectors.icons import icons_of
from experiments.vectors.packages import Package, find
from experiments.vectors.raster import SIDE, renders
from ldm.svg.drawing import BOX, Drawing, Subpath
from ldm.svg.geometry import canonical
from ldm.svg.sequences import KINDS, USED, encode_commands, length

STEP = 0.001  # units of the box: what stored coordinates are rounded to, as in SVG text
EDITIONS = {"fonts": 1, "icons": 2}  # of the preparation: another one is stored apart


@dataclass(frozen=True)
class Source:
    """What a set of drawings is made of: the content of a file in conf/drawings.

    A class is a character ("characters"), an icon's name that several sets have ("names"), or the first word of
    icons' names ("words"). A group, of which the split keeps some out of training, is a font family or an icon's name.
    """

    name: str
    classes: str  # "characters", "names" or "words"
    packages: dict[str, str]  # npm name -> suffix of the icons that are taken
    stroke: float | None  # units of the box: the width of all lines; None: filled shapes
    paths: int  # of a drawing, at most
    commands: int  # of a drawing, at most
    least: int = 1  # drawings of a class; smaller classes are left out
    most: int | None = None  # drawings of a class; what is more is left out
    only: tuple[str, ...] = ()  # classes, if not all
    count: int | None = None  # of classes, at most
    share_held_out: float = 0.0  # of the groups
    split_seed: int = 0  # which those are


@dataclass(frozen=True)
class Prepared:
    """N drawings of a package."""

    kinds: np.ndarray  # uint8 [N, L]
    arguments: np.ndarray  # int16 [N, L, ARGUMENTS], in STEP
    renders: np.ndarray  # uint8 [N, SIDE, SIDE]
    names: np.ndarray  # str [N]: a character or an icon's name
    origins: np.ndarray  # str [N]: where it is from
    left_out: dict[str, int]  # why, and how many


# --- preparing --------------------------------------------------------------------------------------------------------


def prepare(source: Source, folder: Path, cache: Path, processes: int = 1) -> dict[str, Prepared]:
    """Returns every package of a source, prepared in the cache if it was not yet.

    Raises UserError for a package that is missing or damaged.
    """
    cache.mkdir(parents=True, exist_ok=True)
    files = {name: stored_at(source, find(folder, name), cache) for name in source.packages}
    missing = [name for name, file in files.items() if not file.exists()]
    jobs = [(source, find(folder, name), files[name]) for name in missing]
    if processes > 1 and len(jobs) > 1:
        with ProcessPoolExecutor(processes) as pool:
            for line in pool.map(prepare_package, *zip(*jobs, strict=True)):
                say(line)
    else:
        for job in jobs:
            say(prepare_package(*job))
    return {name: load_prepared(file) for name, file in files.items()}


def stored_at(source: Source, package: Package, cache: Path) -> Path:
    """Returns the file of a prepared package: its name is of all that the content depends on."""
    limits = [source.classes == "characters", source.packages[package.name], source.stroke, source.paths]
    edition = EDITIONS["fonts" if source.classes == "characters" else "icons"]
    key = json.dumps([str(edition), *limits, source.commands, SIDE, sha256(package.file)])
    return cache / f"drawings-{package.short}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.npz"


def prepare_package(source: Source, package: Package, file: Path) -> str:
    """Writes a prepared package. Returns a line that says how much of it is in."""
    kept: list[tuple[str, str, Drawing]] = []
    left_out, seen = Counter[str](), set[bytes]()
    for name, origin, found in named_drawings(source, package):
        drawing = found if isinstance(found, str) else canonical(found)
        why = drawing if isinstance(drawing, str) else unfit(drawing, source)
        if why is None:
            assert isinstance(drawing, Drawing)
            drawing = Drawing(drawing.paths, source.stroke)
            sequence = encode_commands(drawing, source.commands).numpy().tobytes()
            why = "the same as another" if sequence in seen else None
            seen.add(sequence)
        if why is None:
            assert isinstance(drawing, Drawing)
            kept.append((name, origin, drawing))
        else:
            left_out[why] += 1
    drawings = [drawing for _, _, drawing in kept]
    sequences = [encode_commands(drawing, source.commands).numpy() for drawing in drawings]
    whole = np.stack(sequences) if sequences else np.zeros((0, source.commands, KINDS + USED.shape[1]))
    steps = np.rint((whole[..., KINDS:] + 1) * (BOX / 2 / STEP))
    with atomically(file) as part, part.open("wb") as stream:
        np.savez_compressed(
            stream,
            kinds=whole[..., :KINDS].argmax(axis=-1).astype(np.uint8),
            arguments=steps.astype(np.int16),
            renders=renders(drawings).numpy(),
            names=np.array([name for name, _, _ in kept]),
            origins=np.array([origin for _, origin, _ in kept]),
            left_out=np.array(json.dumps(left_out)),
        )
    return f"{package.name}: {len(kept)} drawings, left out {dict(left_out.most_common())}"


def named_drawings(source: Source, package: Package) -> Iterator[tuple[str, str, Drawing | str]]:
    """Yields name, origin and drawing of all that a package has, or why there is no drawing."""
    if source.classes == "characters":
        for glyph in glyphs(package):
            yield glyph.character, glyph.face, glyph.drawing
    else:
        for icon in icons_of(package, source.packages[package.name]):
            yield icon.name, f"{package.short}:{icon.original}", icon.drawing


def unfit(drawing: Drawing, source: Source) -> str | None:
    """Returns why a drawing is no part of a source, or None."""
    if not drawing.paths:
        return "empty"
    if (drawing.stroke is None) != (source.stroke is None):
        return "filled" if drawing.stroke is None else "stroked"
    if len(drawing.paths) > source.paths:
        return f"more than {source.paths} paths"
    if length(drawing) > source.commands:
        return f"more than {source.commands} commands"
    if any(not 0 <= value <= BOX for path in drawing.paths for value in coordinates(path)):
        return "beyond the box"
    return None


def coordinates(path: Subpath) -> list[float]:
    points = [path.start, *(point for s in path.segments for point in (*(s.controls or ()), s.end))]
    return [value for point in points for value in point]


def load_prepared(file: Path) -> Prepared:
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in ("kinds", "arguments", "renders", "names", "origins")}
        return Prepared(**arrays, left_out=json.loads(str(stored["left_out"])))


# --- the set ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawingBatch:
    """B drawings as tensors."""

    sequences: Tensor  # [B, L, COLUMNS]
    classes: Tensor  # int64 [B]
    renders: Tensor  # uint8 [B, SIDE, SIDE]
    rows: Tensor  # int64 [B]: which of the set they are

    def to(self, device: torch.device) -> "DrawingBatch":
        return DrawingBatch(*(tensor.to(device) for tensor in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Drawings(Dataset):
    """N drawings. As a dataset it is an endless row of them: all in an order drawn anew, again and again."""

    classes: tuple[str, ...]
    stroke: float | None
    kinds: Tensor  # uint8 [N, L]
    arguments: Tensor  # int16 [N, L, ARGUMENTS]
    renders: Tensor  # uint8 [N, SIDE, SIDE]
    labels: Tensor  # int64 [N]: indices of classes
    origins: tuple[str, ...]
    seed: int = 0

    @property
    def count(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: int) -> int:
        """Returns which drawing stands at a place of the row."""
        lap, place = divmod(index, self.count)
        return int(order(self.seed, lap, self.count)[place])

    def __len__(self) -> int:
        return 2**62

    def collate(self, indices: Sequence[int]) -> DrawingBatch:
        """Returns some drawings as tensors."""
        chosen = torch.as_tensor(indices)
        return DrawingBatch(self.sequences(chosen), self.labels[chosen], self.renders[chosen], chosen)

    def sequences(self, chosen: Tensor | slice = slice(None)) -> Tensor:
        """Returns sequences [n, L, COLUMNS] of some drawings."""
        kinds = self.kinds[chosen].long()
        one_hot = torch.nn.functional.one_hot(kinds, KINDS).float()
        arguments = self.arguments[chosen].float() * (2 * STEP / BOX) - 1
        return torch.cat([one_hot, arguments * USED[kinds]], dim=-1)


@lru_cache(maxsize=4)
def order(seed: int, lap: int, count: int) -> np.ndarray:
    """Returns the order in which the drawings stand in one lap of the row."""
    return np.random.default_rng([seed, lap]).permutation(count)


def load_drawings(
    source: Source, folder: Path, cache: Path, processes: int = 1, seed: int = 0
) -> tuple[Drawings, Drawings]:
    """Returns the drawings to learn from, and those held out; what is missing in the cache is prepared.

    Raises UserError for a package that is missing or damaged, and for a source of which nothing is left.
    """
    prepared = prepare(source, folder, cache, processes)
    names = np.concatenate([package.names for package in prepared.values()])
    origins = np.concatenate([package.origins for package in prepared.values()])
    packages = np.repeat(list(prepared), [len(package.names) for package in prepared.values()])
    classes, chosen = classified(source, names, packages)
    if not len(chosen):
        raise UserError(f"drawings={source.name}: no class has {source.least} drawings")
    groups = (packages if source.classes == "characters" else names)[chosen]
    apart = held_out(sorted(set(groups.tolist())), source.share_held_out, source.split_seed)
    index = {name: i for i, name in enumerate(classes)}

    def part(rows: np.ndarray) -> Drawings:
        arrays = {
            name: torch.from_numpy(np.concatenate([getattr(package, name) for package in prepared.values()])[rows])
            for name in ("kinds", "arguments", "renders")
        }
        labels = torch.tensor([index[class_of(source, name)] for name in names[rows]], dtype=torch.int64)
        return Drawings(tuple(classes), source.stroke, **arrays, labels=labels, origins=tuple(origins[rows]), seed=seed)

    out = np.isin(groups, sorted(apart))
    return part(chosen[~out]), part(chosen[out])


def classified(source: Source, names: np.ndarray, packages: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns the classes of a source, and the indices of the drawings that belong to them, class by class.

    A class of "names" has at least `least` packages, any other at least `least` drawings. Those beyond `most` are the
    ones that come late in an order by hash.
    """
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names.tolist()):
        members.setdefault(class_of(source, name), []).append(i)
    counted = {
        name: len({packages[i] for i in found}) if source.classes == "names" else len(found)
        for name, found in members.items()
    }
    enough = [name for name, n in counted.items() if n >= source.least and name in (source.only or members)]
    kept = sorted(sorted(enough, key=lambda name: hashed(source.split_seed, name))[: source.count])
    if source.classes == "characters":
        kept = [name for name in CHARACTERS if name in kept]
    chosen = [i for name in kept for i in sorted(members[name], key=lambda i: hashed(0, i))[: source.most]]
    return kept, np.array(chosen, dtype=np.int64)


def class_of(source: Source, name: str) -> str:
    return name.partition("-")[0] if source.classes == "words" else name


def held_out(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """Returns the share of the groups that is kept out of training: those whose hashes come first."""
    return set(sorted(groups, key=lambda group: hashed(seed, group))[: round(share * len(groups))])


def hashed(seed: int, thing: object) -> bytes:
    return hashlib.blake2b(f"{seed}|{thing}".encode(), digest_size=8).digest()
