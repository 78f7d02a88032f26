"""The arena: what it draws, what it compares with what, and what it says; with a guidance dropped in by config."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from folders import CLIP, JUDGE, randomise
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import ttest_1samp
from tiny import Outcome, tiny_model

import experiments.run.cli
from experiments import arena
from experiments.emoji.judge import NATURAL, Judge, save_judge
from experiments.files import CONF, embedded, read_lines
from experiments.metrics.effective_scale import Projection
from experiments.metrics.estimates import Estimate
from experiments.run import build, draw, geneval
from experiments.sweeps.folder import Cell
from experiments.tournament.cells import Arena
from experiments.tournament.page import beyond_table
from experiments.tournament.plan import Method, Plan, changes, literal, method_of, methods
from experiments.tournament.verdicts import Column, Duel, Findings, Row, better_part, on_curve, together
from ldm.files.writing import write_folder

MINE = "_target_: toys.Momentum\nscale: 3.0\nshare: 0.5\n"
BROKEN = "_target_: toys.Autoguidance\nscale: 2.0\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a judge that knows no truth, and guidances of one's own, each one yaml."""
    folder = tmp_path_factory.mktemp("arena")
    concepts = tuple(OmegaConf.load(CONF / "world" / f"{embedded('world')}.yaml").concepts)
    save_judge(randomise(Judge(replace(JUDGE, concepts=concepts))), folder / "judge")
    natural = {concept: dict.fromkeys(JUDGE.colours, 0.0) for concept in concepts}
    (folder / "judge" / NATURAL).write_text(json.dumps(natural))
    (folder / "conf" / "guidance").mkdir(parents=True)
    (folder / "conf" / "guidance" / "mine.yaml").write_text(MINE)
    (folder / "conf" / "guidance" / "broken.yaml").write_text(BROKEN)
    return folder


@pytest.fixture(scope="module")
def enter(place: Path, tiny_folder: Path) -> Callable[..., int]:
    """enter("only=[mine]"): the verb in this process; its exit status."""

    def run(*overrides: str) -> int:
        asked = [f"hydra.searchpath=[file://{place / 'conf'}]", "model=file", f"model.path={tiny_folder}"]
        asked += ["model.subject=emoji", "dtype=float32", "sampler.steps=5", "batch_size=8", "bootstrap.resamples=20"]
        asked += ["league=quick", "league.prompts=4", "league.tuning_prompts=2", "league.curve=[1.0,3.0,30.0]"]
        asked += ["league.knob_prompts=3", "league.pictures=2", f"judge={place / 'judge'}"]
        asked += ["~measures.emoji.word_choice", f"out={place / 'out'}"]
        asked += ["++measures.emoji.effective_scale.packages=[guidance,samplers,toys]", f"icons={place / 'none'}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["experiments/arena.py", *asked, *overrides])
            patch.delenv("HYDRA_FULL_ERROR", raising=False)
            try:
                experiments.run.cli.run(arena.main, "arena")
            except SystemExit as stop:
                return int(str(stop.code))
        return 0

    return run


@pytest.fixture(scope="module")
def out(place: Path, enter: Callable[..., int]) -> Path:
    """An arena of two methods, one of them dropped in by its yaml alone."""
    assert enter("only=[mine,interval]") == 0
    return place / "out"


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "verdicts.json").read_text())


def row_of(out: Path, name: str) -> dict[str, Any]:
    (row,) = [row for row in told(out)["rows"] if row["name"] == name]
    return row


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_guidance_of_ones_own_has_a_row_with_intervals(out: Path) -> None:
    row = row_of(out, "mine/defaults")
    assert (row["nominal"], row["evaluations"], row["pictures"]) == (3.0, 10, 8)
    value, low, high, count = row["values"]["diversity"]
    assert low < value < high and count == 4
    assert row["effective"][0] != pytest.approx(3.0, abs=1e-3)  # its momentum counts
    decided = {(one["control"], one["column"]): one for one in told(out)["duels"] if one["row"] == "mine/defaults"}
    assert {control for control, _ in decided} == {"nominal", "effective", "evaluations", "followed", "best"}
    for control in ("nominal", "evaluations", "followed", "best"):
        assert decided[control, "diversity"]["difference"] is not None, control
    assert "| mine |" in (out / "ranking.md").read_text()


