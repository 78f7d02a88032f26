"""Classifiers of noisy latents, read and written: config.json and model.safetensors in a folder."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from ldm.classifier import ClassifierConfig, LatentClassifier
from ldm.files.messages import one_line
from ldm.files.names import Source
from ldm.files.reading import compare, read_json
from ldm.files.rules import from_fields
from ldm.files.tensors import tensors_in
from ldm.files.writing import atomically


def write_classifier(classifier: LatentClassifier, folder: Path) -> None:
    """Writes a folder, its weights in 16 bits, whole or not at all. Raises FileExistsError if it is there."""
    with atomically(folder) as temporary:
        temporary.mkdir()
        weights = {name: value.half().contiguous() for name, value in classifier.state_dict().items()}
        save_file(weights, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps(asdict(classifier.config), indent=1) + "\n")


def load_classifier(path: str | Path) -> LatentClassifier:
    """Returns the classifier of a folder, in float32.

    Raises ValueError or an OSError, in one line, for what is not there, damaged, or does not fit.
    """
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no classifier there (config.json): python -m experiments.train part=tasks/classifier makes one"
        )
    config = from_fields(ClassifierConfig(), read_json(folder / "config.json"), str(folder / "config.json"))
    if not config.classes or any(width % config.norm_groups for width in config.channels):
        raise ValueError(f"{folder / 'config.json'}: it needs classes, and channels that norm_groups divides")
    with torch.device("meta"):
        classifier = LatentClassifier(config)
    wanted = {Source(name): value for name, value in classifier.state_dict().items()}
    weights = tensors_in(folder / "model.safetensors")
    compare(wanted, list(weights.items()), lambda key: False, one_line(folder))
    classifier.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return classifier.eval().requires_grad_(False)
