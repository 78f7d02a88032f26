"""Prompts: those of a suite in conf/prompts, or of a file in one of the layouts that others publish.

A file whose name ends in .txt holds one prompt a line. Of every other file the content decides:
- JSON Lines, each with "prompt" and, optionally, "negative_prompt", "seed", "objects"
- COCO's captions: one JSON object with "annotations"
- a table whose first line names a column prompt, separated by tabs (PartiPrompts, which quotes nothing) or by commas
  (coco_30k of the concept-erasure papers); its columns seed or evaluation_seed, and negative_prompt, are read too
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.emoji.world import Atlas, EmojiScenes, World
from experiments.files import CONF, UserError
from experiments.run import geneval

Record = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A prompt and what belongs to it.

    text     None where the guidance brings prompts of its own, stage by stage
    seed     the seed that it is drawn with; None: it is drawn with each of the run's seeds
    objects  nouns of the text, for metrics that look for them
    """

    text: str | None
    negative: str = ""
    seed: int | None = None
    objects: tuple[str, ...] = ()


def suite(group: DictConfig, negative: str = "", classes: Sequence[str] = ()) -> list[Prompt]:
    """Returns the prompts of a prompts group: lines, classes, a world's captions, or a file; at most the first `count`.

    negative  the negative prompt of those that have none of their own
    classes   those of the model, if it is told classes
    Raises UserError naming what is wrong where.
    """
    count = group.get("count")
    if (count is not None or "world" in group) and (type(count) is not int or count < 1):
        raise UserError(f"prompts.count={count}: must be a whole number of at least 1")
    if "lines" in group:
        if not group.lines:
            raise UserError("prompts.lines=[]: must be at least one prompt")
        return [Prompt(str(line), negative) for line in group.lines[:count]]
    if "classes" in group:
        if not classes and group.classes is None:
            raise UserError("prompts=classes: this model is not told classes; prompts.classes=[...] names what to draw")
        return [Prompt(str(name), negative) for name in (group.classes or classes)[:count]]
    if "world" in group:
        return list(captions(group, negative))
    if "geneval_seed" in group:
        return [prompt_of_scene(scene, negative) for scene in geneval.scenes(group.geneval_seed)[:count]]
    path = CONF / "prompts" / str(group.file) if "file" in group else Path(str(group.path))
    return read_prompts(path, negative, count)


def prompt_of_scene(scene: geneval.Scene, negative: str) -> Prompt:
    """Returns the prompt of a scene in GenEval's format."""
    return Prompt(scene["prompt"], negative, objects=tuple(thing["class"] for thing in scene["include"]))


def captions(group: DictConfig, negative: str) -> Iterator[Prompt]:
    """Yields captions of held-out emoji scenes.

    Of a suite of one kind a prompt's seed is its position, so equal captions differ in seed; of several kinds it is the
    run's.
    """
    for position, (scenes, index) in enumerate(scenes_of(group, {})):
        caption, looks = scenes.caption(index)
        own = None if "kinds" in group else position
        yield Prompt(caption, negative, own, tuple(look.label for look in looks))


def scenes_of(group: DictConfig, atlas: Atlas) -> Iterator[tuple[EmojiScenes, int]]:
    """Yields the scenes of a suite's captions: a set of scenes, and an index in it; of several kinds, one of each."""
    worlds = {path.stem: path for path in sorted((CONF / "world").glob("*.yaml"))}
    if group.world not in worlds:
        raise UserError(f"prompts.world={group.world}: there is no such world: there are {', '.join(worlds)}")
    world: Any = OmegaConf.to_container(OmegaConf.load(worlds[group.world]))
    kinds = [of_kind(World(**world), atlas, group, kind) for kind in group.get("kinds", {"": group}).values()]
    return islice(chain.from_iterable(zip(*kinds, strict=False)), group.count)


def of_kind(world: World, atlas: Atlas, group: DictConfig, kind: DictConfig) -> Iterator[tuple[EmojiScenes, int]]:
    """Yields the scenes of one kind: with these layouts, every object tinted or none, or so many of them coloured.

    Of a suite of several kinds, whose prompts bring no seed, each caption comes once.
    """
    if not kind.layouts or set(kind.layouts) - world.layouts.keys():
        raise UserError(f"prompts.layouts={kind.layouts}: must be some of {', '.join(world.layouts)}")
    narrowed = {"layouts": tuple(kind.layouts), "tinted": kind.tinted}
    scenes = EmojiScenes(world, atlas, group.get("split", "held_out"), group.scenes_seed, **narrowed)
    coloured, known = kind.get("coloured"), set[str]()
    for index in range(len(scenes)):
        caption, looks = scenes.caption(index)
        fits = coloured is None or sum(look.colour is not None for look in looks) == coloured
        if fits and not ("kinds" in group and caption in known):
            known.add(caption)
            yield scenes, index


