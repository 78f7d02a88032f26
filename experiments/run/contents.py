"""Hashes of what a config only names: prompts, noise and weights, which may change while their paths stay the same."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.files import sha256
from experiments.run.prompts import Prompt
from ldm import LatentDiffusion
from ldm.files.names import parts


def contents(
    prompts: Sequence[Prompt], noise: Path | None, models: dict[str, LatentDiffusion], guidance: Any
) -> dict[str, str]:
    """Returns the hashes of a run's inputs, by what they are: also of the networks that the guidance brings along."""
    found = {"prompts": hashlib.sha256(json.dumps([asdict(prompt) for prompt in prompts]).encode()).hexdigest()}
    found |= {} if noise is None else {"noise": sha256(noise)}
    found |= {f"weights of {name}": fingerprint(model) for name, model in models.items()}
    own = modules_in(guidance, "guidance").items()
    return found | {f"weights of {name}": digest_of("", [module]) for name, module in own}


def modules_in(value: Any, name: str) -> dict[str, nn.Module]:
    """Returns the networks that a guidance brings along, by the dotted names of their places in it."""
    if isinstance(value, nn.Module):
        return {name: value}
    if isinstance(value, tuple | list):
        inside = {f"{name}.{i}": part for i, part in enumerate(value)}
    elif is_dataclass(value):
        inside = {f"{name}.{field.name}": getattr(value, field.name) for field in fields(value) if field.init}
    else:
        inside = {}
    return {place: module for key, part in inside.items() for place, module in modules_in(part, key).items()}


def fingerprint(model: LatentDiffusion) -> str:
    """Returns a hash of a model's numbers: its config, and up to 64 values of each of its tensors.

    It does not depend on the files that the model came from. Training moves every tensor, and so changes it.
    """
    return digest_of(repr(asdict(model.config)), list(parts(model).values()))


def digest_of(about: str, modules: Sequence[nn.Module]) -> str:
    digest = hashlib.sha256(about.encode())
    for module in modules:
        tensors = module.state_dict()
        digest.update(repr([(name, tuple(value.shape), value.dtype) for name, value in tensors.items()]).encode())
        digest.update(torch.cat([some_of(value).float() for value in tensors.values()]).cpu().numpy().tobytes())
    return digest.hexdigest()


def some_of(value: Tensor) -> Tensor:
    """At most 64 values of a tensor, evenly spread along its first axis."""
    while value.ndim > 1:
        value = value.select(-1, 0)
    return value.reshape(-1)[:: -(-value.numel() // 64)]
