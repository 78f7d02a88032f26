"""How many prompts, raters and answers a study needs: its power and the width of its intervals, simulated.

An answer is an effect, plus the prompt's, the rater's and its own deviation, all normal; each study simulated is
analysed as a real one would be, by the two-way cluster-robust interval.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from statistics import NormalDist

import numpy as np

from experiments.metrics.estimates import student_quantile
from experiments.rating.plan import deal
from experiments.rating.statistics import share


@dataclass(frozen=True)
class Design:
    """`answers` raters see each prompt, all raters equally many."""

    prompts: int
    raters: int
    answers: int

    def __str__(self) -> str:
        each = self.prompts * self.answers / self.raters
        return f"{self.prompts} x {self.raters}, {self.answers} ({each:.0f})"


@dataclass(frozen=True)
class Row:
    """A design, the chance that it shows each effect, and half the width of its interval."""

    design: Design
    powers: tuple[float, ...]
    half_width: float


@dataclass(frozen=True)
class Table:
    measure: str
    effects: tuple[str, ...]
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        head = ("prompts x raters, answers to each (by each rater)", *self.effects, f"+- {self.measure}")
        body = [(str(r.design), *(f"{p:.2f}" for p in r.powers), f"{r.half_width:.2f}") for r in self.rows]
        widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
        first = widths[0]
        return "\n".join(
            "  ".join([line[0].ljust(first), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
            for line in (head, *body)
        )


Effect = Callable[[np.ndarray], np.ndarray]  # of deviations [S, N], the answers; their mean is 0 without an effect


@dataclass(frozen=True)
class Model:
    """The standard deviations of an answer's parts, and effects by what they are called."""

    measure: str
    prompt: float
    rater: float
    own: float
    effects: dict[str, Effect]

    @property
    def spread(self) -> float:
        return math.hypot(self.prompt, self.rater, self.own)


def preferred(win: float, loss: float, spread: float) -> Effect:
    """Returns the effect that makes 1 for the first, 0, and -1 for the second, with these shares of 1 and -1."""
    above, below = (spread * NormalDist().inv_cdf(share) for share in (win, loss))
    return lambda x: (x > -above).astype(np.float32) - (x < below)


def graded(difference: float) -> Effect:
    """Returns the effect that makes the first's grade less the second's."""
    return lambda x: x + difference


def chosen(share: float, fair: float, spread: float) -> Effect:
    """Returns the effect that tells whether an option was chosen, less its fair share."""
    above = spread * NormalDist().inv_cdf(share)
    return lambda x: (x > -above).astype(np.float32) - fair


def preference() -> Model:
    model = Model("net", 0.7, 0.3, 1, {})
    shares = ((57, 16), (45, 25), (40, 30))  # of them the first is about the segmentation-free paper's
    effects = {f"{w}/{100 - w - b}/{b}": preferred(w / 100, b / 100, model.spread) for w, b in shares}
    return replace(model, effects=effects)


def grade() -> Model:
    """Returns the model of a difference of two grades, which deviate by 0.9 each; 0.42 is the multistage paper's."""
    return Model("difference", 0.4, 0.25, 0.9 * math.sqrt(2), {f"{d:.2f}": graded(d) for d in (0.42, 0.3, 0.2)})


def choice(options: int) -> Model:
    model = Model("share", 0.7, 0.3, 1, {})
    shares = [times / options for times in (1.6, 1.4, 1.2)]
    return replace(
        model, effects={f"{s:.0%} of {1 / options:.0%}": chosen(s, 1 / options, model.spread) for s in shares}
    )


def power_table(model: Model, design: Design, studies: int = 300, seed: int = 0) -> Table:
    """Returns the power of the design, and with twice the prompts, the raters, and the answers to each prompt."""
    designs = [
        design,
        replace(design, prompts=2 * design.prompts),
        replace(design, raters=2 * design.raters),
        replace(design, answers=min(2 * design.answers, design.raters)),
    ]
    rows = [row(model, d, studies, seed) for d in dict.fromkeys(designs)]
    return Table(model.measure, tuple(model.effects), tuple(rows))


def poll_table(raters: int) -> Table:
    """Returns half the width of the interval of a share of one half, of a question that each rater answers once."""
    rows = []
    for n in (raters, 2 * raters, 4 * raters):
        half = share([i % 2 for i in range(n)], [0] * n, range(n))
        assert half.low is not None and half.high is not None
        rows.append(Row(Design(1, n, n), (), (half.high - half.low) / 2))
    return Table("share", (), tuple(rows))


def row(model: Model, design: Design, studies: int, seed: int) -> Row:
    rng, (prompts, raters) = np.random.default_rng(seed), dealt(design, seed)
    deviations = (
        scale * rng.standard_normal((studies, count), dtype=np.float32)[:, which]
        for scale, count, which in (
            (model.prompt, design.prompts, prompts),
            (model.rater, design.raters, raters),
            (model.own, len(prompts), np.arange(len(prompts))),
        )
    )
    latent = np.add.reduce(list(deviations))
    found = [half_widths(effect(latent), prompts, raters) for effect in model.effects.values()]
    powers = tuple(float((means > halves).mean()) for means, halves in found)
    return Row(design, powers, float(np.mean([halves.mean() for _, halves in found])))


def dealt(design: Design, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompt and rater of each answer, sorted by prompt."""
    raters = deal(design.prompts, design.raters, design.answers, Random(seed))
    return np.repeat(np.arange(design.prompts), design.answers), np.concatenate(raters)


def half_widths(answers: np.ndarray, prompts: np.ndarray, raters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means, and half the width of their intervals, of studies [S, N] of one plan without a pair seen twice.

    It is `two_way` for many studies at once.
    """
    n = len(prompts)
    means = answers.mean(axis=1)
    residuals = answers - means[:, None]

    def variance(clusters: np.ndarray) -> np.ndarray:
        order = np.argsort(clusters, kind="stable")
        starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
        sums = np.add.reduceat(residuals[:, order], starts, axis=1)
        return len(starts) / (len(starts) - 1) * (sums**2).sum(axis=1) / n**2

    kinds = [kind for kind in (prompts, raters) if len(np.unique(kind)) > 1]
    variances = [variance(kind) for kind in kinds]
    if len(kinds) == 2:
        variances.append(sum(variances) - variance(np.arange(n)))
    if not kinds:
        return means, np.full(len(means), np.nan)
    freedom = min(len(np.unique(kind)) for kind in kinds) - 1
    return means, student_quantile(freedom) * np.sqrt(np.maximum.reduce(variances))
