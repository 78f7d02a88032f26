from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from guidance.branch import Branch, Guidance, check_guidance, check_number, combined, more, plan
from guidance.cfg import ClassifierFree
from ldm.condition import Conditions
from samplers.predict import Denoised
from samplers.schedule import Step


@dataclass(frozen=True)
class Stage:
    """`steps` steps under this prompt; None is the prompt of the image. `guidance` replaces the common inner one."""

    prompt: str | None
    steps: int | float
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None:
            object.__setattr__(self, "prompt", str(self.prompt))  # YAML reads a class 7 as a number


@dataclass(frozen=True)
class Multistage:
    """Multistage guidance (Qi, Deng, Li, FITEE 25(1), 2024): one prompt per span of steps, the latent running on.

    stages  P_1, s_1 .. P_k, s_k in order, as Stage or as mappings of its fields. Their steps are counts that sum to
            the sampler's S, or fractions that sum to 1, shared out by the largest remainder; 0 skips a stage.
    inner   the guidance inside a stage (eq. 5 is classifier-free), unless the stage has its own. Step indices that
            it sees count from the start of sampling.
    """

    stages: tuple[Stage, ...]
    inner: Guidance = field(default_factory=ClassifierFree)

    def __post_init__(self) -> None:
        given: Sequence[Stage | Mapping[str, Any]] = self.stages
        stages = tuple(stage if isinstance(stage, Stage) else Stage(**stage) for stage in given)
        object.__setattr__(self, "stages", stages)
        if not stages:
            raise ValueError("stages is empty: name at least one {prompt: ..., steps: ...}")
        for stage in stages:
            check_number("stage steps", stage.steps)
            check_guidance("stage guidance", stage.guidance or self.inner)

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return self.ruling(step).branches(self.conditions_at(conditions, step), step)

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        return more(self.ruling(step), self.conditions_at(conditions, step), x_0, x_t, step)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        return combined(self.ruling(step), x_0, x_t, step)

    def plan(self, steps: Sequence[Step]) -> list[str | None]:
        """The prompt of each step, which the guidance inside a stage may have set. Raises ValueError as `counts`."""
        inside = [plan(self.ruling(step), [step])[0] for step in steps]
        return [self.stage(step).prompt if own is None else own for step, own in zip(steps, inside, strict=True)]

    def ruling(self, step: Step) -> Guidance:
        """The guidance inside this step's stage."""
        return self.stage(step).guidance or self.inner

    def conditions_at(self, conditions: Conditions, step: Step) -> Conditions:
        """The conditions with this step's prompt in the place of the image's own."""
        prompt = self.stage(step).prompt
        return conditions if prompt is None else replace(conditions, cond=conditions.encode(prompt))

    def stage(self, step: Step) -> Stage:
        """The stage that rules at this step."""
        end = 0
        for stage, count in zip(self.stages, self.counts(step.n), strict=True):
            end += count
            if step.i < end:
                return stage
        raise AssertionError("counts sum to n")

    def counts(self, n: int) -> list[int]:
        """Steps of each stage when sampling takes n. Raises ValueError if they do not sum to it."""
        wanted = [stage.steps for stage in self.stages]
        total = sum(wanted)
        if all(isinstance(steps, int) for steps in wanted):
            if total != n:
                raise ValueError(f"stage steps {wanted} sum to {total}, but the sampler takes {n} steps")
            return [int(steps) for steps in wanted]
        if abs(total - 1) > 1e-6:
            raise ValueError(f"stage steps {wanted} sum to {total:g}: give counts that sum to {n}, or fractions to 1")
        counts = [int(steps * n + 1e-9) for steps in wanted]
        by_remainder = sorted(range(len(wanted)), key=lambda k: counts[k] - wanted[k] * n)
        for k in by_remainder[: n - sum(counts)]:
            counts[k] += 1
        return counts
