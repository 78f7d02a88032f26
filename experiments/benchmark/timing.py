"""Measuring in turns (ours, theirs, ours, theirs, ...), so that whatever else the machine does falls on both."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Of the repeats of one call: seconds, or bytes where a row says so."""

    median: float
    least: float
    most: float


def rounds(calls: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Timing]:
    """What each call returns, over rounds in which each is called once; the first round warms up and is left out."""
    values: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, measure in calls.items():
            values[name].append(measure())
    return {name: Timing(median(v[1:]), min(v[1:]), max(v[1:])) for name, v in values.items()}


def interleaved(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Seconds that each function takes; a GPU is waited for before and after it."""
    return rounds({name: seconds(function) for name, function in functions.items()}, repeats)


def seconds(function: Callable[[], Any]) -> Callable[[], float]:
    def measure() -> float:
        wait()
        start = time.perf_counter()
        function()
        wait()
        return time.perf_counter() - start

    return measure


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
