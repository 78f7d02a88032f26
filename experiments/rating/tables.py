"""What an analysis consists of: tables of estimates, which files and pages show without knowing what they are about."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from experiments.metrics.estimates import Clustered, Estimate
from experiments.rating import power
from experiments.rating.answers import Answer
from experiments.rating.power import Design

Labels = dict[str, str]  # of methods, by name, in order
Options = dict[str, list[str]]  # of the questions, by name, in order
ALL = "all answers"  # the row of all
Row = tuple[str, tuple[Estimate | None, ...]]


@dataclass(frozen=True)
class Points:
    """Columns to be drawn as points with intervals, from `low` to `high`, with a line at `null`, which is no effect.

    One drawing for each of the columns, with the rows below each other; or by row, with the columns below each other.
    """

    columns: tuple[str, ...]
    low: float
    high: float
    null: float | None
    by_row: bool = False


@dataclass(frozen=True)
class Table:
    """Estimates in rows and columns, None where there is nothing to estimate.

    unit: "share", of 1; "votes", a share with its count; or "number". stacked: the columns that are shares of one whole
    and may be drawn as one bar, in order. colours: "opposed" (from one side to the other), "graded" or "names".
    """

    title: str
    says: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str = "share"
    stacked: tuple[str, ...] = ()
    colours: str = "names"
    points: Points | None = None


@dataclass(frozen=True)
class Analysis:
    """How the answers of a kind are analysed.

    scale      "ordinal" or "nominal", that of `turned`
    tables     of main answers
    claimed    of the main answers that a claim may be about (as `export` describes it), how far it is right: 0 is no
               effect, more speaks for it; None if nothing was answered
    measure    what that is, and its unit, "share" or "number"
    said       what an answer says, in words
    power      of so many methods, and a design of prompts, raters, and answers to each prompt
    """

    scale: str
    tables: Callable[[Sequence[Answer], Labels, Options], list[Table]]
    claimed: Callable[[Sequence[Answer], dict[str, Any], Labels], Clustered | None]
    measure: tuple[str, str]
    said: Callable[[Answer, Labels, Options], str]
    power: Callable[[int, Design], power.Table]


def parts(answers: Sequence[Answer], both: bool = False) -> list[tuple[str, list[Answer]]]:
    """Returns all answers, those of each band and each group where there are several, and if wanted of each of both."""
    bands, groups = (sorted({getattr(a, name) or "" for a in answers}) for name in ("band", "group"))
    several = [values if len(values) > 1 else [] for values in (bands, groups)]
    wanted = [*product(several[0], [None]), *product([None], several[1]), *(product(*several) if both else ())]
    found = [(ALL, list(answers))]
    for band, group in wanted:
        some = [a for a in answers if band in (None, a.band or "") and group in (None, a.group)]
        names = [called(kind, value) for kind, value in (("percentile", band), ("group", group)) if value is not None]
        if some:
            found.append((", ".join(names), some))
    return found


def called(kind: str, value: str) -> str:
    """Returns the words for a band that is a percentile or has a name of its own, or for a group."""
    named = kind == "percentile" and not value.replace(".", "").isdigit()
    return value or f"no {kind}" if named else f"{kind} {value or 'without a name'}"


def by_question(answers: Sequence[Answer], options: Options) -> dict[str, list[Answer]]:
    """Returns the answers to each question that was answered, in the study's order."""
    found = {question: [a for a in answers if a.question == question] for question in options}
    return {question: given for question, given in found.items() if given}


def titled(title: str, question: str, options: Options) -> str:
    return f"{title}: {question}" if len(options) > 1 else title


def around_zero(estimates: Sequence[Estimate | None]) -> tuple[float, float, float]:
    """Returns ends at equal distance from zero, in tenths, that all intervals lie between, and zero."""
    known = [e for e in estimates if e is not None]
    end = max((abs(edge) for e in known for edge in (e.value, e.low or 0, e.high or 0)), default=1.0)
    tenths = max(math.ceil(10 * end), 1) / 10
    return -tenths, tenths, 0.0
