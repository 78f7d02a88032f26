"""Simulated raters: programs that answer a study through its server, to try it and to see what it could show.

Nothing they say is a person's: their answers lie in a store and a folder of their own, and every line says "simulated".
"""

import io
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import torch
from PIL import Image

from experiments.emoji.judge import load_judge
from experiments.files import UserError
from experiments.metrics.judge import parse
from experiments.rating import server
from experiments.rating.client import Client
from experiments.rating.kinds import METHODS
from experiments.rating.store import Store
from experiments.rating.study import Item, Study, open_study

KNOWN = 3.0  # how far apart bots find a good picture and a bad one


class Rater(Protocol):
    """Somebody who finds things more or less good; `names` and `pictures` are in screen order."""

    def finds(self, item: Item, names: Sequence[str], pictures: Sequence[bytes]) -> list[float]: ...


@dataclass(frozen=True)
class Taste:
    """What bots find: the later a method, the better, by `mean` from the first to the last; an answer's noise is 1.

    In units of the difference of two, as are the deviations of prompts and raters. tie: a difference within it is no
    preference, one beyond four times it is strong.
    """

    mean: float = 0.5
    prompt: float = 0.7
    rater: float = 0.3
    tie: float = 0.45


class Bot:
    """A rater of planted taste, who is told the names that people are not."""

    def __init__(self, taste: Taste, methods: int, seed: int, slot: int):
        self.taste, self.methods, self.seed, self.slot = taste, methods, seed, slot
        self.rng = np.random.default_rng([seed, slot])

    def finds(self, item: Item, names: Sequence[str], pictures: Sequence[bytes]) -> list[float]:
        half = np.sqrt(0.5)
        noise = self.rng.standard_normal(len(names)) * half
        return [
            self.mean(name)
            + half * self.taste.prompt * self.drawn(item.prompt or 0, name)
            + half * self.taste.rater * self.drawn(-self.slot, name)
            + float(noise[i])
            for i, name in enumerate(names)
        ]

    def mean(self, name: str) -> float:
        if name in METHODS:
            return self.taste.mean * METHODS.index(name) / max(self.methods - 1, 1)
        return KNOWN * (name == "good") - KNOWN * name.startswith("bad")

    def drawn(self, which: int, name: str) -> float:
        """Returns a standard normal number that is always the same for a prompt, or a rater, and a name."""
        kept = name in METHODS or name not in ("good", "same", "same2") and not name.startswith("bad")
        seeds = [self.seed, crc32(f"{which}/{name}".encode())]
        return float(np.random.default_rng(seeds).standard_normal()) if kept else 0.0


class Judge:
    """The emoji world's judge as a rater: it looks at the pictures, and sees in them what the words ask for."""

    def __init__(self) -> None:
        self.judge = load_judge()

    @torch.inference_mode()
    def finds(self, item: Item, names: Sequence[str], pictures: Sequence[bytes]) -> list[float]:
        config = self.judge.config
        asked = parse((item.text or "",), config)
        if not asked or not pictures:
            raise UserError(f"by=judge: {item.text!r} names nothing that the emoji world's judge knows")
        side = config.image_size
        images = [Image.open(io.BytesIO(p)).convert("RGB").resize((side, side)) for p in pictures]
        x = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
        verdict = self.judge(x / 127.5 - 1)
        found = torch.zeros(len(pictures))
        for thing in asked:
            k = config.concepts.index(thing.concept)
            seen = verdict.presence[:, k].sigmoid()
            if thing.colour:
                seen = seen * verdict.colour_of(k)[:, config.colours.index(thing.colour)]
            found += seen / len(asked)
        return (4 * (found - 0.5)).tolist()


def value_of(study: Study, item: Item, names: Sequence[str], found: Sequence[float], tie: float) -> int:
    """Returns the value of the answer that says best what was found."""
    question = study.questions[item.question]
    values = range(1, len(study.asks.answers(question, names)) + 1)
    says = [study.asks.turned(question, value, names) for value in values]
    if isinstance(says[0], str):
        return values[says.index(names[int(np.argmax(found))])]
    if len(names) == 1:
        target = 3 + found[0]
    else:
        earlier, later = (found[names.index(name)] for name in item.shows)
        size = abs(earlier - later)
        target = np.sign(earlier - later) * (0 if size <= tie else 1 if size <= 4 * tie else 2)
    return min(values, key=lambda value: abs(float(says[value - 1]) - target))


def rows(
    study: Study, slot: int, rater: Rater, tie: float, seed: int, show: Callable[[int], Sequence[bytes]]
) -> Iterator[dict[str, Any]]:
    """Yields a rater's answers to the whole plan, as a page sends them; show(position) gives the pictures on it."""
    rng = np.random.default_rng([seed, slot, 1])
    for position in range(len(study.slots[slot - 1].plan)):
        item, names = study.at(slot, position)
        value = value_of(study, item, names, rater.finds(item, names, show(position)), tie)
        ms = int(1000 * np.exp(rng.normal(1.7, 0.4)))
        row = {"nonce": rng.bytes(16).hex(), "position": position, "value": value, "active_ms": ms, "total_ms": ms}
        yield row | {"slot": slot}


def answer(study: Study, client: Client, rater: Rater, tie: float, seed: int) -> None:
    """Answers a whole study as a page would."""

    def show(position: int) -> list[bytes]:
        return [client.picture(name) for name in client.trial(position)["pictures"]]

    slot = client.state()["slot"]
    client.consent()
    for row in rows(study, slot, rater, tie, seed, show):
        stored = client.answer(row)
        assert stored["value"] == row["value"]


@contextmanager
def serving(folder: Path, study: Study, store: Store) -> Iterator[server.Address]:
    """Serves a study on a free port of this machine."""
    free = server.listening(server.address("127.0.0.1", 0, False, None))
    where = server.address("127.0.0.1", free.getsockname()[1], False, None)
    running = server.server(server.app(folder, study, store, where, server.Rate(10**6)))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [free]})
    thread.start()
    try:
        yield where
    finally:
        running.should_exit = True
        thread.join()


def simulate(folder: Path, by: str, taste: Taste, seed: int) -> Store:
    """Has programs answer the study through a server of its own, into FOLDER/simulated, made anew."""
    if by not in ("bots", "judge"):
        raise UserError(f"by={by}: must be bots or judge")
    study, name = open_study(folder)
    judge = Judge() if by == "judge" else None
    home = folder / "simulated"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    store = Store(home / "answers.sqlite", study, name, simulated=True)
    with serving(folder, study, store) as where, ThreadPoolExecutor(4) as pool:

        def one(slot: int, token: str) -> None:
            rater = judge or Bot(taste, len(study.methods), seed, slot)
            answer(study, Client(where.url, token), rater, taste.tie, seed)

        for done in [pool.submit(one, slot, token) for slot, token in store.new_tokens().items()]:
            done.result()
    return store
