"""Studies as they are made: who sees what, what a picture's bytes tell, and what is refused."""

import io
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from folders import make_run
from kit import WORDS, MakeStudy, items_of, settings
from omegaconf import OmegaConf
from PIL import Image
from tiny import Outcome

import experiments.rating.kinds
from experiments.files import CONF
from experiments.metrics.folders import read
from experiments.pictures import save_png
from experiments.rating import make as making
from experiments.rating.join import labels
from experiments.rating.kinds import Kind, kind_of
from experiments.rating.plan import DISTANCE, SPACING, colours, deal, orders, repeated, spaced
from experiments.rating.study import Study, open_study


def uneven(counts: dict, all_of_them: list) -> int:
    return max(counts.get(key, 0) for key in all_of_them) - min(counts.get(key, 0) for key in all_of_them)


@pytest.mark.parametrize(("things", "raters", "each", "ways"), [(37, 7, 3, 2), (50, 13, 13, 24), (1, 20, 20, 7)])
def test_everybody_sees_as_much_and_every_order_as_often(things: int, raters: int, each: int, ways: int) -> None:
    rng = Random(0)
    dealt = deal(things, raters, each, rng)
    assert all(len(set(seen)) == each for seen in dealt)
    assert uneven(Counter(rater for seen in dealt for rater in seen), list(range(raters))) <= 1
    edges = [(rater, thing) for thing, seen in enumerate(dealt) for rater in seen]
    found = colours(edges, ways, rng)
    for side in (0, 1):
        at = defaultdict[int, Counter](Counter)
        for edge, colour in zip(edges, found, strict=True):
            at[edge[side]][colour] += 1
        assert all(uneven(counts, list(range(ways))) <= 1 for counts in at.values())


def test_orders_are_all_of_four_and_rotations_of_more() -> None:
    assert len(orders(4)) == 24
    assert orders(2) == [(0, 1), (1, 0)]
    assert Counter(order[0] for order in orders(7)) == dict.fromkeys(range(7), 1)


def test_one_prompt_is_not_seen_twice_within_five() -> None:
    for seed in range(20):
        things = [(prompt, copy) for prompt in range(8) for copy in range(4)]
        placed = spaced(things, lambda thing: thing[0], Random(seed), before=[3])
        assert sorted(placed) == things
        prompts = [3] + [prompt for prompt, _ in placed]
        assert all(len(set(prompts[i : i + SPACING + 1])) == SPACING + 1 for i in range(len(prompts) - SPACING))
    assert sorted(spaced("aab", str, Random(0))) == ["a", "a", "b"]  # where it cannot be, it still ends


def test_repeats_come_ten_later() -> None:
    for seed in range(20):
        found = repeated(range(30), 3, Random(seed))
        assert len(found) == 3
        assert all(after - place > DISTANCE and after <= 30 for place, after in found)
    assert repeated(range(1), 3, Random(0)) == [(0, 1)]


def test_sides_of_pairs_are_balanced_for_each_rater_and_pair(pairs: Path) -> None:
    study, _ = open_study(pairs)
    left = defaultdict[tuple, Counter](Counter)
    for slot in study.slots:
        for item, order in items_of(study, slot.slot):
            left["rater", slot.slot][order] += 1
            left["item", slot.group, item][order] += 1
    assert all(uneven(counts, [(0, 1), (1, 0)]) <= 1 for counts in left.values())
    per_item = Counter((slot.group, item) for slot in study.slots for item, _ in items_of(study, slot.slot))
    assert set(per_item.values()) == {2}
    assert len(per_item) == 2 * len(WORDS)


def test_a_plan_has_practice_gold_repeats_and_the_same_picture_twice(pairs: Path) -> None:
    study, _ = open_study(pairs)
    for slot in study.slots:
        roles = [study.items[item].role for item, _ in slot.plan]
        assert roles[:3] == ["practice"] * 3
        assert Counter(roles)["gold"] == 3
        assert Counter(roles)["same"] == 1
        main = {item: (place, order) for place, (item, order) in enumerate(slot.plan)}
        for place, (item, order) in enumerate(slot.plan):
            if (of := study.items[item].of) is not None:
                assert place > main[of][0]
                assert order == main[of][1][::-1]
                assert not set(study.items[item].shows.values()) & set(study.items[of].shows.values())
    for item in study.items:
        if item.role == "same":
            contents = {(pairs / "pictures" / f"{name}.png").read_bytes() for name in item.shows.values()}
            assert len(contents) == 1
            assert len(set(item.shows.values())) == 2


