"""Strengths of several methods from comparisons of two: Bradley and Terry's model, with ties as Davidson's (1970)."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.metrics.estimates import Clustered, two_way

RIDGE = 1e-6  # times the sum of squared strengths is taken from the log-likelihood, so that it always has a maximum


@dataclass(frozen=True)
class Strengths:
    """Log-strengths of sum 0 by method: exp(a - b) is the odds of a against b; exp(tie) is Davidson's nu."""

    methods: dict[str, Clustered]
    tie: float | None  # None without any tie
    held: tuple[tuple[str, ...], ...]  # groups of methods that the ridge alone holds apart or together; () if none


def bradley_terry(
    first: Sequence[str],
    second: Sequence[str],
    outcomes: Sequence[float] | np.ndarray,
    prompts: Sequence[Hashable],
    raters: Sequence[Hashable],
) -> Strengths:
    """Returns the most likely strengths, with two-way cluster-robust intervals.

    first, second: [N], the methods compared; outcomes [N]: positive where the first won, 0 ties, negative losses.
    """
    methods = sorted({*first, *second})
    i, j = (np.array([methods.index(m) for m in side]) for side in (first, second))
    x = np.zeros((len(i), len(methods) + 1))  # the last column is the tie's
    np.add.at(x, (np.arange(len(i)), i), 0.5)
    np.add.at(x, (np.arange(len(i)), j), -0.5)
    y = np.sign(np.asarray(outcomes, dtype=float))
    some_ties = bool((y == 0).any())

    kinds, places, counts = np.unique(np.column_stack([i, j, y]), axis=0, return_inverse=True, return_counts=True)
    theta, curvature = maximum(x[np.unique(places, return_index=True)[1]], kinds[:, 2], counts, some_ties)
    scores = score(theta, x, y, some_ties)
    added = np.linalg.solve(curvature, scores.T)[: len(methods)] * len(y)  # what each comparison adds to a strength
    added += theta[: len(methods), None] - added.mean(axis=1, keepdims=True)
    found = {m: two_way(added[k], prompts, raters) for k, m in enumerate(methods)}
    return Strengths(found, float(theta[-1]) if some_ties else None, groups(i, j, y, methods))


def chances(theta: np.ndarray, x: np.ndarray, some_ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns each comparison's chance of a win less that of a loss, and its chance of a tie."""
    u = x @ np.append(theta[:-1], 0)
    win, loss, tie = np.exp(u), np.exp(-u), np.exp(theta[-1]) * some_ties
    total = win + loss + tie
    return (win - loss) / total, tie / total


def score(theta: np.ndarray, x: np.ndarray, y: np.ndarray, some_ties: bool) -> np.ndarray:
    """Returns the log-likelihood's gradient of each comparison, [N, methods + 1]."""
    mean, tie = chances(theta, x, some_ties)
    found = x * (y - mean)[:, None]
    found[:, -1] = (y == 0) - tie
    return found


def maximum(x: np.ndarray, y: np.ndarray, n: np.ndarray, some_ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns strengths and tie, and the curvature there, by Newton's method with steps of at most 1.

    x [K, methods + 1], y, n [K]: kinds of comparison, their outcomes, and how often each occurred.
    """
    theta = np.zeros(x.shape[1])
    for _ in range(200):
        mean, tie = chances(theta, x, some_ties)
        gradient = n @ score(theta, x, y, some_ties) - 2 * RIDGE * theta
        curvature = np.einsum("k,ki,kj->ij", n * (1 - tie - mean**2), x, x)
        curvature[-1] = curvature[:, -1] = -(n * mean * tie) @ x
        curvature[-1, -1] = n @ (tie * (1 - tie))
        curvature += 2 * RIDGE * np.eye(len(theta))
        curvature[:-1, :-1] += 1  # nothing tells the strengths' sum, which stays 0
        step = np.linalg.solve(curvature, gradient)
        theta = theta + step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-12:
            break
    return theta, curvature


def groups(i: np.ndarray, j: np.ndarray, y: np.ndarray, methods: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Returns the groups of methods between which answers lead both ways, by wins or ties; () if all are one group.

    The likelihood has a maximum only where there is one group (Ford 1957).
    """
    reach = np.eye(len(methods), dtype=bool)
    for a, b, outcome in zip(i, j, y, strict=True):
        reach[a, b] |= outcome >= 0
        reach[b, a] |= outcome <= 0
    for k in range(len(methods)):
        reach |= reach[:, k : k + 1] & reach[k]
    found = {tuple(m for m, with_it in zip(methods, row, strict=True) if with_it) for row in reach & reach.T}
    return tuple(sorted(found)) if len(found) > 1 else ()
