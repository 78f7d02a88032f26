"""python -m experiments.benchmark.growth: how time and memory grow, and how near a few steps come to many.

Ours alone: sampling against steps, batch, resolution, stages and branches, each with the others at their least; and,
for an embedded model, how far DDIM's and DPM-Solver++'s latents are from those of 250 DDIM steps. Time is the least of
the repeats, without decoding. Memory is a fresh process's peak (on a GPU: torch's), decoding included, if --memory asks
for it. Writes growth_SIZE.json and growth_SIZE.svg to --out.
"""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from experiments.benchmark import fresh, options, sides
from experiments.benchmark.__main__ import conditions
from experiments.benchmark.timing import interleaved
from guidance import Branch, ClassifierFree, Guidance, Multistage, Stage, guided
from ldm import LatentDiffusion
from ldm.condition import Conditions
from samplers import Schedule, Step, as_x_0, ddim, dpmpp_2m

SCALE = 3.0  # moderate, since the distance to many steps grows with it


@dataclass(frozen=True)
class Passes:
    """A guidance of n branches, all of them the prompt's."""

    n: int

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return {"cond" if k == 0 else f"again {k}": Branch(conditions.cond) for k in range(self.n)}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        return x_0["cond"]


def stages(n: int) -> Guidance:
    return Multistage(tuple(Stage(f"a fish {k}", 1 / n) for k in range(n)), ClassifierFree(SCALE))


@torch.no_grad()
def times(model: LatentDiffusion, resolutions: list[int], steps: int, repeats: int) -> dict[str, dict[int, float]]:
    """Seconds of sampling by what grows, and how far. Where something else grows, it takes `steps` steps, of DDIM."""
    one, plain = model.latent_shape(resolutions[0], resolutions[0]), ClassifierFree(SCALE)
    doubled = [n for n in (1, 2, 4, 8) if n <= steps]

    def sampling(guidance: Guidance, shape: tuple[int, ...], steps: int) -> Callable[[], Tensor]:
        x_T = torch.randn(shape, device=model.device)
        return lambda: sides.latents(model, model.unet, guidance, x_T, ["a fish"] * len(x_T), steps)

    calls = {("steps", n): sampling(plain, (1, *one), n) for n in (max(steps // 2, 1), steps, 2 * steps, 4 * steps)}
    calls |= {("batch", n): sampling(plain, (n, *one), steps) for n in (1, 2, 4, 8)}
    calls |= {("resolution", n): sampling(plain, (1, *model.latent_shape(n, n)), steps) for n in resolutions}
    calls |= {("stages", n): sampling(stages(n), (1, *one), steps) for n in doubled}
    calls |= {("branches", n): sampling(Passes(n), (1, *one), steps) for n in (1, 2, 3, 4)}
    took = interleaved({f"{what} {n}": call for (what, n), call in calls.items()}, repeats)
    found: dict[str, dict[int, float]] = {}
    for what, n in calls:
        found.setdefault(what, {})[n] = took[f"{what} {n}"].least
    return found


def memory(path: Path, size: str, resolutions: list[int], dtype: str, device: str) -> dict[str, dict[int, float]]:
    """Bytes at the peak of a fresh process, against batch and resolution."""

    def peak(batch: int, pixels: int) -> float:
        cells = pixels // sides.DOWNSCALE[options.SIZES[size][0]]
        asked = {"dtype": dtype, "device": device, "batch": batch, "steps": 1, "pixels": pixels, "cells": cells}
        return fresh.measures("memory", path, asked, Path())["peak memory"][1]["ours"]()

    return {
        "memory, batch": {n: peak(n, resolutions[0]) for n in (1, 2, 4, 8)},
        "memory, resolution": {n: peak(1, n) for n in resolutions},
    }


@torch.no_grad()
def distances(model: LatentDiffusion, counts: list[int], seeds: int = 8) -> dict[str, dict[int, float]]:
    """Root mean square of the latents' difference from 250-step DDIM's, relative to theirs, by U-Net evaluations.
    Steps are trailing: leading ones begin the later the fewer they are, which no solver makes good."""
    config = model.config.schedule
    steps = Schedule.of(config).steps
    x_T = torch.randn((seeds, *model.latent_shape(*[model.config.image_size] * 2)), generator=torch.manual_seed(0))
    predict, conditions = as_x_0(model.unet, config.prediction), model.conditions([sides.PROMPT] * seeds)
    denoise = guided(predict, ClassifierFree(SCALE), conditions)

    def ends(sampler: Callable[..., Any], n: int) -> Tensor:
        *_, (_, x_t, _) = sampler(denoise, x_T.to(model.device), steps(n, "trailing", final="clean"))
        return x_t

    many = ends(ddim, 250)
    by_name: dict[str, Callable[..., Any]] = {"ddim": ddim, "dpmpp_2m": dpmpp_2m}
    return {
        name: {n: ((ends(sampler, n) - many).norm() / many.norm()).item() for n in counts}
        for name, sampler in by_name.items()
    }


def figure(found: dict[str, dict[int, float]]) -> Figure:
    """A panel per quantity, with logarithmic axes: what grows in proportion is a slope of 1, what is free is flat."""
    distances = {name: values for name, values in found.items() if name in ("ddim", "dpmpp_2m")}
    panels = {name: {name: values} for name, values in found.items() if name not in distances}
    panels |= {"distance to 250 DDIM steps": distances} if distances else {}
    rows, columns = -(-len(panels) // 4), min(len(panels), 4)
    drawn = Figure(figsize=(3.2 * columns, 3 * rows), layout="constrained")
    places = drawn.subplots(rows, columns, squeeze=False).flatten()
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, lines) in zip(places, panels.items(), strict=False):
        for label, values in lines.items():
            shown = [value / 1e9 if name.startswith("memory") else value for value in values.values()]
            axes.loglog(list(values), shown, marker="o", label=label)
        axes.set_xticks(list(values), [str(n) for n in values])
        axes.minorticks_off()
        unit = "relative rms" if lines is distances else "GB" if name.startswith("memory") else "seconds"
        grows = "U-Net evaluations per branch" if lines is distances else name.removeprefix("memory, ")
        axes.set(title=name, ylabel=unit, xlabel=grows)
        low, high = axes.get_ylim()
        middle, half = math.sqrt(low * high), max(math.sqrt(high / low), 3.5)  # a decade, so that what is flat looks so
        axes.set_ylim(middle / half, middle * half)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    return drawn


def main() -> None:
    args = options.growth().parse_args()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name, pixels = options.SIZES[args.size]
    resolutions = args.resolutions or [pixels * n for n in (1, 2, 3, 4)]
    with tempfile.TemporaryDirectory() as folder:
        path = sides.folder_of(name, args.weights or Path(folder))
        found = memory(path, args.size, resolutions, args.dtype, args.device) if args.memory else {}
        model = sides.load(path, getattr(torch, args.dtype), args.device)
        found = times(model, resolutions, args.steps, args.repeats) | found
        if name not in sides.SHAPES:
            found |= distances(model, args.counts)
    args.out.mkdir(parents=True, exist_ok=True)
    said = {"conditions": conditions(args), "size": args.size, "dtype": args.dtype, "steps": args.steps, **found}
    (args.out / f"growth_{args.size}.json").write_text(json.dumps(said, indent=1) + "\n")
    figure(found).savefig(args.out / f"growth_{args.size}.svg")
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
