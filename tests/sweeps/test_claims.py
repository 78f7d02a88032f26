"""What is said of claims, on sweeps whose scores are made up so that the answer is known."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from experiments.files import UserError
from experiments.metrics.estimates import HOLDS, NOT, UNTOLD, holm, student_quantile
from experiments.sweeps.claims import claim_of, verdicts
from experiments.sweeps.folder import open_sweep, planned
from experiments.sweeps.provenance import not_alike

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


def test_two_measures_of_one_cell_are_not_taken_as_independent(tmp_path: Path) -> None:
    """Standard deviations of 1/1.96 each: of the difference at most 2/1.96."""
    claim = {"say": "x", "measure": "m", "expect": "higher", "here": {"method": "new"}, "than": "n"}
    (found,) = verdicts(open_sweep(make_sweep(tmp_path, [({"method": "new"}, {"m": 5.0, "n": 3.0})], [claim])))
    assert found.found == "+2 (+0 to +4), 1 pair"


@pytest.mark.parametrize(("pictures", "verdict"), [(3, UNTOLD), (8, HOLDS)])
def test_a_few_pictures_that_all_differ_alike_show_nothing(tmp_path: Path, pictures: int, verdict: str) -> None:
    claim = {"say": "x", "measure": "m", "expect": "higher", "here": {"method": "new"}, "there": {"method": "old"}}
    cells = [({"method": "old"}, {"m": [1.0] * pictures}), ({"method": "new"}, {"m": [2.0] * pictures})]
    (found,) = verdicts(open_sweep(make_sweep(tmp_path, cells, [claim])))
    assert (found.verdict, found.p) == (verdict, 2 / 2**pictures)


def test_a_trend_is_undone_by_a_step_only_beyond_chance(tmp_path: Path) -> None:
    """Of many steps some go the other way by chance: their p are corrected, and the verdict's p is theirs."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=40)
    back = -0.4 * noise.std() + noise - noise.mean()  # from step 4 to 5, with a p between 0.05 / 8 and 0.05
    levels = [[v + 3.0 * k for v in BASE] for k in range(5)]
    levels += [[a + b for a, b in zip(levels[-1], back, strict=True)]]
    levels += [[v + 100.0 + k for v in BASE] for k in range(3)]
    claim = {"say": "x", "measure": "m", "expect": "rising", "along": "steps"}
    cells = [({"steps": k}, {"m": scores}) for k, scores in enumerate(levels)]
    (many,) = verdicts(open_sweep(make_sweep(tmp_path / "many", cells, [claim])))
    (few,) = verdicts(open_sweep(make_sweep(tmp_path / "few", cells[4:6], [claim | {"expect": "falling"}])))
    assert 0.05 / 8 < few.p < 0.05 and few.verdict == HOLDS
    assert many.verdict == HOLDS and "beyond chance" in many.note
    (two,) = verdicts(open_sweep(make_sweep(tmp_path / "two", [cells[i] for i in (4, 5, 8)], [claim])))
    assert 2 * few.p < 0.05 and (two.verdict, two.p) == (NOT, pytest.approx(2 * few.p))


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


NEW_AND_OLD = {"say": "x", "measure": "m", "expect": "higher", "here": {"method": "new"}, "there": {"method": "old"}}


def pairs_of(*names: str, shift: float = 1.0) -> list[tuple[dict, dict[str, Scores | float]]]:
    """Two methods at each value of the axis `pair`; all scores of the new one are higher."""
    methods = {"old": BASE, "new": [v + shift for v in BASE]}
    return [({"pair": pair, "method": m}, {"m": list(scores)}) for pair in names for m, scores in methods.items()]


def told_in(folder: Path, cells: list[tuple[dict, dict]], **changes: Any) -> Any:
    (found,) = verdicts(open_sweep(make_sweep(folder, cells, [NEW_AND_OLD | changes])))
    return found


def test_a_partly_measured_claim_names_the_cell_and_is_not_told(tmp_path: Path) -> None:
    cells = pairs_of("a", "b")
    assert told_in(tmp_path / "whole", cells).verdict == HOLDS
    cells[1] = (cells[1][0], {})
    found = told_in(tmp_path / "part", cells)
    assert (found.verdict, found.p) == (UNTOLD, None)
    assert "m was not measured in a_new" in found.note
    assert found.found.endswith("40 pairs")  # what there is, without a verdict
    found = told_in(tmp_path / "alone", cells[:1] + cells[2:])
    assert found.verdict == UNTOLD and "no counterpart of a_old" in found.note
    found = told_in(tmp_path / "listed", pairs_of("a", "b"), here={"method": ["new", "newer"]})
    assert found.verdict == UNTOLD and "missing at method newer" in found.note


