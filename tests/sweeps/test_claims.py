"""What is said of claims, on sweeps whose scores are made up so that the answer is known."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.sweeps.claims import HOLDS, NOT, UNTOLD, verdicts
from experiments.sweeps.folder import open_sweep

Scores = list[float]


def make_sweep(folder: Path, cells: list[tuple[dict, dict[str, Scores | float]]], claims: list[dict]) -> Path:
    """Cells of axes and measures: a list is the scores of pictures, a number a value with a half-interval of 1."""
    for axes, measures in cells:
        cell = folder / "_".join(map(str, axes.values()))
        (cell / "metrics").mkdir(parents=True)
        (cell / "cell.json").write_text(json.dumps({"name": cell.name, "axes": axes}))
        for name, found in measures.items():
            (cell / "metrics" / f"{name}.json").write_text(json.dumps(result(found)))
    told = {"name": "toy", "claim": None, "claims": claims, "page": {}, "command": "", "commit": None, "config": {}}
    (folder / "sweep.json").write_text(json.dumps(told))
    return folder


def result(found: Scores | float) -> dict[str, Any]:
    if isinstance(found, list):
        rows = [{"file": f"images/{i}.png", "value": v, "twice": 2 * v} for i, v in enumerate(found)]
        value = float(np.mean(found))
        return {
            "value": value,
            "low": value,
            "high": value,
            "count": len(rows),
            "per_image": rows,
            "details": {},
            "warnings": [],
        }
    return {
        "value": found,
        "low": found - 1,
        "high": found + 1,
        "count": 9,
        "per_image": [],
        "details": {},
        "warnings": [],
    }


BASE = [float(v) for v in np.random.default_rng(0).normal(size=40)]


def shifted(by: float, spread: float = 0.1) -> Scores:
    noise = np.random.default_rng(abs(hash(by)) % 2**32).normal(size=40)
    return [float(v) for v in np.array(BASE) + by + spread * noise]


@pytest.mark.parametrize(
    ("by", "expect", "verdict"),
    [
        (1.0, "higher", HOLDS),
        (1.0, "lower", NOT),
        (-1.0, "higher", NOT),
        (-1.0, "lower", HOLDS),
        (0.0, "higher", UNTOLD),
    ],
)
def test_paired_pictures(tmp_path: Path, by: float, expect: str, verdict: str) -> None:
    claim = {"say": "x", "measure": "m", "expect": expect, "here": {"method": "new"}, "there": {"method": "old"}}
    cells = [({"method": "old"}, {"m": BASE}), ({"method": "new"}, {"m": shifted(by)})]
    (found,) = verdicts(open_sweep(make_sweep(tmp_path, cells, [claim])))
    assert found.verdict == verdict
    assert found.found.endswith("40 pairs")
    wins = sum(new > old for new, old in zip(shifted(by), BASE, strict=True))
    p = min(1, sum(math.comb(40, k) for k in range(41) if abs(k - 20) >= abs(wins - 20)) / 2**40)
    assert found.note == f"higher in {wins} of 40 that differ, sign test p = {p:.2g}"


def test_pairs_are_matched_on_all_other_axes(tmp_path: Path) -> None:
    """Each pair of cells differs by 1, while pairs differ by 100: only matched does the difference show."""
    cells = [
        ({"pair": pair, "method": method}, {"m": [v + 100 * k + (method == "new") for v in BASE]})
        for k, pair in enumerate("abc")
        for method in ("old", "new")
    ]
    claim = {"say": "x", "measure": "m", "expect": "higher", "here": {"method": "new"}, "there": {"method": "old"}}
    (found,) = verdicts(open_sweep(make_sweep(tmp_path, cells, [claim | {"measure": "m/twice"}])))
    assert found.verdict == HOLDS
    assert found.found == "+2 (+2 to +2), 120 pairs"


def test_estimates_without_pictures_are_independent(tmp_path: Path) -> None:
    """Standard deviations of 1/1.96 each: of a difference sqrt(2)/1.96, of the mean of two pairs 1/1.96."""
    cells = [({"pair": p, "method": m}, {"m": v}) for p, m, v in
             [("a", "old", 5.0), ("a", "new", 6.0), ("b", "old", 2.0), ("b", "new", 4.0)]]  # fmt: skip
    claim = {"say": "x", "measure": "m", "expect": "higher", "here": {"method": "new"}, "there": {"method": "old"}}
    (found,) = verdicts(open_sweep(make_sweep(tmp_path, cells, [claim])))
    assert found.found == "+1.5 (+0.5 to +2.5), 2 pairs"
    assert found.verdict == HOLDS


def test_against_another_measure_of_the_same_cells(tmp_path: Path) -> None:
    claim = {"say": "x", "measure": "m/twice", "expect": "higher", "here": {"method": "new"}, "than": "m"}
    cells = [({"method": "old"}, {"m": BASE}), ({"method": "new"}, {"m": [3.0] * 40})]
    (found,) = verdicts(open_sweep(make_sweep(tmp_path, cells, [claim])))
    assert (found.verdict, found.found) == (HOLDS, "+3 (+3 to +3), 40 pairs")


def frontier(tmp_path: Path, effective: float, ours: float, at: str) -> Any:
    """A curve of scales 2, 4, 8 whose measure is 10 times the scale up to 4, and falls behind it."""
    curve = [(2.0, 20.0), (4.0, 40.0), (8.0, 30.0)]
    cells = [({"method": "cfg", "scale": s}, {"effective_scale": s, "m": [v + b for b in BASE]}) for s, v in curve]
    cells += [({"method": "new", "scale": 7.5}, {"effective_scale": effective, "m": [ours + b for b in BASE]})]
    claim = {"say": "x", "measure": "m", "expect": "higher", "here": {"method": "new"}, "at": at}
    claim |= {"curve": {"method": "cfg"}, "free": ["scale"]}
    (found,) = verdicts(open_sweep(make_sweep(tmp_path, cells, [claim])))
    return found


def test_at_equal_effective_scale_the_curve_is_interpolated(tmp_path: Path) -> None:
    found = frontier(tmp_path, effective=3.0, ours=31.0, at="equal")
    assert (found.verdict, found.found) == (HOLDS, "+1 (+1 to +1), 40 pairs")
    assert "effective scale 3.00" in found.note


def test_a_gain_that_a_better_scale_rivals(tmp_path: Path) -> None:
    assert frontier(tmp_path / "equal", effective=3.0, ours=39.0, at="equal").verdict == HOLDS
    found = frontier(tmp_path / "best", effective=3.0, ours=39.0, at="best")
    assert (found.verdict, found.found) == (NOT, "-1 (-1 to -1), 40 pairs")
    assert "cfg_4.0" in found.note


def test_outside_the_curve_nothing_is_told(tmp_path: Path) -> None:
    found = frontier(tmp_path, effective=9.0, ours=99.0, at="equal")
    assert found.verdict == UNTOLD
    assert "outside" in found.note


@pytest.mark.parametrize(
    ("curve", "expect", "verdict"),
    [
        ([0.0, 1.0, 1.0, 3.0], "rising", HOLDS),
        ([0.0, 2.0, 1.0, 3.0], "rising", NOT),  # up in all, but with a fall on the way
        ([3.0, 2.0, 1.0, 0.0], "falling", HOLDS),
        ([3.0, 2.0, 1.0, 0.0], "rising", NOT),
        ([1.0, 1.0, 1.0, 1.0], "rising", UNTOLD),
    ],
)
def test_trends(tmp_path: Path, curve: list[float], expect: str, verdict: str) -> None:
    cells = [({"steps": k}, {"m": shifted(v + 1e-3 * k)}) for k, v in enumerate(curve)]
    cells += [({"steps": "joint"}, {"m": shifted(77.0)})]  # no number: not on the axis
    claim = {"say": "x", "measure": "m", "expect": expect, "along": "steps"}
    (found,) = verdicts(open_sweep(make_sweep(tmp_path, cells, [claim])))
    assert found.verdict == verdict


def test_what_was_not_measured_cannot_be_told(tmp_path: Path) -> None:
    claim = {"say": "x", "measure": "n", "expect": "higher", "here": {"method": "new"}, "there": {"method": "old"}}
    cells = [({"method": "old"}, {"m": BASE}), ({"method": "new"}, {"m": BASE})]
    (found,) = verdicts(open_sweep(make_sweep(tmp_path, cells, [claim])))
    assert (found.verdict, found.found) == (UNTOLD, "")


def test_a_claim_written_wrongly(tmp_path: Path) -> None:
    sweep = open_sweep(
        make_sweep(tmp_path, [({"a": 1}, {"m": BASE})], [{"say": "x", "measure": "m", "expect": "more"}])
    )
    with pytest.raises(ValueError, match="higher, rising, lower, falling"):
        verdicts(sweep)
