"""The run folder: what was asked, on what it ran, and one line for each finished picture.

images/PPPPP_SEED.png  samples.jsonl  run.json  grid.png  latents.safetensors (if asked for)  .hydra/ (Hydra's own)
Of vector drawings also images/PPPPP_SEED.svg, and drawings.html with all of them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from experiments.files import UserError, append, describe, difference, locked, read_lines, write, write_tensors
from experiments.pictures import save_png, to_image

Key = tuple[int, int]  # of a picture: index of its prompt, and its seed

OWN_FILES = r"run\.json|samples(\.\d+of\d+)?\.jsonl|latents\.safetensors|\d{5,}_\d+\.(png|svg)|\d{5,}\.safetensors"
UNFINISHED = re.compile(rf"({OWN_FILES})\.[0-9a-f]{{32}}\.tmp")  # temporary names of files.atomically
OF_A_SHARD = re.compile(r"samples\.\d+of\d+\.jsonl")
OF_A_BATCH = re.compile(r"\d{5,}\.safetensors")


class Run:
    """A folder that is filled batch by batch, by one process or by n shards, and that can be resumed.

    Shard i of n keeps its lines in samples.IofN.jsonl, until the one that finishes last joins them into samples.jsonl.
    Raises UserError if the folder holds a run of another config, or of a config whose files have changed since, and
    OSError, with complete pictures kept, if it cannot be written to.

    contents  hashes of the files that the config names, see `experiments.run.contents`
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        device: torch.device,
        shard: tuple[int, int] = (0, 1),
        contents: Mapping[str, str] | None = None,
    ):
        self.folder = folder
        self.lines = folder / ("samples.jsonl" if shard[1] == 1 else "samples.{}of{}.jsonl".format(*shard))
        now = describe(config, device) | {"contents": dict(contents or {})}
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            with locked(folder):
                write(folder / "run.json", json.dumps(self.provenance(now), indent=1))
                self.own = by_key(read_lines(self.lines))
                write(self.lines, "".join(json.dumps(r) + "\n" for r in self.own.values()))  # without a half line
        except OSError as error:
            raise self.unwritable(error) from error
        self.records = self.read()

    def provenance(self, now: dict[str, Any]) -> dict[str, Any]:
        """What goes into run.json: this run's provenance, or the first one's, with how each resumed run differs."""
        if not (self.folder / "run.json").exists():
            return now
        first = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        if differs := difference(without_paths(first["config"]), without_paths(now["config"])):
            raise UserError(f"{self.folder} holds a run of another config ({differs}): choose another hydra.run.dir")
        known = first.get("contents", now["contents"])
        if changed := [name for name in {**known, **now["contents"]} if known.get(name) != now["contents"].get(name)]:
            raise UserError(
                f"{self.folder} was begun with other contents of {', '.join(changed)}, under the same name: "
                "choose another hydra.run.dir"
            )
        differing = {key: value for key, value in now.items() if first.get(key, value) != value}
        resumed = first.get("resumed", [])
        return {**first, "resumed": [*resumed, differing]} if differing and differing not in resumed else first

    def read(self) -> dict[Key, dict[str, Any]]:
        """Reads the lines of all shards."""
        return by_key(r for path in sorted(self.folder.glob("samples*.jsonl")) for r in read_lines(path))

    def has(self, batch: int, keys: list[Key], latents: bool) -> bool:
        """Whether this batch, of these pictures, is complete."""
        pictures = all(key in self.records and (self.folder / self.records[key]["file"]).exists() for key in keys)
        return pictures and (not latents or self.part(batch).exists() or (self.folder / "latents.safetensors").exists())

    def add(self, image: Tensor, determined_by: dict[str, Any], record: dict[str, Any], svg: str | None = None) -> None:
        """Stores an image [3, H, W] in [0, 1] and its line; `determined_by` goes into the PNG itself.

        svg  the text of a drawing, which is stored beside its image
        """
        file = f"images/{record['prompt_index']:05d}_{record['seed']}.png"
        try:
            if svg is not None:
                record = {**record, "svg": file.replace(".png", ".svg")}
                write(self.folder / record["svg"], svg)
            save_png(to_image(image), self.folder / file, determined_by)
            digest = hashlib.sha256((self.folder / file).read_bytes()).hexdigest()
            record = {**record, "file": file, "sha256": digest}
            again = by_key([record]).keys() <= self.own.keys()  # of a batch that is made whole again
            self.own |= by_key([record])
            self.records |= by_key([record])
            if again:
                write(self.lines, "".join(json.dumps(r) + "\n" for r in self.own.values()))
            else:
                append(self.lines, json.dumps(record) + "\n")
        except OSError as error:
            raise self.unwritable(error) from error

    def finish(self, batches: list[list[Key]], latents: bool) -> list[dict[str, Any]] | None:
        """Joins what the shards made. Returns the records in the run's order, or None while a batch is missing."""
        try:
            with locked(self.folder):
                self.records = self.read()
                if not all(self.has(b, batch, latents) for b, batch in enumerate(batches)):
                    return None
                records = [self.records[key] for batch in batches for key in batch]
                write(self.folder / "samples.jsonl", "".join(json.dumps(r) + "\n" for r in records))
                remove(self.folder, OF_A_SHARD)
                for folder in (self.folder, self.folder / "images", self.folder / "latents"):
                    remove(folder, UNFINISHED)  # of killed processes
                if latents:
                    self.join_latents(len(batches))
        except OSError as error:
            raise self.unwritable(error) from error
        return records

    def add_latents(self, batch: int, x_T: Tensor, x_0: Tensor) -> None:
        """Stores a batch's first noise and last latents [B, C, h, w]."""
        tensors = {"x_T": x_T.cpu().contiguous(), "x_0": x_0.cpu().contiguous()}
        self.part(batch).parent.mkdir(exist_ok=True)
        self.save(tensors, self.part(batch))

    def join_latents(self, batches: int) -> None:
        """Makes one file of all batches' latents."""
        target = self.folder / "latents.safetensors"
        if not target.exists():
            parts = [load_file(self.part(batch)) for batch in range(batches)]
            self.save({key: torch.cat([part[key] for part in parts]) for key in ("x_T", "x_0")}, target)
        remove(self.folder / "latents", OF_A_BATCH)
        if (self.folder / "latents").is_dir() and not any((self.folder / "latents").iterdir()):
            (self.folder / "latents").rmdir()

    def save(self, tensors: dict[str, Tensor], path: Path) -> None:
        try:
            write_tensors(path, tensors)
        except OSError as error:
            raise self.unwritable(error) from error

    def part(self, batch: int) -> Path:
        """The file of a batch's latents until all are joined."""
        return self.folder / "latents" / f"{batch:05d}.safetensors"

    def unwritable(self, error: Exception) -> OSError:
        reason = getattr(error, "strerror", None) or error
        return OSError(
            f"cannot write to {self.folder}: {reason}; its complete pictures are kept, mend it and run again"
        )


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config without the paths of its task's files: their contents are compared, by their hashes."""
    task = config.get("task") or {"name": "text"}
    return {**config, "task": {key: value for key, value in task.items() if key not in ("image", "mask")}}


def by_key(records: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    return {(record["prompt_index"], record["seed"]): record for record in records}


def remove(folder: Path, names: re.Pattern[str]) -> None:
    """Removes the files in a folder whose whole names fit; nothing else is touched."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if names.fullmatch(path.name):
            path.unlink()
