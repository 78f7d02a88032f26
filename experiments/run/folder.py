"""The run folder: what was asked, on what, and one line per finished picture.

images/PPPPP_SEED.png  samples.jsonl  run.json  grid.png  latents.safetensors (when asked)  .hydra/ (Hydra's own)
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.files import UserError, append, atomically, describe, difference, locked, read_lines, write
from experiments.pictures import save_png, to_image


class Run:
    """A folder that is being filled batch by batch, by one process or by n shards, and can be gone on with.

    Shard i of n keeps its lines in samples.IofN.jsonl, until whoever finishes last joins them into samples.jsonl.
    Raises UserError if the folder holds a run of another config, and OSError, with complete pictures kept, if it
    cannot be written to.
    """

    def __init__(self, folder: Path, config: dict[str, Any], device: torch.device, shard: tuple[int, int] = (0, 1)):
        self.folder = folder
        self.lines = folder / ("samples.jsonl" if shard[1] == 1 else "samples.{}of{}.jsonl".format(*shard))
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            with locked(folder):
                write(folder / "run.json", json.dumps(self.described(config, device), indent=1))
                self.own = by_picture(read_lines(self.lines))
                write(self.lines, "".join(json.dumps(r) + "\n" for r in self.own.values()))  # without a half line
        except OSError as error:
            raise self.unwritable(error) from error
        self.records = self.read()

    def described(self, config: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """What goes into run.json; where this goes on with a run that began on other code or elsewhere, that too."""
        now = describe(config, device)
        if not (self.folder / "run.json").exists():
            return now
        first = json.loads((self.folder / "run.json").read_text())
        if differs := difference(first["config"], config):
            raise UserError(f"{self.folder} holds a run of another config ({differs}): choose another hydra.run.dir")
        changed = {key: value for key, value in now.items() if first[key] != value}
        resumed = first.get("resumed", [])
        return {**first, "resumed": [*resumed, changed]} if changed and changed not in resumed else first

    def read(self) -> dict[tuple[int, int], dict[str, Any]]:
        """The lines of all shards, by prompt index and seed."""
        return by_picture([r for path in sorted(self.folder.glob("samples*.jsonl")) for r in read_lines(path)])

    def has(self, batch: int, keys: list[tuple[int, int]], latents: bool) -> bool:
        """Whether this batch of (prompt index, seed) is complete."""
        pictures = all(key in self.records and (self.folder / self.records[key]["file"]).exists() for key in keys)
        return pictures and (not latents or self.part(batch).exists() or (self.folder / "latents.safetensors").exists())

    def add(self, image: Tensor, determined_by: dict[str, Any], record: dict[str, Any]) -> None:
        """Store an image [3, H, W] in [0, 1] and its line; `determined_by` goes into the PNG itself."""
        file = f"images/{record['prompt_index']:05d}_{record['seed']}.png"
        try:
            save_png(to_image(image), self.folder / file, determined_by)
            digest = hashlib.sha256((self.folder / file).read_bytes()).hexdigest()
            record = {**record, "file": file, "sha256": digest}
            again = by_picture([record]).keys() <= self.own.keys()  # of a batch that is made whole again
            self.own |= by_picture([record])
            self.records |= by_picture([record])
            if again:
                write(self.lines, "".join(json.dumps(r) + "\n" for r in self.own.values()))
            else:
                append(self.lines, json.dumps(record) + "\n")
        except OSError as error:
            raise self.unwritable(error) from error

    def finish(self, batches: list[list[tuple[int, int]]], latents: bool) -> list[dict[str, Any]] | None:
        """Join what the shards made: the records in the plan's order, or None while a batch is missing."""
        try:
            with locked(self.folder):
                self.records = self.read()
                if not all(self.has(b, batch, latents) for b, batch in enumerate(batches)):
                    return None
                records = [self.records[key] for batch in batches for key in batch]
                write(self.folder / "samples.jsonl", "".join(json.dumps(r) + "\n" for r in records))
                for path in [*self.folder.glob("samples.*of*.jsonl"), *self.folder.rglob("*.tmp")]:
                    path.unlink()
                if latents:
                    self.join_latents(len(batches))
        except OSError as error:
            raise self.unwritable(error) from error
        return records

    def add_latents(self, batch: int, x_T: Tensor, x_0: Tensor) -> None:
        """Store a batch's first noise and last latent [B, C, h, w]; `join_latents` makes one file of all batches."""
        tensors = {"x_T": x_T.cpu().contiguous(), "x_0": x_0.cpu().contiguous()}
        path = self.part(batch)
        try:
            path.parent.mkdir(exist_ok=True)
            with atomically(path) as part:
                save_file(tensors, part)
        except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
            raise self.unwritable(error) from error

    def join_latents(self, batches: int) -> None:
        target = self.folder / "latents.safetensors"
        if not target.exists():
            parts = [load_file(self.part(batch)) for batch in range(batches)]
            try:
                with atomically(target) as part:
                    save_file({k: torch.cat([p[k] for p in parts]) for k in ("x_T", "x_0")}, part)
            except (OSError, SafetensorError) as error:
                raise self.unwritable(error) from error
        shutil.rmtree(self.folder / "latents", ignore_errors=True)

    def part(self, batch: int) -> Path:
        return self.folder / "latents" / f"{batch:05d}.safetensors"

    def unwritable(self, error: Exception) -> OSError:
        reason = getattr(error, "strerror", None) or error
        return OSError(
            f"cannot write to {self.folder}: {reason}; its complete pictures are kept, mend it and run again"
        )


def by_picture(records: list[dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    return {(record["prompt_index"], record["seed"]): record for record in records}
