"""What finished sweeps say, in a few small files."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_claims import BASE, make_sweep

from experiments import findings
from experiments.sweeps.claims import HOLDS, NOT, UNTOLD, ClaimVerdict, together
from experiments.sweeps.folder import open_sweep

CLAIM = {"say": "New is better.", "measure": "m", "expect": "higher"} | {"here": {"k": "new"}, "there": {"k": "old"}}
CELLS = [({"k": "old", "s": s}, {"m": BASE}) for s in (1, 2)] + [
    ({"k": "new", "s": s}, {"m": [9.0] * 40}) for s in (1, 2)
]
TABLE = {"title": "found", "measure": "m", "rows": "k", "columns": "s", "best": "lowest"}
PAGE = {"x": "s", "by": "k", "curves": [{"title": "M & m", "measures": ["m"]}, {"title": "Two", "measures": ["m"]}]}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = make_sweep(tmp_path / "sweeps" / "toy", CELLS, [CLAIM])
    told = json.loads((folder / "sweep.json").read_text())
    told |= {"page": PAGE, "command": "python -m experiments.ablate -m out=/home/x/toy n=2"}
    (folder / "sweep.json").write_text(json.dumps(told))
    return folder


def find(folder: Path, second: Path | None = None) -> None:
    settings = {"sweeps": str(folder.parent), "second": second and str(second), "out": str(folder.parents[1] / "out")}
    findings.main(OmegaConf.create(settings))


def test_numbers_figure_and_table(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "RESULTS.md").write_text(
        "before\n<!-- toy -->\nold\n<!-- end -->\nafter\n<!-- other -->\nkept\n<!-- end -->\n"
    )
    find(sweep)
    told = json.loads((out / "toy.json").read_text())
    assert [cell["axes"] for cell in told["cells"]] == [cell.axes for cell in open_sweep(sweep).cells]
    assert told["cells"][0]["measured"]["m"]["count"] == 40
    assert "per_image" not in (out / "toy.json").read_text()
    assert told["command"] == "python -m experiments.ablate -m out=toy n=2"
    root = ET.parse(out / "toy.svg").getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"M & m", "Two"} <= set(texts)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)), "one panel's definitions would draw another's"
    text = (out / "RESULTS.md").read_text()
    assert text.startswith("before\n<!-- toy -->\n| claim |")
    assert "| New is better. | `m` | +" in text
    assert "**holds** |\n<!-- end -->\nafter\n<!-- other -->\nkept\n<!-- end -->\n" in text


def test_an_unfinished_sweep_is_refused(sweep: Path) -> None:
    (sweep / "old_1" / "error.txt").write_text("ValueError: no")
    with pytest.raises(ValueError, match="unfinished: old_1"):
        find(sweep)


def test_no_sweeps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no folder of a sweep"):
        find(tmp_path / "a" / "b")


def told(sweep: Path, **page: object) -> None:
    stored = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps(stored | {"page": PAGE | page}))


VALUES = [({"k": k, "s": s}, {"m": value}) for k, s, value in
          [("old", 1, 3.0), ("old", 2, 5.0), ("new", 1, 4.0), ("new", 2, 2.0)]]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({}, ["| new | 4.00 ± 1.00 | **2.00** ± 1.00 |", "| old | **3.00** ± 1.00 | 5.00 ± 1.00 |"]),
        ({"best": "highest"}, ["| new | **4.00** ± 1.00 | 2.00 ± 1.00 |", "| old | 3.00 ± 1.00 | **5.00** ± 1.00 |"]),
        ({"of": "row"}, ["| new | 4.00 ± 1.00 | **2.00** ± 1.00 |", "| old | **3.00** ± 1.00 | 5.00 ± 1.00 |"]),
        ({"at": {"k": "new"}}, ["| new | **4.00** ± 1.00 | **2.00** ± 1.00 |"]),
        ({"measure": "unknown"}, []),
    ],
)
def test_a_table_of_values(tmp_path: Path, asked: dict, rows: list[str]) -> None:
    """A value and half of its interval by two axes; of each column, or each row, the best is bold."""
    folder = make_sweep(tmp_path / "sweeps" / "toy", VALUES, [])
    told(folder, tables=[TABLE | asked])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "RESULTS.md").write_text("<!-- toy values -->\n<!-- end -->\n")
    find(folder)
    head = "| found | 1 | 2 |\n| --- | --- | --- |\n"
    expected = head + "".join(f"{row}\n" for row in rows)
    assert (tmp_path / "out" / "RESULTS.md").read_text() == f"<!-- toy values -->\n{expected}<!-- end -->\n"


def test_a_curve_of_some_cells_alone(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweeps" / "toy", VALUES, [])
    told(folder, curves=[{"title": "All", "measures": ["m"]}, {"title": "New", "measures": ["m"], "at": {"k": "new"}}])
    find(folder)
    text = (tmp_path / "out" / "toy.svg").read_text()
    first, second = text.split(">New</text>")
    assert ">old</text>" in first and ">old</text>" not in second


def test_two_models_side_by_side(sweep: Path, tmp_path: Path) -> None:
    """The second model's sweep has fewer cells, and its verdicts stand beside the first's; claims are the first's."""
    fewer = [(axes, {"m": [-9.0] * 40 if axes["k"] == "new" else BASE}) for axes, _ in CELLS if axes["s"] == 1]
    make_sweep(tmp_path / "others" / "toy", fewer, [])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "RESULTS.md").write_text("<!-- toy -->\n<!-- end -->\n")
    find(sweep, tmp_path / "others")
    head, rule, row = (tmp_path / "out" / "RESULTS.md").read_text().splitlines()[1:-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert head.count("|") == rule.count("|") == row.count("|") == 10
    assert cells[4:] == ["**holds**", cells[5], cells[6], "**does not hold**", "**opposite**"]
    assert cells[5].startswith("-8.94 (") and cells[5].endswith("), 40 pairs")
    told = json.loads((tmp_path / "out" / "toy.json").read_text())
    assert told["together"] == ["opposite"]
    assert [claim["verdict"] for claim in told["claims"] + told["second"]["claims"]] == [HOLDS, NOT]
    assert len(told["second"]["cells"]) == 2

    find(sweep, tmp_path / "nothing")
    assert "second" not in json.loads((tmp_path / "out" / "toy.json").read_text())
    (tmp_path / "others" / "toy" / "new_1" / "error.txt").write_text("ValueError: no")
    with pytest.raises(ValueError, match="others.*unfinished: new_1"):
        find(sweep, tmp_path / "others")


@pytest.mark.parametrize(
    ("one", "other", "reading"),
    [
        ((HOLDS, 0.01), (HOLDS, 0.04), "holds on both"),
        ((HOLDS, 0.01), (HOLDS, 0.06), "holds on the first alone"),  # which Holm's correction takes back
        ((UNTOLD, 0.5), (HOLDS, 0.01), "holds on the second alone"),
        ((NOT, 0.01), (UNTOLD, None), "does not hold on the first alone"),
        ((NOT, 0.01), (NOT, 0.01), "holds on neither"),
        ((HOLDS, 0.01), (NOT, 0.01), "opposite"),
        ((UNTOLD, 0.5), (UNTOLD, None), "cannot be told"),
    ],
)
def test_two_models_together(one: tuple, other: tuple, reading: str) -> None:
    first, second = (ClaimVerdict("x", "m", "", verdict, "", holm=p) for verdict, p in (one, other))
    assert together([first], [second]) == [reading]
    assert together([first], []) == ["one model"]
