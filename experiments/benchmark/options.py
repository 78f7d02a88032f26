"""The command lines of the benchmark's programs. Imports nothing heavy, so that `--help` is quick."""

import argparse
from collections.abc import Callable
from pathlib import Path

SIZES = {"emoji": ("emoji", 64), "sd15_256": ("sd15", 256), "sd15_512": ("sd15", 512)}  # model, pixels
IN_PROCESS = ("unet", "sample", "decode", "text")
CASES = (*IN_PROCESS, "guidance", "limits", "load", "memory", "start")


def parser(module: str, about: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=about,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110),
    )


def side_by_side() -> argparse.ArgumentParser:
    made = parser(
        "experiments.benchmark",
        "Measures ours and diffusers side by side, on the same weights, in one run and in turns. By default the\n"
        "embedded model's cases and one U-Net forward of Stable Diffusion 1.5's shape at 256 px: a few minutes on two\n"
        "cores. Writes benchmark.json and benchmark.md, and prints the table. Ratios are theirs / ours.",
    )
    made.add_argument("--sizes", nargs="+", choices=SIZES, default=["emoji", "sd15_256"], help="models and pixels")
    made.add_argument("--cases", nargs="+", choices=CASES, help="by default all of emoji, and sd15_256's U-Net")
    made.add_argument("--batch", nargs="+", type=int, default=[1], help="pictures at once")
    made.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], help="by default bfloat16 on a GPU")
    made.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager"])
    made.add_argument("--steps", type=int, default=20, help="of sampling")
    made.add_argument("--repeats", type=int, default=5, help="of each measurement, in turns")
    made.add_argument("--tuned", action="store_true", help="once more against diffusers at its best")
    made.add_argument("--device", choices=["cpu", "cuda"], help="by default the GPU, if there is one")
    made.add_argument("--weights", type=Path, help="where random weights are kept for another run; else nowhere")
    made.add_argument("--out", type=Path, default=Path("outputs/benchmark"), help="folder of the results")
    return made


def growth() -> argparse.ArgumentParser:
    made = parser(
        "experiments.benchmark.growth",
        "Measures how time and memory grow with steps, batch, resolution, stages and branches, and, for an embedded\n"
        "model, how near a few steps come to many. Writes growth_SIZE.json and growth_SIZE.svg.",
    )
    made.add_argument("--size", choices=SIZES, default="emoji", help="model and pixels")
    made.add_argument("--resolutions", nargs="+", type=int, help="pixels; by default 1 to 4 times the size's own")
    made.add_argument("--steps", type=int, default=8, help="of sampling, where something else grows")
    made.add_argument(
        "--counts", nargs="+", type=int, default=[5, 10, 15, 20, 30, 50, 100], help="steps compared to 250"
    )
    made.add_argument("--memory", action="store_true", help="measures the peak of a fresh process, too")
    made.add_argument("--repeats", type=int, default=3, help="of which the least time counts")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    made.add_argument("--device", choices=["cpu", "cuda"], help="by default the GPU, if there is one")
    made.add_argument("--weights", type=Path, help="where random weights are kept for another run; else nowhere")
    made.add_argument("--out", type=Path, default=Path("outputs/benchmark"), help="folder of the results")
    return made


def loading() -> argparse.ArgumentParser:
    made = parser(
        "experiments.benchmark.loading",
        "Measures the memory that loading Stable Diffusion 1.5 takes, from files of random weights (4.3 GB, removed\n"
        "afterwards). Exits with 1 if ours rises by more than 1.3 times the weights' size. Linux only.",
    )
    made.add_argument("folder", nargs="?", help="where the files are written; by default the system's temporary folder")
    return made


def overhead() -> argparse.ArgumentParser:
    made = parser(
        "experiments.benchmark.overhead",
        "Measures what sweeps and sampling runs of the embedded model spend outside the networks. Exits with 1 if\n"
        "a sweep of 8 cells takes more than 0.4 s a cell and 4 s once, or 0.3 s a cell for attention maps, or if\n"
        "5 % of a run's time is not sampling.",
    )
    made.add_argument("pictures", nargs="?", type=int, default=50, help="of each run (50)")
    return made


def training() -> argparse.ArgumentParser:
    made = parser(
        "experiments.benchmark.training",
        "Measures how fast the U-Net trains, how near the limit, and on what, beside the first edition's way.",
    )
    made.add_argument("--size", default="small", help="of conf/part: whose U-Net, text encoder and autoencoder (small)")
    made.add_argument("--world", default="emoji_sixteen", help="of conf/world (emoji_sixteen)")
    made.add_argument("--batch", type=int, default=64, help="scenes of a step (64)")
    made.add_argument("--micro", type=int, default=64, help="scenes that the networks take at once (64)")
    made.add_argument("--repeats", type=int, default=5, help="of each way, in turns (5)")
    made.add_argument("--out", type=Path, default=Path("outputs/benchmark"), help="folder of the table and its JSON")
    return made


PROGRAMS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "experiments.benchmark": side_by_side,
    "experiments.benchmark.growth": growth,
    "experiments.benchmark.loading": loading,
    "experiments.benchmark.overhead": overhead,
    "experiments.benchmark.training": training,
}
