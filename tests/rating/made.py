"""Answers as studies would have brought them, for the tests of their analysis."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.rating.answers import Answer

RULES = {"gold_failed": 0.5, "fast_ms": 1000, "fast_share": 0.25}
FIVE = [
    "{left} much better",
    "{left} slightly better",
    "no preference",
    "{right} slightly better",
    "{right} much better",
]
ANSWER = Answer(
    simulated=True,
    slot=1,
    group="all",
    device="fine 1200",
    item=0,
    of=None,
    prompt=0,
    question="preference",
    role="main",
    band=None,
    shown=("first", "second"),
    value=3,
    turned=0,
    passed=None,
    active_ms=5000.0,
    total_ms=6000.0,
    position=0,
)


def crossed(said: Sequence[int | str], raters: int, seed: int = 0, first_item: int = 0, **fields: Any) -> list[Answer]:
    """Every rater's answer to as many items, each of a prompt of its own; what was said by whom is shuffled."""
    shuffled = np.random.default_rng(seed).permutation(np.array(said, dtype=object)).tolist()
    assert len(shuffled) % raters == 0
    found = []
    for i, turned in enumerate(shuffled):
        unit, rater = divmod(i, raters)
        places = {"slot": rater + 1, "item": first_item + unit, "prompt": unit, "position": unit}
        found.append(replace(ANSWER, **places | fields, turned=turned))
    return found


def preferences(levels: dict[int, int], raters: int, seed: int = 0) -> list[Answer]:
    """So many answers of each level, sides by turns."""
    given = crossed([level for level, count in levels.items() for _ in range(count)], raters, seed)
    return [swapped(answer) if (answer.slot + answer.item) % 2 else on_screen(answer) for answer in given]


def on_screen(answer: Answer) -> Answer:
    """With the value of the earlier method on the left."""
    return replace(answer, value=3 - int(answer.turned))


def swapped(answer: Answer) -> Answer:
    """With the value of the earlier method on the right."""
    return replace(answer, value=3 + int(answer.turned), shown=answer.shown[::-1])


def marked(answers: Sequence[Answer]) -> list[Answer]:
    """With two bands and two groups."""
    return [
        replace(answer, band="50" if answer.item < 10 else "90", group="public" if answer.slot < 6 else "others")
        for answer in answers
    ]
