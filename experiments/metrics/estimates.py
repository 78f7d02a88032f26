"""Numbers with their intervals: the bootstrap, means over two kinds of clusters, and the sign test of paired scores."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.files import UserError

HOLDS, NOT, UNTOLD = "holds", "does not hold", "cannot be told"  # verdicts on a claim
LEVEL = 0.05  # of p, below which one is told
TIE = 1e-4  # scores closer than this differ by no more than arithmetic does
CENTRED = (
    "of the run's pictures, the references kept; percentiles of the resamples, moved so that their mean is the value"
)


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval (None if there was too little to resample), and of how many things it is made."""

    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals (Efron 1979): the statistic of pictures drawn again, with replacement.

    unit "pictures" answers for these prompts under other seeds, "prompts" draws whole prompts with all their pictures
    and answers for other prompts too.
    """

    resamples: int = 1000
    seed: int = 0
    unit: str = "pictures"

    def __post_init__(self) -> None:
        if self.unit not in ("pictures", "prompts"):
            raise UserError(f"bootstrap.unit={self.unit}: must be pictures or prompts")
        if type(self.resamples) is not int or self.resamples < 1:
            raise UserError(f"bootstrap.resamples={self.resamples}: must be a whole number of at least 1")

    def at_most(self, resamples: int) -> "Bootstrap":
        """Returns the same with fewer resamples, for statistics that take long."""
        return replace(self, resamples=min(resamples, self.resamples))

    def draws(self, prompts: Sequence[Hashable]) -> Iterator[np.ndarray]:
        """Yields the indices of each resample of pictures whose prompts these are."""
        rng, names = np.random.default_rng(self.seed), dict[Hashable, list[int]]()
        for i, prompt in enumerate(prompts):
            names.setdefault(prompt if self.unit == "prompts" else i, []).append(i)
        units = [np.array(indices) for indices in names.values()]
        for _ in range(self.resamples if len(units) > 1 else 0):
            yield np.concatenate([units[i] for i in rng.integers(len(units), size=len(units))])

    def mean(self, scores: Sequence[float | None], prompts: Sequence[Hashable]) -> Estimate:
        """Returns the mean of the scores that are there."""
        known = np.array([score is not None for score in scores], dtype=float)
        return self.ratio([score or 0.0 for score in scores], known, prompts)

    def ratio(
        self, parts: Sequence[float] | np.ndarray, wholes: Sequence[float] | np.ndarray, prompts: Sequence[Hashable]
    ) -> Estimate:
        """Returns the sum of the parts over that of the wholes; the pictures that have a whole are counted."""
        part, whole = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
        counted = np.flatnonzero(whole)
        part, whole, prompts = part[counted], whole[counted], [prompts[i] for i in counted.tolist()]
        drawn = [part[i].sum() / whole[i].sum() for i in self.draws(prompts)]
        return interval(part.sum() / whole.sum(), drawn, len(counted))

    def distance(
        self, value: float, statistic: Callable[[np.ndarray], float], prompts: Sequence[Hashable], least: float = 0
    ) -> Estimate:
        """Returns a statistic of at least `least` that repeated pictures alter by themselves: see `interval`."""
        return interval(value, [statistic(i) for i in self.draws(prompts)], len(prompts), least)


def interval(value: float, drawn: Sequence[float] | np.ndarray, count: int, least: float | None = None) -> Estimate:
    """Returns an estimate with the 2.5 and 97.5 percentiles of its resampled values.

    A resample repeats pictures, so it has fewer different ones, and a Frechet distance grows as pictures get fewer:
    its resamples lie above its value. With a `least`, the smallest that the statistic can be, they are moved until
    their mean is the value, which leaves the spread.
    """
    if len(drawn) == 0:
        return Estimate(float(value), None, None, count)
    low, high = np.percentile(drawn, [2.5, 97.5])
    if least is not None:
        low, high = (max(least, edge + value - np.mean(drawn)) for edge in (low, high))
    return Estimate(float(value), float(low), float(high), count)


@dataclass(frozen=True)
class Clustered(Estimate):
    """A mean with its standard error and degrees of freedom: None and 0 where all values are of one cluster."""

    error: float | None
    freedom: int

    def p(self, null: float = 0) -> float | None:
        """Two-sided p of a mean this far from `null`; None where there is no standard error.

        Values that are all alike have no variance, from which it would follow that nothing was left to chance: there it
        is the sign test's, of as many as there are clusters of the kind that has fewer.
        """
        if self.error is None:
            return None
        away = abs(self.value - null)
        if self.error < 1e-12 < away:
            return sign_test(self.freedom + 1, 0)
        return student_p(away / self.error, self.freedom) if self.error else 1.0


def two_way(values: Sequence[float] | np.ndarray, first: Sequence[Hashable], second: Sequence[Hashable]) -> Clustered:
    """The mean of values that share clusters of two kinds, as answers share a prompt and a rater.

    Its variance is V_first + V_second - V_both (Cameron, Gelbach and Miller 2011), and at least the larger of the first
    two; each V is G / (G - 1) times the sum of squares of the G clusters' summed residuals, over n^2. The interval is
    Student's, with one degree of freedom less than the kind with fewer clusters has. It answers for other clusters of
    both kinds; a kind of which there is but one cluster is left out, and the interval answers for that cluster alone.
    """
    x = np.asarray(values, dtype=float)
    assert len(x) == len(first) == len(second) > 0
    kinds = [kind for kind in (numbered(first), numbered(second)) if kind.max() > 0]
    if not kinds:
        return Clustered(float(x.mean()), None, None, len(x), None, 0)
    residuals = x - x.mean()
    variances = [cluster_variance(residuals, kind) for kind in kinds]
    variance = max(variances)
    if len(kinds) == 2:
        variance = max(variance, sum(variances) - cluster_variance(residuals, numbered(zip(*kinds, strict=True))))
    error, freedom = math.sqrt(variance), min(int(kind.max()) for kind in kinds)
    value, margin = float(x.mean()), student_quantile(freedom) * error
    return Clustered(value, value - margin, value + margin, len(x), error, freedom)


def cluster_variance(residuals: np.ndarray, clusters: np.ndarray) -> float:
    """Of a mean whose residuals are independent between clusters, and not within."""
    sums = np.bincount(clusters, residuals)
    return float(len(sums) / (len(sums) - 1) * (sums @ sums) / len(residuals) ** 2)


def numbered(clusters: Iterable[Hashable]) -> np.ndarray:
    """0, 1, 2, ... for the clusters in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])


