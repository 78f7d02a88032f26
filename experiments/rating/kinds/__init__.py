"""Kinds of trials. A kind is one class in a file of this folder and one yaml in conf/kind that names it.

A trial shows things under names, pictures of methods mostly, in an order of its own, and asks for one of a few answers.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict, cast

from hydra.utils import instantiate

from experiments.files import UserError
from experiments.rating.tables import Analysis

METHODS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")  # in the order of the runs


class Question(TypedDict):
    name: str
    text: str
    options: list[str]  # the answers, which a page shows in this order; "{left}" and "{right}" are words of its layout


class Kind(Protocol):
    """`shown` are the names of what a trial shows, in screen order; a value is 1 to the number of answers."""

    analysis: Analysis  # what is made of the answers
    questions: list[Question]
    pictures: bool  # whether it shows pictures of methods; if not, a question is asked once and not about a prompt

    def plays(self, question: Question, methods: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns the names that each trial on a prompt shows together."""

    def gold(self, methods: Sequence[str]) -> tuple[str, ...]:
        """Returns the names in a trial whose right answer is known: "good" and others; empty for a kind without."""

    def same(self) -> tuple[str, ...]:
        """Returns the names under which a trial shows one picture several times; empty for a kind without."""

    def answers(self, question: Question, shown: Sequence[str]) -> list[str]:
        """Returns the words of the answers."""

    def turned(self, question: Question, value: int, shown: Sequence[str]) -> int | str:
        """Returns what the value says, whatever the order on the screen was."""

    def passed(self, question: Question, value: int, shown: Sequence[str]) -> bool:
        """Returns whether the value is a right answer to a gold trial."""


def kind_of(settings: dict[str, Any]) -> Kind:
    """Makes the kind that the settings name. Raises UserError unless they name a class of this folder."""
    target = str(settings.get("_target_", ""))
    if not target.startswith(f"{__name__}."):
        raise UserError(f"kind {target or settings}: must be a class of {__name__}")
    questions = settings.get("questions") or []
    names = [question.get("name") for question in questions]
    if not names or len(set(names)) < len(names) or not all(question.get("text") for question in questions):
        raise UserError("kind.questions: must be one or more, each with a name of its own, a text, and options")
    return cast(Kind, instantiate(settings, _convert_="all"))


def name_of(settings: dict[str, Any]) -> str:
    """Returns the kind's short name, that of its file."""
    return str(settings["_target_"]).split(".")[-2]
