"""What raters think: one of several statements, without pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.rating.chosen import POLL
from experiments.rating.kinds import Question
from experiments.rating.tables import Analysis


@dataclass(frozen=True)
class Poll:
    """A question with its options, which each rater sees in an order of their own.

    turned: the option chosen, in its words.
    """

    analysis: ClassVar[Analysis] = POLL
    questions: list[Question]
    pictures: bool = False

    def plays(self, question: Question, methods: Sequence[str]) -> list[tuple[str, ...]]:
        return [tuple(question["options"])]

    def gold(self, methods: Sequence[str]) -> tuple[str, ...]:
        return ()

    def same(self) -> tuple[str, ...]:
        return ()

    def answers(self, question: Question, shown: Sequence[str]) -> list[str]:
        return list(shown)

    def turned(self, question: Question, value: int, shown: Sequence[str]) -> str:
        return shown[value - 1]

    def passed(self, question: Question, value: int, shown: Sequence[str]) -> bool:
        return True
