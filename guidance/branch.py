"""The contract between a guidance and the sampling loop."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from guidance.edits import changing
from ldm.attention import Edit
from ldm.condition import Condition, Conditions, Unfit, stack
from samplers.predict import Denoise, Denoised, Predict, output_of, prediction_in, prediction_of, x_0_of
from samplers.schedule import Step


@dataclass(frozen=True, eq=False)
class Branch:
    """One pass of a network, in what differs from the plain one.

    condition  what the network is told
    edits      of its attention weights and features, one after another
    network    which of the networks runs: "main", or another by the name that `guided` knows it by
    t, x_t     what it is told and shown in the place of the step's; x_t [B, ...]
    gradient   the pass keeps its graph, on an x_t that requires its gradient: `more` and `combine` receive that x_t,
               and run with gradients enabled
    """

    condition: Condition
    edits: tuple[Edit, ...] = ()
    network: str = "main"
    t: float | None = None
    x_t: Tensor | None = None
    gradient: bool = False


class Guidance(Protocol):
    """Says which passes a step needs, and how their clean estimates join; never runs a network itself.

    Two further methods are optional, and `Wrapper` forwards them:
      more(conditions, x_0, x_t, step) -> branches of a further round, which depend on the estimates so far, until empty
      plan(steps) -> the prompt of each step, None for the image's own; raises ValueError where the steps do not fit
    `space = "eps"` says that `combine` receives and returns eps in the place of x_0, and "output" what the network
    predicts: for formulas whose weights do not sum to one. A guidance that remembers is a dataclass with fields of
    init=False: `guided` begins with them empty, and they are written in stage 0 alone. What it records for its owner is
    a field of init=True, which is shared.
    """

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        """The passes by name; "cond", the prompt's own, is always among them. Writes nothing."""

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor | Denoised:
        """The guided x_0 [B, ...] from that of each pass of all rounds, in float32; or x_0 and eps, where they part."""


