"""The statistics against packages that are not ours, closed forms, and answers whose truth is known."""

import math
from fractions import Fraction
from typing import Any

import choix
import krippendorff
import numpy as np
import pytest
from choix.opt import PairwiseFcts

from experiments.metrics.estimates import holm, student_quantile, two_way
from experiments.rating.agreement import Metric, alpha, kappa, nominal
from experiments.rating.bradley_terry import RIDGE, bradley_terry
from experiments.rating.statistics import centred, contrast, pigeonhole, share


@pytest.mark.parametrize(("level", "metric"), [("ordinal", None), ("nominal", nominal)])
def test_alpha_is_krippendorff_s(level: str, metric: Metric | None) -> None:
    rng = np.random.default_rng(0)
    for missing in (0.0, 0.4, 0.8):
        truth = rng.integers(1, 6, size=30)
        data = np.clip(truth + rng.integers(-1, 2, size=(7, 30)), 1, 5).astype(float)
        data[rng.random(data.shape) < missing] = np.nan
        raters, units = np.nonzero(~np.isnan(data))
        found = alpha(data[raters, units], units, *([metric] if metric else []))
        theirs = krippendorff.alpha(reliability_data=data, level_of_measurement=level)
        assert found.value == pytest.approx(theirs, abs=1e-8)
        assert found.low < theirs < found.high


def test_alpha_of_full_agreement_of_one_value_and_of_no_pair() -> None:
    assert alpha([1, 1, 2, 2], "aabb").value == 1
    assert alpha([3, 3, 3, 3], "aabb") is None
    assert alpha([1, 2, 3, 4], "abcd") is None
    assert alpha([1, 2], "aa").low is None


