"""Models written to files, whole or not at all."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import huggingface_hub
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ldm.files import config_files, names
from ldm.files.reading import values_in
from ldm.model import LatentDiffusion
from ldm.text import open_clip_tokenizer

VOCABULARY = ("vocab.json", "merges.txt")  # files of a tokenizer that repeat open_clip's, for other libraries


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to, which becomes `path` at the end; if anything fails, nothing stays of it.

    Raises FileExistsError if `path` is there.
    """
    if path.exists():
        raise FileExistsError(f"{path}: exists already and is not overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        yield temporary
        temporary.rename(path)
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def write_folder(
    model: LatentDiffusion,
    path: Path,
    max_shard_bytes: int | None = None,
    dtype: torch.dtype | None = None,
    shared: Mapping[str, str] | None = None,
) -> None:
    """Writes a diffusers folder, whole or not at all. Raises FileExistsError if `path` is there.

    dtype None keeps the model's; max_shard_bytes None makes one file per network, else shards no larger than it
    (but for tensors that are) with their index. `shared` names the folders, seen from `path`, where the weights of
    some parts lie already: of these only tensors that differ are written, and the folder's index says where the others
    are. diffusers cannot read such a folder.
    """
    config = model.config
    with atomically(path) as temporary:
        jsons = config_files.to_diffusers(config)
        if shared:
            jsons["model_index.json"][config_files.SHARED] = dict(shared)
        for name, settings in jsons.items():
            write_text(temporary / name, json.dumps(settings, indent=2))
        for folder, text in (("tokenizer", config.text), ("tokenizer_2", config.text_2)):
            if text and config.condition == "text":
                for name, content in tokenizer_files(text.pad_id, text.context).items():
                    if not shared or name not in VOCABULARY:
                        write_text(temporary / folder / name, content)
        sources = names.in_folder(model)
        for part, network in names.parts(model).items():
            state = network.state_dict()
            if shared and part in shared:
                there = values_in(model, part, (path / shared[part]).resolve())
                state = {name: value for name, value in state.items() if not same(value, there[name], dtype)}
            tensors = {sources[part][name].key: value.to(dtype or value.dtype) for name, value in state.items()}
            if tensors:
                write_shards(tensors, temporary / part, names.STEMS[part], max_shard_bytes)


def same(one: Tensor, other: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether two tensors are equal, once they are written in a dtype."""
    return torch.equal(*(tensor.to("cpu", dtype or one.dtype) for tensor in (one, other)))


def write_text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n", encoding="utf-8")


def write_shards(tensors: dict[str, Tensor], folder: Path, stem: str, max_bytes: int | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pattern, most = f"{stem}{{suffix}}.safetensors", max_bytes or sum(value.nbytes for value in tensors.values())
    huggingface_hub.save_torch_state_dict(tensors, folder, filename_pattern=pattern, max_shard_size=most)


def tokenizer_files(pad_id: int, context: int) -> dict[str, str]:
    """Returns open_clip's vocabulary as the files of transformers' CLIPTokenizer, where two tokens have other names."""
    bpe = open_clip_tokenizer()._tokenizer
    start, end = "<|startoftext|>", "<|endoftext|>"
    renamed = {bpe.sot_token_id: start, bpe.eot_token_id: end}
    vocab = {renamed.get(token_id, token): token_id for token, token_id in bpe.encoder.items()}
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


def write_file(model: LatentDiffusion, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes a .safetensors file in CompVis's layout, whole or not at all; a gelu text encoder as OpenCLIP's.

    Of two text encoders the layout is SDXL's, with the marks of its fine-tunes.

    Raises FileExistsError if `path` is there, and ValueError for networks that the layout has no names for.
    """
    if beyond := {"dit", "drawings"} & names.parts(model).keys():
        raise ValueError(f"{path}: CompVis's layout has no {' and no '.join(sorted(beyond))}: write a folder")
    two_texts = model.config.text_2 is not None
    open_clip = model.config.condition == "text" and model.config.text.activation == "gelu" and not two_texts
    sources = names.in_single_file(model, names.OPENCLIP if open_clip else names.CLIP + names.TEXT_PREFIX)
    ranges: dict[str, list[Tensor]] = {}  # of the rows of each tensor, in order
    for part, network in names.parts(model).items():
        for name, value in network.state_dict().items():
            if part == "vae" and value.ndim == 2:
                value = value[:, :, None, None]  # linear layers are 1x1 convolutions there
            value = value.mT if sources[part][name].transposed else value
            ranges.setdefault(sources[part][name].key, []).append(value.to(dtype or value.dtype))
    tensors = {key: torch.cat(rows) if len(rows) > 1 else rows[0].contiguous() for key, rows in ranges.items()}
    if open_clip:  # the layout has one more block, which is never run
        last = f"{names.OPENCLIP}transformer.resblocks.{model.config.text.layers - 1}."
        unused = f"{names.OPENCLIP}transformer.resblocks.{model.config.text.layers}."
        tensors |= {k.replace(last, unused): torch.zeros_like(v) for k, v in tensors.items() if k.startswith(last)}
    if two_texts:
        schedule = model.config.schedule
        marks = {names.V_PRED: schedule.prediction == "v", names.ZERO_SNR: schedule.zero_terminal_snr}
        tensors |= {key: torch.empty(0) for key, marked in marks.items() if marked}
    with atomically(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
