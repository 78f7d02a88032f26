"""The analysis of answers: what the papers published comes out as published, and what was planted is found."""

from dataclasses import replace

import numpy as np
import pytest
from made import ANSWER, FIVE, RULES, crossed, marked, on_screen, preferences, swapped

from experiments.metrics.estimates import Estimate, two_way
from experiments.rating.analysis import HOLDS, NOT, UNTOLD, analysed
from experiments.rating.answers import Answer
from experiments.rating.chosen import CHOICES, POLL
from experiments.rating.compared import COMPARED
from experiments.rating.graded import GRADED
from experiments.rating.intervals import ALARMS, COVERED, rates, simulated
from experiments.rating.power import Design
from experiments.rating.statistics import share
from experiments.rating.tables import ALL, Table, parts

PAIR = {"first": "segmentation-free", "second": "classifier-free"}
MODELS = {"first": "model 1", "second": "model 2", "third": "model 3", "fourth": "human"}
OPTIONS = {"preference": FIVE}


def cell(table: Table, row: str, column: str) -> Estimate:
    found = dict(table.rows)[row][table.columns.index(column)]
    assert found is not None
    return found


def between(found: Estimate) -> bool:
    return found.low < found.value < found.high


# what the papers published


def test_segmentation_free_s_preference_is_as_published() -> None:
    answers = preferences({2: 180, 1: 420, 0: 210, -1: 150, -2: 40}, raters=20)  # the two last are published as 19 %
    claims = [{"say": "preferred", "higher": "first", "lower": "second"}]
    found = analysed(answers, COMPARED, PAIR, OPTIONS, RULES, claims).kept
    shares, net = found.tables
    assert [e.value for _, cells in shares.rows for e in cells] == pytest.approx([0.18, 0.42, 0.21, 0.15, 0.04])
    assert cell(shares, ALL, "segmentation-free much better").value == pytest.approx(0.18)
    named = ["segmentation-free better", "no preference", "classifier-free better", "net"]
    assert [cell(net, ALL, name).value for name in named] == pytest.approx([0.60, 0.21, 0.19, 0.41])
    assert all(between(cell(net, ALL, name)) for name in named)
    assert cell(net, ALL, "net").low > 0.3
    assert found.verdicts[0].verdict == HOLDS
    assert (found.raters, found.answers) == (20, 1000)


def test_multistage_s_votes_are_as_published() -> None:
    sets = {"set 1": (230, 240, 260, 270), "set 2": (150, 170, 160, 520)}  # 50 questions by 20 of the public
    answers = [
        answer
        for i, (band, votes) in enumerate(sets.items())
        for answer in crossed(
            [method for method, n in zip(MODELS, votes, strict=True) for _ in range(n)],
            raters=20,
            seed=i,
            first_item=50 * i,
            question="best",
            band=band,
            shown=tuple(MODELS),
            value=1,
        )
    ]
    (table,) = analysed(answers, CHOICES, MODELS, {"best": []}, RULES, []).kept.tables
    for band, votes in sets.items():
        row = [cell(table, band, label) for label in MODELS.values()]
        assert [e.value for e in row] == pytest.approx([n / 1000 for n in votes])
        assert [round(e.value * e.count) for e in row] == list(votes)
        assert all(between(e) for e in row)
    assert all(e.low < 0.25 < e.high for e in dict(table.rows)["set 1"])  # which ranks nobody
    assert cell(table, "set 2", "human").low > 0.4


def test_multistage_s_poll_is_as_published() -> None:
    statements = ["leads the times", *"bcdef", "others"]
    shown = {"question": "difference", "shown": tuple(statements), "prompt": None}
    fifteenths = [statements[i] for i in [0] * 8 + [1] * 2 + [2, 3, 4, 5, 6]]
    answers = crossed(fifteenths, 15, group="practitioners", **shown)
    answers += [replace(a, slot=a.slot + 15) for a in crossed(statements[:2] * 5, 10, group="public", **shown)]
    (table,) = analysed(answers, POLL, {}, {"difference": statements}, RULES, []).kept.tables
    found = [cell(table, name, "group practitioners") for name in statements]
    assert [f"{100 * e.value:.2f}" for e in found] == ["53.33", "13.33", *["6.67"] * 5]
    assert [round(e.value * e.count) for e in found] == [8, 2, 1, 1, 1, 1, 1]
    assert all(between(e) for e in found)
    assert found[0] == share([1] * 8 + [0] * 7, [0] * 15, range(15))
    assert cell(table, "leads the times", "group public").value == 0.5


PUBLISHED = {  # fidelity and creativity
    "Stable Diffusion": (3.50, 3.43),
    "DALL-E 2": (3.64, 3.65),
    "Midjourney V3": (3.58, 3.69),
    "multistage": (3.92, 3.95),
}


