"""What a sweep of the ablation verb spends in the networks, in its cells outside them, and once.

python -m experiments.benchmark.sweep OVERRIDES runs one sweep under a clock, and prints what the clock says as JSON.
"""

import json
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

Seconds = tuple[float, float]  # of the clock on the wall, of CPU time of all threads


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def add(a: Seconds, b: Seconds) -> Seconds:
    return a[0] + b[0], a[1] + b[1]


def less(a: Seconds, b: Seconds) -> Seconds:
    return a[0] - b[0], a[1] - b[1]


@dataclass(frozen=True)
class Spent:
    """Seconds of a whole sweep, in its networks, in a cell outside them (the median), and in what is left."""

    whole: Seconds
    networks: Seconds
    cell: Seconds
    once: Seconds


def spent(overrides: Sequence[str]) -> Spent:
    """Runs a sweep in a process of its own."""
    begun, used = time.perf_counter(), children()
    command = [sys.executable, "-m", "experiments.benchmark.sweep", *overrides]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    whole = time.perf_counter() - begun, children() - used
    clock = json.loads(out.splitlines()[-1])
    networks = add(tuple(clock["before"]), sum_of(clock["networks"]))
    outside = [less(cell, inside) for cell, inside in zip(clock["cells"], clock["networks"], strict=True)]
    cell = median(wall for wall, _ in outside), median(cpu for _, cpu in outside)
    n = len(outside)
    return Spent(whole, networks, cell, less(less(whole, networks), (n * cell[0], n * cell[1])))


def sum_of(times: Sequence[Seconds]) -> Seconds:
    return sum(wall for wall, _ in times), sum(cpu for _, cpu in times)


def children() -> float:
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass
class Clock:
    """Seconds in the networks so far; and by cell, those of the cell, its composing included, and of its networks."""

    networks: Seconds = (0.0, 0.0)
    before: Seconds = (0.0, 0.0)  # in the networks, before the first cell
    cells: list[Seconds] = field(default_factory=list)
    of_cells: list[Seconds] = field(default_factory=list)
    last: tuple[Seconds, Seconds] | None = None  # when the last cell ended, and the networks' seconds then


CLOCK = Clock()


class Cells(Callback):
    """Hydra's callback that tells the clock where a cell ends, and with it what is done for the next one begins."""

    begun: ClassVar[bool] = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        CLOCK.last, CLOCK.before = (now(), CLOCK.networks), CLOCK.networks

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        assert CLOCK.last is not None
        then, inside = CLOCK.last
        CLOCK.cells.append(less(now(), then))
        CLOCK.of_cells.append(less(CLOCK.networks, inside))
        CLOCK.last = now(), CLOCK.networks


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        start = now()
        out = function(*args)
        CLOCK.networks = add(CLOCK.networks, less(now(), start))
        return out

    return run


def main(overrides: Sequence[str]) -> None:
    from ldm.autoencoder import Autoencoder
    from ldm.text import TextEncoder
    from ldm.unet import UNet

    UNet.forward, TextEncoder.forward = timed(UNet.forward), timed(TextEncoder.forward)  # type: ignore[method-assign]
    Autoencoder.decode = timed(Autoencoder.decode)  # type: ignore[method-assign]
    name = __spec__.name
    sys.argv = ["experiments/ablate.py", "-m", *overrides, f"+hydra.callbacks.clock._target_={name}.Cells"]
    sys.modules[name] = sys.modules["__main__"]  # so that Hydra finds this clock
    runpy.run_module("experiments.ablate", run_name="__main__")
    cells = {"cells": CLOCK.cells, "networks": CLOCK.of_cells, "before": CLOCK.before}
    print(json.dumps(cells))


if __name__ == "__main__":
    main(sys.argv[1:])
