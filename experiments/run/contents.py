"""Hashes of what a config only names: prompts, noise and weights, which may change while their paths stay the same."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from experiments.files import sha256
from experiments.run.prompts import Prompt
from ldm import LatentDiffusion
from ldm.files.names import parts


def contents(prompts: Sequence[Prompt], noise: Path | None, models: dict[str, LatentDiffusion]) -> dict[str, str]:
    """Returns the hashes of a run's inputs, by what they are."""
    found = {"prompts": hashlib.sha256(json.dumps([asdict(prompt) for prompt in prompts]).encode()).hexdigest()}
    found |= {} if noise is None else {"noise": sha256(noise)}
    return found | {f"weights of {name}": fingerprint(model) for name, model in models.items()}


def fingerprint(model: LatentDiffusion) -> str:
    """Returns a hash of a model's numbers: its config, and up to 64 values of each of its tensors.

    It does not depend on the files that the model came from. Training moves every tensor, and so changes it.
    """
    digest = hashlib.sha256(repr(asdict(model.config)).encode())
    for part in parts(model).values():
        tensors = part.state_dict()
        digest.update(repr([(name, tuple(value.shape), value.dtype) for name, value in tensors.items()]).encode())
        digest.update(torch.cat([some_of(value).float() for value in tensors.values()]).cpu().numpy().tobytes())
    return digest.hexdigest()


def some_of(value: Tensor) -> Tensor:
    """At most 64 values of a tensor, evenly spread along its first axis."""
    while value.ndim > 1:
        value = value.select(-1, 0)
    return value.reshape(-1)[:: -(-value.numel() // 64)]
