"""python -m experiments.rating.load study=FOLDER: how the server bears load, and being killed.

Eight programs answer as fast as they are acknowledged while the server is killed (kill -9) five times, then at 20
answers a second in all. What was acknowledged must lie in the store afterwards, once and unchanged. All of it happens
in a temporary copy. Prints a table in Markdown.
"""

import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from experiments.rating import server
from experiments.rating.client import Client
from experiments.rating.store import Store
from experiments.rating.study import open_study

CLIENTS, KILLS, BETWEEN = 8, 5, 4.0  # seconds between kills
PER_SECOND, SECONDS = 20, 30.0
ROUND = 10  # positions that are answered again and again: corrections are rows, too


def serve(folder: Path, port: int) -> None:
    """Serves a study, with no limit to how many answers a rater gives."""
    where, store = server.address("127.0.0.1", port, False, None), opened(folder)
    server.server(server.app(folder, store.study, store, where, server.Rate(10**6))).run(
        sockets=[server.listening(where)]
    )


def opened(folder: Path) -> Store:
    return Store(folder / "answers.sqlite", *open_study(folder))


@contextmanager
def process(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    """A process of its own that serves a study."""
    running = subprocess.Popen([sys.executable, "-m", "experiments.rating.load", "serve", str(folder), str(port)])
    try:
        yield running
    finally:
        running.kill()
        running.wait()


class Load:
    """Programs that answer, what was acknowledged to them, and how long that took while the server was up."""

    def __init__(self, url: str, tokens: dict[int, str], pause: float):
        self.url, self.tokens, self.pause = url, tokens, pause
        self.acknowledged, self.seconds = dict[str, tuple[int, ...]](), list[float]()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.one, args=(slot,)) for slot in list(tokens)[:CLIENTS]]
        for thread in self.threads:
            thread.start()

    def one(self, slot: int) -> None:
        client: Client | None = None
        for count in itertools.count():
            row = {"nonce": f"{slot:08x}{count:024x}", "position": count % ROUND, "value": 1 + count % 5, "slot": slot}
            row |= {"active_ms": count, "total_ms": count}  # which tells a rater's answers apart
            stored, connected, start = None, client is not None, time.perf_counter()
            while stored is None:  # the same answer until it is acknowledged
                if self.stop.is_set():
                    return
                try:
                    if client is None:
                        client = Client(self.url, self.tokens[slot])
                        client.consent()
                    stored = client.answer(row)
                except (OSError, HTTPException):
                    client, connected = None, False
                    time.sleep(0.05)
            took = time.perf_counter() - start
            self.acknowledged[stored["nonce"]] = (slot, stored["position"], stored["value"], stored["active_ms"])
            assert stored["value"] == row["value"]
            if connected:
                self.seconds.append(took)
            time.sleep(max(self.pause - took, 0))

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def compared(load: Load, store: Store) -> dict[str, int]:
    """What became of the acknowledged answers."""
    rows = store.rows("select nonce, slot, position, value, active_ms from answer")
    held = {nonce: tuple(rest) for nonce, *rest in rows}
    lost = [nonce for nonce in load.acknowledged if nonce not in held]
    changed = [n for n, told in load.acknowledged.items() if n in held and held[n] != told]
    return {
        "acknowledged": len(load.acknowledged),
        "lost": len(lost),
        "doubled": len(rows) - len({(slot, count) for _, slot, _, _, count in rows}),
        "changed": len(changed),
        "unacknowledged": len(held) - len(load.acknowledged),
    }


def measured(study: Path, kills: int, pause: float, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "study"
        shutil.copytree(study, folder, ignore=shutil.ignore_patterns("answers*", "simulated", "static"))
        store = opened(folder)
        tokens = store.new_tokens()
        with server.listening(server.address("127.0.0.1", 0, False, None)) as free:
            port = free.getsockname()[1]
        load, downs = Load(f"http://127.0.0.1:{port}", tokens, pause), 0
        while True:
            with process(folder, port) as running:
                before = len(load.seconds)
                while len(load.seconds) < before + CLIENTS:
                    time.sleep(0.05)
                if downs == 0:
                    start, first = time.perf_counter(), len(load.seconds)
                time.sleep(BETWEEN if kills else seconds)
                if downs == kills:
                    took = time.perf_counter() - start
                    load.end()
                    break
                os.kill(running.pid, signal.SIGKILL)
                downs += 1
        found = sorted(load.seconds)
        table: dict[str, Any] = {"kill -9": downs, **compared(load, store)}
        table["answers a second"] = round((len(found) - first) / took, 1)
        table["median ms"] = round(1000 * statistics.median(found), 1)
        table["99 % ms"] = round(1000 * found[int(0.99 * len(found))], 1)
        store.close()
        return table


def main() -> None:
    if sys.argv[1] == "serve":
        return serve(Path(sys.argv[2]), int(sys.argv[3]))
    study = Path(sys.argv[1].removeprefix("study="))
    rows = [
        measured(study, KILLS, 0, 0),
        measured(study, 0, 0, SECONDS),
        measured(study, 0, CLIENTS / PER_SECOND, SECONDS),
    ]
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
