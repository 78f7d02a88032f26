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
from safetensors.torch import load_file
from torch import Tensor

from ldm.files.messages import one_line

INERT_NAMES = re.compile(r"(pytorch_lightning|lightning|lightning_fabric|numpy)\.")
REFUSED_NAMES = {"builtins.bytearray", "__builtin__.bytearray"}  # torch would make one of any size


class Inert:
    """Stands in for a class that a pickle names, and does nothing with what it is given."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file by safetensors or by torch.save, mapped into memory where that is possible.

    Raises OSError for a file that cannot be read, and ValueError for one that is of another kind, is cut short or
    damaged, or whose pickle names code beyond plain tensors.
    """
    content = from_safetensors(path) if is_safetensors(path) else from_pickle(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    items = content.items() if isinstance(content, dict) else ()
    tensors = {key: value for key, value in items if isinstance(key, str) and is_plain(value)}
    if not tensors:
        raise ValueError(f"{path}: no tensors in it")
    size = path.stat().st_size
    if any(tensor.nbytes > size for tensor in tensors.values()):
        raise ValueError(f"{path}: damaged: a tensor in it is larger than the file")
    return tensors


def is_mapped(path: Path) -> bool:
    """Tells whether `tensors_in` maps the file, so that its values are read when they are used."""
    return is_safetensors(path) or zipfile.is_zipfile(path)


def is_plain(value: object) -> bool:
    """Tells whether a value is a dense tensor whose elements all have a place of their own."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested or value.is_quantized:
        return False
    return value.device.type == "cpu" and value.nbytes <= value.untyped_storage().nbytes()


# --- safetensors ------------------------------------------------------------------------------------------------------


def is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"


def from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # whatever the library stumbles over in a damaged file
        raise ValueError(f"{path}: not a complete safetensors file ({one_line(error)})") from error


# --- pickles ----------------------------------------------------------------------------------------------------------


def from_pickle(path: Path) -> Any:
    """Returns what torch.save was given, with stand-ins for the classes of Lightning and numpy."""
    try:
        found = globals_in(path)
        inert: list[Any] = [(Inert, name) for name in found if INERT_NAMES.match(name)]
        refused = next(iter(found & REFUSED_NAMES), None)
        if refused is None:
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(inert):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+) was not|GLOBAL (\S+) whose", str(error))
        if match is None:
            raise ValueError(f"{path}: no checkpoint, or a damaged one: not a pickle of plain tensors") from error
        refused = match[1] or match[2]
    except OSError:
        raise
    except Exception as error:  # whatever the unpickler stumbles over in a damaged file
        raise ValueError(f"{path}: no checkpoint, or a damaged one: neither safetensors nor torch.save's") from error
    raise ValueError(f"{path}: refused: it would run {one_line(refused)}, which is no plain tensor")


def globals_in(path: Path) -> set[str]:
    """Returns the dotted names of what a pickle would import, without running it."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:  # torch's old format: a magic number, a version, a system, and then the content
            return {name for _ in range(4) for name in imports(file)}
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("torch.save never compresses: what is unpacked may be of any size")
        (pickle,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return set(imports(BytesIO(archive.read(pickle))))


def imports(file: IO[bytes]) -> list[str]:
    """Returns the dotted names in the pickle at the file's position."""
    return [str(arg).replace(" ", ".") for opcode, arg, _ in pickletools.genops(file) if opcode.name == "GLOBAL"]
