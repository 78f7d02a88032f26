"""Reading and writing of small files: whole or not at all, alone where it matters, and with their provenance."""

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).resolve().parent.parent / "conf"
PACKAGES = ("torch", "numpy", "safetensors", "open_clip_torch", "hydra-core")


def one_line(error: Exception) -> str:
    """OmegaConf adds lines about its own types to what is wrong; Hydra's further lines list what there is to choose."""
    return str(error).splitlines()[0] if isinstance(error, OmegaConfBaseException) else str(error)


def say(line: str) -> None:
    """A line for the user, on standard error."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone among the processes that work on a folder; the lock of a killed one is free."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def describe(config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Everything about a run that its config does not say."""
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "config": config,
    }


def commit() -> str | None:
    """The commit of this code, with "+changes" if the work tree differs from it; None outside a git checkout."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a samples.jsonl; a last line that a killed process left unfinished does not count."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, line: str) -> None:
    """A whole line or nothing."""
    size = path.stat().st_size
    try:
        with path.open("a") as file:
            file.write(line)
    except OSError:
        os.truncate(path, size)
        raise


def difference(old: Any, new: Any, name: str = "") -> str:
    """The first setting in which two resolved configs differ, or ""."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            found = difference(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return ""
    return "" if old == new else f"{name} was {old}, now is {new}"


def sha256(*paths: Path) -> str:
    """Of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