def test_each_row_is_drawn_again_by_its_command(out: Path, cli: Callable[..., Outcome], tmp_path: Path) -> None:
    rows = told(out)["rows"]
    assert {row["role"] for row in rows} == {"curve", "tuning", "defaults", "knob", "evaluations", "followed"}
    for row in (row for row in rows if row["role"] not in ("curve", "tuning") or row["nominal"] == 3):
        python, *words = shlex.split(row["command"])
        assert (python, words[:2]) == ("python", ["-m", "experiments.sample"])
        again = tmp_path / re.sub("[/=]", "_", row["name"])
        assert cli("sample", *(word.replace("FOLDER", str(again)) for word in words[2:])).status == 0
        first, second = (
            {record["file"]: record["sha256"] for record in read_lines(folder / "samples.jsonl")}
            for folder in (out / "cells" / row["name"], again)
        )
        assert first == second, row["name"]


def test_following_step_by_step_makes_a_scheduled_guidance_itself(out: Path) -> None:
    """Classifier-free guidance in an interval is classifier-free guidance with a scale of each step, and no more."""
    for picture in sorted((out / "cells/interval/defaults/images").iterdir()):
        ours, theirs = (
            np.array(Image.open(out / "cells/interval" / setting / "images" / picture.name)).astype(int)
            for setting in ("defaults", "followed")
        )
        assert abs(ours - theirs).max() <= 1
    assert row_of(out, "interval/defaults")["cosine"] == pytest.approx(1, abs=1e-4)


def test_further_values_of_the_knob_are_drawn_on_the_first_prompts(out: Path) -> None:
    """And compared with the curve there; with no control of a drawing of its own."""
    first = {record["file"]: record["seed"] for record in read_lines(out / "cells/interval/defaults/samples.jsonl")}
    pictures = set[str]()
    for setting, each in (("stop=0.6", 7), ("stop=1.0", 9)):  # of 5 steps 2 or 4 lie in the interval
        row = row_of(out, f"interval/{setting}")
        assert (row["role"], row["evaluations"], row["pictures"]) == ("knob", each, 6)
        records = read_lines(out / f"cells/interval/{setting}/samples.jsonl")
        assert {record["file"]: record["seed"] for record in records}.items() <= first.items()
        pictures |= {record["sha256"] for record in records}
        told_of = [one for one in told(out)["duels"] if one["row"] == row["name"] and one["column"] == "diversity"]
        assert {one["control"] for one in told_of} >= {"nominal", "effective", "best"}
        assert all(one["difference"][3] == 3 for one in told_of if one["difference"] is not None)
    assert len(pictures) == 12


def test_as_many_evaluations_are_as_many_steps(out: Path) -> None:
    """Of 5 steps 3 lie in the interval of 0.2 to 0.8, with two evaluations each."""
    assert row_of(out, "interval/defaults")["evaluations"] == 8
    steps = json.loads((out / "cells/interval/evaluations/run.json").read_text())["config"]["sampler"]["steps"]
    assert steps == 4
    assert row_of(out, "interval/evaluations")["evaluations"] == 8
    assert not (out / "cells/mine/evaluations").exists()  # it takes as many by itself


def test_another_shard_s_curve_may_be_no_further_than_scale_1(tmp_path: Path) -> None:
    """Which takes half of the evaluations, so that a control of as many would have twice the steps."""
    asked = {"guidance": {"scale": 7.5}, "sampler": {"steps": 20}}
    for cell, each in (("cfg/1", 20), ("mine/defaults", 60)):
        (tmp_path / "cells" / cell).mkdir(parents=True)
        (tmp_path / "cells" / cell / "samples.jsonl").write_text(json.dumps({"evaluations": each}) + "\n")
        (tmp_path / "cells" / cell / "run.json").write_text(json.dumps({"config": asked}))
    found = Arena(tmp_path, Plan((), (), OmegaConf.create({"prompts": 2})), {}, None, [])
    mine, folder = Method("mine", (), None, (), None, True), tmp_path / "cells" / "mine" / "defaults"
    with pytest.raises(ValueError, match="there is no curve yet"):
        found.of_same_evaluations(mine, folder)
    (tmp_path / "cells" / "cfg" / "2").mkdir()
    (tmp_path / "cells" / "cfg" / "2" / "samples.jsonl").write_text(json.dumps({"evaluations": 40}) + "\n")
    assert "sampler.steps=30" in found.of_same_evaluations(mine, folder).overrides


