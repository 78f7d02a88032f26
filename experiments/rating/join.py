"""Finished runs, cells of a sweep and folders of pictures, joined on prompt and seed."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from experiments.files import UserError
from experiments.metrics.folders import open_reference, open_run
from experiments.rating.kinds import METHODS
from experiments.run.prompts import read_prompts

Place = tuple[int, int]  # prompt index, seed


@dataclass(frozen=True)
class Source:
    """The pictures of one method, and the words each was drawn from; None where nothing tells them."""

    label: str
    folder: Path
    files: dict[Place, Path]
    texts: dict[Place, str | None]


@dataclass(frozen=True)
class Unit:
    """A prompt with a seed: one picture of each method, of one size."""

    place: Place
    prompt: int  # of all units of the same words the first prompt index
    text: str
    band: str | None
    files: tuple[Path, ...]
    size: tuple[int, int]


def source(folder: Path, label: str) -> Source:
    """Opens a run folder, or a folder of pictures named PROMPTINDEX_SEED as a run's are. Raises UserError."""
    if (folder / "run.json").is_file():
        run = open_run(folder)
        files = {(r["prompt_index"], r["seed"]): folder / r["file"] for r in run.records}
        asked = [
            r["prompt"] if "prompt" in r else ", then ".join(c) for r, c in zip(run.records, run.captions, strict=True)
        ]
        return Source(label, folder, files, dict(zip(files, asked, strict=True)))
    found = {}
    for path in open_reference(folder).files:
        match = re.fullmatch(r"(\d+)_(\d+)", path.stem)
        if match is None:
            raise UserError(f"runs: {path} is neither of a run nor named PROMPTINDEX_SEED, as 00012_0.png")
        found[int(match[1]), int(match[2])] = path
    return Source(label, folder, found, dict.fromkeys(found))


def labels(folders: Sequence[Path]) -> list[str]:
    """Returns the folders' names, or whole paths where two have one name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def join(
    sources: Sequence[Source], subset: Path | None, captions: Path | None, seeds: Sequence[int] | None
) -> list[Unit]:
    """Returns the units that all sources have, in order of prompt and seed.

    subset: JSON Lines with the prompts that are taken, and for each, if wanted, its "percentile" or "band". captions:
    a file of prompts, shown in place of those that the pictures were drawn from. Raises UserError for halves that are
    missing, for different prompts, and for pictures of unequal sizes.
    """
    if not 1 <= len(sources) <= len(METHODS):
        raise UserError(f"runs: {len(sources)} of them, must be 1 to {len(METHODS)}")
    sources = [only(s, seeds) for s in sources]
    texts = shown_texts(sources, captions)
    bands = {} if subset is None else bands_of(subset)
    if missing := bands.keys() - set(texts.values()):
        raise UserError(f"subset={subset}: {len(missing)} of its prompts are not in the runs: {min(missing)!r}")
    places = sorted(p for p in texts if subset is None or texts[p] in bands)
    for s in sources:
        if lacks := [p for p in places if p not in s.files]:
            more = f", and {len(lacks) - 1} more" if len(lacks) > 1 else ""
            raise UserError(f"runs: {s.folder} has no picture of prompt {lacks[0][0]}, seed {lacks[0][1]}{more}")
    if not places:
        raise UserError("runs: no pictures to show" + ("" if seeds is None else f" with seeds={list(seeds)}"))
    keys = dict[str, int]()
    return [
        Unit(p, keys.setdefault(texts[p], p[0]), texts[p], bands.get(texts[p]), files, size_of(files))
        for p in places
        for files in [tuple(s.files[p] for s in sources)]
    ]


def only(s: Source, seeds: Sequence[int] | None) -> Source:
    files = {place: path for place, path in s.files.items() if seeds is None or place[1] in seeds}
    return replace(s, files=files)


def shown_texts(sources: Sequence[Source], captions: Path | None) -> dict[Place, str]:
    """Returns the words of every place that a source has. Raises UserError where sources differ or none tells any."""
    places = sorted({place for s in sources for place in s.files})
    if captions is not None:
        lines = read_prompts(captions)
        if places and places[-1][0] >= len(lines):
            raise UserError(f"captions={captions}: {len(lines)} prompts, but a picture is of prompt {places[-1][0]}")
        return {place: str(lines[place[0]].text) for place in places}
    texts = {}
    for place in places:
        found = dict.fromkeys(text for s in sources if (text := s.texts.get(place)) is not None)
        if len(found) != 1:
            told = " and ".join(map(repr, found)) if found else "no words"
            raise UserError(f"runs: prompt {place[0]}, seed {place[1]} is {told}: captions=FILE says what is shown")
        (texts[place],) = found
    return texts


def bands_of(subset: Path) -> dict[str, str | None]:
    """Returns the band of each prompt of a subset."""
    if not subset.is_file():
        raise UserError(f"subset={subset}: there is no such file")
    bands = dict[str, str | None]()
    for number, text in enumerate(subset.read_text(encoding="utf-8").split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"subset={subset}, line {number}: not JSON: {error}") from error
        if not isinstance(line, dict) or not isinstance(line.get("prompt"), str):
            raise UserError(f"subset={subset}, line {number}: has no prompt")
        band = line.get("band", line.get("percentile"))
        bands[line["prompt"]] = None if band is None else str(band)
    return bands


def size_of(files: Sequence[Path]) -> tuple[int, int]:
    sizes = []
    for path in files:
        with Image.open(path) as image:
            sizes.append(image.size)
    if len(set(sizes)) > 1:
        told = ", ".join(f"{path} {w}x{h}" for path, (w, h) in zip(files, sizes, strict=True))
        raise UserError(f"runs: pictures of unequal sizes: {told}")
    return sizes[0]
