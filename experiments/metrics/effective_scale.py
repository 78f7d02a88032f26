"""How much guidance a method really gives: the scale of the classifier-free guidance that it amounts to.

Merely raising that scale rivals most guidance methods (GA-Eval, arXiv 2602.22570), so methods are to be compared where
their effective scales are equal.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.files import UserError
from experiments.metrics import Bench, Result, Unmeasurable
from experiments.metrics.again import job_of
from experiments.metrics.folders import FinishedRun
from experiments.run import draw
from guidance import Branch, Guidance, Wrapper
from guidance.branch import combined
from ldm.condition import Conditions
from samplers import Denoised, Step


@dataclass(frozen=True)
class Projection(Wrapper):
    """Another guidance, and for each step how its result lies to classifier-free guidance's direction.

    With d = x_0c - x_0u and the guided x_0, of each picture: scale = <x_0 - x_0u, d> / <d, d>, for classifier-free
    guidance g itself; cosine = that of the angle between x_0 - x_0u and d. Both are the same in eps.
    """

    inner: Guidance
    steps: list[dict[str, Any]] = field(default_factory=list)  # i, t, scale [B], cosine [B]

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return {**super().branches(conditions, step), "unconditional": Branch(conditions.negative)}

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        return super().more(conditions, without_observed(x_0), x_t, step)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        guided = combined(self.inner, without_observed(x_0), x_t, step)
        d, direction = ((e - x_0["unconditional"]).flatten(1).double() for e in (x_0["cond"], guided.x_0))
        along = (direction * d).sum(dim=1)
        if not d.any(dim=1).all():
            raise Unmeasurable("prompt and negative prompt give the same eps: no guidance has a scale there")
        scale, cosine = along / d.square().sum(dim=1), along / (d.norm(dim=1) * direction.norm(dim=1))
        self.steps.append({"i": step.i, "t": step.now.t, "scale": scale.cpu(), "cosine": cosine.cpu()})
        return guided


def without_observed(x_0: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: estimate for name, estimate in x_0.items() if name != "unconditional"}


@dataclass(frozen=True)
class EffectiveScale:
    """The scale of `Projection`, mean over the steps; the first `pictures` of the run are drawn again for it.

    The detail "cosine" is 1 for a method that does nothing but scale. The run's guidance and sampler are made from its
    run.json, if `packages` define them; name yours there to measure a guidance that lies elsewhere.
    """

    pictures: int = 16
    packages: list[str] = field(default_factory=lambda: ["guidance", "samplers"])

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        if type(self.pictures) is not int or self.pictures < 1:
            raise UserError(f"pictures={self.pictures}: must be a whole number of at least 1")
        job = job_of(run, bench, self.packages)
        count, size = min(self.pictures, len(job.request.pictures)), job.request.together
        seen = [projections(job, i, min(size, count - i)) for i in range(0, count, size)]
        scale, cosine = (torch.cat([batch[key] for batch in seen], dim=1) for key in ("scale", "cosine"))  # [S, N]
        captions = run.captions[:count]
        scales, cosines = scale.mean(dim=0).tolist(), cosine.mean(dim=0).tolist()
        curve = {"scale": scale.mean(dim=1).tolist(), "cosine": cosine.mean(dim=1).tolist(), "timestep": seen[0]["t"]}
        return Result(
            bench.bootstrap.mean(scales, captions),
            {"cosine": bench.bootstrap.mean(cosines, captions)},
            [{"file": r["file"], "value": s} for r, s in zip(run.records, scales, strict=False)],
            {"by_step": curve},
        )


def projections(job: draw.Job, first: int, count: int) -> dict[str, Any]:
    """Returns scale and cosine [S, B] of so many of a job's pictures, from the one at `first` on, and the timesteps."""
    probe = Projection(job.machine.guidance)
    for _ in draw.moments(job.machine, draw.batch_of(job, first, count), probe):
        pass
    steps = {key: torch.stack([step[key] for step in probe.steps]) for key in ("scale", "cosine")}
    return {**steps, "t": [step["t"] for step in probe.steps]}
