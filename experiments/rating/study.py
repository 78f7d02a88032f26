"""A study as its folder holds it, and what a rater is shown of it.

study.json  frozen; its sha256 is the study's name      pictures/NAME.png  clean copies under random names
key.json    what the pictures are; never served         answers.sqlite     see store.py
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.files import UserError
from experiments.rating.kinds import Kind, Question, kind_of, name_of


@dataclass(frozen=True)
class Item:
    """One question on one prompt. Practice and gold items have names of their own in place of methods'."""

    id: int
    question: str
    role: str  # practice, main, gold, repeat, same
    text: str | None  # the prompt's words, as shown
    prompt: int | None  # its key
    band: str | None
    shows: dict[str, str | None]  # name -> picture; a poll's answers have none
    size: tuple[int, int] | None  # of the pictures, in pixels
    of: int | None = None  # the item that it repeats


@dataclass(frozen=True)
class Slot:
    """A place for one rater: at each position an item, and the order in which its names are shown."""

    slot: int
    group: str
    plan: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Study:
    kind: dict[str, Any]
    title: str
    texts: dict[str, list[str]]  # information and instructions, paragraph by paragraph
    break_after: int
    methods: tuple[str, ...]
    items: tuple[Item, ...]
    slots: tuple[Slot, ...]
    rules: dict[str, float]
    claims: list[dict[str, Any]]
    seed: int

    def __post_init__(self) -> None:
        assert [item.id for item in self.items] == list(range(len(self.items)))
        assert [slot.slot for slot in self.slots] == list(range(1, len(self.slots) + 1))

    @cached_property
    def asks(self) -> Kind:
        return kind_of(self.kind)

    @property
    def kind_name(self) -> str:
        return name_of(self.kind)

    @cached_property
    def questions(self) -> dict[str, Question]:
        return {question["name"]: question for question in self.asks.questions}

    def at(self, slot: int, position: int) -> tuple[Item, tuple[str, ...]]:
        """Returns the item at a position of a slot's plan, and the names it shows in screen order."""
        item, order = self.slots[slot - 1].plan[position]
        names = list(self.items[item].shows)
        return self.items[item], tuple(names[i] for i in order)

    def answers(self, slot: int, position: int) -> list[str]:
        item, shown = self.at(slot, position)
        return self.asks.answers(self.questions[item.question], shown)

    def trial(self, slot: int, position: int) -> dict[str, Any]:
        """Returns all that a page needs to show a trial, and nothing that tells methods or roles."""
        item, shown = self.at(slot, position)
        return {
            "position": position,
            "question": self.questions[item.question]["text"],
            "text": item.text,
            "pictures": [picture for name in shown if (picture := item.shows[name])],
            "size": item.size,
            "answers": self.answers(slot, position),
        }

    def intro(self, slot: int) -> dict[str, Any]:
        """Returns what a page tells before and between the trials."""
        plan = self.slots[slot - 1].plan
        practice = sum(self.items[item].role == "practice" for item, _ in plan)
        told = {"title": self.title, "texts": self.texts, "break_after": self.break_after}
        return {**told, "total": len(plan), "practice": practice}

    def json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"


def open_study(folder: Path) -> tuple[Study, str]:
    """Returns the study of a folder and its name. Raises UserError if there is none."""
    path = folder / "study.json"
    if not path.is_file():
        raise UserError(f"study={folder}: no study (no study.json in it); action=make makes one")
    content = path.read_bytes()
    try:
        told = json.loads(content)
        items = tuple(Item(**{**item, "size": item["size"] and tuple(item["size"])}) for item in told["items"])
        slots = tuple(
            Slot(slot["slot"], slot["group"], tuple((item, tuple(order)) for item, order in slot["plan"]))
            for slot in told["slots"]
        )
        study = Study(**{**told, "methods": tuple(told["methods"]), "items": items, "slots": slots})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not a study that action=make wrote: {error}") from error
    return study, hashlib.sha256(content).hexdigest()