def test_it_goes_on_where_it_stopped_and_takes_further_methods(out: Path, enter: Callable[..., int]) -> None:
    pictures = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("images/*.png")}
    before = told(out)
    assert enter("only=[mine]", "draw=false") == 0
    assert told(out)["rows"] == before["rows"]
    assert enter("only=[broken]") == 1  # it wants a network that is not there
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    assert "networks.weak" in (out / "cells/broken/defaults/error.txt").read_text()
    assert enter("only=[mine]", "league.prompts=5") == 1  # other settings, another folder


def test_scores_kept_without_their_pictures_are_the_whole_arena(
    out: Path, enter: Callable[..., int], tmp_path: Path
) -> None:
    """The same verdicts, no cell is drawn again, and a further method finds its controls."""
    kept = tmp_path / "kept"
    shutil.copytree(out, kept, ignore=shutil.ignore_patterns("images"))
    assert enter("only=[mine,interval]", f"out={kept}") == 0
    assert {key: told(kept)[key] for key in ("rows", "duels")} == {key: told(out)[key] for key in ("rows", "duels")}
    assert not list(kept.rglob("images/*"))
    assert enter("only=[rescale]", f"out={kept}") == 0
    assert {path.parent.name for path in kept.rglob("images")} == {"defaults", "followed", "phi=0.35", "phi=1.0"}
    (one,) = [
        one
        for one in told(kept)["duels"]
        if (one["row"], one["control"], one["column"]) == ("rescale/defaults", "nominal", "objects")
    ]
    assert one["difference"] is not None


# --- what is compared -------------------------------------------------------------------------------------------------


def scores(out: Path, name: str, metric: str, key: str) -> dict[str, float]:
    rows = json.loads((out / "cells" / name / "metrics" / f"{metric}.json").read_text())["per_image"]
    return {row["file"]: float(row[key]) for row in rows if row[key] is not None}


def holm(ps: list[float]) -> list[float]:
    order = np.argsort(ps)
    corrected = np.maximum.accumulate([min(1.0, (len(ps) - i) * ps[k]) for i, k in enumerate(order)])
    return [float(corrected[list(order).index(k)]) for k in range(len(ps))]


def share(g: float) -> float:
    """Of the curve's upper scale, between 3 and 30."""
    return (g - 3) / 27


def wins(ahead: float) -> float:
    return 0.5 if abs(ahead) < 1e-4 else float(ahead > 0)


COLUMNS = {"objects": ("judge", "value", 1), "leak": ("judge", "leak", -1), "contrast": ("look", "contrast", 1)}


@pytest.mark.parametrize("column", COLUMNS)
def test_verdicts_follow_from_the_stored_scores(out: Path, column: str) -> None:
    """By scipy, on each prompt's mean: where all prompts have as many pictures that is what clustering comes to."""
    metric, key, sign = COLUMNS[column]
    found, ps = told(out), {}
    for method in ("mine", "interval"):
        ours = scores(out, f"{method}/defaults", metric, key)
        g = row_of(out, f"{method}/defaults")["effective"][0]
        assert 3 < g < 30
        low, high = (scores(out, f"cfg/{scale}", metric, key) for scale in (3, 30))
        between = {file: low[file] + share(g) * (high[file] - low[file]) for file in low.keys() & high.keys()}
        controls = {"followed": scores(out, f"{method}/followed", metric, key), "effective": between}
        weighted = {"followed": [(1, controls["followed"])], "effective": [(1 - share(g), low), (share(g), high)]}
        for control, theirs in controls.items():
            wanted = (f"{method}/defaults", control, column)
            (one,) = [d for d in found["duels"] if (d["row"], d["control"], d["column"]) == wanted]
            files = sorted(ours.keys() & theirs.keys())
            if not files:
                assert one["difference"] is None
                continue
            differences = [ours[file] - theirs[file] for file in files]
            value, low_edge, high_edge, count = one["difference"]
            assert (value, count) == (pytest.approx(np.mean(differences)), len(files))
            won = [sum(w * wins(sign * (ours[file] - met[file])) for w, met in weighted[control]) for file in files]
            assert one["win"][0] == pytest.approx(np.mean(won))
            by_prompt: dict[str, list[float]] = {}
            for file, d in zip(files, differences, strict=True):
                by_prompt.setdefault(file[7:12], []).append(d)
            balanced = len({len(some) for some in by_prompt.values()}) == 1 < len(by_prompt)
            if balanced and np.ptp(differences) > 1e-9:
                test = ttest_1samp([np.mean(some) for some in by_prompt.values()], 0)
                assert one["p"] == pytest.approx(test.pvalue, rel=1e-6, abs=1e-9)
                interval = test.confidence_interval()
                assert (low_edge, high_edge) == (pytest.approx(interval.low), pytest.approx(interval.high))
            ps.setdefault(control, []).append((one["p"], one["holm"]))
    for pairs in ps.values():
        known = [pair for pair in pairs if pair[0] is not None]
        assert [corrected for _, corrected in known] == pytest.approx(holm([p for p, _ in known]))


