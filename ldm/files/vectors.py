"""A vector autoencoder in a folder: config.json, and model.safetensors in 16 bits."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from ldm.config import VectorAutoencoderConfig
from ldm.files.messages import one_line
from ldm.files.rules import from_fields
from ldm.files.tensors import tensors_in
from ldm.files.writing import atomically, write_text
from ldm.svg.autoencoder import VectorAutoencoder


def write_vector_autoencoder(autoencoder: VectorAutoencoder, folder: Path) -> None:
    """Writes the folder whole or not at all. Raises FileExistsError if it is there."""
    with atomically(folder) as temporary:
        write_text(temporary / "config.json", json.dumps(asdict(autoencoder.config), indent=1))
        weights = {name: value.half().contiguous() for name, value in autoencoder.state_dict().items()}
        save_file(weights, temporary / "model.safetensors")


def read_vector_autoencoder(folder: Path) -> VectorAutoencoder:
    """Returns the autoencoder of a folder (or a model's folder's part `drawings`), in float32, for evaluation.

    Raises OSError for files that are missing, ValueError for damaged ones and for weights that do not fit the config.
    """
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: no JSON ({one_line(error)})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{folder / 'config.json'}: not a mapping of settings")
    settings = {key: value for key, value in fields.items() if not key.startswith("_")}
    config = from_fields(VectorAutoencoderConfig(), settings, str(folder / "config.json"))
    with torch.device("meta"):
        autoencoder = VectorAutoencoder(config)
    weights = tensors_in(folder / "model.safetensors")
    wanted = {name: value.shape for name, value in autoencoder.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != wanted:
        raise ValueError(f"{folder}: the weights are not those of an autoencoder of its config.json")
    autoencoder.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return autoencoder.eval().requires_grad_(False)
