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
from experiments.run import build, draw
from guidance import Branch, Guidance, Wrapper
from guidance.branch import combined, plan
from ldm.condition import Condition, Conditions
from samplers import Denoised, Step

ASIDE_PASSES = "plain cond", "plain negative"


@dataclass(frozen=True)
class Projection(Wrapper):
    """Another guidance, and for each step how its result lies to classifier-free guidance's direction.

    With d = x_0c - x_0u and the guided x_0, of each picture: scale = <x_0 - x_0u, d> / <d, d>, for classifier-free
    guidance g itself; cosine = that of the angle between x_0 - x_0u and d, 0 where there is none because the guided
    x_0 is x_0u. Both are the same in eps; nan where d is 0.
    x_0c and x_0u are of plain passes of the step's prompt and the negative one: the guidance's own, or where those have
    edits or noise, or there is none, passes aside. Of a guidance whose eps does not follow from its x_0, such as CFG++,
    x_0 is the one that makes a step of DDIM end there. A method's second evaluation of a step is not counted.
    """

    inner: Guidance
    steps: list[dict[str, Any]] = field(default_factory=list)  # i, t, scale [B], cosine [B]
    taken: dict[Step, tuple[str, str]] = field(default_factory=dict)  # names of the passes of x_0c and x_0u

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        branches, (prompt,) = super().branches(conditions, step), plan(self.inner, [step])
        cond = conditions.cond if prompt is None else conditions.encode(prompt)
        aside, names = dict[str, Branch](), list[str]()
        for name, condition in zip(ASIDE_PASSES, (cond, conditions.negative), strict=True):
            own = next((key for key, branch in branches.items() if is_plain(branch, condition)), None)
            names.append(own or name)
            if own is None:
                aside[name] = Branch(condition, network=build.ASIDE)
        self.taken[step] = names[0], names[1]
        return branches | aside

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        return super().more(conditions, without_observed(x_0), x_t, step)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        guided = combined(self.inner, without_observed(x_0), x_t, step)
        if step.stage:
            return guided
        x_0c, x_0u = (x_0[name] for name in self.taken[step])
        reached = guided.x_0 + apart(guided, x_t, step)
        d, direction = ((e - x_0u).flatten(1).double() for e in (x_0c, reached))
        along = (direction * d).sum(dim=1)
        scale = along / d.square().sum(dim=1)
        cosine = torch.where(scale == 0, scale, along / (d.norm(dim=1) * direction.norm(dim=1)))
        self.steps.append({"i": step.i, "t": step.now.t, "scale": scale.cpu(), "cosine": cosine.cpu()})
        return guided


def is_plain(branch: Branch, condition: Condition) -> bool:
    """Whether a pass shows the main network the step's x_t under this condition, and nothing is changed in it."""
    as_it_is = branch.network == "main" and branch.t is None and branch.x_t is None and not branch.edits
    return as_it_is and branch.condition is condition


def apart(guided: Denoised, x_t: Tensor, step: Step) -> Tensor:
    """What x_0 lacks, so that a step with the eps that follows from it would end where this pair's step ends."""
    now, to = step.now, step.to
    share = to.noise / (to.signal - to.noise * now.signal / now.noise)
    return share * (guided.eps - now.eps(x_t, guided.x_0))


def without_observed(x_0: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: estimate for name, estimate in x_0.items() if name not in ASIDE_PASSES}


class Scales:
    """Observes the scale and cosine of every step, [S] of each picture."""

    def around(self, guidance: Guidance) -> Guidance:
        self.probe = Projection(guidance)
        return self.probe

    def see(self, step: Step, x_0: Tensor) -> None:
        pass

    def done(self, images: Tensor) -> list[draw.Record]:
        if not self.probe.steps:
            return [{SEEN: None} for _ in images]
        seen = {key: torch.stack([step[key] for step in self.probe.steps]).T for key in ("scale", "cosine")}  # [B, S]
        t = [step["t"] for step in self.probe.steps]
        found = [{key: value[b].tolist() for key, value in seen.items()} for b in range(len(images))]
        finite = seen["scale"].isfinite().all(dim=1)
        return [{SEEN: {"t": t, **one} if ok else None} for one, ok in zip(found, finite, strict=True)]


SEEN = (
    "effective_scale"  # in the record of a picture; None without steps, or where the two prompts' passes agree in one
)


@dataclass(frozen=True)
class EffectiveScale:
    """The scale of `Projection`, mean over the steps, of the first `pictures` of the run.

    It is in the pictures' records where a sweep drew them (`observer`), or else they are drawn again for it.
    The detail "cosine" is 1 for a method that does nothing but scale. The run's guidance and sampler are made from its
    run.json, if `packages` define them; name yours there to measure a guidance that lies elsewhere.
    """

    pictures: int = 16
    packages: list[str] = field(default_factory=lambda: ["guidance", "samplers"])

    def __post_init__(self) -> None:
        if type(self.pictures) is not int or self.pictures < 1:
            raise UserError(f"pictures={self.pictures}: must be a whole number of at least 1")

    def observer(self, first: int, count: int) -> Scales | None:
        """Returns what looks on while these pictures are drawn; None if they are not among those measured."""
        return Scales() if first < self.pictures else None

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        records = run.records[: self.pictures]
        found = [r[SEEN] for r in records] if all(SEEN in r for r in records) else self.again(run, bench)
        seen = [one for one in found if one is not None]
        if len(seen) < len(found):
            raise Unmeasurable("no step is taken, or prompt and negative prompt give the same eps: there is no scale")
        scale, cosine = (torch.tensor([one[key] for one in seen], dtype=torch.float64) for key in ("scale", "cosine"))
        captions = run.captions[: len(seen)]
        scales, cosines = scale.mean(dim=1).tolist(), cosine.mean(dim=1).tolist()  # of [N, S]
        curve = {"scale": scale.mean(dim=0).tolist(), "cosine": cosine.mean(dim=0).tolist(), "timestep": seen[0]["t"]}
        return Result(
            bench.bootstrap.mean(scales, captions),
            {"cosine": bench.bootstrap.mean(cosines, captions)},
            [{"file": r["file"], "value": s} for r, s in zip(run.records, scales, strict=False)],
            {"by_step": curve},
        )

    def again(self, run: FinishedRun, bench: Bench) -> list[dict[str, Any] | None]:
        """Returns what `Scales` sees of the pictures, which are drawn again."""
        job = job_of(run, bench, self.packages)
        count, size, seen = min(self.pictures, len(job.request.pictures)), job.request.together, []
        for i in range(0, count, size):
            batch = draw.batch_of(job, i, min(size, count - i))
            seen += draw.draw_batch(job.machine, batch, lambda: None, [Scales()]).seen
        return [record[SEEN] for record in seen]
