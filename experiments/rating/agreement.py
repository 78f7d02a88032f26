"""How far raters agree with each other and with themselves."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from experiments.metrics.estimates import Estimate, interval, numbered

Values = Sequence[float] | np.ndarray
Metric = Callable[[np.ndarray], np.ndarray]  # of the counts of V sorted values, how far each is from each, [V, V]


def ordinal(counts: np.ndarray) -> np.ndarray:
    """Returns the square of how many values lie between two, each of the two counted by half (Krippendorff 2011)."""
    middles = np.cumsum(counts) - counts / 2
    return (middles[:, None] - middles) ** 2


def nominal(counts: np.ndarray) -> np.ndarray:
    """Returns 1 for values that differ."""
    return 1.0 - np.eye(len(counts))


def alpha(values: Values, units: Sequence[Hashable], metric: Metric = ordinal, resamples: int = 500) -> Estimate | None:
    """Returns Krippendorff's alpha of what several raters said of the same units: 1 is agreement, 0 is chance.

    values, units: [N], one of each per answer; who gave it does not matter. The interval is the bootstrap's over units.
    None if no unit has two answers, or all answers are alike.
    """
    domain, v = np.unique(np.asarray(values, dtype=float), return_inverse=True)
    counts = np.zeros((numbered(units).max() + 1, len(domain)))
    np.add.at(counts, (numbered(units), v), 1)
    counts = counts[counts.sum(axis=1) > 1]
    if len(counts) == 0:
        return None
    pairs = counts[:, :, None] * counts[:, None] - counts[:, :, None] * np.eye(len(domain))
    coincidences = pairs / (counts.sum(axis=1) - 1)[:, None, None]  # [U, V, V]
    value = alpha_of(coincidences.sum(axis=0), metric)
    if value is None:
        return None
    rng = np.random.default_rng(0)
    drawn = [
        alpha_of(coincidences[i].sum(axis=0), metric) for i in rng.integers(len(counts), size=(resamples, len(counts)))
    ]
    return interval(value, [a for a in drawn if a is not None] if len(counts) > 1 else [], int(counts.sum()))


def alpha_of(coincidences: np.ndarray, metric: Metric) -> float | None:
    """Returns alpha of a matrix of coincidences [V, V]; None where only one value occurs."""
    counts = coincidences.sum(axis=0)
    far = metric(counts)
    expected = counts @ far @ counts / (counts.sum() - 1)
    return None if expected == 0 else float(1 - (coincidences * far).sum() / expected)


def kappa(first: Values, second: Values, weighted: bool = True) -> float | None:
    """Returns Cohen's kappa of two answers to each of some items; weighted by their squared difference (Cohen 1968).

    None where chance alone would give full agreement.
    """
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)

    def far(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a - b) ** 2 if weighted else (a != b).astype(float)

    expected = far(one[:, None], other[None]).mean()
    return None if expected == 0 else float(1 - far(one, other).mean() / expected)
