"""python -m experiments.benchmark.training: how fast the U-Net trains, how near the machine's limit, and on what.

Two ways to train the same network are measured in one run and in turns: the training loop's, and that of the first
edition (the text encoder's whole token table; norms and attention in 16 bits as torch makes them; the recipe's old
batches). Weights are random and icons are noise, so nothing has to be there beforehand. Prints a table, and writes it
to --out.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmark import options
from experiments.benchmark.timing import rounds
from experiments.emoji.world import EmojiScenes, World, settings_of
from experiments.files import CONF, write
from experiments.training.loop import State, Team, micro_batches, resolved, step_of
from experiments.training.parts import AutoencoderPart, ClipPart, UNetPart
from ldm import cpu

ALONE = Team(0, 1, torch.device("cpu"))
FIRST_EDITION = ["part.batch=32", "part.micro=16"]
N = 2048  # rows and columns of the product that the machine's rate is measured by
BACKWARD, OPTIMIZER = "backward and the rest", "optimizer and averages"
STAGES = ("scenes", "autoencoder", "text encoder", "U-Net", BACKWARD, OPTIMIZER)


class Training:
    """A training of the U-Net whose steps are timed, stage by stage."""

    def __init__(self, cfg: DictConfig, scenes: EmojiScenes, folder: Path, whole_table: bool):
        self.cfg = cfg
        torch.manual_seed(cfg.seed)  # of the initial weights
        self.part = UNetPart(cfg.part, scenes, folder / "autoencoder.pt", folder / "clip.pt")
        if whole_table:
            self.part.text_encoder.token_embedding = nn.Embedding.from_pretrained(self.part.table.table, freeze=False)
        self.part.to(memory_format=torch.channels_last)
        self.state = State.begin(self.part.network)
        self.batches = micro_batches(cfg, scenes, range(len(scenes) // cfg.part.batch), ALONE)
        self.seconds = dict.fromkeys(STAGES, 0.0)  # of the step that is being taken
        self.steps: list[dict[str, float]] = []
        part: Any = self.part
        part.autoencoder.encode = self.timed("autoencoder", part.autoencoder.encode)
        part.text_encoder.forward = self.timed("text encoder", part.text_encoder.forward)
        part.unet.forward = self.timed("U-Net", part.unet.forward)
        state: Any = self.state
        state.optimizer.step = self.timed(OPTIMIZER, state.optimizer.step)
        state.average = self.timed(OPTIMIZER, state.average)
        self.next = self.timed("scenes", lambda: next(self.batches))

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, whose time is added to a stage's."""

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            out = function(*arguments, **named)
            self.seconds[stage] += time.perf_counter() - start
            return out

        return call

    def step(self) -> float:
        """Takes one optimizer step. Returns its seconds for each scene."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        start = time.perf_counter()
        step_of(self.cfg, self.part, self.state, iter(self.next, None), ALONE)
        took = time.perf_counter() - start
        self.seconds[BACKWARD] = took - sum(self.seconds.values())
        self.steps.append(self.seconds)
        return took / self.cfg.part.batch

    def stages(self) -> dict[str, float]:
        """Returns the median seconds of each stage for a scene, without the first step, which warms up."""
        return {stage: median(step[stage] for step in self.steps[1:]) / self.cfg.part.batch for stage in STAGES}

    def operations(self) -> float:
        """Counts the floating-point operations that one scene takes, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            step_of(self.cfg, self.part, self.state, iter(self.next, None), ALONE)
        return counter.get_total_flops() / self.cfg.part.batch


@contextmanager
def kernels_of_torch() -> Iterator[None]:
    """Trains with torch's own norm and attention, as the first edition did."""
    ours: Any = cpu.group_norm, cpu.attention
    cpu.group_norm = lambda layer, x: None  # type: ignore[assignment]
    cpu.attention = F.scaled_dot_product_attention  # type: ignore[assignment]
    try:
        yield
    finally:
        cpu.group_norm, cpu.attention = ours


def noise_icons(world: World) -> dict[tuple[str, str, int], np.ndarray]:
    """Returns an atlas of random pixels: to compose scenes of them takes as long as of icons."""
    rng = np.random.default_rng(0)
    sides = {*world.sides(1), *world.sides(2)}
    return {
        (noun, style, side): rng.integers(0, 256, (side, side, 4), dtype=np.uint8)
        for noun in world.concepts
        for style in world.styles
        for side in sides
    }


def config(args: argparse.Namespace, part: str, *overrides: str) -> DictConfig:
    """Returns the config of a training of one part."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"part={args.size}/{part}", f"world={args.world}", *overrides])


def write_earlier_parts(args: argparse.Namespace, scenes: EmojiScenes, folder: Path) -> None:
    """Writes the checkpoints of an untrained autoencoder and CLIP."""
    for name, kind in (("autoencoder", AutoencoderPart), ("clip", ClipPart)):
        cfg = config(args, name)
        network = kind(cfg.part, scenes).network
        torch.save({"recipe": resolved(cfg), "ema": network.state_dict()}, folder / f"{name}.pt")


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the rates of both ways, the machine's, and the seconds of each stage for a scene."""
    world = World(**settings_of(config(args, "unet").world))
    scenes = EmojiScenes(world, noise_icons(world))
    write_earlier_parts(args, scenes, folder)
    batch = [f"part.batch={args.batch}", f"part.micro={args.micro}"]
    ours = Training(config(args, "unet", *batch), scenes, folder, whole_table=False)
    first = Training(config(args, "unet", *FIRST_EDITION), scenes, folder, whole_table=True)
    a = torch.randn(N, N).bfloat16()

    def product() -> float:
        start = time.perf_counter()
        cpu.linear(a, a)
        return time.perf_counter() - start

    operations = ours.operations()
    steps = {"ours": ours.step, "first edition": kernels_of_torch()(first.step)}
    took = rounds({**steps, "product": product}, args.repeats)
    machine = 2 * N**3 / took["product"].median
    return {
        "threads": torch.get_num_threads(),
        "machine, TFLOP/s": machine / 1e12,
        "operations of a scene": operations,
        "scenes/s": {name: 1 / took[name].median for name in steps},
        "of the limit": {name: operations / took[name].median / machine for name in steps},
        "stages, s": {"ours": ours.stages(), "first edition": first.stages()},
    }


def table(found: dict[str, Any]) -> str:
    """Returns the measurements as a table in Markdown."""
    names = list(found["scenes/s"])
    rows = [["", *names], ["---"] * (1 + len(names))]
    rows.append(["scenes/s", *(f"{found['scenes/s'][name]:.1f}" for name in names)])
    rows.append(["of the product's rate", *(f"{found['of the limit'][name]:.0%}" for name in names)])
    for stage in found["stages, s"]["ours"]:
        rows.append([f"{stage}, ms a scene", *(f"{1e3 * found['stages, s'][name][stage]:.2f}" for name in names)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main() -> None:
    args = options.training().parse_args()
    with TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "training.json", json.dumps(found, indent=1) + "\n")
    write(args.out / "training.md", table(found))
    print(f"{table(found)}\n{found['threads']} threads, product rate {found['machine, TFLOP/s']:.2f} TFLOP/s")


if __name__ == "__main__":
    main()
