"""Reading and writing checkpoints: single files as CompVis published them, and diffusers folders, local or on the hub.

Reading is strict: every tensor of a file is used exactly once and in its shape, or is one of the known extras; anything
else is one ValueError. It is also frugal: files are mapped into memory, and each tensor is copied once, to its place.
"""

import json
import os
import pickletools
import re
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, TYPE_CHECKING, Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm import config_files, names
from ldm.autoencoder import Autoencoder
from ldm.config import ModelConfig
from ldm.names import Source
from ldm.text import TextEncoder, open_clip_tokenizer
from ldm.unet import UNet

if TYPE_CHECKING:
    from ldm.model import LatentDiffusion

CHUNK = 256 * 2**20  # bytes read before a file is mapped anew: touched pages count as the process's memory
INERT_NAMES = re.compile(r"(pytorch_lightning|lightning|lightning_fabric|numpy)\.")

Sources = dict[str, Source]  # of the parameters of one network, by our names
Networks = tuple[UNet, Autoencoder, TextEncoder]


# --- the tensors of a file --------------------------------------------------------------------------------------------


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


# --- from files to networks -------------------------------------------------------------------------------------------


def fill(
    networks: Iterable[tuple[nn.Module, Sources]],
    files: list[Path],
    extra: Callable[[str], bool],
    where: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give networks on the meta device their parameters from the files; the only copy is the one that stays.

    Raises ValueError listing what is missing, left over (unless `extra`) or of the wrong shape.
    """
    wanted = {sources[name]: meta for network, sources in networks for name, meta in network.state_dict().items()}
    compare(wanted, [item for path in files for item in tensors_in(path).items()], extra, where)
    by_key: dict[str, list[Source]] = {}
    for source in wanted:
        by_key.setdefault(source.key, []).append(source)

    values: dict[Source, Tensor] = {}
    for path in files:
        tensors, touched = tensors_in(path), 0
        mapped = is_safetensors(path) or zipfile.is_zipfile(path)
        for key in sorted(by_key.keys() & tensors.keys()):
            for source in by_key[key]:
                layout = torch.channels_last if wanted[source].ndim == 4 else torch.contiguous_format
                value = torch.empty(wanted[source].shape, dtype=dtype, device=device, memory_format=layout)
                values[source] = value.copy_(tensors[key].chunk(source.parts)[source.part].reshape(value.shape))
            touched += tensors[key].nbytes
            if mapped and touched > CHUNK:
                tensors, touched = tensors_in(path), 0
    for network, sources in networks:
        network.load_state_dict({name: values[source] for name, source in sources.items()}, assign=True)


def compare(
    wanted: Mapping[Source, Tensor], found: list[tuple[str, Tensor]], extra: Callable[[str], bool], where: str
) -> None:
    counts = Counter(key for key, _ in found)
    needed = {source.key: (source.parts * meta.shape[0], *meta.shape[1:]) for source, meta in wanted.items()}
    wrong = [
        f"{key} {[*tensor.shape]} and not {[*needed[key]]}"
        for key, tensor in found
        if key in needed and tuple(tensor.shape) not in (needed[key], (*needed[key], 1, 1))
    ]
    wrong += [f"{key} {t.dtype}" for key, t in found if key in needed and not t.is_floating_point()]
    problems = {
        "missing": [key for key in needed if key not in counts],
        "left over": [key for key in counts if key not in needed and not extra(key)],
        "of the wrong shape or type": wrong,
        "there more than once": [key for key, n in counts.items() if n > 1],
    }
    lines = [
        f"{len(keys)} {problem} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for problem, keys in problems.items()
        if keys
    ]
    if lines:
        raise ValueError(f"{where}: its tensors do not fit the networks: {'; '.join(lines)}")


def build(config: ModelConfig) -> Networks:
    """The three networks on the meta device: their shapes only."""
    with torch.device("meta"):
        networks = UNet(config.unet), Autoencoder(config.autoencoder), TextEncoder(config.text)
    for network in networks:
        network.eval().requires_grad_(False)
    return networks


def read(
    source: Path, config: Path | None, prediction: str | None, ema: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Networks, ModelConfig]:
    """The networks of a single file or of a diffusers folder; see `load_model`."""
    if prediction not in (None, "eps", "v", "x0", "flow"):
        raise ValueError(f"model.prediction={prediction}: must be eps, v, x0 or flow")
    if not source.is_dir():
        return read_file(source, config, prediction, ema, dtype, device)
    if ema or config is not None:
        what = "has no EMA copies" if ema else "brings its own configs"
        raise ValueError(f"{source}: a diffusers folder {what}: leave out model.{'ema' if ema else 'config'}")
    return read_folder(source, prediction, dtype, device)


def with_prediction(config: ModelConfig, prediction: str | None, where: str) -> ModelConfig:
    """The config, checked with the user's prediction in the place of its own."""
    schedule = replace(config.schedule, prediction=prediction or config.schedule.prediction)
    return config_files.checked(replace(config, schedule=schedule), where)


# --- single files -----------------------------------------------------------------------------------------------------


def file_sources(config: ModelConfig, networks: Networks, open_clip: bool, clip: str, ema: bool) -> list[Sources]:
    """Where each parameter stands in a single file, network by network; `clip`: what precedes transformers' names."""

    def key(prefix: str, name: str, table: names.Table) -> str:
        return prefix + names.rename(name, table)

    unet_table, autoencoder_table = names.compvis_unet(config.unet), names.compvis_autoencoder(config.autoencoder)
    unet_keys = {name: key(names.UNET, name, unet_table) for name in networks[0].state_dict()}
    return [
        {name: Source(names.averaged(theirs) if ema else theirs) for name, theirs in unet_keys.items()},
        {name: Source(key(names.AUTOENCODER, name, autoencoder_table)) for name in networks[1].state_dict()},
        {
            name: names.open_clip_source(name) if open_clip else Source(key(clip, name, names.TRANSFORMERS))
            for name in networks[2].state_dict()
        },
    ]


def read_file(
    path: Path, config_path: Path | None, prediction: str | None, ema: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Networks, ModelConfig]:
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors_in(path).items()}
    if config_path is None:
        config = config_files.family(shapes, prediction, str(path))
    else:
        config = config_files.from_yaml(config_path, shapes)
    config = with_prediction(config, prediction, str(config_path or path))
    if config.schedule.prediction == "":
        raise ValueError(
            f"{path}: an SD 2 file does not say what it predicts: "
            "give model.prediction=eps (the 512-base models) or model.prediction=v (the 768 models)"
        )
    if ema and not any(key.startswith(names.EMA) for key in shapes):
        raise ValueError(f"{path}: no EMA copies in it (model_ema.*): leave out model.ema")

    networks = build(config)
    open_clip = any(key.startswith(names.OPENCLIP) for key in shapes)
    clip = names.CLIP + ("text_model." if any(key.startswith(names.CLIP + "text_model.") for key in shapes) else "")
    sources = file_sources(config, networks, open_clip, clip, ema)
    pairs = list(zip(networks, sources, strict=True))
    fill(pairs, [path], lambda key: names.is_extra(key, config.text.layers, ema), str(path), dtype, device)
    return networks, config


