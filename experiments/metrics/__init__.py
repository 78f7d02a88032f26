"""Measures of finished runs. A metric is one file here and one yaml in conf/metrics, with no other file touched.

The yaml holds the metric under its own name, so that `metrics=[judge,clip_score]` puts several side by side.
"""

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import torch

from experiments.files import UserError
from experiments.metrics.estimates import Bootstrap, Estimate
from experiments.metrics.folders import FinishedRun


class Unmeasurable(UserError):
    """A run has nothing that a metric could measure, or the metric's network is not to be had here.

    A sweep says so and goes on; any other error of a metric fails the cell.
    """


@dataclass(frozen=True)
class Bench:
    """Device, batch size and bootstrap, with which every metric is measured."""

    device: torch.device
    batch_size: int = 32
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


@dataclass(frozen=True)
class Result:
    """What a metric found. `per_image` has a record for each picture: its file, scores (more is better), and notes."""

    estimate: Estimate
    details: dict[str, Estimate] = field(default_factory=dict)
    per_image: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)  # networks, references and their hashes, preprocessing
    warnings: list[str] = field(default_factory=list)


class Metric(Protocol):
    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        """Raises Unmeasurable, in one line, for a run that cannot be measured, and ValueError for a wrong setting."""
        ...


def optional(module: str) -> ModuleType:
    """Imports a module of the extra `metrics`. Raises Unmeasurable saying how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Unmeasurable(f"{error.name} is not installed: `pip install -e '.[metrics]'` brings it") from error