def test_grades_show_all_methods_of_a_prompt_question_by_question(make_study: MakeStudy) -> None:
    study, _ = open_study(make_study("kind=grade", "groups={all: 4}", "answers=2"))
    for slot in study.slots:
        shown = [study.items[item] for item, _ in items_of(study, slot.slot)]
        seen = Counter((item.prompt, item.question) for item in shown)
        assert set(seen.values()) == {2}
        asked = [item.question for item in shown]
        assert asked == sorted(asked, reverse=slot.slot % 2 == 1)  # in blocks, the other way round for every second
        prompts = [item.prompt for item in shown]
        assert all(a != b for a, b in zip(prompts, prompts[1:], strict=False))
        gold = [study.at(slot.slot, i) for i, (item, _) in enumerate(slot.plan) if study.items[item].role == "gold"]
        assert len(gold) == 3
        assert all(names == ("bad",) for _, names in gold)


def test_pictures_are_pixels_and_nothing_else(pairs: Path, runs: Path) -> None:
    key = json.loads((pairs / "key.json").read_text())
    assert key["labels"] == {"first": "plain_run", "second": "new_run"}
    assert oct((pairs / "key.json").stat().st_mode)[-3:] == "600"
    files = {path.stem: path for path in (pairs / "pictures").iterdir()}
    assert files.keys() == key["pictures"].keys()
    for name, told in key["pictures"].items():
        assert len(name) == 32
        content = files[name].read_bytes()
        image = Image.open(io.BytesIO(content))
        assert image.info == {}
        assert making.clean(image) == content
        if "noise" not in told:
            original = Path(told["run"]) / told["file"]
            assert original.read_bytes() != content  # the run's own say what determines them
            assert np.array_equal(np.array(read(original)), np.array(image))


def test_study_json_names_no_method_and_is_what_was_made(pairs: Path, runs: Path) -> None:
    text = (pairs / "study.json").read_text()
    assert not any(word in text for word in ("plain_run", "new_run", str(runs), "samples", "images/"))
    study, name = open_study(pairs)
    assert study.json() == text
    assert len(name) == 64


def test_bands_come_from_the_subset_and_captions_from_a_file(runs: Path, tmp_path: Path) -> None:
    subset, captions = tmp_path / "subset.jsonl", tmp_path / "captions.txt"
    chosen = [{"prompt": "a red cat", "percentile": 10}, {"prompt": "a dragon", "percentile": 90}]
    subset.write_text("\n".join(map(json.dumps, chosen)))  # an editor may have left out the last line's end
    captions.write_text("".join(f"{word} as told\n" for word in WORDS))
    joined = f"runs=[{runs}/plain_run,{runs}/new_run]"
    study, _ = making.study(settings("kind=preference", joined, f"subset={subset}"))
    assert {(i.text, i.band) for i in study.items if i.role == "main"} == {("a red cat", "10"), ("a dragon", "90")}
    claim = {"say": "x", "higher": "first", "band": 90}
    study, _ = making.study(settings("kind=preference", joined, f"subset={subset}") | {"claims": [claim]})
    assert [claim["band"] for claim in study.claims] == ["90"]
    with pytest.raises(ValueError, match=r"claims: band=30: must be one of 10, 90"):
        making.study(settings("kind=preference", joined, f"subset={subset}") | {"claims": [claim | {"band": 30}]})
    study, _ = making.study(settings("kind=preference", joined, f"captions={captions}"))
    assert {item.text for item in study.items if item.role == "main"} == {f"{word} as told" for word in WORDS}


def test_stages_are_shown_where_there_is_no_prompt_and_plain_folders_join(runs: Path, tmp_path: Path) -> None:
    stages = {"stages": [{"prompt": "a dragon", "steps": 1}, {"prompt": "a fish", "steps": 2}]}
    for name in ("x", "y"):
        make_run(tmp_path / name, [stages], [0])
    study, _ = making.study(settings("kind=preference", f"runs=[{tmp_path}/x,{tmp_path}/y]"))
    assert study.items[0].text == "a dragon, then a fish"
    works = tmp_path / "works"
    works.mkdir()
    for i in range(len(WORDS)):
        save_png(Image.new("RGB", (16, 16), (i, 0, 0)), works / f"{i:05d}_7.png")
    study, _ = making.study(settings("kind=choice", f"runs=[{runs}/plain_run,{works}]", "groups={all: 2}"))
    assert study.items[0].text == "a red cat"


def test_all_pairs_of_three_methods_are_shown(make_study: MakeStudy) -> None:
    study, _ = open_study(make_study("kind=preference", "groups={all: 3}", methods=3))
    pairs = Counter(tuple(item.shows) for item in study.items if item.role == "main")
    assert set(pairs) == {("first", "second"), ("first", "third"), ("second", "third")}


def kinds() -> list[str]:
    return sorted(path.stem for path in (CONF / "kind").glob("*.yaml"))