# --- diffusers folders ------------------------------------------------------------------------------------------------

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
BIN_STEMS = {**STEMS, "text_encoder": "pytorch_model"}
CONFIGS = [*(f"{part}/config.json" for part in STEMS), "scheduler/scheduler_config.json"]
TOKENIZER = ["tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"]


def weight_files(part: str, files: Iterable[str]) -> list[str]:
    """Which of a folder's files (paths in it) hold a part: safetensors before .bin, plain before fp16, one or shards.

    Raises ValueError if there are none, or if shards are missing.
    """
    names_in_part = sorted(name.removeprefix(f"{part}/") for name in files if name.startswith(f"{part}/"))
    for stem, suffix in ((STEMS[part], "safetensors"), (BIN_STEMS[part], "bin")):
        for variant in ("", ".fp16"):
            if f"{stem}{variant}.{suffix}" in names_in_part:
                return [f"{part}/{stem}{variant}.{suffix}"]
            v, shard = re.escape(variant), r"-(\d+)-of-(\d+)"
            pattern = re.compile(rf"{stem}(?:{v}{shard}|{shard}{v})\.{suffix}")
            shards = [match for name in names_in_part if (match := pattern.fullmatch(name))]
            if shards:
                count = int(shards[0][2] or shards[0][4])
                if len(shards) != count:
                    raise ValueError(f"{part}/: {len(shards)} of the {count} shards of {stem}{variant}.{suffix}")
                return [f"{part}/{match[0]}" for match in shards]
    raise ValueError(f"no weights in {part}/ ({STEMS[part]}.safetensors, or shards, or .bin)")


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: missing: not a complete diffusers folder") from None
    except ValueError as error:
        raise ValueError(f"{path}: no readable JSON ({error})") from error


