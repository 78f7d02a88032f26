"""The papers' studies from their configs: their published answers entered, exported, analysed, and found again."""

import csv
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from folders import make_run
from kit import settings

from experiments.rating import make as making
from experiments.rating.analyse import analyse
from experiments.rating.export import export
from experiments.rating.store import Answer, Store
from experiments.rating.study import Item, Study, open_study

PROMPTS = [f"number {i}" for i in range(10)]
Said = Callable[[Item, str], int | str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / name, [{"prompt": p} for p in PROMPTS], [0], size=8) for name in "abcd"]


def made(config: str, runs: Iterable[Path], folder: Path, *overrides: str) -> Study:
    study, items = making.study(settings(f"raters={config}", f"runs=[{','.join(map(str, runs))}]", *overrides))
    making.write(folder, study, items)
    return study


def subset(path: Path, bands: Iterable[str | None]) -> str:
    lines = [{"prompt": prompt, "band": band} for prompt, band in zip(PROMPTS, bands, strict=False)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"subset={path}"


def entered(study: Study, folder: Path, said: Said) -> list[dict]:
    """Answers all trials of all raters: main ones as said, known ones rightly. The lines of the export."""
    store = Store(folder / "answers.sqlite", *open_study(folder))
    nonces = itertools.count()
    for slot in study.slots:
        rows = []
        for position, (id, _) in enumerate(slot.plan):
            item, names = study.at(slot.slot, position)
            question, values = study.questions[item.question], range(1, len(study.answers(slot.slot, position)) + 1)
            wanted = said(item, slot.group) if item.role == "main" else None
            good = [v for v in values if study.asks.passed(question, v, names)]
            (value,) = [v for v in values if study.asks.turned(question, v, names) == wanted] or good[:1] or [1]
            rows.append(Answer(f"{next(nonces):032x}", slot.slot, id, position, value, 5000, 5000))
        store.merge(slot.slot, "fine 1200", rows)
    lines = [json.loads(line) for line in export(store, folder).read_text().splitlines()]
    analyse(folder, folder / "answers.jsonl", folder)
    return [line for line in lines if line["role"] == "main"]


def taking_turns(counts: dict) -> Iterator:
    """Each value as often as told, none for long."""
    values = [value for value, count in counts.items() for _ in range(count)]
    return iter(values[(i * 37) % len(values)] for i in range(len(values)))  # 37 is no divisor of what is used here


def estimates(folder: Path) -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """Of the raters kept: table, row and column -> value, low, high."""
    with (folder / "analysis.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["raters"] == "kept" and row["low"]]
    return {
        (row["table"], row["row"], row["column"]): (float(row["value"]), float(row["low"]), float(row["high"]))
        for row in rows
    }


def test_segmentation_free_s_preference(runs: list[Path], tmp_path: Path) -> None:
    four = subset(tmp_path / "four.jsonl", ["10", "10", "90", "90"])
    study = made("segfree_preference", runs[:2], tmp_path / "s", "groups={all: 25}", "answers=25", four)
    left = taking_turns({-2: 18, -1: 42, 0: 21, 1: 19})
    lines = entered(study, tmp_path / "s", lambda item, group: next(left))
    assert Counter(line["turned"] for line in lines) == {-2: 18, -1: 42, 0: 21, 1: 19}
    assert Counter(line["band"] for line in lines) == {"10": 50, "90": 50}
    found = estimates(tmp_path / "s")
    for column, share in (("b better", 0.60), ("a better", 0.19), ("no preference", 0.21), ("net", -0.41)):
        value, low, high = found["a against b: net", "all answers", column]
        assert value == pytest.approx(share)
        assert low < share < high
    assert found["a against b", "all answers", "b much better"][0] == pytest.approx(0.18)


def test_multistage_s_votes(runs: list[Path], tmp_path: Path) -> None:
    sets = subset(tmp_path / "sets.jsonl", ["set 1"] * 5 + ["set 2"] * 5)
    study = made("multistage_votes", runs, tmp_path / "s", sets)
    published = {"set 1": (23, 24, 26, 27), "set 2": (15, 17, 16, 52)}
    left = {band: taking_turns(dict(zip(study.methods, votes, strict=True))) for band, votes in published.items()}
    lines = entered(study, tmp_path / "s", lambda i, group: next(left[i.band]) if group == "public" else "first")
    for band, votes in published.items():
        some = Counter(line["turned"] for line in lines if (line["band"], line["group"]) == (band, "public"))
        assert tuple(some[method] for method in study.methods) == votes
    found = estimates(tmp_path / "s")
    for band, votes in published.items():
        row = f"{band}, group public"
        assert [found["Votes", row, name][0] for name in "abcd"] == pytest.approx([vote / 100 for vote in votes])
        assert all(low < value < high for value, low, high in (found["Votes", row, name] for name in "abcd"))


def test_multistage_s_grades(runs: list[Path], tmp_path: Path) -> None:
    study = made("multistage_grades", runs, tmp_path / "s", "answers=20", subset(tmp_path / "five.jsonl", [None] * 5))
    means = {"fidelity": (350, 364, 358, 392), "creativity": (343, 365, 369, 395)}
    left = {
        (question, method): taking_turns({3: 400 - total, 4: total - 300})
        for question, totals in means.items()
        for method, total in zip(study.methods, totals, strict=True)
    }
    lines = entered(study, tmp_path / "s", lambda item, group: next(left[item.question, next(iter(item.shows))]))
    for question, totals in means.items():
        for method, total in zip(study.methods, totals, strict=True):
            grades = [line["turned"] for line in lines if (line["question"], line["shown"]) == (question, [method])]
            assert (len(grades), sum(grades)) == (100, total)
    found = estimates(tmp_path / "s")
    for question, totals in means.items():
        assert [found["Mean grades", name, question][0] for name in "abcd"] == pytest.approx([t / 100 for t in totals])


def test_the_artists_poll(tmp_path: Path) -> None:
    told = [f"artist.{letter}='answer {letter}'" for letter in "bcdef"]
    study = made("artists_poll", [], tmp_path / "s", "groups={public: 20, practitioners: 15}", *told)
    options = study.questions["distinction"]["options"]
    left = {
        "practitioners": taking_turns(dict(zip(options, (8, 2, 1, 1, 1, 1, 1), strict=True))),
        "public": itertools.cycle(options),
    }
    lines = entered(study, tmp_path / "s", lambda item, group: next(left[group]))
    votes = Counter(line["turned"] for line in lines if line["group"] == "practitioners")
    assert [votes[option] for option in options] == [8, 2, 1, 1, 1, 1, 1]
    assert round(100 * votes["They lead the times."] / 15, 2) == 53.33
    value, low, high = estimates(tmp_path / "s")["Opinions", "They lead the times.", "group practitioners"]
    assert value == pytest.approx(8 / 15)
    assert low < value < high
