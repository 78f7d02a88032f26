"""python -m experiments.benchmark.overhead [PICTURES]: the time of runs and sweeps that is not spent in networks.

First sweeps of the embedded model: 8 cells of 4 pictures, 20 steps, bfloat16, each sweep in a process of its own as
experiments.ablate runs it, without attention maps and with them. A cell is the median of the eight, with the making of
its config; "once" is everything else, from the process's start to the report.

Then runs of so many pictures (50), as experiments.sample draws them: the time of the whole run, from W&B's start to its
end, less the sampler's and the decoder's, against theirs: hashing, PNGs, samples.jsonl and run.json, locks, the grid,
the progress bar and W&B (offline). Loading the model and importing W&B are left out.

Exits with 1 if a bar is missed: of a sweep 0.4 s a cell and 4 s once outside the networks, 0.3 s a cell more for maps;
of a run a share of 5 %.
"""

import sys
import tempfile
import time
from pathlib import Path

import wandb  # noqa: F401  so that its import is not measured
from hydra import compose, initialize_config_dir

from experiments import files
from experiments.benchmark import options, sweep
from experiments.run import draw
from experiments.run.logger import Logger

A_CELL, ONCE, MAPS = 0.4, 4.0, 0.3  # seconds outside the networks
SCALES = ",".join(map(str, range(1, 9)))
SWEEP = ["experiment=grid", f"guidance.scale={SCALES}", "prompt=a red apple", "n=4", "measures.emoji=null"]
SWEEP += ["sampler.steps=20", "dtype=bfloat16", "device=cpu"]
HEAD = ("the whole", "networks", "a cell outside")
BAR = 0.05
RUNS = {
    "50 steps, batches of 4, float32": ["sampler.steps=50", "batch_size=4", "dtype=float32"],
    "20 steps, batches of 25, bfloat16": ["sampler.steps=20", "batch_size=25", "dtype=bfloat16"],
}


def main(pictures: int) -> int:
    slow = sweeps()
    return int(runs(pictures) or slow)


def sweeps() -> bool:
    """Prints what sweeps spend where. Returns whether a bar is missed."""
    print(f"{'sweep, seconds (of the CPU)':<36}" + "".join(f"{name:>16}" for name in (*HEAD, "once")))
    with tempfile.TemporaryDirectory() as folder:
        found = {maps: sweep.spent([*SWEEP, f"maps={maps}", f"out={folder}/{maps}"]) for maps in ("false", "true")}
    for maps, s in found.items():
        shown = "".join(f"{f'{wall:.2f} ({cpu:.2f})':>16}" for wall, cpu in (s.whole, s.networks, s.cell, s.once))
        print(f"{'attention maps' if maps == 'true' else 'no maps':<36}{shown}", flush=True)
    plain, mapped = found["false"], found["true"]
    return plain.cell[0] > A_CELL or plain.once[0] > ONCE or mapped.cell[0] - plain.cell[0] > MAPS


def runs(pictures: int) -> bool:
    """Prints what runs spend outside sampling. Returns whether a bar is missed."""
    measure(["sampler.steps=1", "logger=wandb"])  # whatever is only slow once
    print(f"{'run':<36}{'logger':<8}{'sampling':>10}{'the rest':>10}{'share':>8}   of it W&B's start and end")
    over = False
    for name, settings in RUNS.items():
        for logger in ("none", "wandb"):
            sampling, rest, ends = measure([f"seeds={list(range(pictures))}", *settings, f"logger={logger}"])
            over |= rest > BAR * sampling
            share = rest / sampling
            print(f"{name:<36}{logger:<8}{sampling:>8.2f} s{rest:>8.2f} s{share:>8.1%}{ends:>9.2f} s", flush=True)
    return over


def measure(overrides: list[str]) -> tuple[float, float, float]:
    """Seconds of sampling and decoding, of the rest of the run, and what of this the logger's start and end took."""
    with initialize_config_dir(str(files.CONF), version_base="1.3"):
        cfg = compose("sample", ["prompt=a red apple", *overrides])
    job = draw.prepare(cfg)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with Logger(cfg.logger, job.settings, Path(folder)) as logger:
            begun = time.perf_counter()
            records = draw.draw(job, Path(folder), logger)
            drawn = time.perf_counter()
        end = time.perf_counter()
    sampling = sum(record["seconds"] for record in records or [])
    return sampling, end - start - sampling, begun - start + end - drawn


if __name__ == "__main__":
    sys.exit(main(options.overhead().parse_args().pictures))
