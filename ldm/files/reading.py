"""Models read from files.

Reading is strict: every tensor of a file is used exactly once and in its shape, or is one of the known extras; anything
else is one ValueError. Files are mapped into memory, and each tensor is copied once, to its place.
"""

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from ldm.autoencoder import Autoencoder
from ldm.config import AutoencoderConfig, ModelConfig
from ldm.files import config_files, names
from ldm.files.messages import one_line, quoted
from ldm.files.names import STEMS, Source, Sources
from ldm.files.rules import PREDICTIONS, checked
from ldm.files.tensors import is_mapped, tensors_in
from ldm.model import LatentDiffusion, autoencoder_of, denoiser_of, encoder_of
from ldm.text import open_clip_tokenizer

WEIGHTS = Path(__file__).parent.parent / "weights"
TASKS = tuple(f"emoji_{task}" for task in ("upscale", "inpaint", "classes", "boxes"))
EMBEDDED = {name: WEIGHTS / name for name in ("emoji", "glyphs", *TASKS)}
CHUNK = 256 * 2**20  # bytes read before a file is mapped anew: touched pages count as the process's memory


def load_model(
    source: str | Path = "emoji",
    *,
    config: str | Path | None = None,
    prediction: str | None = None,
    ema: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> LatentDiffusion:
    """Returns an embedded model (EMBEDDED has their names), or that of a single file, a diffusers folder, or a hub id.

    config      YAML of a single file that is not of a published family: CompVis's, or one of ModelConfig's fields
    prediction  "eps", "v", "x0" or "flow", in the place of what a config says; needed for single files of SD 2
    ema         take a single file's averaged copies of the U-Net's weights

    Raises ValueError or an OSError, in one line, for whatever is not there, damaged, unknown or does not fit.
    """
    if prediction not in (None, *PREDICTIONS):
        raise ValueError(f"model.prediction={prediction}: must be {', '.join(PREDICTIONS[:-1])} or {PREDICTIONS[-1]}")
    path = EMBEDDED.get(str(source)) or locate(str(source))
    if not path.exists():
        raise FileNotFoundError(f"{source}: this installation has no weights of it ({path}); README says how to train")
    if not path.is_dir():
        config_path = None if config is None else Path(config)
        return read_file(path, config_path, prediction, ema, dtype, torch.device(device))
    if ema or config is not None:
        what = "has no EMA copies" if ema else "brings its own configs"
        raise ValueError(f"{path}: a diffusers folder {what}: leave out model.{'ema' if ema else 'config'}")
    return read_folder(path, prediction, dtype, torch.device(device))


# --- from files to networks -------------------------------------------------------------------------------------------


def on_meta(config: ModelConfig) -> LatentDiffusion:
    """Returns a model on the meta device: its shapes only."""
    with torch.device("meta"):
        networks = denoiser_of(config), autoencoder_of(config), encoder_of(config)
    model = LatentDiffusion(*networks, config)
    for network in names.parts(model).values():
        network.eval().requires_grad_(False)
    return model


def dtype_of(part: str, config: ModelConfig, dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of one network, where this one was asked for."""
    overflows = part == "vae" and config.autoencoder.overflows and dtype == torch.float16
    return torch.float32 if overflows else dtype


def fill(
    parts: Iterable[tuple[nn.Module, Sources, torch.dtype]],
    files: list[Path],
    extra: Callable[[str], bool],
    where: str,
    device: torch.device,
) -> None:
    """Gives networks on the meta device those parameters that have a source, in one copy, each network in its dtype.

    Raises ValueError listing what is missing, left over (unless `extra`) or of the wrong shape.
    """
    wanted = {
        sources[name]: meta
        for network, sources, _ in parts
        for name, meta in network.state_dict().items()
        if name in sources
    }
    dtypes = {source: dtype for _, sources, dtype in parts for source in sources.values()}
    compare(wanted, [item for path in files for item in tensors_in(path).items()], extra, where)
    by_key: dict[str, list[Source]] = {}
    for source in wanted:
        by_key.setdefault(source.key, []).append(source)

    values: dict[Source, Tensor] = {}
    for path in files:
        tensors, touched = tensors_in(path), 0
        mapped = is_mapped(path)
        for key in sorted(by_key.keys() & tensors.keys()):
            for source in by_key[key]:
                layout = torch.channels_last if wanted[source].ndim == 4 else torch.contiguous_format
                shape, dtype = wanted[source].shape, dtypes[source]
                value = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
                values[source] = value.copy_(source.values(tensors[key], shape))
            touched += tensors[key].nbytes
            if mapped and touched > CHUNK:
                tensors, touched = tensors_in(path), 0
    for network, sources, _ in parts:
        found = {name: values[source] for name, source in sources.items()}
        network.load_state_dict(found, assign=True, strict=False)


def compare(
    wanted: Mapping[Source, Tensor], found: list[tuple[str, Tensor]], extra: Callable[[str], bool], where: str
) -> None:
    """Raises ValueError unless the tensors found are those wanted, each once, beside extra ones."""
    counts = Counter(key for key, _ in found)
    needed = {source.key: source.shape(meta) for source, meta in wanted.items()}
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
        f"{len(keys)} {problem} ({', '.join(map(one_line, keys[:3]))}{', ...' if len(keys) > 3 else ''})"
        for problem, keys in problems.items()
        if keys
    ]
    if lines:
        raise ValueError(f"{where}: its tensors do not fit the networks: {'; '.join(lines)}")


def with_prediction(config: ModelConfig, prediction: str | None, where: str) -> ModelConfig:
    """Returns the config, checked with the user's prediction in the place of its own."""
    schedule = replace(config.schedule, prediction=prediction or config.schedule.prediction)
    return checked(replace(config, schedule=schedule), where)


# --- single files -----------------------------------------------------------------------------------------------------


def read_file(
    path: Path, config_path: Path | None, prediction: str | None, ema: bool, dtype: torch.dtype, device: torch.device
) -> LatentDiffusion:
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

    model = on_meta(config)
    prefixes = (names.OPENCLIP, names.CLIP + names.TEXT_PREFIX)
    text_prefix = next((p for p in prefixes if any(key.startswith(p) for key in shapes)), names.CLIP)
    sources = names.in_single_file(model, text_prefix, ema)
    parts = [(network, sources[part], dtype_of(part, config, dtype)) for part, network in names.parts(model).items()]
    fill(parts, [path], lambda key: names.is_extra(key, config.text.layers, ema), str(path), device)
    return model


# --- diffusers folders ------------------------------------------------------------------------------------------------

BIN_STEMS = {**STEMS, "text_encoder": "pytorch_model", names.TEXT_2: "pytorch_model"}
SCHEDULER = "scheduler/scheduler_config.json"
INDEX = "model_index.json"
TOKENIZER = ("special_tokens_map.json", "tokenizer_config.json")


def tokenizers(parts: Iterable[str]) -> dict[str, str]:
    """Returns the folders of the tokenizers, by the text encoder that they belong to."""
    return {part: part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text")}


def read_folder(folder: Path, prediction: str | None, dtype: torch.dtype, device: torch.device) -> LatentDiffusion:
    index, told_by = read_index(folder), told_in(folder)
    parts = [*names.networks_of(replace(ModelConfig(), **config_files.own_settings(index, str(folder)))), *told_by]
    jsons = {name: read_json(folder / name) for name in [*(f"{part}/config.json" for part in parts), SCHEDULER]}
    jsons[INDEX] = index
    pad_ids = {part: padding(folder / tokenizer) for part, tokenizer in tokenizers(told_by).items()}
    config = config_files.from_diffusers(jsons, pad_ids, str(folder))
    config = with_prediction(config, prediction, str(folder))
    elsewhere = shared_weights(index, folder)
    try:
        files = {part: files_of(part, elsewhere.get(part, folder / part)) for part in parts}
        own = {part: files_of(part, folder / part) for part in elsewhere if any(folder.glob(f"{part}/*.safetensors"))}
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None

    model = on_meta(config)
    for part in names.parts(model):
        where, as_asked = f"{folder}/{part}", dtype_of(part, config, dtype)
        kept = fill_part(model, part, own[part], where, as_asked, device, some=True) if part in own else set()
        fill_part(model, part, files[part], where, as_asked, device, but=kept)
    return model


def fill_part(
    model: LatentDiffusion,
    part: str,
    files: list[Path],
    where: str,
    dtype: torch.dtype,
    device: torch.device,
    some: bool = False,
    but: Collection[str] = (),
) -> set[str]:
    """Gives a part of a model on the meta device its parameters from files of a diffusers folder, or of a CLIP.

    some  the files may have some of them alone
    but   names of those that it has already

    Returns the names of those that it gave. Raises ValueError as `fill`.
    """
    keys = {key for path in files for key in tensors_in(path)}
    of_clip = names.CLIP_POSITIONS in keys
    bare = [] if any(key.startswith(names.TEXT_PREFIX) for key in keys) else [part]
    old_vae = any(key.endswith(".query.weight") for key in keys)
    places = names.in_folder(model, bare, old_vae, [part] if of_clip else [])[part]
    sources = {name: at for name, at in places.items() if name not in but and (at.key in keys or not some)}
    had = {places[name].key for name in but}

    def extra(key: str) -> bool:
        return key in had or (names.is_beside_text if of_clip else names.is_constant)(key)

    fill([(names.parts(model)[part], sources, dtype)], files, extra, where, device)
    return set(sources)


def values_in(model: LatentDiffusion, part: str, folder: Path) -> dict[str, Tensor]:
    """Returns the parameters that a folder of weights has for a part of a model, by their names in it, in float32.

    Raises ValueError for a folder without them.
    """
    other = on_meta(model.config)
    fill_part(other, part, files_of(part, folder), str(folder), torch.float32, torch.device("cpu"))
    return dict(names.parts(other)[part].state_dict())


def shared_weights(index: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Returns the folders of weights that lie outside of a model's own, by part: those that its index names.

    What the model's own folder of that part has is taken from there all the same. Raises ValueError for a name that is
    none, or no folder there.
    """
    shared = index.get(config_files.SHARED, {})
    if not isinstance(shared, dict):
        raise ValueError(f"{folder / INDEX}: {config_files.SHARED}={quoted(shared)} must name folders by part")
    found = {}
    for part, name in shared.items():
        if not isinstance(name, str) or not (folder / name).is_dir():
            raise ValueError(f"{folder / INDEX}: {config_files.SHARED}: {one_line(part)}: no folder {quoted(name)}")
        found[part] = folder / name
    return found


def files_of(part: str, folder: Path) -> list[Path]:
    """Returns the files of a part's weights in a folder. Raises ValueError if they are not there."""
    if clip := sorted(folder.glob(f"{names.CLIP_STEM}*.safetensors")):
        return clip
    found = weight_files(part, [f"{part}/{path.name}" for path in folder.glob("*")])
    return [folder / name.removeprefix(f"{part}/") for name in found]


def read_autoencoder(folder: Path) -> tuple[Autoencoder, AutoencoderConfig]:
    """Returns the autoencoder of its own folder in diffusers' layout, such as `vae` of a model, in float32.

    Raises ValueError, or OSError of a file.
    """
    config = config_files.autoencoder_from_diffusers(read_json(folder / "config.json"), str(folder))
    with torch.device("meta"):
        network = Autoencoder(config).eval().requires_grad_(False)
    files = files_of("vae", folder)
    sources = {name: Source(names.rename(name, names.DIFFUSERS)) for name in network.state_dict()}
    fill([(network, sources, torch.float32)], files, names.is_constant, str(folder), torch.device("cpu"))
    return network, config


def read_index(folder: Path) -> dict[str, Any]:
    """Returns what a folder's index says; nothing if there is none."""
    return read_json(folder / INDEX) if (folder / INDEX).exists() else {}


def told_in(folder: Path) -> list[str]:
    """Returns the names of the folders of what turns prompts into conditions; none if the model's index says so.

    Raises ValueError for an SDXL refiner.
    """
    for part in ("classes", "boxes"):
        if (folder / part / "config.json").exists():
            return [part]
    if (folder / names.TEXT_2 / "config.json").exists():
        if not (folder / "text_encoder" / "config.json").exists():
            raise ValueError(f"{folder}: an SDXL refiner, which has text_encoder_2 alone: only SDXL base is supported")
        return ["text_encoder", names.TEXT_2]
    index = read_index(folder)
    return [] if index.get("text_encoder") == [None, None] else ["text_encoder"]


def weight_files(part: str, files: Iterable[str]) -> list[str]:
    """Returns those of a folder's files (paths in it) that hold a part: .safetensors before .bin, plain before fp16.

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
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: missing: not a complete diffusers folder") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no readable JSON ({one_line(error)})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: no JSON object")
    return data


def padding(folder: Path) -> int | None:
    """Returns the id of the padding token that a tokenizer's files name, or None."""
    for name in TOKENIZER:
        token = read_json(folder / name).get("pad_token") if (folder / name).exists() else None
        if token is not None:
            text = token.get("content") if isinstance(token, dict) else token
            ids = {**open_clip_tokenizer()._tokenizer.encoder, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
            if not isinstance(text, str) or text not in ids:
                raise ValueError(f"{folder / name}: pad_token {quoted(text)} is not in CLIP's vocabulary")
            return ids[text]
    return None


# --- the hub ----------------------------------------------------------------------------------------------------------


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")


def locate(source: str) -> Path:
    """Returns the file or folder meant, or what a hub id "owner/name" was downloaded to (only what is read).

    A path of that form is a hub id if there is no folder `owner` here, and if that is not "outputs", where commands
    write: a mistyped path is not looked up. "hf://owner/name" is always one. Raises FileNotFoundError or ValueError.
    """
    path, hub_id = Path(os.path.expanduser(source)), source.removeprefix("hf://")
    if path.exists():
        return path
    if not HUB_ID.fullmatch(hub_id) or path.suffix in FILE_SUFFIXES:
        raise FileNotFoundError(f"{source}: no such file or folder")
    owner = hub_id.partition("/")[0]
    if source == hub_id and (owner == "outputs" or Path(owner).is_dir()):
        raise FileNotFoundError(f"{source}: no such file or folder in {owner}/ (for a model on the hub: hf://{source})")
    return from_hub(hub_id)


def from_hub(hub_id: str) -> Path:
    """Returns the folder of a model on the hub, downloaded, or found in the hub's cache if there is no network."""
    try:
        siblings = huggingface_hub.HfApi().model_info(hub_id, timeout=20).siblings or []
        files = [sibling.rfilename for sibling in siblings]
        there = {name.partition("/")[0] for name in files}
        always = {"unet", "vae"} if not there & {"dit", "drawings"} else set()
        parts = [part for part in STEMS if part in there | always]
        needed = [*(f"{part}/config.json" for part in parts), SCHEDULER]
        needed += [INDEX] if "text_encoder" not in parts or names.TEXT_2 in parts else []
        needed += [f"{folder}/{name}" for folder in tokenizers(parts).values() for name in TOKENIZER]
        needed += [name for part in parts for name in weight_files(part, files)]
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=needed))
    except (HfHubHTTPError, HFValidationError) as error:
        reason = one_line(str(error).strip().partition("\n")[0])
        raise ValueError(f"{hub_id}: no such file or folder, and not to be had on the hub: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{hub_id} on the hub: {error}") from None
    except Exception as error:  # no network, in whatever words: take what an earlier download left
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        try:
            return Path(huggingface_hub.snapshot_download(hub_id, local_files_only=True))
        except LocalEntryNotFoundError:
            raise ValueError(f"{hub_id}: no such file or folder here, and the hub cannot be reached") from None