def student_p(t: float, freedom: int) -> float:
    """Two-sided p of Student's t, in the finite sums for whole degrees (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom == 1:
        return 1 - 2 * angle / math.pi
    k = np.arange(2 if freedom % 2 == 0 else 3, freedom, 2)
    terms = np.cumprod(np.concatenate([[1.0], (k - 1) / k * cosine**2])).sum()
    inside = sine * terms if freedom % 2 == 0 else 2 / math.pi * (angle + sine * cosine * terms)
    return max(0.0, 1 - float(inside))


def student_quantile(freedom: int, p: float = 0.05) -> float:
    """The t beyond which Student's distribution has p on both sides together, by bisection."""
    low, high = 0.0, 1.0
    while student_p(high, freedom) > p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > p else (low, middle)
    return high


def means_of(values: Sequence[float], clusters: Sequence[Hashable]) -> list[float]:
    """Returns the mean of each cluster's values, in order of appearance."""
    together: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        together.setdefault(cluster, []).append(value)
    return [sum(some) / len(some) for some in together.values()]


def sign_test(wins: int, losses: int) -> float:
    """Returns the two-sided exact p of so uneven a split, were either side as likely to win."""
    n, ways, total = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        total += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * total / 2**n)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Returns the p corrected for their number, by Holm's step-down method; None where there is none."""
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def compare_paired(
    ours: Sequence[float], theirs: Sequence[float], prompts: Sequence[Hashable], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Returns the mean difference of paired scores, and how often ours is the higher. Ties count for neither side.

    Where the bootstrap's unit is prompts, it is counted how often the mean over a prompt's pictures is the higher.
    """
    differences = (np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)).tolist()
    means, asked = differences, list(prompts)
    if bootstrap.unit == "prompts":
        means, asked = means_of(differences, prompts), list(dict.fromkeys(prompts))
    won, lost = (np.array(side) for side in ([m > TIE for m in means], [m < -TIE for m in means]))
    wins, losses = int(won.sum()), int(lost.sum())
    return {
        "difference": bootstrap.mean(differences, prompts),
        "win_rate": bootstrap.ratio(won, won | lost, asked) if wins + losses else None,
        "wins": wins,
        "losses": losses,
        "ties": len(means) - wins - losses,
        "p": sign_test(wins, losses),
    }