def test_photographs_are_measured_by_clip(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> None:
    """The same verb, a model of photographs: GenEval's tasks, and a CLIP in the judge's place."""
    network = randomise(open_clip.model.CLIP(**CLIP))
    save_file(network.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    out = tmp_path / "out"
    asked = ["model=file", f"model.path={tiny_folder}", "dtype=float32", "sampler.steps=2", "bootstrap.resamples=20"]
    asked += ["league=quick", "league.prompts=3", "league.tuning_prompts=1", "league.curve=[3.0]", "league.pictures=1"]
    asked += ["only=[tcfg]", f"clip_model={tmp_path}", f"out={out}"]
    outcome = cli("arena", *asked, "~measures.photo.pick_score")
    assert outcome.status == 0, outcome.err
    row = row_of(out, "tcfg/defaults")
    assert {name for name, value in row["values"].items() if value} == {
        "CLIP score",
        "diversity",
        "saturation",
        "contrast",
    }
    assert (
        read_lines(out / "cells/tcfg/defaults/samples.jsonl")[0]["prompt"]
        == geneval.scenes(geneval.PUBLISHED)[0]["prompt"]
    )
    assert cli("geneval", f"run={out / 'cells/tcfg/defaults'}", f"out={tmp_path / 'layout'}").status == 0
    assert len(list((tmp_path / "layout").rglob("*.png"))) == 6


def test_the_best_scale_is_chosen_on_other_prompts(out: Path) -> None:
    worth = {}
    for scale in ("1", "3", "30"):
        result = json.loads((out / "cells/tuning" / scale / "metrics/judge.json").read_text())
        worth[float(scale)] = result["details"]["all_right"]["value"]
    assert told(out)["best_scale"] == max(worth, key=lambda scale: worth[scale])
    shown = [{r["sha256"] for r in read_lines(out / f"cells/{name}/3/samples.jsonl")} for name in ("cfg", "tuning")]
    assert not shown[0] & shown[1]


def cell(name: str) -> Cell:
    return Cell(Path(name), name, {}, {}, (), None, {})


def test_between_two_scales_of_the_curve() -> None:
    curve = {1.0: cell("a"), 3.0: cell("b"), 7.0: cell("c")}
    found, _ = on_curve(curve, 4.0)
    assert found is not None
    assert [c.name for c in found.cells] == ["b", "c"]
    assert found.weights == (0.75, 0.25)
    exact, _ = on_curve(curve, 3.0)
    assert exact is not None
    assert [c.name for c in exact.cells] == ["b"]
    assert on_curve(curve, 7.5)[0] is None
    assert "outside the curve" in on_curve(curve, 0.5)[1]


def test_a_pair_meets_the_better_of_its_parts_in_each_column() -> None:
    def row(name: str, **values: float) -> Row:
        told = {column: Estimate(value, None, None, 4) for column, value in values.items()}
        cell = Cell(Path(name), f"{name}/defaults", {}, {}, (), None, {})
        return Row(cell, "defaults", name, "defaults", None, None, None, None, None, told)

    rows = [row("pag", objects=0.9, leak=0.3), row("apg", objects=0.8, leak=0.1), row("pag_apg", objects=1.0, leak=0.0)]
    for column, best in ((Column("objects", "", "higher"), "pag"), (Column("leak", "", "lower"), "apg")):
        against, note = better_part(("pag", "apg"), rows, column)
        assert against is not None and [cell.name for cell in against.cells] == [f"{best}/defaults"] and note == best
    assert better_part(("pag", "seg"), rows, column) == (None, "seg was not measured")


# --- the table of methods ---------------------------------------------------------------------------------------------


def table() -> list[Any]:
    entries = {}
    for name in ("zoo", "combined"):
        entries |= OmegaConf.load(CONF / "methods" / f"{name}.yaml")
    return [pytest.param(method_of(name, entry, "emoji"), id=name) for name, entry in entries.items()]


def test_every_method_of_the_table_can_be_made() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for method in (param.values[0] for param in table()):
            plain = compose("sample", overrides=list(method.overrides)).guidance
            assert method.scale_of(OmegaConf.to_container(plain)) is not None or method.name in (
                "autoguidance",
                "cfg_pp",
            )
            made = {repr(build.guidance(plain))}
            if method.values:
                knob = compose("sample", overrides=[*method.overrides, f"{method.knob}={method.values[-1]}"]).guidance
                made.add(repr(build.guidance(knob)))
                assert len(method.values) == len(made) == 2, method.name


def test_further_networks_are_for_the_methods_that_ask_for_them() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("arena", overrides=["only=[pag,autoguidance,mine]", "networks.weak=FOLDER"])
    told = "++networks.weak=FOLDER"
    assert [told in method.overrides for method in methods(cfg)] == [False, True, True]
    cfg.networks.weak = None
    assert [method.name for method in methods(cfg)] == ["pag", "mine"]


def test_all_methods_go_by_another_scale() -> None:
    """At its innermost guidance; but methods that say it otherwise, and what another network decides."""
    league = OmegaConf.create({"prompts": 3, "knob_prompts": 2})
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for method in (param.values[0] for param in table()):
            planned = Plan((), (), league, 4.5)
            cells = [planned.defaults(method), *planned.knob(method)]
            guidance = OmegaConf.to_container(compose("sample", overrides=list(cells[0].overrides)).guidance)
            assert method.scale_of(guidance) == {"cfg_pp": None, "autoguidance": None}.get(method.name, 4.5), (
                method.name
            )
            if method.knob == "guidance.scale" and "inner" not in guidance and method.reads_nominal:
                found = [compose("sample", overrides=list(cell.overrides)).guidance.scale for cell in cells[1:]]
                assert found == list(method.values)
            assert Plan((), (), league).defaults(method).overrides == (
                "++prompts.count=3",
                *method.overrides,
            )


def test_a_method_that_cannot_be_composed_fails_as_a_cell() -> None:
    """And not where the scale of its settings is looked for."""
    league = OmegaConf.create({"prompts": 3, "knob_prompts": None})
    with initialize_config_dir(str(CONF), version_base="1.3"):
        planned = Plan((), (), league, 3.0).defaults(Method("x", ("guidance=nope",), None, (), None, True))
    assert planned.overrides == ("++prompts.count=3", "guidance=nope")


def test_no_two_prompts_of_the_suite_share_their_noise() -> None:
    """Nor do those on which the best scale is chosen."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked = compose("arena").tuning.emoji
        pictures = [
            picture
            for overrides in (["seeds=[0,1]"], list(asked))
            for picture in build.request(compose("sample", ["prompt=null", "prompts=emoji_arena", *overrides])).pictures
        ]
    assert len({seed for _, seed in pictures}) == len(pictures) == 1200
    assert pictures[:4] == [(0, 0), (0, 1), (1, 1000), (1, 1001)]


def test_the_leagues_of_results_compose() -> None:
    """By what `make -n` prints: at one scale, and each shard once."""
    make = ["make", "-n", "-f", "experiments/results/arena.mk", "SECOND=FOLDER", "WEAK=FOLDER", "OUT=outputs/nothing"]
    printed = subprocess.run(make, cwd=CONF.parent, capture_output=True, text=True, check=True).stdout
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = [compose("arena", shlex.split(line)[3:]) for line in printed.splitlines() if ".arena " in line]
    assert {cfg.nominal for cfg in found} == {4.5}
    drawn = [(Path(cfg.out).name, cfg.league.name, cfg.shard) for cfg in found if cfg.draw]
    assert drawn == [
        (folder, league, f"{shard}/2")
        for folder, league in (("full", "full"), ("combined", "combined"), ("second", "second"))
        for shard in (0, 1)
    ]
    assert [(Path(cfg.out).name, cfg.second and Path(cfg.second).name) for cfg in found if not cfg.draw] == [
        ("full", "second"),
        ("combined", None),
    ]


def test_nominal_scales() -> None:
    method = Method("x", (), None, (), None, True)
    assert method.scale_of({"scale": 3.0, "inner": {"inner": {"scale": 7}, "scale": 2}}) == 7
    assert method.scale_of({"strength": 3.0}) is None
    assert Method("x", (), None, (), 7.5, False).scale_of({"scale": 0.6}) == 7.5


def test_changes_are_overrides_that_hydra_reads() -> None:
    new = {"a": 1.5, "b": "it's, a [fish]", "c": None, "d": [1, "x y"], "e": {"f": True, "g": "a/b.txt"}, "h": "null"}
    old = {"a": 1, "b": "", "c": 3, "d": [], "e": {"f": False}, "h": None}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("sample", overrides=[f"+x={literal(old)}", *changes("x", old, new)])
    assert OmegaConf.to_container(cfg.x) == new
    assert changes("x", new, new) == []


def test_cfg_pp_has_the_scale_of_each_step_that_it_amounts_to(tiny_folder: Path) -> None:
    """lambda sigma / (sigma - sigma'), under DDIM: what `followed` needs, though its x_0 is at lambda."""
    asked = ["model=file", f"model.path={tiny_folder}", "guidance=cfg_pp", "prompt=a cat", "sampler.steps=6"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = draw.prepare(compose("sample", overrides=asked))
    probe = Projection(job.machine.guidance)
    for _ in draw.moments(job.machine, draw.batch_of(job, 0, 1), probe):
        pass
    found = [step["scale"].item() for step in probe.steps]
    assert found == pytest.approx([0.6 * s.now.sigma / (s.now.sigma - s.to.sigma) for s in job.machine.steps], rel=1e-3)


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.data, self.links, self.inside = "", list[str](), False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.inside = ("id", "data") in attributes
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset") and value]

    def handle_data(self, data: str) -> None:
        self.data += data if self.inside else ""


def test_the_page_holds_all_there_is_and_needs_no_network(out: Path) -> None:
    text = (out / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"@import|fetch\(|XMLHttpRequest|import\(", text)
    data, found = json.loads(page.data), told(out)
    assert data["duels"] == found["duels"]
    assert data["rows"] == [row for row in found["rows"] if row["role"] != "tuning"]
    assert set(data["pictures"]) == {row["name"] for row in data["rows"] if row["pictures"]}
    strip = data["pictures"]["mine/defaults"]
    assert strip["uri"].startswith("data:image/webp;base64,")
    assert strip["count"] == len(strip["told"]) == 4
    assert data["beside"]["interval/defaults"][-2:] == ["interval/followed", "interval/evaluations"]
    assert "<svg" in (out / "frontier.svg").read_text()


def test_the_short_tables_go_into_a_page_of_results(
    out: Path, enter: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text(
        "before\n<!-- arena quick -->\n<!-- end -->\nbetween\n<!-- arena quick beyond -->\nold\n<!-- end -->\n"
    )
    assert enter("only=[mine]", "draw=false", f"results={page}") == 0
    ranking, beyond = (out / "ranking.md").read_text().split("\n\n")
    tables = (
        f"<!-- arena quick -->\n{ranking}\n<!-- end -->\nbetween\n<!-- arena quick beyond -->\n{beyond}<!-- end -->\n"
    )
    assert page.read_text() == "before\n" + tables
    assert (tmp_path / "arena_quick.svg").read_text() == (out / "frontier.svg").read_text()
    page.write_text("no marks")
    assert enter("only=[mine]", "draw=false", f"results={page}") == 1
    assert "has no mark <!-- arena quick -->" in capsys.readouterr().err


@pytest.mark.browser
def test_the_ranking_in_a_browser(out: Path) -> None:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    sync = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # for root
        page, errors = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((out / "report.html").resolve().as_uri())
        order = [page.locator("#ranking tbody th").all_inner_texts()]
        page.get_by_role("button", name="method", exact=True).click()
        order.append(page.locator("#ranking tbody th").all_inner_texts())
        assert order[1] == sorted(order[0])
        page.fill("#filter", "mine")
        page.uncheck("#curve")
        assert page.locator("#ranking tbody th").all_inner_texts() == ["mine"]
        page.get_by_role("button", name="mine", exact=True).click()
        assert page.locator(".strips img").count() >= 3
        page.select_option("#view", "followed")
        assert "wins" in page.locator("tbody tr").first.inner_text()
        assert not errors
        browser.close()


def test_beyond_strength_and_price_is_under_each_of_three_controls() -> None:
    said = {
        "both": ("better", "better", "better"),
        "objects": ("better", "cannot be told", "better"),
        "leak": ("worse", "worse", "worse"),
        "style": ("better", None, "better"),  # it has no control of as many evaluations
    }
    duels = [
        Duel("mine/defaults", "defaults", control, column, None, None, None, None, verdict, "")
        for column, verdicts in said.items()
        for control, verdict in zip(("effective", "evaluations", "followed"), verdicts, strict=True)
    ]
    duels += [replace(duel, control=control, verdict="worse") for duel in duels for control in ("nominal", "best")]
    cell = Cell(Path(), "mine/defaults", {}, {}, (), None, {})
    row = Row(cell, "defaults", "mine", "defaults", None, None, None, None, None, {})
    found = Findings((row,), tuple(duels), tuple(Column(name, "", "higher") for name in said), None)
    assert beyond_table(found, None).splitlines()[2:] == ["| mine | both | leak |  |"]
    second = replace(found, duels=tuple(one for one in duels if one.control == "effective"))
    assert beyond_table(found, second).splitlines()[2:] == ["| mine | both (second, too) | leak (second, too) |  |"]
    without = replace(found, duels=tuple(one for one in duels if one.control != "followed"))
    assert beyond_table(without, None).splitlines()[2:] == ["| mine |  |  | followed |"]


# --- two models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(out: Path, enter: Callable[..., int], place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the first model's arena says beside a second's, and what that says by itself."""
    model = tiny_model()
    randomise(model.unet)
    write_folder(model, place / "other")
    other, shown = place / "second", place / "joint"
    only = "only=[mine,interval]"
    assert enter(only, f"model.path={place / 'other'}", "league.controls=false", f"out={other}") == 0
    shutil.copytree(out, shown)
    assert enter(only, "draw=false", f"out={shown}", f"second={other}") == 0
    return told(shown), told(other)


def test_a_second_model_s_verdicts_stand_beside_the_first_s(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    joint, other = both
    by_place = {(one["row"], one["control"], one["column"]): one for one in other["duels"]}
    for one in joint["duels"]:
        assert one["second"] == by_place.get((one["row"], one["control"], one["column"]))
        assert (one["together"] is None) == (one["verdict"] is None)
    values = {row["name"]: row["values"] for row in other["rows"]}
    assert all(row["second"] == values.get(row["name"], {}) for row in joint["rows"])
    (mine,) = [row for row in joint["rows"] if row["name"] == "mine/defaults"]
    assert mine["second"]["diversity"] is not None and mine["second"]["diversity"] != mine["values"]["diversity"]
    assert {row["role"] for row in other["rows"]} == {"curve", "tuning", "defaults", "knob"}  # no controls of their own


def test_a_second_arena_at_another_scale_is_refused(
    both: object, enter: Callable[..., int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["draw=false", "nominal=4", f"out={place / 'at another'}", f"second={place / 'second'}"]
    assert enter("only=[mine]", *other) == 1
    assert "nominal was 4.0, now is None" in capsys.readouterr().err


def test_the_short_table_and_the_page_show_both(both: object, place: Path, out: Path) -> None:
    line = next(row for row in (place / "joint" / "ranking.md").read_text().splitlines() if row.startswith("| mine |"))
    assert line.count("; second ") >= 2
    text, alone = ((folder / "report.html").read_text() for folder in (place / "joint", out))
    assert 'id="agreed"' in text and 'id="agreed"' not in alone


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("better", "better", "better on both"),
        ("worse", "better", "opposite"),
        ("cannot be told", "worse", "worse on the second alone"),
        ("cannot be told", "cannot be told", "cannot be told"),
        ("better", None, "one model"),
        (None, "better", None),
    ],
)
def test_what_two_models_say_together(one: str | None, other: str | None, said: str | None) -> None:
    first, second = (Duel("a", "defaults", "best", "both", None, None, None, None, told, "") for told in (one, other))
    assert together(first, second) == said
    assert together(first, None) == (one and "one model")


def test_a_second_arena_that_is_not_there_is_one_line(out: Path, enter: Callable[..., int], capsys: Any) -> None:
    assert enter("only=[mine]", "draw=false", "second=nowhere") == 1
    assert "second=nowhere: holds no arena" in capsys.readouterr().err
