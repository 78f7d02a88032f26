"""The tensors of a file, read without running anything in it: safetensors, and what torch.save wrote."""

import pickletools
import re
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

INERT_NAMES = re.compile(r"(pytorch_lightning|lightning|lightning_fabric|numpy)\.")


class Inert:
    """Stands in for a class that a pickle names, and does nothing with what it is given."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"


def globals_in(path: Path) -> set[str]:
    """The dotted names of what a pickle would import, found without running it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("data.pkl")]
            return {name for file in pickles for name in imports(file)}
    with path.open("rb") as file:  # torch's old format: a magic number, a version, a system, and then the content
        return {name for _ in range(4) for name in imports(file)}


def imports(file: IO[bytes]) -> list[str]:
    """The dotted names in the pickle at the file's position."""
    return [str(arg).replace(" ", ".") for opcode, arg, _ in pickletools.genops(file) if opcode.name == "GLOBAL"]


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by safetensors or by torch.save, told apart by content; mapped where that can be.

    Raises ValueError for a file that is neither, that is cut short, or whose pickle names code beyond plain tensors.
    """
    try:
        if is_safetensors(path):
            return load_file(path)
        inert: list[Any] = [(Inert, name) for name in globals_in(path) if INERT_NAMES.match(name)]
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(inert):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from error
    except UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+) was not|GLOBAL (\S+) whose", str(error))
        if name is None:
            raise ValueError(f"{path}: no checkpoint, or a damaged one: not a pickle of plain tensors") from error
        raise ValueError(f"{path}: refused: it would run {name[1] or name[2]}, which is no plain tensor") from error
    except (RuntimeError, ValueError, KeyError, EOFError, IndexError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no checkpoint, or a damaged one: neither safetensors nor torch.save's") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ValueError(f"{path}: no tensors in it")
    return tensors