def test_pictures_that_one_side_did_not_measure(tmp_path: Path) -> None:
    cells = pairs_of("a")
    cells[0][1]["m"] = BASE[:30]
    found = told_in(tmp_path, cells)
    assert found.verdict == UNTOLD
    assert "10 pictures of a_new and a_old were measured in one of them alone" in found.note


def test_what_is_no_claim_is_refused() -> None:
    for record in (5, "higher", {"say": "x"}):
        with pytest.raises(UserError, match="claim "):
            claim_of(record)


def test_planned_values_are_told_as_cells_tell_them() -> None:
    """Cells tell lists and groups of settings as JSON: see `entry.enter`."""
    typed = ["guidance.layers=[up_blocks],[mid_block,'a b']", "x={a:1},{a:'2'}"]
    assert planned({}, typed)[-1] == {"guidance.layers": '["mid_block", "a b"]', "x": '{"a": "2"}'}


def test_planned_cells_that_were_not_begun_keep_a_claim_from_being_told(tmp_path: Path) -> None:
    make_sweep(tmp_path, pairs_of("a"), [NEW_AND_OLD])
    told = json.loads((tmp_path / "sweep.json").read_text())
    told["planned"] = planned({"pair": "a,b", "method": "old,new"}, ["experiment=toy"])
    (tmp_path / "sweep.json").write_text(json.dumps(told))
    (found,) = verdicts(open_sweep(tmp_path))
    assert found.verdict == UNTOLD and "m was not measured in b,new, b,old" in found.note


def with_records(sweep: Path, prompts: dict[str, str], seeds: int, unit: str = "pictures") -> Path:
    """Gives every cell its pictures' records: image k has seed k % seeds, and the prompt of its cell's axis `pair`."""
    for file in sweep.rglob("cell.json"):
        pair, lines = json.loads(file.read_text())["axes"]["pair"], []
        (file.parent / "images").mkdir()
        for k in range(len(BASE)):
            prompt = f"{prompts[pair]} {k // seeds}"
            lines.append(json.dumps({"file": f"images/{k}.png", "prompt": prompt, "seed": k % seeds}) + "\n")
            (file.parent / "images" / f"{k}.png").touch()
        (file.parent / "samples.jsonl").write_text("".join(lines))
        for metric in file.parent.glob("metrics/*.json"):
            metric.write_text(json.dumps({**json.loads(metric.read_text()), "bootstrap": {"unit": unit}}))
    return sweep


def differing(*names: str) -> list[tuple[dict, dict]]:
    """Like `pairs_of`, but the differences vary by picture, alike in all pairs."""
    return [
        ({"pair": p, "method": m}, {"m": BASE if m == "new" else [0.0] * 40}) for p in names for m in ("old", "new")
    ]


def interval_of(found: Any) -> list[float]:
    return [float(word) for word in found.found.partition("(")[2].partition(")")[0].split(" to ")]


def student(mean: float, variance: float, freedom: int) -> list[float]:
    margin = student_quantile(freedom) * variance**0.5
    return [pytest.approx(mean - margin, rel=5e-3), pytest.approx(mean + margin, rel=5e-3)]


def test_a_picture_that_repeats_under_other_settings_is_one_cluster(tmp_path: Path) -> None:
    """Under four wrappers the interval is that under one, and not half as wide; other prompts are other clusters."""
    values = np.array(BASE)
    expected = student(values.mean(), values.var(ddof=1) / 40, 39)
    for n, names in enumerate(("a", "abcd")):
        sweep = make_sweep(tmp_path / names, differing(*names), [NEW_AND_OLD])
        (found,) = verdicts(open_sweep(with_records(sweep, dict.fromkeys(names, "one"), 40)))
        assert interval_of(found) == expected
        assert found.found.endswith(f"{[40, 160][n]} pairs")
    assert found.note.startswith("of 40 prompts and seeds, higher in")
    sweep = make_sweep(tmp_path / "other", differing(*"abcd"), [NEW_AND_OLD])
    (found,) = verdicts(open_sweep(with_records(sweep, {name: name for name in "abcd"}, 40)))
    assert interval_of(found) == student(values.mean(), np.tile(values, 4).var(ddof=1) / 160, 159)


def test_claims_follow_the_bootstrap_s_unit(tmp_path: Path) -> None:
    """8 prompts x 5 seeds: by pictures 40 clusters, by prompts V_prompts + V_seeds - V_pictures with 4 degrees."""
    values = np.array(BASE).reshape(8, 5)
    found = {}
    for unit in ("pictures", "prompts"):
        sweep = with_records(make_sweep(tmp_path / unit, differing("a"), [NEW_AND_OLD]), {"a": "one"}, 5, unit)
        found[unit] = interval_of(verdicts(open_sweep(sweep))[0])
    mean, both = values.mean(), values.var(ddof=1) / 40
    by_prompt, by_seed = (values.mean(axis=axis).var(ddof=1) / values.shape[1 - axis] for axis in (1, 0))
    assert found["pictures"] == student(mean, both, 39)
    assert found["prompts"] == student(mean, max(by_prompt, by_seed, by_prompt + by_seed - both), 4)
    assert found["prompts"] != found["pictures"]