def test_multistage_s_grades_are_as_published() -> None:
    labels, answers = dict(zip(MODELS, PUBLISHED, strict=True)), list[Answer]()
    for m, (method, label) in enumerate(labels.items()):
        for q, question in enumerate(("fidelity", "creativity")):
            fours = round(200 * PUBLISHED[label][q]) - 600
            grades = [4] * fours + [3] * (200 - fours)
            for i in range(0, 60, 2):  # the same mean, not the same grades
                grades[-i - 1], grades[i] = grades[-i - 1] - 1, grades[i] + 1
            shown = {"question": question, "shown": (method,), "value": 1}
            answers += crossed(grades, 20, seed=8 * m + q, first_item=20 * m + 10 * q, **shown)
    options = {"fidelity": ["1", "2", "3", "4", "5"], "creativity": ["1", "2", "3", "4", "5"]}
    claims = [
        {"say": "more faithful", "higher": "fourth", "lower": "first", "question": "fidelity"},
        {"say": "more creative", "higher": "fourth", "lower": "first", "question": "creativity"},
        {"say": "the baseline is the most creative", "higher": "first", "lower": None, "question": "creativity"},
    ]
    found = analysed(answers, GRADED, labels, options, RULES, claims).kept
    means, fidelity, creativity, *_ = found.tables
    for label, published in PUBLISHED.items():
        assert [cell(means, label, q).value for q in options] == pytest.approx(published)
        assert all(between(cell(means, label, q)) for q in options)
    assert cell(fidelity, "Stable Diffusion less multistage", "difference").value == pytest.approx(3.50 - 3.92)
    assert cell(creativity, "Stable Diffusion less multistage", "rater's mean removed").value == pytest.approx(-0.52)
    assert [v.verdict for v in found.verdicts] == [HOLDS, HOLDS, NOT]
    assert found.verdicts[0].found.value == pytest.approx(0.42)
    assert found.verdicts[2].found.value == pytest.approx(3.43 - (3.65 + 3.69 + 3.95) / 3)


# what was planted


def test_the_main_interval_is_wrong_as_often_as_it_says() -> None:
    """500 studies each; the bounds are 5 % and 95 %, give or take three standard deviations of their rates."""
    design = Design(50, 20, 5)
    without = {name: ALARMS[name] for name in ("two-way", "sign test, answers")}
    alarms = rates(without, simulated(design, 0.345, 0.345, 500))
    assert 0.02 <= alarms["two-way"] <= 0.08
    assert alarms["sign test, answers"] > 0.1  # which takes answers for independent
    planted = {name: COVERED[name] for name in ("net, two-way", "share of wins")}
    assert all(0.92 <= rate <= 0.98 for rate in rates(planted, simulated(design, 0.6, 0.19, 500)).values())


def test_raters_who_fail_or_hurry_are_left_out_and_shown_beside() -> None:
    answers = preferences({1: 60, -1: 60}, raters=6)
    careless = {1: (2, 3), 2: (1, 3), 4: (1, 2)}  # slot: failed, of how many
    for slot, (failed, of) in careless.items():
        gold = [replace(answers[0], slot=slot, item=90 + i, role="gold", passed=i >= failed) for i in range(of)]
        answers += [replace(g, shown=("good", "bad"), position=50 + i) for i, g in enumerate(gold)]
    hurried = {3: 6, 5: 5}  # slot: answers that came at once, of 20
    answers = [
        replace(a, active_ms=400.0) if a.role == "main" and a.item < hurried.get(a.slot, 0) else a for a in answers
    ]
    answers = [on_screen(replace(a, turned=-2)) if a.slot in (1, 3) and a.role == "main" else a for a in answers]
    found = analysed(answers, COMPARED, PAIR, OPTIONS, RULES, [])
    assert {r.slot: r.left_out for r in found.raters if r.left_out} == {
        1: "failed 2 of 3 items whose answer is known",
        3: "30% of the answers within 1 s",
    }
    assert (found.kept.raters, found.everybody.raters) == (4, 6)
    kept = [a for a in answers if a.slot not in (1, 3) and a.role == "main"]
    alone = analysed(kept, COMPARED, PAIR, OPTIONS, RULES, []).kept
    assert found.kept.tables == alone.tables
    assert cell(found.everybody.tables[0], ALL, "classifier-free much better").value == pytest.approx(40 / 120)
    assert cell(found.everybody.care, "failed, where the answer is known", "value").value == pytest.approx(4 / 8)


def test_nobody_left_is_an_error() -> None:
    answers = [replace(a, active_ms=1.0) for a in preferences({1: 10}, raters=5)]
    with pytest.raises(ValueError, match="the rules leave out all 5 raters"):
        analysed(answers, COMPARED, PAIR, OPTIONS, RULES, [])
    with pytest.raises(ValueError, match="nobody has answered yet"):
        analysed([], COMPARED, PAIR, OPTIONS, RULES, [])


