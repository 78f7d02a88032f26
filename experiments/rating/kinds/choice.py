"""Which of several pictures is best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.rating.chosen import CHOICES
from experiments.rating.kinds import Question
from experiments.rating.tables import Analysis


@dataclass(frozen=True)
class Choice:
    """One picture of each method, all of one prompt; an answer is one of them.

    turned: the name of the one chosen. The options stay empty: the answers are the pictures' numbers.
    """

    analysis: ClassVar[Analysis] = CHOICES
    questions: list[Question]
    pictures: bool = True

    def plays(self, question: Question, methods: Sequence[str]) -> list[tuple[str, ...]]:
        return [tuple(methods)]

    def gold(self, methods: Sequence[str]) -> tuple[str, ...]:
        return ("good", "bad", *(f"bad{i}" for i in range(2, len(methods))))

    def same(self) -> tuple[str, ...]:
        return ()

    def answers(self, question: Question, shown: Sequence[str]) -> list[str]:
        return [f"Picture {i}" for i in range(1, len(shown) + 1)]

    def turned(self, question: Question, value: int, shown: Sequence[str]) -> str:
        return shown[value - 1]

    def passed(self, question: Question, value: int, shown: Sequence[str]) -> bool:
        return shown[value - 1] == "good"