def test_estimates_of_the_same_pictures_are_not_independent(tmp_path: Path) -> None:
    """Each difference has a half-interval of sqrt(2); of four of the same pictures the mean's is as wide."""
    cells = [({"pair": p, "method": m}, {"m": 5.0 if m == "new" else 2.0}) for p in "abcd" for m in ("old", "new")]
    for prompts, half in ((dict.fromkeys("abcd", "one"), 2**0.5), ({p: p for p in "abcd"}, 2**0.5 / 2)):
        sweep = with_records(make_sweep(tmp_path / str(half), cells, [NEW_AND_OLD]), prompts, 40)
        assert interval_of(verdicts(open_sweep(sweep))[0]) == pytest.approx([3 - half, 3 + half], abs=5e-3)


def with_settings(sweep: Path, settings: dict[str, dict[str, Any]]) -> Path:
    for name, values in settings.items():
        file = sweep / name / "metrics" / "m.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "settings": values}))
    return sweep


def test_cells_measured_otherwise_are_not_pooled(tmp_path: Path) -> None:
    """Ten pictures against twenty are named; the objects, which the axis `pair` sets, may differ."""
    settings = {f"{p}_{m}": {"pictures": 10, "objects": [p, "x"]} for p in "ab" for m in ("old", "new")}
    sweep = with_settings(make_sweep(tmp_path / "alike", pairs_of("a", "b"), [NEW_AND_OLD]), settings)
    assert verdicts(open_sweep(sweep))[0].verdict == HOLDS
    assert not_alike(open_sweep(sweep)) == []
    settings["a_old"] = settings["a_new"] = {"pictures": 20, "objects": ["a", "x"]}
    sweep = with_settings(make_sweep(tmp_path / "mixed", pairs_of("a", "b"), [NEW_AND_OLD]), settings)
    (found,) = verdicts(open_sweep(sweep))
    line = "m was not measured alike: settings.pictures is 20 in a_new, a_old, and 10 in b_new, b_old"
    assert (found.verdict, found.found, found.note) == (UNTOLD, "", line)
    assert not_alike(open_sweep(sweep)) == [line]


def test_other_commits_are_named_and_told(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, pairs_of("a"), [NEW_AND_OLD])
    file = sweep / "a_old" / "metrics" / "m.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "commit": "c0ffee"}))
    assert verdicts(open_sweep(sweep))[0].verdict == HOLDS
    assert not_alike(open_sweep(sweep)) == ["cells were measured at several commits: None in a_new; c0ffee in a_old"]


def test_opposite_signs_are_named_and_told_apart(tmp_path: Path) -> None:
    cells = [*pairs_of("a", "b", shift=1.0), *pairs_of("c", shift=-0.5)]
    found = told_in(tmp_path / "pooled", cells)
    assert found.verdict == HOLDS and "the other way in c_new" in found.note
    sweep = make_sweep(tmp_path / "each", cells, [NEW_AND_OLD | {"each": "pair"}])
    assert {v.say: v.verdict for v in verdicts(open_sweep(sweep))} == {"x (a)": HOLDS, "x (b)": HOLDS, "x (c)": NOT}


def test_holm_corrects_for_the_number_of_claims(tmp_path: Path) -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    claims = [NEW_AND_OLD | {"measure": "m/twice"}, NEW_AND_OLD, NEW_AND_OLD | {"measure": "n"}]
    cells = [({"method": "old"}, {"m": BASE}), ({"method": "new"}, {"m": shifted(0.01)})]
    first, second, third = verdicts(open_sweep(make_sweep(tmp_path, cells, claims)))
    differences = np.array(shifted(0.01)) - BASE
    t = differences.mean() / (differences.std(ddof=1) / 40**0.5)
    assert first.p == second.p == pytest.approx(2 * scipy.stats.t.sf(abs(t), 39))
    assert first.holm == min(1.0, 2 * first.p)
    assert third.p is third.holm is None


@pytest.mark.parametrize("claim", [{"there": {}, "than": "m"}, {"wher": {}}, {"curve": {}, "free": [], "at": "worst"}])
def test_a_claim_is_of_one_kind_and_has_no_other_fields(tmp_path: Path, claim: dict) -> None:
    sweep = make_sweep(tmp_path, pairs_of("a"), [{"say": "x", "measure": "m", "expect": "higher", "here": {}, **claim}])
    with pytest.raises(ValueError, match="^claim"):
        verdicts(open_sweep(sweep))
