"""python -m experiments.benchmark.overhead [PICTURES]: the share of a sampling run's time that is not sampling.

Draws so many pictures (50) with the embedded model, as experiments.sample does, and sets the time of the whole run,
from W&B's start to its end, less the sampler's and the decoder's, against theirs: hashing, PNGs, samples.jsonl and
run.json, locks, the grid, the progress bar and W&B (offline). Loading the model and importing W&B are left out.
Exits with 1 if a share is above 5 %.
"""

import sys
import tempfile
import time
from pathlib import Path

import wandb  # noqa: F401  so that its import is not measured
from hydra import compose, initialize_config_dir

from experiments import files
from experiments.benchmark import options
from experiments.run import draw
from experiments.run.logger import Logger

BAR = 0.05
RUNS = {
    "50 steps, batches of 4, float32": ["sampler.steps=50", "batch_size=4", "dtype=float32"],
    "20 steps, batches of 25, bfloat16": ["sampler.steps=20", "batch_size=25", "dtype=bfloat16"],
}


def main(pictures: int) -> int:
    measure(["sampler.steps=1", "logger=wandb"])  # whatever is only slow once
    print(f"{'run':<36}{'logger':<8}{'sampling':>10}{'the rest':>10}{'share':>8}   of it W&B's start and end")
    over = False
    for name, settings in RUNS.items():
        for logger in ("none", "wandb"):
            sampling, rest, ends = measure([f"seeds={list(range(pictures))}", *settings, f"logger={logger}"])
            over |= rest > BAR * sampling
            share = rest / sampling
            print(f"{name:<36}{logger:<8}{sampling:>8.2f} s{rest:>8.2f} s{share:>8.1%}{ends:>9.2f} s", flush=True)
    return int(over)


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
