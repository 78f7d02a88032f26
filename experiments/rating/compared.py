"""How preferences between two methods are analysed: shares of the answers, and wins less losses."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from experiments.metrics.estimates import Clustered, Estimate, sign_test, two_way
from experiments.rating.answers import Answer, clusters
from experiments.rating.bradley_terry import bradley_terry
from experiments.rating.power import power_table, preference
from experiments.rating.statistics import pigeonhole, share
from experiments.rating.tables import (
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

NEITHER = "no preference"
WORDS = {1: ("better",), 2: ("much better", "slightly better")}  # from the strongest, by how many there are


def words(options: Sequence[str]) -> tuple[str, ...]:
    """Returns how much better one may be, from the strongest."""
    strongest = len(options) // 2
    return WORDS.get(strongest, tuple(f"better by {level}" for level in range(strongest, 0, -1)))


def tables(answers: Sequence[Answer], labels: Labels, options: Options) -> list[Table]:
    found = []
    for question, given in by_question(answers, options).items():
        for a, b in combinations(labels, 2):
            pair = [answer for answer in given if {a, b} == set(answer.shown)]
            if pair:
                title = titled(f"{labels[a]} against {labels[b]}", question, options)
                named = labels[a], labels[b]
                found += [shares(title, pair, named, words(options[question])), net(title, pair, named)]
        if len({method for answer in given for method in answer.shown}) > 2:
            found.append(strengths(titled("Strengths", question, options), given, labels))
    return found


def shares(title: str, answers: Sequence[Answer], labels: tuple[str, str], words: Sequence[str]) -> Table:
    """Returns the share of each answer, from the best for the first method to the best for the second."""
    levels = range(len(words), -len(words) - 1, -1)

    def cells(some: Sequence[Answer]) -> tuple[Estimate, ...]:
        given, where = np.array([int(answer.turned) for answer in some]), clusters(some)
        return tuple(share(given == level, *where) for level in levels)

    one, other = ([f"{label} {word}" for word in words] for label in labels)
    columns = (*one, NEITHER, *reversed(other))
    rows = tuple((name, cells(some)) for name, some in parts(answers))
    return Table(title, "The share of each answer.", columns, rows, stacked=columns, colours="opposed")


def net(title: str, answers: Sequence[Answer], labels: tuple[str, str]) -> Table:
    """Returns wins, ties and losses of the first method, and wins less losses with both intervals."""

    def cells(some: Sequence[Answer]) -> tuple[Estimate, ...]:
        signs, where = outcomes(some), clusters(some)
        each = (share(signs == sign, *where) for sign in (1, 0, -1))
        return *each, two_way(signs, *where), pigeonhole(signs, *where)

    prompts: dict[Any, int] = {}
    for answer, sign in zip(answers, outcomes(answers), strict=True):
        prompts[answer.about] = prompts.get(answer.about, 0) + int(sign)
    won, lost = (sum(sign * total > 0 for total in prompts.values()) for sign in (1, -1))
    first, second = labels
    says = (
        f"Who was preferred, however strongly. Net is the share that prefers {first} less the share that prefers "
        f"{second}: once with the two-way interval, which counts, and once with the pigeonhole bootstrap's, which is "
        f"cautious. Of {len(prompts)} prompts most raters prefer {first} at {won} and {second} at {lost} "
        f"(sign test, p = {sign_test(won, lost):.2g}, which answers for other prompts but not for other raters)."
    )
    columns = (f"{first} better", NEITHER, f"{second} better", "net", "net, pigeonhole")
    rows = tuple((name, cells(some)) for name, some in parts(answers))
    return Table(
        f"{title}: net", says, columns, rows, points=Points(("net",), *around_zero([cells[3] for _, cells in rows]))
    )


def outcomes(answers: Sequence[Answer]) -> np.ndarray:
    """Returns 1 where the earlier method was preferred, 0 where none was, and -1."""
    return np.sign([int(answer.turned) for answer in answers])


def strengths(title: str, answers: Sequence[Answer], labels: Labels) -> Table:
    """Returns Bradley and Terry's strengths, with Davidson's ties."""
    pairs = [ordered(answer, labels) for answer in answers]
    found = bradley_terry([a for a, _ in pairs], [b for _, b in pairs], outcomes(answers), *clusters(answers))
    says = "Log-strengths of sum 0: the odds of one against another, ties aside, are exp of their difference."
    if found.tie is not None:
        says += f" Ties as Davidson's, log nu = {found.tie:.3g}."
    if found.held:
        apart = " | ".join(", ".join(labels[method] for method in group) for group in found.held)
        says += f" Answers do not lead both ways between {apart}: a small ridge alone keeps these differences finite."
    rows: list[Row] = [(label, (found.methods[method],)) for method, label in labels.items() if method in found.methods]
    points = Points(("log-strength",), *around_zero([cells[0] for _, cells in rows]))
    return Table(title, says, points.columns, tuple(rows), "number", points=points)


def ordered(answer: Answer, labels: Labels) -> tuple[str, str]:
    """Returns the two methods, the earlier of the study's first."""
    a, b = sorted(answer.shown, key=list(labels).index)
    return a, b


def claimed(answers: Sequence[Answer], claim: dict[str, Any], labels: Labels) -> Clustered | None:
    """Returns wins less losses of the higher against the lower, or against all others."""
    higher, lower = claim["higher"], claim.get("lower")
    some = [answer for answer in answers if higher in answer.shown and (lower is None or lower in answer.shown)]
    if not some:
        return None
    sides = [1 if ordered(answer, labels)[0] == higher else -1 for answer in some]
    return two_way(np.array(sides) * outcomes(some), *clusters(some))


def said(answer: Answer, labels: Labels, options: Options) -> str:
    a, b = ordered(answer, labels)
    level, known = int(answer.turned), words(options[answer.question])
    return f"{labels[a if level > 0 else b]} {known[len(known) - abs(level)]}" if level else NEITHER


COMPARED = Analysis(
    "ordinal", tables, claimed, ("net preference", "share"), said, lambda _, d: power_table(preference(), d)
)
