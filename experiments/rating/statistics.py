"""Statistics of answers that share prompts and raters: means, shares, differences of groups, and many claims at once.

Of each answer: `values`, `prompts` (what it is about) and `raters` (whose it is), three sequences of one length N.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np

from experiments.metrics.estimates import Clustered, Estimate, interval, numbered, student_quantile, two_way

Values = Sequence[float] | np.ndarray
Clusters = Sequence[Hashable]


def pigeonhole(values: Values, prompts: Clusters, raters: Clusters, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Returns the mean with the percentiles of its pigeonhole bootstrap (Owen 2007), of prompts and raters alike.

    An answer counts as often as its prompt was drawn, times as often as its rater was. Its intervals are too wide
    rather than too narrow.
    """
    x, p, r = np.asarray(values, dtype=float), numbered(prompts), numbered(raters)
    sums, counts = np.zeros((2, p.max() + 1, r.max() + 1))
    np.add.at(sums, (p, r), x)
    np.add.at(counts, (p, r), 1)
    rng = np.random.default_rng(seed)
    of_prompts, of_raters = (rng.multinomial(n, np.full(n, 1 / n), size=resamples) for n in sums.shape)
    totals = np.einsum("bp,pr,br->b", of_prompts, sums, of_raters, optimize=True)
    weights = np.einsum("bp,pr,br->b", of_prompts, counts, of_raters, optimize=True)
    drawn = totals[weights > 0] / weights[weights > 0]
    return interval(x.mean(), drawn if sums.size > 1 else [], len(x))


def share(hits: Values, prompts: Clusters, raters: Clusters) -> Estimate:
    """Returns the share of hits, 0 or 1 each, with Wilson's interval of as many independent answers as these amount to.

    These are p (1 - p) / V, V being the variance of `two_way`, and no more than there are. Where all answers are
    alike, which tells nothing of V, they are as many as there are clusters of the kind with fewer.
    """
    mean = two_way(hits, prompts, raters)
    if mean.error is None:
        return Estimate(mean.value, None, None, mean.count)
    p, t = mean.value, student_quantile(mean.freedom)
    spread = p * (1 - p)
    n = mean.freedom + 1.0 if spread == 0 else min(mean.count, spread / mean.error**2 if mean.error else math.inf)
    centre = (p + t**2 / (2 * n)) / (1 + t**2 / n)
    margin = t / (1 + t**2 / n) * math.sqrt(spread / n + t**2 / (4 * n**2))
    return Estimate(p, max(0.0, centre - margin), min(1.0, centre + margin), mean.count)


def contrast(values: Values, weights: Values, prompts: Clusters, raters: Clusters) -> Clustered:
    """Returns the mean of values of positive weight less that of those of negative weight, weighted by the sizes.

    The answers are not paired; the interval is that of `two_way` on what each adds to the difference.
    """
    x, w = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    found, added = 0.0, np.zeros(len(x))
    for sign in (1, -1):
        part = np.maximum(sign * w, 0)
        part = part / part.sum()
        mean = part @ x
        found += sign * mean
        added += sign * part * (x - mean)
    return two_way(found + len(x) * added, prompts, raters)


def centred(values: Values, raters: Clusters) -> np.ndarray:
    """Returns the values less their rater's mean."""
    x, r = np.asarray(values, dtype=float), numbered(raters)
    return x - (np.bincount(r, x) / np.bincount(r))[r]