@pytest.mark.parametrize("name", kinds())
def test_what_is_turned_does_not_depend_on_the_screen(name: str) -> None:
    questions = ["kind.questions=[{name: q, text: Q, options: [a, b, c, d, e]}]"] if name == "poll" else []
    kind: Kind = kind_of(settings(f"kind={name}", *questions)["kind"])
    question = kind.questions[0]
    for names in [*kind.plays(question, ("first", "second", "third")), kind.gold(("first", "second", "third"))]:
        if len(names) < 2:
            continue
        said = [kind.turned(question, v, names) for v in range(1, len(kind.answers(question, names)) + 1)]
        back = names[::-1]
        same = [kind.turned(question, v, back) for v in range(len(said), 0, -1)]
        assert said == same
        assert len(set(said)) == len(said)


def test_preference_says_how_much_better_the_first_is() -> None:
    kind = kind_of(settings("kind=preference")["kind"])
    (question,) = kind.questions
    assert [kind.turned(question, v, ("first", "second")) for v in range(1, 6)] == [2, 1, 0, -1, -2]
    assert [kind.turned(question, v, ("second", "first")) for v in range(1, 6)] == [-2, -1, 0, 1, 2]
    assert [kind.passed(question, v, ("bad", "good")) for v in range(1, 6)] == [False, False, False, True, True]


FIFTH = '''
from dataclasses import dataclass
from typing import ClassVar

from experiments.rating.chosen import CHOICES
from experiments.rating.kinds.choice import Choice
from experiments.rating.tables import Analysis


@dataclass(frozen=True)
class Any(Choice):
    """Which of several pictures is best, or none of them."""

    analysis: ClassVar[Analysis] = CHOICES

    def answers(self, question, shown):
        return [*super().answers(question, shown), "none"]

    def turned(self, question, value, shown):
        return "none" if value > len(shown) else super().turned(question, value, shown)

    def passed(self, question, value, shown):
        return self.turned(question, value, shown) == "good"
'''


def test_a_fifth_kind_is_one_file_and_one_yaml(
    raters: Callable[..., Outcome], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf" / "kind").mkdir(parents=True)
    (tmp_path / "conf" / "kind" / "any.yaml").write_text(
        '_target_: experiments.rating.kinds.any.Any\nquestions: [{name: any, text: "Which is best?", options: []}]\n'
    )
    (tmp_path / "any.py").write_text(FIFTH)
    monkeypatch.setattr(experiments.rating.kinds, "__path__", [*experiments.rating.kinds.__path__, str(tmp_path)])
    search, study = f"hydra.searchpath=[file://{tmp_path / 'conf'}]", tmp_path / "study"
    joined = f"runs=[{runs}/plain_run,{runs}/new_run]"
    made = raters("action=make", "kind=any", joined, "groups={all: 3}", f"study={study}", search)
    assert made.status == 0, made.err
    done = raters("action=simulate", f"study={study}")
    assert done.status == 0, done.err
    lines = [json.loads(line) for line in (study / "simulated" / "answers.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"any"}
    assert {line["turned"] for line in lines if line["role"] == "main"} == {"first", "second"}
    found = raters("action=analyse", f"study={study}", "simulated=true")
    assert found.status == 0, found.err


def test_a_kind_is_a_class_of_the_folder_of_kinds() -> None:
    with pytest.raises(ValueError, match="must be a class of experiments.rating.kinds"):
        kind_of({"_target_": "os.system", "questions": []})
    for questions in ([], [{"name": "a", "text": "x"}, {"name": "a", "text": "y"}], [{"name": "a", "text": ""}]):
        with pytest.raises(ValueError, match="kind.questions"):
            kind_of({"_target_": "experiments.rating.kinds.grade.Grade", "questions": questions})


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "raters").glob("*.yaml")))
def test_the_papers_studies_can_be_made(name: str, runs: Path) -> None:
    methods = {"segfree_preference": 2, "artists_poll": 0}.get(name, 4)
    names = ["plain_run", "new_run", "third_run", "human_works"][:methods]
    told = [f"artist.{letter}='answer {letter}'" for letter in "bcdef"] if name == "artists_poll" else []
    study, made = making.study(settings(f"raters={name}", f"runs=[{','.join(str(runs / n) for n in names)}]", *told))
    groups = Counter(slot.group for slot in study.slots)
    sizes = {"all": 20} if methods in (2, 4) and name != "multistage_votes" else {"public": 20, "practitioners": 13}
    assert groups == sizes
    assert len(study.methods) == methods
    assert study.claims
    assert all({"say", "higher", "lower", "question", "group", "band"} == claim.keys() for claim in study.claims)
    assert made.pictures.keys() == {p for item in study.items for p in item.shows.values() if p}


