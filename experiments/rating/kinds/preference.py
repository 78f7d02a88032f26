"""Which of two pictures is better, and how much."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from experiments.files import UserError
from experiments.rating.compared import COMPARED
from experiments.rating.kinds import METHODS, Question
from experiments.rating.tables import Analysis

ORDER = (*METHODS, "good", "bad", "same", "same2")


@dataclass(frozen=True)
class Preference:
    """Two pictures of one prompt; an odd number of answers from "left much better" to "right much better".

    turned: how much better the earlier name is, 2 to -2 with five answers; 0 is no preference.
    """

    analysis: ClassVar[Analysis] = COMPARED
    questions: list[Question]
    pictures: bool = True

    def __post_init__(self) -> None:
        if any(len(question["options"]) % 2 == 0 for question in self.questions):
            raise UserError("kind.questions: a preference has an odd number of options, no preference in the middle")

    def plays(self, question: Question, methods: Sequence[str]) -> list[tuple[str, ...]]:
        return list(combinations(methods, 2))

    def gold(self, methods: Sequence[str]) -> tuple[str, ...]:
        return ("good", "bad")

    def same(self) -> tuple[str, ...]:
        return ("same", "same2")

    def answers(self, question: Question, shown: Sequence[str]) -> list[str]:
        return question["options"]

    def turned(self, question: Question, value: int, shown: Sequence[str]) -> int:
        left, right = map(ORDER.index, shown)
        left_better = (len(question["options"]) + 1) // 2 - value
        return left_better if left < right else -left_better

    def passed(self, question: Question, value: int, shown: Sequence[str]) -> bool:
        return self.turned(question, value, shown) > 0