def padding(folder: Path) -> int | None:
    """The id of the padding token that the tokenizer's files name, if they do."""
    for name in TOKENIZER:
        token = read_json(folder / name).get("pad_token") if (folder / name).exists() else None
        if token is not None:
            text = token["content"] if isinstance(token, dict) else token
            special = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
            token_id = special.get(text, open_clip_tokenizer()._tokenizer.encoder.get(text))
            if token_id is None:
                raise ValueError(f"{folder / name}: pad_token {text!r} is not in CLIP's vocabulary")
            return token_id
    return None


def read_folder(
    folder: Path, prediction: str | None, dtype: torch.dtype, device: torch.device
) -> tuple[Networks, ModelConfig]:
    jsons = {name: read_json(folder / name) for name in CONFIGS}
    config = config_files.from_diffusers(jsons, padding(folder), str(folder))
    config = with_prediction(config, prediction, str(folder))
    try:
        present = [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
        files = {part: [folder / name for name in weight_files(part, present)] for part in STEMS}
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None

    networks = build(config)
    keys = {part: [key for path in files[part] for key in tensors_in(path)] for part in ("vae", "text_encoder")}
    old_vae = any(key.endswith(".query.weight") for key in keys["vae"])
    prefix = "text_model." if any(key.startswith("text_model.") for key in keys["text_encoder"]) else ""
    tables = {
        "unet": ("", names.DIFFUSERS),
        "vae": ("", names.DIFFUSERS_OLD_VAE if old_vae else names.DIFFUSERS),
        "text_encoder": (prefix, names.TRANSFORMERS),
    }
    for network, (part, (before, table)) in zip(networks, tables.items(), strict=True):
        sources = {name: Source(before + names.rename(name, table)) for name in network.state_dict()}
        fill([(network, sources)], files[part], names.is_constant, f"{folder}/{part}", dtype, device)
    return networks, config


def locate(source: str) -> Path:
    """The file or folder meant; a hub id "owner/name" is downloaded (only what we read) or found in the hub's cache.

    Raises FileNotFoundError or ValueError with one line if there is neither.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) or path.suffix in (".safetensors", ".ckpt", ".pt", ".bin"):
        raise FileNotFoundError(f"{source}: no such file or folder")
    try:
        siblings = huggingface_hub.HfApi().model_info(source, timeout=20).siblings or []
        files = [sibling.rfilename for sibling in siblings]
        needed = [*CONFIGS, *TOKENIZER, *(name for part in STEMS for name in weight_files(part, files))]
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=needed))
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{source}: no such file or folder, and not to be had on the hub: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{source} on the hub: {error}") from None
    except Exception:  # no network, in whatever words the HTTP library has for it: take what an earlier download left
        try:
            return Path(huggingface_hub.snapshot_download(source, local_files_only=True))
        except LocalEntryNotFoundError:
            raise ValueError(f"{source}: no such file or folder here, and the hub cannot be reached") from None


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` at the end; nothing stays of it if anything fails."""
    if path.exists():
        raise FileExistsError(f"{path}: exists already and is not overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.rename(path)
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error
    finally:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def write_folder(
    model: "LatentDiffusion", path: Path, max_shard_bytes: int | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a diffusers folder, whole or not at all. Raises FileExistsError if `path` is there.

    dtype None keeps the model's; max_shard_bytes None makes one file per network, else shards no larger than it
    (but for tensors that are) with their index.
    """
    config = model.config
    with atomically(path) as part:
        for name, settings in config_files.to_diffusers(config).items():
            write_text(part / name, json.dumps(settings, indent=2))
        for name, content in tokenizer_files(config.text.pad_id, config.text.context).items():
            write_text(part / "tokenizer" / name, content)
        networks = (model.unet, model.autoencoder, model.text_encoder)
        tables = (("", names.DIFFUSERS), ("", names.DIFFUSERS), ("text_model.", names.TRANSFORMERS))
        for (folder, stem), network, (prefix, table) in zip(STEMS.items(), networks, tables, strict=True):
            tensors = {prefix + names.rename(k, table): v.to(dtype or v.dtype) for k, v in network.state_dict().items()}
            write_shards(tensors, part / folder, stem, max_shard_bytes)


def write_text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n", encoding="utf-8")


def write_shards(tensors: dict[str, Tensor], folder: Path, stem: str, max_bytes: int | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pattern, most = f"{stem}{{suffix}}.safetensors", max_bytes or sum(value.nbytes for value in tensors.values())
    huggingface_hub.save_torch_state_dict(tensors, folder, filename_pattern=pattern, max_shard_size=most)


def tokenizer_files(pad_id: int, context: int) -> dict[str, str]:
    """open_clip's vocabulary as the files of transformers' CLIPTokenizer, which is the same but for two names."""
    bpe = open_clip_tokenizer()._tokenizer
    vocab = dict(bpe.encoder)
    start, end = "<|startoftext|>", "<|endoftext|>"
    for ours, theirs in ((bpe.sot_token_id, start), (bpe.eot_token_id, end)):
        vocab = {theirs if token_id == ours else token: token_id for token, token_id in vocab.items()}
    pad = next(token for token, token_id in vocab.items() if token_id == pad_id)
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False, separators=(",", ":")),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in bpe.bpe_ranks)]),
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "CLIPTokenizer", "model_max_length": context, **special}, indent=2
        ),
    }


def write_file(model: "LatentDiffusion", path: Path, dtype: torch.dtype | None = None) -> None:
    """Write a single .safetensors file in CompVis's layout, whole or not at all; a gelu text encoder as OpenCLIP's.

    Raises FileExistsError if `path` is there.
    """
    networks = (model.unet, model.autoencoder, model.text_encoder)
    open_clip = model.config.text.activation == "gelu"
    sources = file_sources(model.config, networks, open_clip, names.CLIP + "text_model.", ema=False)
    pieces: dict[str, list[Tensor]] = {}
    for network, by_name in zip(networks, sources, strict=True):
        for name, value in network.state_dict().items():
            if by_name[name].key.startswith(names.AUTOENCODER) and value.ndim == 2:
                value = value[:, :, None, None]  # linear layers are 1x1 convolutions there
            pieces.setdefault(by_name[name].key, []).append(value.to(dtype or value.dtype))
    tensors = {key: torch.cat(parts) if len(parts) > 1 else parts[0].contiguous() for key, parts in pieces.items()}
    if open_clip:  # the layout has one more block, which is never run
        last = f"{names.OPENCLIP}transformer.resblocks.{model.config.text.layers - 1}."
        unused = f"{names.OPENCLIP}transformer.resblocks.{model.config.text.layers}."
        tensors |= {k.replace(last, unused): torch.zeros_like(v) for k, v in tensors.items() if k.startswith(last)}
    with atomically(path) as part:
        save_file(tensors, part, metadata={"format": "pt"})
