"""Answers as the analysis reads them, from the lines of answers.jsonl (see `export`), and the raters who gave them."""

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from experiments.files import UserError


@dataclass(frozen=True)
class Answer:
    """One line of answers.jsonl, its fields as `export` describes them."""

    simulated: bool
    slot: int
    group: str
    device: str
    item: int
    of: int | None
    prompt: int | None
    question: str
    role: str
    band: str | None
    shown: tuple[str, ...]
    value: int
    turned: int | str
    passed: bool | None
    active_ms: float
    total_ms: float
    position: int

    @property
    def about(self) -> Hashable:
        """Returns what answers are clustered by beside their rater: the prompt, or where there is none the item."""
        return self.item if self.prompt is None else self.prompt


@dataclass(frozen=True)
class Rater:
    """What is known of a rater's care, and why the rules leave the rater out; "" if they do not."""

    slot: int
    group: str
    answers: int  # to main items
    gold: int
    gold_failed: int
    fast: float  # share of the main answers that came too fast
    median_s: float | None  # active seconds per main item
    left_out: str


NAMES = tuple(field.name for field in fields(Answer))


def read_answers(path: Path) -> tuple[list[Answer], set[str]]:
    """Returns the answers, and the studies that they name. Raises UserError if one is not as `export` writes it."""
    if not path.is_file():
        raise UserError(f"{path} is missing: `action=export` writes it")
    found, studies = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            record: dict[str, Any] = json.loads(line)
            known = {name: record[name] for name in NAMES}
            found.append(Answer(**{**known, "shown": tuple(record["shown"])}))
            studies.add(record["study"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: not a line of `action=export`: {error!r}") from error
    return found, studies


def narrowed(answers: Iterable[Answer], claim: dict[str, Any]) -> list[Answer]:
    """Returns the main answers to the question, of the group, and in the band that the claim names, if it does."""
    wanted = {key: claim.get(key) for key in ("question", "group", "band") if claim.get(key) is not None}
    return [a for a in answers if a.role == "main" and all(getattr(a, key) == value for key, value in wanted.items())]


def clusters(answers: Sequence[Answer]) -> tuple[list[Hashable], list[Hashable]]:
    """Returns what each answer is about, and whose it is."""
    return [answer.about for answer in answers], [answer.slot for answer in answers]


def raters(answers: Sequence[Answer], rules: dict[str, Any]) -> list[Rater]:
    """Returns every rater who answered, by slot."""
    by_slot: dict[int, list[Answer]] = {}
    for answer in sorted(answers, key=lambda answer: (answer.slot, answer.position)):
        by_slot.setdefault(answer.slot, []).append(answer)
    return [rater(slot, given, rules) for slot, given in by_slot.items()]


def rater(slot: int, answers: Sequence[Answer], rules: dict[str, Any]) -> Rater:
    main = [answer for answer in answers if answer.role == "main"]
    gold = [answer for answer in answers if answer.role == "gold"]
    failed = sum(not answer.passed for answer in gold)
    fast = fmean(answer.active_ms < rules["fast_ms"] for answer in main) if main else 0.0
    reasons = []
    if gold and failed / len(gold) > rules["gold_failed"]:
        reasons.append(f"failed {failed} of {len(gold)} items whose answer is known")
    if fast > rules["fast_share"]:
        reasons.append(f"{fast:.0%} of the answers within {rules['fast_ms'] / 1000:g} s")
    median = float(np.median([answer.active_ms for answer in main])) / 1000 if main else None
    return Rater(slot, answers[0].group, len(main), len(gold), failed, fast, median, ", ".join(reasons))
