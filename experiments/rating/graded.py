"""How grades of single pictures are analysed: means by method, and differences between methods."""

from collections.abc import Hashable, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from experiments.metrics.estimates import Clustered, Estimate, two_way
from experiments.rating.answers import Answer, clusters
from experiments.rating.power import grade, power_table
from experiments.rating.statistics import centred, contrast, pigeonhole, share
from experiments.rating.tables import (
    ALL,
    Analysis,
    Labels,
    Options,
    Points,
    Row,
    Table,
    around_zero,
    by_question,
    parts,
    titled,
)

Key = tuple[Hashable, int, str]  # prompt, rater, question


def tables(answers: Sequence[Answer], labels: Labels, options: Options) -> list[Table]:
    given = by_question(answers, options)
    return [
        means(given, labels, options),
        *(differences(question, some, labels, options) for question, some in given.items()),
        *(shares(question, some, labels, options) for question, some in given.items()),
    ]


def means(given: dict[str, list[Answer]], labels: Labels, options: Options) -> Table:
    """Returns the mean grades: rows are methods, and columns questions."""
    rows: list[Row] = []
    split = [dict(parts(some)) for some in given.values()]
    for name in dict.fromkeys(name for one in split for name in one):
        for method, label in labels.items():
            cells = tuple(mean(one.get(name, []), method) for one in split)
            if any(cells):
                rows.append((label if name == ALL else f"{label}, {name}", cells))
    says = "Mean grades with the two-way interval, of all that was graded."
    points = Points(tuple(given), 1, max(len(options[question]) for question in given), None)
    return Table("Mean grades", says, tuple(given), tuple(rows), "number", points=points)


def mean(answers: Sequence[Answer], method: str) -> Estimate | None:
    some = [answer for answer in answers if answer.shown == (method,)]
    return two_way([int(answer.turned) for answer in some], *clusters(some)) if some else None


def differences(question: str, answers: Sequence[Answer], labels: Labels, options: Options) -> Table:
    """Returns one mean grade less the other, of each two methods."""
    rows: list[Row] = []
    for a, b in combinations(labels, 2):
        for name, some in parts(answers):
            values, prompts, raters = paired(some, a, [b])
            if values:
                cells = two_way(values, prompts, raters), pigeonhole(values, prompts, raters), unpaired(some, a, b)
                rows.append((f"{labels[a]} less {labels[b]}" + f", {name}" * (name != ALL), cells))
    says = (
        "Differences within a rater's grades of one prompt, with the two-way interval, which counts, and with the "
        "pigeonhole bootstrap's. The second view takes all grades, each less its rater's mean."
    )
    columns = ("difference", "pigeonhole", "rater's mean removed")
    points = Points(columns[:1], *around_zero([cells[0] for _, cells in rows]))
    return Table(titled("Differences", question, options), says, columns, tuple(rows), "number", points=points)


def paired(answers: Sequence[Answer], method: str, others: Sequence[str]) -> tuple[list[float], list[Any], list[Any]]:
    """Returns a method's grades less the others' mean by the same rater on the same prompt, with prompts and raters."""
    ours, theirs = dict[Key, list[int]](), dict[Key, list[int]]()
    for answer in answers:
        (shown,) = answer.shown
        side = ours if shown == method else theirs if shown in others else {}
        side.setdefault((answer.about, answer.slot, answer.question), []).append(int(answer.turned))
    both = [key for key in ours if key in theirs]
    values = [fmean(ours[key]) - fmean(theirs[key]) for key in both]
    return values, [prompt for prompt, _, _ in both], [slot for _, slot, _ in both]


def unpaired(answers: Sequence[Answer], a: str, b: str) -> Clustered:
    """Returns the difference of grades less their rater's mean, of all that was graded."""
    grades = centred([int(answer.turned) for answer in answers], [answer.slot for answer in answers])
    sides = [1 if answer.shown == (a,) else -1 if answer.shown == (b,) else 0 for answer in answers]
    return contrast(grades, sides, *clusters(answers))


def shares(question: str, answers: Sequence[Answer], labels: Labels, options: Options) -> Table:
    """Returns how often each grade was given."""
    grades = range(1, len(options[question]) + 1)
    rows: list[Row] = []
    for method, label in labels.items():
        some = [answer for answer in answers if answer.shown == (method,)]
        if some:
            given, where = np.array([answer.turned for answer in some]), clusters(some)
            rows.append((label, tuple(share(given == grade, *where) for grade in grades)))
    columns = tuple(map(str, grades))
    says = "The share of each grade, from the lowest."
    return Table(titled("Grades", question, options), says, columns, tuple(rows), stacked=columns, colours="graded")


def claimed(answers: Sequence[Answer], claim: dict[str, Any], labels: Labels) -> Clustered | None:
    """Returns the higher's grade less the lower's, or less the mean of all others', within rater and prompt."""
    higher, lower = claim["higher"], claim.get("lower")
    others = [method for method in labels if method != higher] if lower is None else [lower]
    values, prompts, raters = paired(answers, higher, others)
    return two_way(values, prompts, raters) if values else None


def said(answer: Answer, labels: Labels, options: Options) -> str:
    return f"grade {answer.turned}"


GRADED = Analysis(
    "ordinal", tables, claimed, ("difference of grades", "number"), said, lambda _, d: power_table(grade(), d)
)
