"""What the answers of a study say: the tables of its kind, its claims, the raters' care, and what was disputed.

Everything is computed twice: with the raters whom the study's rules keep, which is the result, and with all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.files import UserError
from experiments.metrics.estimates import HOLDS, LEVEL, NOT, UNTOLD, Clustered, Estimate, holm, numbered
from experiments.rating.agreement import alpha, kappa, nominal, ordinal
from experiments.rating.answers import Answer, Rater, clusters, narrowed, raters
from experiments.rating.statistics import share
from experiments.rating.tables import Analysis, Labels, Options, Row, Table, by_question, titled

STACKED_BELOW = 700  # CSS pixels: narrower windows show the pictures of a pair one above the other


@dataclass(frozen=True)
class Verdict:
    say: str
    found: Clustered | None  # how far the claim is right; None if nothing was answered
    p: float | None  # two-sided, and adjusted for the number of claims (Holm)
    verdict: str


@dataclass(frozen=True)
class Disputed:
    """An item that raters did not agree on: what they said how often, and what they saw."""

    item: int
    disagreement: float  # ordinal: standard deviation; nominal: chance that two raters differ
    said: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Findings:
    """Of the answers of some raters."""

    raters: int
    answers: int  # to main items
    verdicts: tuple[Verdict, ...]
    tables: tuple[Table, ...]
    care: Table


@dataclass(frozen=True)
class Analysed:
    raters: tuple[Rater, ...]
    kept: Findings
    everybody: Findings
    disputed: tuple[Disputed, ...]


def analysed(
    answers: Sequence[Answer],
    analysis: Analysis,
    labels: Labels,
    options: Options,
    rules: dict[str, Any],
    claims: Sequence[dict[str, Any]],
    most_disputed: int = 12,
) -> Analysed:
    """Analyses all of it. Raises UserError if no rater is kept, or none has answered."""
    known = raters(answers, rules)
    left_out = {rater.slot for rater in known if rater.left_out}
    kept = [answer for answer in answers if answer.slot not in left_out]
    if not any(answer.role == "main" for answer in kept):
        why = f"the rules leave out all {len(known)} raters" if left_out else "nobody has answered yet"
        raise UserError(f"nothing to analyse: {why}")

    def findings(some: Sequence[Answer]) -> Findings:
        main = narrowed(some, {})
        return Findings(
            len({answer.slot for answer in main}),
            len(main),
            tuple(verdicts(some, analysis, labels, claims)),
            tuple(analysis.tables(main, labels, options)),
            care(some, analysis, options, rules),
        )

    disputes = disputed(narrowed(kept, {}), analysis, labels, options)[:most_disputed]
    return Analysed(tuple(known), findings(kept), findings(answers), tuple(disputes))


def verdicts(
    answers: Sequence[Answer], analysis: Analysis, labels: Labels, claims: Sequence[dict[str, Any]]
) -> list[Verdict]:
    """Returns what becomes of the claims, at LEVEL for all together."""
    found = [analysis.claimed(narrowed(answers, claim), claim, labels) for claim in claims]
    holms = holm([None if one is None else one.p() for one in found])
    return [Verdict(claim["say"], one, p, judged(one, p)) for claim, one, p in zip(claims, found, holms, strict=True)]


def judged(found: Clustered | None, p: float | None) -> str:
    if found is None or p is None or p >= LEVEL:
        return UNTOLD
    return HOLDS if found.value > 0 else NOT


def care(answers: Sequence[Answer], analysis: Analysis, options: Options, rules: dict[str, Any]) -> Table:
    """Returns how carefully was answered, and how alike."""
    main, gold = narrowed(answers, {}), [answer for answer in answers if answer.role == "gold"]
    rows: list[Row] = []
    for question, given in by_question(main, options).items():
        if len({answer.item for answer in given}) > 1:
            name = titled(f"Krippendorff's alpha, {analysis.scale}", question, options)
            rows.append((name, (agreement(given, analysis.scale),)))
    rows += repeats(answers, analysis.scale)
    same = [answer for answer in answers if answer.role == "same"]
    if same and analysis.scale == "ordinal":
        rows.append(("one picture twice: no preference", (shared([answer.turned == 0 for answer in same], same),)))
    if gold:
        rows.append(("failed, where the answer is known", (shared([not answer.passed for answer in gold], gold),)))
    rows += places(main, analysis.scale, options)
    pairs = [answer for answer in main if len(answer.shown) > 1 and answer.device]
    if pairs:
        narrow = [int(answer.device.split()[-1]) < STACKED_BELOW for answer in pairs]
        rows.append((f"shown stacked, below {STACKED_BELOW} px", (shared(narrow, pairs),)))
    fast = [answer.active_ms < rules["fast_ms"] for answer in main]
    rows.append((f"answered within {rules['fast_ms'] / 1000:g} s", (shared(fast, main),)))
    says = (
        "How raters agree with each other and with themselves, and what led them. Low agreement may be taste. The "
        "intervals answer for other raters and the same items, alpha's for other items."
    )
    return Table("Care", says, ("value",), tuple(rows), "number")


def shared(hits: Sequence[bool], answers: Sequence[Answer]) -> Estimate:
    """Returns a share that answers for other raters, and for the same items: known and repeated ones are few."""
    _, slots = clusters(answers)
    return share(np.array(hits), slots, slots)


def agreement(answers: Sequence[Answer], scale: str) -> Estimate | None:
    metric = ordinal if scale == "ordinal" else nominal
    return alpha(codes(answers), [answer.item for answer in answers], metric)


def codes(answers: Sequence[Answer]) -> np.ndarray:
    """Returns what answers say, as numbers."""
    said = [answer.turned for answer in answers]
    return numbered(said) if any(isinstance(one, str) for one in said) else np.array(said)


def repeats(answers: Sequence[Answer], scale: str) -> list[Row]:
    """Returns how answers to a repeated item are like those to the item itself."""
    first = {(answer.slot, answer.item): answer for answer in answers}
    again = [answer for answer in answers if answer.role == "repeat" and (answer.slot, answer.of) in first]
    if not again:
        return []
    before = [first[answer.slot, answer.of or 0] for answer in again]
    one, other = np.split(codes([*before, *again]), 2)
    agreed = kappa(one, other, weighted=scale == "ordinal")
    rows: list[Row] = [("repeated items: same answer", (shared((one == other).tolist(), again),))]
    if scale == "ordinal" and len(again[0].shown) == 2:
        sides = np.sign(one) == np.sign(other)
        rows.append(("repeated items: same side", (shared(sides.tolist(), again),)))
    name = "repeated items: Cohen's kappa" + ", squared weights" * (scale == "ordinal")
    return [*rows, (name, (None if agreed is None else Estimate(agreed, None, None, len(again)),))]


def places(answers: Sequence[Answer], scale: str, options: Options) -> list[Row]:
    """Returns how often what was shown at a place of the screen was preferred or chosen."""
    if scale == "nominal":
        count = max(len(answer.shown) for answer in answers)
        return [
            (f"chosen at place {place}", (shared([answer.value == place for answer in answers], answers),))
            for place in range(1, count + 1)
        ]
    middles = {question: (len(words) + 1) / 2 for question, words in options.items()}
    decided = [a for a in answers if len(a.shown) == 2 and a.value != middles[a.question]]
    if not decided:
        return []
    left = [answer.value < middles[answer.question] for answer in decided]
    return [("preferred the left one, where any", (shared(left, decided),))]


def disputed(answers: Sequence[Answer], analysis: Analysis, labels: Labels, options: Options) -> list[Disputed]:
    """Returns the items with several answers that are not alike, the most disputed first."""
    by_item: dict[int, list[Answer]] = {}
    for answer in answers:
        by_item.setdefault(answer.item, []).append(answer)
    found = []
    for item, given in by_item.items():
        far = disagreement(given, analysis.scale)
        if far > 0:
            counts = Counter(analysis.said(answer, labels, options) for answer in given)
            found.append(Disputed(item, far, tuple(counts.most_common())))
    return sorted(found, key=lambda one: (-one.disagreement, one.item))


def disagreement(answers: Sequence[Answer], scale: str) -> float:
    n = len(answers)
    if n < 2:
        return 0.0
    if scale == "ordinal":
        return float(np.std([int(answer.turned) for answer in answers], ddof=1))
    counts = Counter(answer.turned for answer in answers).values()
    return 1 - sum(count * (count - 1) for count in counts) / (n * (n - 1))
