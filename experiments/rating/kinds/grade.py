"""A grade for one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.rating.graded import GRADED
from experiments.rating.kinds import Question
from experiments.rating.tables import Analysis


@dataclass(frozen=True)
class Grade:
    """One picture at a time; the answers are sentences for the grades from 1, the lowest.

    turned: the grade. A spoilt picture is to have at most `spoilt`.
    """

    analysis: ClassVar[Analysis] = GRADED
    questions: list[Question]
    spoilt: int = 2
    pictures: bool = True

    def plays(self, question: Question, methods: Sequence[str]) -> list[tuple[str, ...]]:
        return [(method,) for method in methods]

    def gold(self, methods: Sequence[str]) -> tuple[str, ...]:
        return ("bad",)

    def same(self) -> tuple[str, ...]:
        return ()

    def answers(self, question: Question, shown: Sequence[str]) -> list[str]:
        return question["options"]

    def turned(self, question: Question, value: int, shown: Sequence[str]) -> int:
        return value

    def passed(self, question: Question, value: int, shown: Sequence[str]) -> bool:
        return value <= self.spoilt
