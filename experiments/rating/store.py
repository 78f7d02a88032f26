"""Answers in SQLite: committed to disk before they are acknowledged, appended and never changed."""

import hashlib
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.files import UserError
from experiments.rating.study import Study

VERSION = 1  # of the schema
LONGEST = 10**9  # ms that an answer may take
SCHEMA = """
create table study (name text not null, simulated integer not null) strict;
create table rater (
  slot integer primary key, token_hash text unique, grp text not null, consent text, device text not null default ''
) strict;
create table answer (
  nonce text primary key, slot integer not null references rater, item integer not null, position integer not null,
  value integer not null, active_ms integer not null, total_ms integer not null, day text not null,
  seq integer not null, unique (slot, seq)
) strict, without rowid;
create index answer_by_position on answer (slot, position, seq);
"""
CONSENTED, WITHDRAWN = "given", "withdrawn"


@dataclass(frozen=True)
class Answer:
    """One row: what a rater answered at a position of the plan. seq counts the rater's rows from 1."""

    nonce: str
    slot: int
    item: int
    position: int
    value: int
    active_ms: int
    total_ms: int
    day: str = ""
    seq: int = 0


@dataclass(frozen=True)
class Rater:
    slot: int
    group: str
    consent: str | None
    device: str


def answer_of(told: dict[str, Any], study: Study, slot: int) -> Answer:
    """Returns the answer that a page made. Raises UserError if it is malformed."""
    nonce, day, plan = told.get("nonce"), told.get("day", ""), study.slots[slot - 1].plan
    numbers: list[Any] = [told.get(key) for key in ("position", "value", "active_ms", "total_ms")]
    if not isinstance(nonce, str) or not re.fullmatch("[0-9a-f]{32}", nonce):
        raise UserError(f"nonce {nonce!r}: must be 32 hexadecimal digits")
    if not isinstance(day, str) or not re.fullmatch(r"|\d{4}-\d\d-\d\d", day):
        raise UserError(f"day {day!r}: must be like 2000-12-31")
    if not all(type(n) is int and 0 <= n <= LONGEST for n in numbers) or numbers[0] >= len(plan):
        raise UserError(f"position, value, active_ms, total_ms {numbers}: must be whole numbers within the plan")
    position, value, active, total = numbers
    return Answer(nonce, slot, plan[position][0], position, value, min(active, total), total, day)


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Store:
    """The answers of a study. One connection, one thread at a time; other processes may hold others.

    Raises UserError if the file is of another study, or of other code.
    """

    def __init__(self, path: Path, study: Study, name: str, simulated: bool = False):
        self.path, self.study, self.name, self.simulated = path, study, name, simulated
        self.lock = threading.Lock()
        try:
            self.db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode=wal", "synchronous=full", "secure_delete=on", "foreign_keys=on"):
                self.db.execute(f"pragma {pragma}")
            with self.writing():
                self.prepare()
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}") from error

    def prepare(self) -> None:
        (version,) = self.db.execute("pragma user_version").fetchone()
        if version == 0:
            for statement in SCHEMA.split(";"):
                self.db.execute(statement)
            self.db.execute("insert into study values (?, ?)", (self.name, self.simulated))
            raters = [(slot.slot, slot.group) for slot in self.study.slots]
            self.db.executemany("insert into rater (slot, grp) values (?, ?)", raters)
            self.db.execute(f"pragma user_version={VERSION}")
        elif version != VERSION:
            raise UserError(f"{self.path}: is of version {version}, this code reads version {VERSION}")
        (name, simulated) = self.db.execute("select name, simulated from study").fetchone()
        if name != self.name:
            raise UserError(
                f"{self.path}: holds answers to study {name[:12]}, but study.json is {self.name[:12]} now: "
                "a study never changes; put the old study.json back, or make a new study in another folder"
            )
        if bool(simulated) != self.simulated:
            raise UserError(f"{self.path}: holds answers of {'programs' if simulated else 'people'}, which never mix")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone, and whole or not at all; on the disk when it ends."""
        with self.lock:
            self.db.execute("begin immediate")
            try:
                yield
                self.db.execute("commit")
            except BaseException:
                self.db.execute("rollback")
                raise

    def close(self) -> None:
        self.db.close()

    def rows(self, query: str, *values: object) -> list[tuple]:
        with self.lock:
            return self.db.execute(query, values).fetchall()

    # raters

    def raters(self) -> list[Rater]:
        return [Rater(*row) for row in self.rows("select slot, grp, consent, device from rater order by slot")]

    def rater_of(self, token: str) -> Rater | None:
        """Returns whose token it is; None if nobody's."""
        found = self.rows("select slot, grp, consent, device from rater where token_hash = ?", hashed(token))
        return Rater(*found[0]) if found else None

    def new_tokens(self, renew: Sequence[int] = ()) -> dict[int, str]:
        """Returns a fresh token for each slot that had none and for those renewed; only their hashes are kept."""
        known = {rater.slot: rater for rater in self.raters()}
        if wrong := [slot for slot in renew if slot not in known or known[slot].consent == WITHDRAWN]:
            raise UserError(f"renew={list(renew)}: there is no rater {wrong[0]}, or they withdrew")
        tokens = {}
        with self.writing():
            free = self.db.execute(
                "select slot from rater where token_hash is null and consent is not ? order by slot", (WITHDRAWN,)
            ).fetchall()
            for slot in sorted({slot for (slot,) in free} | set(renew)):
                tokens[slot] = secrets.token_urlsafe(16)
                self.db.execute("update rater set token_hash = ? where slot = ?", (hashed(tokens[slot]), slot))
        return tokens

    def consent(self, slot: int, device: str) -> None:
        with self.writing():
            self.agree(slot, device)

    def agree(self, slot: int, device: str) -> None:
        agreed = "update rater set consent = ?, device = ? where slot = ? and consent is not ?"
        self.db.execute(agreed, (CONSENTED, device, slot, WITHDRAWN))

    # answers

    def next(self, slot: int) -> int:
        """Returns the first position of the plan without an answer."""
        return int(self.rows("select coalesce(max(position) + 1, 0) from answer where slot = ?", slot)[0][0])

    def add(self, answer: Answer) -> Answer:
        """Stores an answer unless its nonce is known, and returns what is stored under its nonce.

        Raises UserError if it is not of this study, comes before its turn, or its rater has not consented.
        """
        with self.writing():
            return self.insert(answer)

    def merge(self, slot: int, device: str, answers: Sequence[Answer]) -> None:
        """Stores a rater's consent and answers, all or none, those with a known nonce left out.

        Raises UserError as `add` does, and if the rater has answers of which none is among these.
        """
        with self.writing():
            known = {nonce for (nonce,) in self.db.execute("select nonce from answer where slot = ?", (slot,))}
            if known and answers and not known & {answer.nonce for answer in answers}:
                raise UserError(
                    f"is of rater {slot}, who has {len(known)} answers already, none of them in it: if another rater "
                    "wrote it, put their number into it"
                )
            if answers:
                self.agree(slot, device)
            for answer in answers:
                self.insert(answer)

    def insert(self, answer: Answer) -> Answer:
        plan = self.study.slots[answer.slot - 1].plan
        if not 0 <= answer.position < len(plan) or answer.item != plan[answer.position][0]:
            raise UserError(f"position {answer.position} of rater {answer.slot} is of another item")
        if not 1 <= answer.value <= len(self.study.answers(answer.slot, answer.position)):
            raise UserError(f"value {answer.value} is no answer to item {answer.item}")
        if self.db.execute("select consent from rater where slot = ?", (answer.slot,)).fetchone() != (CONSENTED,):
            raise UserError(f"rater {answer.slot} has not consented, or withdrew")
        columns = "nonce, slot, item, position, value, active_ms, total_ms, day, seq"
        find = f"select {columns} from answer where nonce = ? and slot = ?"
        if found := self.db.execute(find, (answer.nonce, answer.slot)).fetchone():
            return Answer(*found)
        given = "select coalesce(max(position), -1), coalesce(max(seq), 0) from answer where slot = ?"
        last, seq = self.db.execute(given, (answer.slot,)).fetchone()
        if answer.position > last + 1:
            raise UserError(f"position {answer.position} of rater {answer.slot} is not due: {last + 1} is")
        stored = replace(answer, day=answer.day or today(), seq=seq + 1)
        try:
            self.db.execute(f"insert into answer ({columns}) values (?,?,?,?,?,?,?,?,?)", astuple(stored))
        except sqlite3.IntegrityError as error:
            raise UserError(f"answer {answer.nonce}: is of another rater, or holds what is no answer") from error
        return stored

    def value_at(self, slot: int, position: int) -> int | None:
        """Returns the value that counts at a position; None without one."""
        query = "select value from answer where slot = ? and position = ? order by seq desc limit 1"
        found = self.rows(query, slot, position)
        return found[0][0] if found else None

    def counted(self) -> list[Answer]:
        """Returns the last answer of each rater to each position, in their order."""
        query = """select nonce, slot, item, position, value, active_ms, total_ms, day, max(seq) from answer
                   group by slot, position order by slot, position"""
        return [Answer(*row) for row in self.rows(query)]

    def count(self) -> int:
        return int(self.rows("select count(*) from answer")[0][0])

    def withdraw(self, slots: Sequence[int]) -> int:
        """Deletes all that is stored of raters, beyond recovery, and returns how many answers that were.

        What stays is that the slot withdrew. Raises UserError without such a rater, OSError while others read.
        """
        known = {rater.slot for rater in self.raters()}
        if not slots or (wrong := [slot for slot in slots if slot not in known]):
            raise UserError(f"slots={list(slots)}: there is no rater {wrong[0] if slots else 'named'}")
        before = self.count()
        with self.writing():
            for slot in slots:
                self.db.execute("delete from answer where slot = ?", (slot,))
                gone = "update rater set token_hash = null, consent = ?, device = '' where slot = ?"
                self.db.execute(gone, (WITHDRAWN, slot))
        with self.lock:
            try:
                self.db.execute("vacuum")
                (busy, _, _) = self.db.execute("pragma wal_checkpoint(truncate)").fetchone()
            except sqlite3.OperationalError as error:
                raise OSError(f"{self.path}: {error}: deleted, but traces stay until it is done again") from error
        if busy:
            raise OSError(f"{self.path}: is being read: deleted, but traces stay until action=withdraw is done again")
        return before - self.count()