def change_prompt(run: Path) -> None:
    lines = (run / "samples.jsonl").read_text()
    (run / "samples.jsonl").write_text(lines.replace("a dragon", "a worm"))


def lose_half(run: Path) -> None:
    lines = (run / "samples.jsonl").read_text().splitlines(keepends=True)
    (run / "samples.jsonl").write_text("".join(lines[:3] + lines[4:]))


def shrink(run: Path) -> None:
    save_png(Image.new("RGB", (8, 16)), run / "images" / "00002_7.png")


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (change_prompt, "prompt 1, seed 7 is 'a dragon' and 'a worm': captions=FILE"),
        (lose_half, "has no picture of prompt 3, seed 7"),
        (shrink, "pictures of unequal sizes"),
        (lambda run: (run / "grid.png").unlink(), "unfinished"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_halves_that_do_not_fit_are_refused_in_a_line(
    harm: Callable[[Path], None], word: str, pair_settings: dict, tmp_path: Path
) -> None:
    plain, new = map(Path, pair_settings["runs"])
    harmed = tmp_path / "harmed"
    shutil.copytree(new, harmed)
    harm(harmed)
    with pytest.raises(ValueError, match=word) as error:
        making.study({**pair_settings, "runs": [str(plain), str(harmed)]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"runs": []}, "no folders of pictures"),
        ({"answers": 7, "groups": {"all": 5}}, "answers=7: must be from 1 to 5"),
        ({"groups": {}}, "groups={}"),
        ({"seeds": [3]}, r"no pictures to show with seeds=\[3\]"),
        ({"subset": "/nowhere.jsonl"}, "there is no such file"),
        ({"labels": ["one"]}, r"labels=\['one'\]"),
        ({"claims": ["preferred"]}, "claims: preferred: must be settings"),
        ({"claims": [{"say": "x", "higher": "third"}]}, "higher=third: must be one of first, second"),
        ({"claims": [{"say": "x", "higher": "first", "above": 1}]}, "must have say and higher"),
        ({"kind": None}, "must be one of choice, grade, poll, preference"),
    ],
)
def test_wrong_settings_are_one_line(pair_settings: dict, changes: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word) as error:
        making.study({**pair_settings, **changes})
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def pair_settings(runs: Path) -> dict:
    return settings("kind=preference", f"runs=[{runs}/plain_run,{runs}/new_run]")


def test_what_is_missing_is_said_in_one_line(raters: Callable[..., Outcome], tmp_path: Path) -> None:
    for overrides, word in [
        (["action=guess"], "must be one of make"),
        (["action=make", "raters=artists_poll"], "artist.b"),
        (["action=status"], "no study (no study.json in it)"),
        (["action=make", "per=0"], "per=0: must be a whole number of at least 1"),
        (["action=make", "rules.fast_ms=soon"], "rules.fast_ms=soon: must be a finite number"),
        (["action=withdraw", "slots=[x]"], "slots=['x']: must be a list"),
    ]:
        outcome = raters(*overrides, f"study={tmp_path / 'study'}")
        assert outcome.status == 1
        assert word in outcome.err
        assert outcome.err.count("\n") == 1
    assert not list(tmp_path.glob("study*"))


def test_make_prints_what_was_made_and_its_power(raters: Callable[..., Outcome], runs: Path, tmp_path: Path) -> None:
    joined = f"runs=[{runs}/plain_run,{runs}/new_run]"
    overrides = ["action=make", "kind=preference", joined, "groups={all: 10}", "answers=5", f"study={tmp_path / 's'}"]
    outcome = raters(*overrides)
    assert outcome.status == 0, outcome.err
    assert "8 main" in outcome.out
    assert "8 x 10, 5" in outcome.out
    again = raters(*overrides)
    assert again.status == 1
    assert "is there already" in again.err


def test_labels_tell_two_folders_of_one_name_apart() -> None:
    assert labels([Path("/a/run"), Path("/b/run")]) == ["/a/run", "/b/run"]
    assert labels([Path("/a/x"), Path("/b/y")]) == ["x", "y"]


def test_every_kind_mirrors_its_class() -> None:
    for name in kinds():
        cfg = OmegaConf.load(CONF / "kind" / f"{name}.yaml")
        module, _, cls = cfg._target_.rpartition(".")
        assert module == f"experiments.rating.kinds.{name}"
        known = getattr(__import__(module, fromlist=[cls]), cls)
        assert set(cfg) - {"_target_"} <= set(known.__dataclass_fields__) - {"pictures"}


def test_a_study_knows_its_own_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no study"):
        open_study(tmp_path)
    (tmp_path / "study.json").write_text('{"items": []}')
    with pytest.raises(ValueError, match="is not a study"):
        open_study(tmp_path)
    assert Study.__dataclass_params__.frozen
