"""The power table against the interval it is about, and against closed forms."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from experiments.metrics.estimates import student_quantile, two_way
from experiments.rating.power import (
    Design,
    Model,
    choice,
    dealt,
    grade,
    graded,
    half_widths,
    poll_table,
    power_table,
    preference,
    row,
)


@pytest.mark.parametrize("design", [Design(12, 7, 7), Design(20, 9, 4), Design(8, 1, 1), Design(1, 8, 8)])
def test_half_widths_are_those_of_two_way(design: Design) -> None:
    rng, (prompts, raters) = np.random.default_rng(0), dealt(design, 0)
    answers = rng.normal(size=(5, len(prompts))) + rng.normal(size=(5, design.prompts))[:, prompts]
    means, halves = half_widths(answers, prompts, raters)
    for study, mean, half in zip(answers, means, halves, strict=True):
        found = two_way(study, prompts, raters)
        assert (found.value, found.high) == pytest.approx((mean, mean + half))


def test_a_plan_is_balanced() -> None:
    prompts, raters = dealt(Design(30, 7, 3), 0)
    assert np.bincount(prompts).tolist() == [3] * 30
    assert np.ptp(np.bincount(raters)) <= 1
    assert len(set(zip(prompts.tolist(), raters.tolist(), strict=True))) == 90


def test_effects_have_their_shares() -> None:
    latent = np.random.default_rng(0).normal(0, preference().spread, size=200_000)
    found = preference().effects["57/27/16"](latent)
    assert [(found == v).mean() for v in (1, 0, -1)] == pytest.approx([0.57, 0.27, 0.16], abs=0.005)
    found = choice(4).effects["35% of 25%"](np.random.default_rng(0).normal(0, choice(4).spread, size=200_000))
    assert found.mean() == pytest.approx(0.1, abs=0.005)
    assert grade().effects["0.42"](np.zeros(2)).tolist() == [0.42, 0.42]


def test_power_without_shared_deviations_is_the_closed_form() -> None:
    design, effect = Design(80, 80, 1), 0.3
    found = row(Model("difference", 0, 0, 1, {"": graded(effect)}), design, 4000, 0)
    error, t = 1 / math.sqrt(80), student_quantile(79)
    assert found.half_width == pytest.approx(t * error, rel=0.01)
    assert found.powers[0] == pytest.approx(NormalDist().cdf(effect / error - t), abs=0.03)


def test_the_table_has_more_power_with_more_of_each() -> None:
    table = power_table(preference(), Design(40, 10, 3))
    here, *larger = table.rows
    assert [str(r.design) for r in table.rows] == [
        "40 x 10, 3 (12)",
        "80 x 10, 3 (24)",
        "40 x 20, 3 (6)",
        "40 x 10, 6 (24)",
    ]
    assert all(r.half_width < here.half_width and r.powers[1] > here.powers[1] for r in larger)
    lines = str(table).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert table == power_table(preference(), Design(40, 10, 3))


def test_a_poll_s_interval_is_the_share_s() -> None:
    table = poll_table(14)
    n, t = 13, student_quantile(13)
    assert table.rows[0].half_width == pytest.approx(t / math.sqrt(n + t**2) / 2)
    assert [r.design.raters for r in table.rows] == [14, 28, 56]