def test_kappa_of_worked_tables() -> None:
    first, second = [0] * 25 + [1] * 25, [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15
    assert kappa(first, second, weighted=False) == pytest.approx(0.4)  # agreement 0.7, 0.5 by chance
    assert kappa(first, second) == pytest.approx(0.4)  # with two values, weights change nothing
    assert kappa([0, 1, 2], [0, 1, 1]) == pytest.approx(float(1 - Fraction(1, 3) / Fraction(1)))
    assert kappa([1, 1], [1, 1]) is None


def comparisons(seed: int, ties: float, methods: str = "abcde") -> tuple[Any, ...]:
    """Methods on either side, outcomes, prompts and raters of 400 comparisons; ties are those closer than that."""
    rng = np.random.default_rng(seed)
    n, strengths = 400, np.linspace(1, -1, len(methods))
    i = rng.integers(len(methods), size=n)
    j = (i + rng.integers(1, len(methods), size=n)) % len(methods)
    d = strengths[i] - strengths[j] + rng.logistic(size=n)
    outcomes = np.where(np.abs(d) < ties, 0, np.sign(d))
    return (
        [methods[k] for k in i],
        [methods[k] for k in j],
        outcomes,
        rng.integers(40, size=n),
        rng.integers(10, size=n),
    )


@pytest.mark.parametrize("seed", [0, 1, 6])
def test_bradley_terry_is_choix_s(seed: int) -> None:
    first, second, outcomes, prompts, raters = comparisons(seed, ties=0)
    found = bradley_terry(first, second, outcomes, prompts, raters)
    data = [
        ("abcde".index(a), "abcde".index(b)) if y > 0 else ("abcde".index(b), "abcde".index(a))
        for a, b, y in zip(first, second, outcomes, strict=True)
    ]
    ours, theirs = [found.methods[m].value for m in "abcde"], choix.opt_pairwise(5, data, alpha=RIDGE, tol=1e-14)
    assert ours == pytest.approx(theirs, abs=1e-8)
    assert (
        np.abs(PairwiseFcts(data, RIDGE).gradient(np.array(ours))).max() < 1e-10
    )  # its optimizer may stop before that
    assert found.tie is None
    assert found.held == ()


def test_davidson_s_ties_are_where_the_likelihood_is_flat() -> None:
    first, second, outcomes, prompts, raters = comparisons(1, ties=0.6)
    found = bradley_terry(first, second, outcomes, prompts, raters)

    def likelihood(strengths: dict[str, float], tie: float) -> float:
        total = 0.0
        for a, b, y in zip(first, second, outcomes, strict=True):
            one, other = math.exp(strengths[a]), math.exp(strengths[b])
            middle = math.exp(tie) * math.sqrt(one * other)
            total += math.log({1: one, 0: middle, -1: other}[int(y)] / (one + other + middle))
        return total

    best = {m: e.value for m, e in found.methods.items()}
    assert sum(best.values()) == pytest.approx(0, abs=1e-9)
    for step in (1e-3, -1e-3):
        assert likelihood(best, found.tie + step) < likelihood(best, found.tie)
        for m in best:
            assert likelihood(best | {m: best[m] + step}, found.tie) < likelihood(best, found.tie)


def test_the_interval_of_a_strength_is_that_of_independent_comparisons_where_they_are() -> None:
    first, second, outcomes, _, _ = comparisons(2, ties=0, methods="ab")
    found = bradley_terry(first, second, outcomes, range(400), range(400)).methods["a"]
    p = np.mean((outcomes > 0) == (np.array(first) == "a"))
    half = math.sqrt(1 / (p * (1 - p) * 399)) / 2  # of half the log-odds
    assert found.value == pytest.approx(math.log(p / (1 - p)) / 2, abs=1e-6)
    assert found.error == pytest.approx(half, rel=1e-6)


def test_methods_that_answers_do_not_join_are_named_and_stay_finite() -> None:
    first, second = ["a", "b", "a", "c"] * 5, ["b", "a", "c", "d"] * 5
    outcomes = [1, 1, 1, 0] * 5  # a and b beat each other, a always beats c, c and d tie
    found = bradley_terry(first, second, outcomes, range(20), range(20))
    assert found.held == (("a", "b"), ("c", "d"))
    assert all(math.isfinite(e.value) for e in found.methods.values())
    assert found.methods["a"].value - found.methods["c"].value > 5


def test_pigeonhole_is_the_bootstrap_of_both_kinds() -> None:
    rng = np.random.default_rng(0)
    p, r = np.repeat(np.arange(12), 9), np.tile(np.arange(9), 12)
    x = rng.normal(size=12)[p] + 0.5 * rng.normal(size=9)[r] + rng.normal(size=108)
    drawn = []
    for _ in range(4000):
        prompts, raters = rng.integers(12, size=12), rng.integers(9, size=9)
        drawn.append(x.reshape(12, 9)[prompts][:, raters].mean())
    found = pigeonhole(x, p, r, resamples=4000)
    assert found.value == pytest.approx(x.mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.05)
    assert found == pigeonhole(x, p, r, resamples=4000)
    assert pigeonhole([1.0], "a", "b").low is None


def test_share_is_wilson_s_of_independent_answers() -> None:
    hits = [1] * 8 + [0] * 17
    found = share(hits, range(25), ["everybody"] * 25)
    t, p, n = student_quantile(24), 8 / 25, 24
    for edge in (found.low, found.high):  # where the distance from the share is t of the edge's own deviations
        assert abs(edge - p) == pytest.approx(t * math.sqrt(edge * (1 - edge) / n))
    assert (found.value, found.count) == (p, 25)


def test_shares_of_all_and_of_none_have_intervals() -> None:
    p, r = np.repeat(np.arange(10), 4), np.tile(np.arange(4), 10)
    none, every = share(np.zeros(40), p, r), share(np.ones(40), p, r)
    assert none.low == 0 < none.high == pytest.approx(1 - every.low)
    t = student_quantile(3)
    assert none.high == pytest.approx(t**2 / (4 + t**2))  # four raters, none of whom did
    assert share([1], "a", "b").low is None


def test_contrast_of_paired_grades_is_the_mean_difference() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 15, 6))
    prompts = np.broadcast_to(np.arange(15)[:, None], x.shape).ravel()
    raters = np.broadcast_to(np.arange(6), x.shape).ravel()
    sides = np.repeat([1, -1], 90)
    found = contrast(x.ravel(), sides, prompts, raters)
    paired = two_way((x[0] - x[1]).ravel(), prompts[:90], raters[:90])
    assert found.value == pytest.approx(paired.value)
    assert found.freedom == paired.freedom
    assert found.error == pytest.approx(paired.error, rel=0.02)
    assert contrast(x.ravel() + 100 * raters, sides, prompts, raters).value == pytest.approx(found.value)


def test_centred_answers_have_no_mean_by_rater() -> None:
    found = centred([1, 3, 10, 20, 30], "aabbb")
    assert found.tolist() == [-1, 1, -10, 0, 10]


def test_holm_of_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
