"""How choices are analysed, of a picture among several or of a poll's answer: as votes and their shares, by group."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.metrics.estimates import Clustered, Estimate, two_way
from experiments.rating.answers import Answer, clusters
from experiments.rating.power import choice, poll_table, power_table
from experiments.rating.statistics import share
from experiments.rating.tables import Analysis, Labels, Options, Points, Table, by_question, parts, titled


def votes(answers: Sequence[Answer], names: Sequence[str]) -> tuple[Estimate, ...]:
    """Returns the share of each name."""
    chosen, where = np.array([answer.turned for answer in answers]), clusters(answers)
    return tuple(share(chosen == name, *where) for name in names)


def choices(answers: Sequence[Answer], labels: Labels, options: Options) -> list[Table]:
    """Returns the votes: rows are sets of questions and groups of raters, and columns methods."""
    found = []
    for question, given in by_question(answers, options).items():
        rows = tuple((name, votes(some, list(labels))) for name, some in parts(given, both=True))
        fair = 1 / len(given[0].shown)
        columns = tuple(labels.values())
        says = f"Votes and their shares; chance alone would give each {fair:.0%}."
        points = Points(columns, 0, 1, fair, by_row=True)
        found.append(Table(titled("Votes", question, options), says, columns, rows, "votes", columns, points=points))
    return found


def poll(answers: Sequence[Answer], labels: Labels, options: Options) -> list[Table]:
    """Returns the votes: rows are a poll's answers, and columns groups of raters."""
    found = []
    for question, given in by_question(answers, options).items():
        columns = {name: votes(some, options[question]) for name, some in parts(given)}
        rows = tuple(zip(options[question], zip(*columns.values(), strict=True), strict=True))
        points = Points(tuple(columns), 0, 1, 1 / len(rows))
        says = "Votes and their shares, by group of raters."
        found.append(Table(titled("Opinions", question, options), says, tuple(columns), rows, "votes", points=points))
    return found


def claimed(answers: Sequence[Answer], claim: dict[str, Any], labels: Labels) -> Clustered | None:
    """Returns the share of the higher less that of the lower, or less chance."""
    higher, lower = claim["higher"], claim.get("lower")
    some = [answer for answer in answers if higher in answer.shown]
    if not some:
        return None
    against = [1 / len(a.shown) if lower is None else float(a.turned == lower) for a in some]
    return two_way(np.array([a.turned == higher for a in some], float) - against, *clusters(some))


def said(answer: Answer, labels: Labels, options: Options) -> str:
    return labels.get(str(answer.turned), str(answer.turned))


MEASURE = "difference of shares", "share"
CHOICES = Analysis("nominal", choices, claimed, MEASURE, said, lambda methods, d: power_table(choice(methods), d))
POLL = Analysis("nominal", poll, claimed, MEASURE, said, lambda _, d: poll_table(d.raters))