@dataclass(frozen=True)
class Wrapper:
    """A guidance around another: forwards everything to `inner`, but for what a subclass overrides."""

    inner: Guidance

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return self.inner.branches(conditions, step)

    def more(self, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> dict[str, Branch]:
        return more(self.inner, conditions, x_0, x_t, step)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor | Denoised:
        return combined(self.inner, x_0, x_t, step)

    def plan(self, steps: Sequence[Step]) -> list[str | None]:
        return plan(self.inner, steps)


def more(
    guidance: Guidance, conditions: Conditions, x_0: dict[str, Tensor], x_t: Tensor, step: Step
) -> dict[str, Branch]:
    """The branches of a guidance's next round; none if it has one round only."""
    return guidance.more(conditions, x_0, x_t, step) if hasattr(guidance, "more") else {}


def plan(guidance: Guidance, steps: Sequence[Step]) -> list[str | None]:
    """The prompt that a guidance shows in each step; None is the image's own."""
    return guidance.plan(steps) if hasattr(guidance, "plan") else [None] * len(steps)


def combined(guidance: Guidance, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
    """What a guidance makes of its passes, whatever its space and whatever it returns."""
    now, prediction = step.now, prediction_in(getattr(guidance, "space", "x_0"), step)
    seen = {name: output_of(estimate, prediction, x_t, now) for name, estimate in x_0.items()}
    out = guidance.combine(seen, x_t, step)
    if isinstance(out, Denoised):
        return out
    guided = x_0_of(out, prediction, x_t, now)
    return Denoised(guided, out if prediction == "eps" else now.eps(x_t, guided))


def guided(
    networks: Predict | Mapping[str, Predict],
    guidance: Guidance,
    conditions: Conditions,
    max_batch: int | None = None,
) -> Denoise:
    """Returns denoise(x_t, step) -> (x_0, eps): a round's branches in one forward of each network.

    For one sampling, or for several under a guidance that remembers nothing.

    networks   `as_x_0(network, prediction)`, or several by name, "main" among them. The rows of a forward are its
               branches one after another; passes that keep a graph go by themselves
    max_batch  rows of a forward at most, in whole branches, where memory asks for it
    The guidance is begun anew, so that two samplings under one object give the same bits. Steps with the same branches
    show the network one condition, whose keys and values it makes once.
    Raises Unfit for a branch of a network that is not there, and ValueError for one of more rows than max_batch.
    """
    by_name = networks if isinstance(networks, Mapping) else {"main": networks}
    prediction = prediction_of(by_name["main"])
    guidance = begun_anew(guidance)

    @lru_cache(maxsize=8)
    def stacked(*parts: Condition) -> Condition:
        return stack(parts)

    def forward(branches: Sequence[Branch], x_t: Tensor, step: Step) -> list[Tensor]:
        inputs = [x_t if branch.x_t is None else branch.x_t for branch in branches]
        times = [step.now.t if branch.t is None else branch.t for branch in branches]
        t = times[0] if len(set(times)) == 1 else torch.tensor(times, device=x_t.device).repeat_interleave(len(x_t))
        edits = [branch.edits for branch in branches] if any(branch.edits for branch in branches) else ()
        condition = stacked(*(branch.condition for branch in branches))
        with torch.set_grad_enabled(branches[0].gradient or torch.is_grad_enabled()):
            x_0 = by_name[branches[0].network](torch.cat(inputs), step.now, condition, edits, t)
            return list(x_0.chunk(len(branches)))  # a view that is taken without gradients would lose the graph

    def evaluate(branches: dict[str, Branch], x_t: Tensor, leaf: Tensor, step: Step) -> dict[str, Tensor]:
        together = len(branches) if max_batch is None else max_batch // len(x_t)
        if together < 1:
            raise ValueError(f"max_batch={max_batch}: one pass has {len(x_t)} rows; draw fewer images at once")
        groups = dict[tuple[str, bool], list[str]]()
        for name, branch in branches.items():
            if branch.network not in by_name:
                needed, there = branch.network, ", ".join(by_name)
                raise Unfit(f"branch '{name}' needs a network '{needed}': there is {there}; networks.{needed} names it")
            groups.setdefault((branch.network, branch.gradient), []).append(name)
        x_0 = dict[str, Tensor]()
        for (_, gradient), names in groups.items():
            for part in (names[i : i + together] for i in range(0, len(names), together)):
                found = forward([branches[name] for name in part], leaf if gradient else x_t, step)
                x_0 |= zip(part, found, strict=True)
        return {name: x_0[name] for name in branches}

    def denoise(x_t: Tensor, step: Step) -> Denoised:
        step = replace(step, prediction=prediction)
        leaf, x_0 = x_t, dict[str, Tensor]()
        branches = guidance.branches(conditions, step)
        check_apart(branches)
        while branches:
            if not leaf.requires_grad and any(branch.gradient for branch in branches.values()):
                leaf = x_t.detach().requires_grad_()
            assert not x_0.keys() & branches.keys(), "each pass of a step has a name of its own"
            x_0 |= evaluate(branches, x_t, leaf, step)
            with torch.set_grad_enabled(leaf is not x_t or torch.is_grad_enabled()):
                branches = more(guidance, conditions, x_0, leaf, step)
        with torch.set_grad_enabled(leaf is not x_t or torch.is_grad_enabled()):
            out = combined(guidance, x_0, leaf, step)
        return out if leaf is x_t else Denoised(*(tensor.detach() for tensor in out))

    return denoise


def check_apart(branches: Mapping[str, Branch]) -> None:
    """Raises Unfit for a pass beside "cond" of a network that is told nothing, and so differs from it in nothing."""
    told = branches["cond"].condition
    for name, branch in branches.items():
        plain = not changing(branch.edits) and branch.network == "main" and branch.t is None and branch.x_t is None
        untold = branch.condition.tokens is None and branch.condition.vector is None
        if name != "cond" and plain and untold and branch.condition.channels is told.channels:
            raise Unfit(
                f"pass '{name}' is the same as 'cond', since this model is told nothing: it takes guidance.scale=1"
            )


def name_of(guidance: Guidance) -> str:
    """A guidance and those inside it, by their classes."""
    inner = f" of {name_of(guidance.inner)}" if hasattr(guidance, "inner") else ""
    return type(guidance).__name__ + inner


def begun_anew(value: Any) -> Any:
    """A guidance as it begins: every nested dataclass that is, or holds, a guidance or a mix rule, made again.

    Its fields of init=False are empty then; all else, such as stores, edits and networks, is shared.
    """
    if not holds_guidance(value):
        return value
    if isinstance(value, tuple | list):
        entries = [begun_anew(entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if isinstance(value, dict):
        return {key: begun_anew(entry) for key, entry in value.items()}
    return replace(value, **{f.name: begun_anew(getattr(value, f.name)) for f in fields(value) if f.init})


def holds_guidance(value: Any) -> bool:
    """Whether a value is a guidance or a mix rule, or holds one in a list, a mapping or a field of a dataclass."""
    if isinstance(value, tuple | list):
        return any(map(holds_guidance, value))
    if isinstance(value, dict):
        return any(map(holds_guidance, value.values()))
    if isinstance(value, type) or not is_dataclass(value):
        return False
    if hasattr(value, "combine") or hasattr(value, "push"):
        return True
    return any(holds_guidance(getattr(value, f.name)) for f in fields(value) if f.init)


def check_number(name: str, value: float, most: float = float("inf")) -> None:
    """Raises ValueError unless the value is a finite number from 0 to `most`."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= most or value == float("inf"):
        limit = "of at least 0" if most == float("inf") else f"from 0 to {most:g}"
        raise ValueError(f"{name}={value}: must be a finite number {limit}")


def check_finite(name: str, value: float) -> None:
    """Raises ValueError unless the value is a finite number, of either sign."""
    if not isinstance(value, Real) or isinstance(value, bool) or not abs(value) < float("inf"):
        raise ValueError(f"{name}={value}: must be a finite number")


def check_once(guidance: Wrapper) -> None:
    """Raises ValueError where another guidance of its class is inside: both would know their pass by one name."""
    name = type(guidance).__name__
    if any(type(one) is type(guidance) for one in within(guidance.inner)):
        raise ValueError(f"inner: holds a {name}, as the guidance around it is: give one, with the layers of both")


def within(value: Any) -> Iterator[Any]:
    """Yields a guidance and all that it is made of, such as those of its stages."""
    if isinstance(value, tuple | list):
        for entry in value:
            yield from within(entry)
    elif is_dataclass(value) and not isinstance(value, type):
        yield value
        for f in fields(value):
            if f.init:
                yield from within(getattr(value, f.name))


def check_guidance(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a guidance."""
    if not hasattr(value, "branches") or not hasattr(value, "combine"):
        raise ValueError(f"{name}={value}: must be a guidance")


def step_count(name: str, value: int | float, n: int) -> int:
    """How many of n steps are meant: an integer counts them, a float is a fraction of n, rounded.

    Raises ValueError for a negative value and a fraction above 1. A count above n means all steps.
    """
    if not isinstance(value, int | float) or value < 0 or (isinstance(value, float) and not value <= 1):
        raise ValueError(f"{name}={value}: must be a count of steps (an integer) or a fraction of them (0.0 to 1.0)")
    return min(value, n) if isinstance(value, int) else int(value * n + 0.5)