def read_prompts(path: Path, negative: str = "", count: int | None = None) -> list[Prompt]:
    """Reads the prompts of a file, at most the first `count`. Raises UserError naming file and line of a wrong one."""
    if not path.is_file():
        raise UserError(f"prompts.path={path}: there is no such file")
    try:
        records = records_of(path.read_bytes().decode("utf-8-sig"), path.suffix)
        prompts = [prompt_of(record, where, negative) for where, record in islice(records, count)]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8") from error
    except ValueError as error:
        raise UserError(f"{path}, {error}") from error
    if not prompts:
        raise UserError(f"{path}: holds no prompts")
    return prompts


def prompt_of(record: Record, where: str, negative: str) -> Prompt:
    """Makes a prompt of a record. Raises UserError, beginning with where it stands, for a wrong one."""
    text, seed, objects = record.get("prompt"), record.get("seed"), record.get("objects") or []
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: must have a prompt, in words")
    if not isinstance(objects, list) or not all(isinstance(noun, str) for noun in objects):
        raise UserError(f"{where}: objects must be a list of nouns")
    try:
        seed = None if seed is None else checked_seed(seed)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    own = record.get("negative_prompt")  # "" is one, too
    return Prompt(text.strip(), negative if own is None else str(own), seed, tuple(objects))


def checked_seed(seed: Any) -> int:
    """Raises UserError for what is no whole number of 32 bits."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"seed {seed}: must be a whole number from 0 to {2**32 - 1}")
    return seed


def records_of(text: str, suffix: str) -> Iterator[tuple[str, Record]]:
    """Yields the records of a file, each with the words that say where it stands."""
    if suffix == ".txt":
        return ((f"line {n}", {"prompt": line}) for n, line in enumerate(lines_of(text), 1) if line.strip())
    if not text.lstrip().startswith(("{", "[")):
        return table(text)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return json_lines(text)
    return coco(whole) if isinstance(whole, dict) and isinstance(whole.get("annotations"), list) else json_lines(text)


def lines_of(text: str) -> list[str]:
    """Splits at line ends alone: str.splitlines splits at U+2028 and form feeds too, which prompts may hold."""
    return text.replace("\r\n", "\n").split("\n")


def json_lines(text: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(lines_of(text), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"line {number}: not JSON: {error.msg} at column {error.colno}") from error
            if not isinstance(record, dict) or "prompt" not in record:
                raise UserError(f'line {number}: must be an object with a "prompt"')
            yield f"line {number}", record


def coco(whole: Record) -> Iterator[tuple[str, Record]]:
    """Yields captions in the file's order, which is not that of the images; an image has about five."""
    for number, annotation in enumerate(whole["annotations"], 1):
        if not isinstance(annotation, dict) or "caption" not in annotation:
            raise UserError(f'annotation {number}: has no "caption"')
        yield f"annotation {number}", {"prompt": annotation["caption"]}


def table(text: str) -> Iterator[tuple[str, Record]]:
    """Yields the rows of a table. A row stands at the line on which it ends: quoted prompts may hold line ends."""
    dialect: Any = {"delimiter": ",", "strict": True}
    if "\t" in text.partition("\n")[0]:
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    rows = csv.DictReader(io.StringIO(text, newline=""), **dialect)
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or []]
        if text.strip() and "prompt" not in rows.fieldnames:
            raise UserError("line 1: must name a column prompt (plain text is read from a file that ends in .txt)")
        for row in rows:
            where = f"line {rows.line_num}"
            if None in row:
                raise UserError(f"{where}: has more fields than the first line; a prompt with a comma needs quotes")
            seed = row.get("seed") or row.get("evaluation_seed") or None
            seed = int(seed) if seed and seed.strip().isdecimal() else seed
            yield where, {"prompt": row["prompt"], "negative_prompt": row.get("negative_prompt") or None, "seed": seed}
    except csv.Error as error:
        raise UserError(f"line {rows.line_num + 1}: {error}") from error
