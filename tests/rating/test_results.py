"""The files and the page of a study's results."""

import csv
import json
import re
from pathlib import Path

import pytest
from kit import MakeStudy, stored

from experiments.rating.analyse import analyse
from experiments.rating.export import export
from experiments.rating.results import number
from experiments.rating.store import Answer
from experiments.rating.study import Study, open_study

TRICK = "<script>alert(1)</script> & co"


def answered(folder: Path, out: Path) -> Path:
    """Answers of programs, as exported: rater 1 fails where the answer is known, and most prefer the second."""
    store = stored(folder, out / "answers.sqlite", simulated=True)
    for slot in store.study.slots:
        store.consent(slot.slot, "fine 1200")
        for position, (item, _) in enumerate(slot.plan):
            nonce, value = f"{slot.slot:016x}{position:016x}", pressed(store.study, slot.slot, position)
            store.add(Answer(nonce, slot.slot, item, position, value, 4000 + 100 * slot.slot, 9000))
    return export(store, out)


def pressed(study: Study, slot: int, position: int) -> int:
    """One of five keys."""
    item, shown = study.at(slot, position)
    best = {"gold": "bad" if slot == 1 else "good", "main": "first" if item.id % 4 == slot % 4 else "second"}
    if item.role not in best:
        return 3
    return 2 if shown[0] == best[item.role] else 4


@pytest.fixture(scope="module")
def study(make_study: MakeStudy) -> Path:
    claims = f"claims=[{{say: '{TRICK}', higher: second, lower: first}}]"
    return make_study("kind=preference", "groups={public: 4, artists: 3}", "labels=['plain <b>', new]", claims)


@pytest.fixture(scope="module")
def results(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert analyse(study, answered(study, out), out) == out / "analysis.html"
    return out


def test_the_page_needs_no_other_file_and_escapes_what_others_wrote(results: Path) -> None:
    page = (results / "analysis.html").read_text()
    assert not re.search(r"https?://|<script|<link(?! rel=\"icon\" href=\"data:)|@import|url\(", page)
    assert set(re.findall(r'src="(.{22})', page)) == {"data:image/webp;base64,"[:22]}
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in page
    assert "plain &lt;b&gt; against new" in page


def test_the_page_says_what_was_simulated_left_out_and_claimed(results: Path) -> None:
    page = (results / "analysis.html").read_text()
    assert "Simulated raters." in page
    assert "leave out 1 of 7 raters" in page
    assert re.search(r"<strong class=\"good\">✓ holds</strong>", page)
    for anchor in re.findall(r'href="#(\w+)"', page):
        assert page.count(f'<section id="{anchor}">') == 1


def test_json_and_csv_tell_the_same_numbers(results: Path, study: Path) -> None:
    told = json.loads((results / "analysis.json").read_text())
    assert told["study"] == open_study(study)[1]
    assert (told["kept"]["raters"], told["everybody"]["raters"]) == (6, 7)
    lines = list(csv.DictReader((results / "analysis.csv").read_text().splitlines()))
    for who in ("kept", "everybody"):
        for table in (*told[who]["tables"], told[who]["care"]):
            for row, cells in table["rows"]:
                for column, e in zip(table["columns"], cells, strict=True):
                    place = {"raters": who, "table": table["title"], "row": row, "column": column}
                    (line,) = [found for found in lines if place.items() <= found.items()]
                    assert line["value"] == str(e["value"])
                    assert line["low"] == ("" if e["low"] is None else str(e["low"]))
    shares = told["kept"]["tables"][0]
    assert sum(e["value"] for e in shares["rows"][0][1]) == pytest.approx(1)


def test_the_disputed_are_shown_with_their_pictures(results: Path) -> None:
    page, told = (results / "analysis.html").read_text(), json.loads((results / "analysis.json").read_text())
    disputed = told["disputed"]
    assert disputed
    assert page.count('class="dispute"') == len(disputed)
    assert page.count("<img ") == 2 * len(disputed)
    assert "5 × new slightly better" in page


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(-0.004, "number", "0.00"), (-0.006, "number", "−0.01"), (-0.0004, "share", "0.0 %"), (0.2, "share", "20.0 %")],
)
def test_numbers_as_the_page_writes_them(value: float, unit: str, text: str) -> None:
    assert number(value, unit) == text.replace(" ", "\N{NARROW NO-BREAK SPACE}").replace("−", "\N{MINUS SIGN}")


def test_a_picture_that_is_gone_leaves_a_gap(study: Path, results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "study"
    copy.mkdir()
    for name in ("study.json", "key.json"):
        (copy / name).write_bytes((study / name).read_bytes())
    page = analyse(copy, results / "answers.jsonl", tmp_path).read_text()
    assert "<img " not in page
    assert 'class="absent small">none' in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("key", "key.json is missing: it alone says which method is which"),
        ("answers", "answers.jsonl is missing: `action=export` writes it"),
        ("none", "nobody has answered yet"),
        ("damaged", "answers.jsonl, line 2: not a line of `action=export`"),
        ("other", "answers of another study"),
    ],
)
def test_what_cannot_be_analysed_is_one_line_and_leaves_no_file(
    change: str, message: str, study: Path, results: Path, tmp_path: Path
) -> None:
    lines = (results / "answers.jsonl").read_text().splitlines(keepends=True)
    if change != "key":
        (tmp_path / "key.json").write_bytes((study / "key.json").read_bytes())
    (tmp_path / "study.json").write_bytes((study / "study.json").read_bytes())
    content = {
        "none": "",
        "damaged": lines[0] + "{}\n",
        "other": lines[0].replace('"study": "', '"study": "0'),
    }.get(change, "".join(lines))
    if change != "answers":
        (tmp_path / "answers.jsonl").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        analyse(tmp_path, tmp_path / "answers.jsonl", tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("analysis.*"))
