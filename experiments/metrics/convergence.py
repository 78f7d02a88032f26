"""How far from converged a run's pictures are: what its sampler, with its few steps, still lacks."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from experiments.files import locked, read_lines
from experiments.metrics import Bench, Result, Unmeasurable
from experiments.metrics.again import job_of
from experiments.metrics.folders import FinishedRun
from experiments.run import build, draw
from experiments.run.logger import Logger
from ldm.config import ScheduleConfig
from samplers import Denoised


@dataclass(frozen=True)
class Convergence:
    """The distance |x_0 - x_0*| / |x_0*| of each picture's latent from that of many steps; mean over the pictures.

    x_0* is what the probability-flow ODE leads to from the same x_T under the same guidance: DPM-Solver++(2M) takes
    `steps` steps of `spacing` (null: the model's own) that end clean. The detail log10 is the mean of the logarithm.
    folder    holds x_0*, drawn once for all runs that differ in their sampler alone; null: the run's own folder
    packages  may define what run.json names, which may be a stranger's
    """

    steps: int = 200
    spacing: str | None = "karras"
    folder: str | None = None
    packages: list[str] = field(default_factory=lambda: ["guidance", "samplers"])

    @torch.no_grad()
    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        if not (run.folder / "latents.safetensors").is_file():
            raise Unmeasurable("the run has no latents: draw it with save_latents=true")
        solver = {"_target_": "samplers.dpmpp_2m", "steps": self.steps, "spacing": self.spacing, "final": "clean"}
        job = job_of(run, bench, self.packages, sampler=solver, save_latents=True)
        if draws_noise(OmegaConf.create(run.config["sampler"]), job.machine.model.config.schedule):
            raise Unmeasurable("the sampler draws noise: its pictures do not converge to one")
        folder = Path(self.folder or run.folder) / f"converged-{digest(job.settings)}"
        folder.mkdir(parents=True, exist_ok=True)
        with (
            locked(folder, ".drawing"),  # cells that are measured at the same time may want the same
            Logger(OmegaConf.create({"name": "none"}), {}, folder) as logger,
        ):
            draw.draw(job, folder, logger)
        readable = {record["file"] for record in run.records}
        kept = [i for i, r in enumerate(read_lines(run.folder / "samples.jsonl")) if r["file"] in readable]
        found, exact = (load_file(place / "latents.safetensors")["x_0"][kept] for place in (run.folder, folder))
        errors = distances(found, exact)
        logs = errors.log10().tolist()
        return Result(
            bench.bootstrap.mean(errors.tolist(), run.captions),
            {"log10": bench.bootstrap.mean(logs, run.captions)},
            [{"file": r["file"], "value": e, "log10": log} for r, e, log in zip(run.records, errors.tolist(), logs,
                                                                               strict=True)],
            {"converged": solver},
        )  # fmt: skip


def distances(found: Tensor, exact: Tensor) -> Tensor:
    """|found - exact| / |exact| [N] of latents [N, C, h, w], in float64; not below what float32 can tell."""
    off, whole = ((one.double().flatten(1).norm(dim=1)) for one in (found - exact, exact))
    return (off / whole).clamp(min=1e-7)


def draws_noise(sampler: DictConfig, schedule: ScheduleConfig) -> bool:
    """Whether a sampler with its settings draws noise anywhere on its way."""
    nothing, drawn = torch.zeros(1), list[bool]()

    def noise() -> Tensor:
        drawn.append(True)
        return nothing

    steps = build.steps(sampler, schedule)
    for _ in build.sampler(sampler)(lambda x_t, step: Denoised(x_t, x_t), nothing, steps, noise=noise):
        pass
    return bool(drawn)


def digest(settings: dict[str, Any]) -> str:
    """Returns a name for a run's settings, so that each has a folder of its own."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
