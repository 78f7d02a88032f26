"""What is measured, case by case. Every case yields rows; a row compares ours with one other way of doing the same."""

import gc
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmark import fresh, sides
from experiments.benchmark.options import IN_PROCESS, SIZES
from experiments.benchmark.sides import DOWNSCALE, PROMPT, SCALE, Side
from experiments.benchmark.timing import Timing, interleaved, rounds
from experiments.run import build
from guidance import ClassifierFree, Guidance, Multistage, SegmentationFree, Stage
from ldm import LatentDiffusion
from ldm.condition import Condition
from ldm.cpu import linear
from ldm.files.reading import on_meta


@dataclass(frozen=True)
class Plan:
    """One combination of what the command line names."""

    size: str
    batch: int
    dtype: str
    mode: str  # "eager" or "compiled"
    steps: int
    repeats: int
    device: str
    tuned: bool  # once more against diffusers at its best
    folder: Path  # of the weights that are written for the run

    @property
    def path(self) -> Path:
        return sides.folder_of(SIZES[self.size][0], self.folder)

    @property
    def pixels(self) -> int:
        return SIZES[self.size][1]

    @property
    def cells(self) -> int:
        """Side of a latent."""
        return self.pixels // DOWNSCALE[SIZES[self.size][0]]

    @property
    def compile(self) -> bool:
        return self.mode == "compiled"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Row:
    """ratio: theirs / ours of the medians, above 1 where ours is faster or smaller; None without another side."""

    case: str
    size: str
    batch: int
    dtype: str
    mode: str
    against: str
    unit: str
    ours: Timing
    theirs: Timing | None
    ratio: float | None
    note: str


def row(
    plan: Plan, case: str, ours: Timing, theirs: Timing | None, against: str, unit: str = "s", note: str = ""
) -> Row:
    ratio = theirs.median / ours.median if theirs else None
    return Row(case, plan.size, plan.batch, plan.dtype, plan.mode, against, unit, ours, theirs, ratio, note)


def measure(plan: Plan, cases: list[str]) -> Iterator[Row]:
    """Everything asked for of one plan; the model is loaded once for the cases that run in this process."""
    here = [case for case in cases if case in IN_PROCESS]
    if {*IN_PROCESS, "guidance", "limits"} & set(cases):
        with torch.no_grad():
            model = sides.load(plan.path, plan.torch_dtype, plan.device)
            yield from side_by_side(plan, here, sides.ours(model, plan.compile)) if here else ()
            yield from guidances(plan, model) if "guidance" in cases else ()
            yield from limits(plan, model) if "limits" in cases else ()
            del model
    for case in ("load", "memory", "start"):
        if case in cases and not plan.compile:
            yield from in_fresh_processes(plan, case)


def side_by_side(plan: Plan, cases: list[str], ours: Side) -> Iterator[Row]:
    """unet, sample, decode and text, on both sides in turns: diffusers as it comes, then tuned."""
    for tuned in ([False, True] if plan.tuned else [False]) if fresh.has_diffusers() else [None]:
        both = [ours]
        if tuned is not None:
            both.append(sides.theirs(plan.path, plan.torch_dtype, plan.device, plan.compile, tuned))
        for case in cases:
            took = interleaved({side.name: call(case, side, plan) for side in both}, plan.repeats)
            against = both[1].name if both[1:] else ""
            yield row(plan, case, took["ours"], took.get(against), against)
        del both
        gc.collect()


def first_draw(plan: Plan, channels: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(plan.batch, channels, plan.cells, plan.cells, generator=g).to(plan.device)


def call(case: str, side: Side, plan: Plan) -> Callable[[], Tensor]:
    """The case on one side, on the inputs that the other gets. The U-Net's batch is doubled, as guidance doubles it."""
    x_T, prompts = first_draw(plan, side.channels), [PROMPT] * plan.batch
    z = x_T.to(plan.torch_dtype)
    if case == "unet":
        x, text = z.repeat(2, 1, 1, 1), side.text(prompts * 2)
        return lambda: side.unet(x, 500, text)
    if case == "decode":
        return lambda: side.decode(z)
    if case == "text":
        return lambda: side.text(prompts)
    return lambda: side.sample(x_T, prompts, plan.steps)


def guidances(plan: Plan, model: LatentDiffusion) -> Iterator[Row]:
    """Segmentation-free and multistage sampling against classifier-free, all ours: 1 means at no additional cost."""
    unet, x_T = build.network(model.unet, plan.compile), first_draw(plan, model.config.latent_channels)
    half = plan.steps // 2
    stages = Stage(PROMPT, half), Stage("a fish", plan.steps - half)
    by_name: dict[str, Guidance] = {
        "classifier-free": ClassifierFree(SCALE),
        "segmentation-free": SegmentationFree(SCALE, cfg_steps=0),
        "multistage": Multistage(stages, ClassifierFree(SCALE)),
    }

    def sampling(guidance: Guidance) -> Callable[[], Tensor]:
        return lambda: sides.latents(model, unet, guidance, x_T, [PROMPT] * plan.batch, plan.steps)

    took = interleaved({name: sampling(guidance) for name, guidance in by_name.items()}, plan.repeats)
    plain = took.pop("classifier-free")
    for name, timing in took.items():
        cost = f"{timing.median / plain.median:.3f} of its time"
        yield row(plan, name, timing, plain, "ours, classifier-free", note=cost)


def limits(plan: Plan, model: LatentDiffusion) -> Iterator[Row]:
    """How near the U-Net comes to what the machine can do: a large matrix product in its dtype, and a copy."""
    n, size = (8192, 2**32) if plan.device == "cuda" else (2048, 2**28)
    a = torch.randn(n, n, device=plan.device).to(plan.torch_dtype)
    source = torch.empty(size, dtype=torch.uint8, device=plan.device)
    forward = call("unet", sides.ours(model, plan.compile), plan)
    took = interleaved({"product": lambda: linear(a, a), "copy": source.clone, "unet": forward}, plan.repeats)
    seconds = took["unet"].median
    flops, product = floating_point(plan, model) / seconds, 2 * n**3 / took["product"].median
    read = sum(p.nbytes for p in model.unet.parameters()) / seconds
    copied = 2 * size / took["copy"].median  # read and written
    note = f"{flops / 1e12:.2f} of {product / 1e12:.2f} TFLOP/s: {flops / product:.0%}; "
    note += f"its weights at {read / 1e9:.1f} of {copied / 1e9:.1f} GB/s: {read / copied:.0%}"
    yield row(plan, "unet, of the machine's limits", took["unet"], None, "", note=note)


def floating_point(plan: Plan, model: LatentDiffusion) -> int:
    """Operations of a U-Net forward, counted on the meta device, where no kernel runs that torch cannot count."""
    unet, config = on_meta(model.config).unet, model.config
    x_t = torch.empty(2 * plan.batch, config.unet.in_channels, plan.cells, plan.cells, device="meta")
    text = Condition(torch.empty(len(x_t), config.text.context, config.text.width, device="meta"))
    with FlopCounterMode(display=False) as counter:
        unet(x_t, 500, text)
    return counter.get_total_flops()


def in_fresh_processes(plan: Plan, case: str) -> Iterator[Row]:
    """load, memory and start: every repeat of every side is a process of its own, in turns."""
    settings = {key: getattr(plan, key) for key in ("dtype", "device", "batch", "pixels", "cells", "steps")}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (unit, calls) in fresh.measures(case, plan.path, settings, Path(scratch)).items():
            took = rounds(calls, plan.repeats)
            yield row(plan, name, took["ours"], took.get("diffusers"), "diffusers" if "diffusers" in took else "", unit)
