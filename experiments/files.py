"""What every other room of experiments writes, locks, hashes and complains with."""

import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` has none of them
    import torch

CONF = Path(__file__).resolve().parent.parent / "conf"
WEIGHTS = CONF.parent / "ldm" / "weights"
PACKAGES = ("torch", "numpy", "safetensors", "open_clip_torch", "hydra-core")


@lru_cache
def embedded(key: str) -> str:
    """Returns an entry of conf/embedded.yaml: what belongs to the embedded emoji model."""
    return str(OmegaConf.select(OmegaConf.load(CONF / "embedded.yaml"), key, throw_on_missing=True))


OmegaConf.register_new_resolver("embedded", embedded)  # ${embedded:world} in a yaml; whoever composes knows CONF


class UserError(ValueError):
    """Something that the user can mend. Its message is one line: what is wrong, where, and what to do about it."""


@contextmanager
def as_user_error(prefix: str = "") -> Iterator[None]:
    """Re-raises a ValueError as a UserError, its message after the prefix.

    It belongs around calls that turn a user's settings into objects of ldm, samplers and guidance: those rooms know no
    users and refuse a value by ValueError.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error


def one_line(error: Exception) -> str:
    """Returns the error's message. OmegaConf's is cut to its first line, since the rest is about its own types.

    Hydra's of a missing config has what there is in the same line, and not where it searched.
    """
    lines = str(error).splitlines()
    if isinstance(error, OmegaConfBaseException):
        return lines[0]
    if isinstance(error, MissingConfigException):
        there = ", ".join(line.strip() for line in lines[1:] if line.startswith("\t") and "provider=" not in line)
        return lines[0] + (f": there is {there}" if there else "")
    return str(error)


def say(line: str) -> None:
    """Prints a line for the user on standard error."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Keeps other processes, on this machine or on others that share the folder, out of the same block.

    The lock is a POSIX record lock on FOLDER/NAME, which NFS passes on to its server; a killed process loses its own.
    It does not keep threads of one process apart, and one name is not to be nested.
    """
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends and is removed if it fails.

    So a reader finds the whole file, old or new, and any number of writers may write at the same time: the last to
    end wins. The temporary name is `path`'s own, a random part, and ".tmp".
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def describe(config: dict[str, Any], device: "torch.device") -> dict[str, Any]:
    """The provenance of a result: its config, and the code, versions and device that it was made with."""
    import torch

    return {
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "config": config,
    }


@lru_cache
def commit() -> str | None:
    """Returns the commit of this code, with "+changes" if the work tree differs; None outside a git checkout.

    It is asked once: a process goes on with the code that it has loaded.
    """

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a samples.jsonl, [] if it does not exist. An unfinished last line does not count."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def newest(versions: Iterable[Path]) -> Path | None:
    """Returns the file with the highest version in its name: 5.2.10 comes after 5.2.9, and 6.0.0-beta before 6.0.0."""

    def key(path: Path) -> tuple[list[int], bool, str]:
        found = re.search(r"-(\d+(?:\.\d+)+)(-?)", path.name)
        assert found, path
        return [int(number) for number in found[1].split(".")], not found[2], path.name

    return max(versions, key=key, default=None)


def write(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    with atomically(path) as part:
        part.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, "torch.Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically."""
    from safetensors.torch import save  # save_file has a temporary file of its own, which a kill leaves behind

    with atomically(path) as part:
        part.write_bytes(save(tensors, metadata))


def append(path: Path, line: str) -> None:
    """Appends a whole line or nothing. Only one process may append to a file at a time."""
    size = path.stat().st_size
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError:
        os.truncate(path, size)
        raise


def difference(old: Any, new: Any, name: str = "") -> str:
    """Names the first setting in which two resolved configs differ, with both its values; "" if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            found = difference(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return ""
    return "" if old == new else f"{name} was {old}, now is {new}"


def sha256(*paths: Path) -> str:
    """Returns the hash of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