def test_repeats_places_and_identical_pairs() -> None:
    answers = preferences({2: 20, 1: 20, 0: 20, -1: 20, -2: 20}, raters=5)
    mine = [a for a in answers if a.slot == 2][:4]
    again = [mine[0].turned, mine[1].turned, -int(mine[2].turned), int(np.sign(mine[3].turned))]
    for i, (answer, turned) in enumerate(zip(mine, again, strict=True)):
        answers.append(swapped(replace(answer, role="repeat", of=answer.item, item=100 + i, turned=turned)))
    alike = replace(mine[0], role="same", shown=("same", "same2"))
    same = [replace(alike, item=200 + i, turned=turned) for i, turned in enumerate((0, 0, 1))]
    care = analysed([*answers, *same], COMPARED, PAIR, OPTIONS, RULES, []).kept.care
    equal = [a.turned == t for a, t in zip(mine, again, strict=True)]
    sides = [np.sign(a.turned) == np.sign(t) for a, t in zip(mine, again, strict=True)]
    assert cell(care, "repeated items: same answer", "value").value == np.mean(equal)
    assert cell(care, "repeated items: same side", "value").value == np.mean(sides)
    assert cell(care, "one picture twice: no preference", "value").value == pytest.approx(2 / 3)
    left = cell(care, "preferred the left one, where any", "value")
    main = [a for a in answers if a.role == "main" and a.turned]
    assert left.count == 80
    assert left.value == pytest.approx(np.mean([(a.shown[0] == "first") == (a.turned > 0) for a in main]))


def test_claims_are_adjusted_for_each_other_and_narrowed() -> None:
    answers = marked(preferences({1: 70, 0: 60, -1: 50}, raters=9))
    one = {"say": "one", "higher": "first", "lower": "second"}
    claims = [one, {**one, "higher": "second", "lower": None, "band": "50"}, {**one, "group": "nobody"}]
    verdicts = analysed(answers, COMPARED, PAIR, OPTIONS, RULES, claims).kept.verdicts
    signs = [int(a.turned) for a in answers]
    whole = two_way(signs, [a.prompt for a in answers], [a.slot for a in answers])
    band = [-int(a.turned) for a in answers if a.item < 10]
    assert verdicts[0].found == whole
    assert (verdicts[1].found.value, verdicts[1].found.count) == (pytest.approx(np.mean(band)), len(band))
    ps = sorted(v.found.p() for v in verdicts[:2])
    assert sorted(v.p for v in verdicts[:2]) == pytest.approx([min(1, 2 * ps[0]), max(min(1, 2 * ps[0]), ps[1])])
    assert (verdicts[2].found, verdicts[2].verdict) == (None, UNTOLD)


@pytest.mark.parametrize(("raters", "verdict"), [(3, UNTOLD), (5, UNTOLD), (6, HOLDS)])
def test_a_few_raters_of_one_mind_show_nothing(raters: int, verdict: str) -> None:
    answers = preferences({2: 10 * raters}, raters)
    claims = [{"say": "preferred", "higher": "first", "lower": "second"}]
    (found,) = analysed(answers, COMPARED, PAIR, OPTIONS, RULES, claims).kept.verdicts
    assert (found.p, found.verdict) == (2 / 2**raters, verdict)


def test_bands_and_groups_have_rows_of_their_own_and_of_both() -> None:
    answers = marked(preferences({1: 100, -1: 80}, raters=9))
    shares = analysed(answers, COMPARED, PAIR, OPTIONS, RULES, []).kept.tables[0]
    rows = [ALL, "percentile 50", "percentile 90", "group others", "group public"]
    assert [name for name, _ in shares.rows] == rows
    both = [(name, len(some)) for name, some in parts(answers, both=True) if "," in name]
    groups = ("group others", "group public")
    assert [name for name, _ in both] == [f"percentile {band}, {group}" for band in (50, 90) for group in groups]
    assert sum(count for _, count in both) == 180


def test_three_methods_have_strengths_and_one_that_always_wins_is_named() -> None:
    labels = {"first": "a", "second": "b", "third": "c"}
    answers = preferences({1: 60, 0: 20, -1: 40}, raters=6)
    pairs = [("first", "second"), ("first", "third"), ("second", "third")]
    answers = [replace(a, shown=pairs[a.item % 3]) for a in answers]
    answers = [replace(a, turned=-1) if "third" in a.shown else a for a in answers]
    *_, strengths = analysed(answers, COMPARED, labels, OPTIONS, RULES, []).kept.tables
    assert strengths.title == "Strengths"
    assert "between a, b | c: a small ridge alone" in strengths.says
    assert cell(strengths, "c", "log-strength").value > cell(strengths, "a", "log-strength").value


def test_the_most_disputed_come_first() -> None:
    levels = [[2, -2, 2, -2], [1, 1, 1, 1], [1, 0, 1, 0], [2, 2, 1, -2]]
    answers = [
        on_screen(replace(ANSWER, item=i, prompt=i, slot=slot, turned=level))
        for i, row in enumerate(levels)
        for slot, level in enumerate(row)
    ]
    found = analysed(answers, COMPARED, PAIR, OPTIONS, RULES, [])
    assert [d.item for d in found.disputed] == [0, 3, 2]
    assert found.disputed[0].disagreement == pytest.approx(np.std(levels[0], ddof=1))
    assert dict(found.disputed[1].said) == {
        "segmentation-free much better": 2,
        "segmentation-free slightly better": 1,
        "classifier-free much better": 1,
    }
