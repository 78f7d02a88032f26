"""The evaluating verb and the one that writes references: their files, their table, and what they say of bad input."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import JUDGE, drawing, make_folder, make_run, randomise
from hydra import compose, initialize_config_dir
from packages import write_package
from PIL import Image
from tiny import Outcome

import experiments.data.reference
import experiments.evaluate
import experiments.run.cli
from experiments.emoji.judge import Judge, save_judge
from experiments.files import CONF
from experiments.pictures import save_png, to_image
from experiments.run import build

Verb = Callable[..., Outcome]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verb:
    """verb(experiments.evaluate, "run=...") in this process, as `python -m` would run it."""

    def run(module: object, *overrides: str) -> Outcome:
        name = module.__name__.rsplit(".", 1)[1]
        monkeypatch.setattr(sys, "argv", [name, *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capsys.readouterr()
        status = 0
        try:
            experiments.run.cli.run(module.main, name)
        except SystemExit as stop:
            status = stop.code
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture
def evaluate(verb: Verb) -> Verb:
    return lambda *overrides: verb(experiments.evaluate, "device=cpu", "bootstrap.resamples=20", *overrides)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    save_judge(randomise(Judge(JUDGE)), folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", [{"prompt": "a red cat"}, {"prompt": "a fish next to a dragon"}], [0, 1, 2])


def judged(run: Path, judge: Path) -> list[str]:
    return [f"run={run}", "metrics=[judge]", f"metrics.judge.weights={judge}"]


@pytest.mark.parametrize("path", sorted((CONF / "metrics").glob("*.yaml")), ids=lambda path: path.stem)
def test_metric_is_one_yaml_that_mirrors_its_class(path: Path) -> None:
    needed: dict = {"frechet": {"reference": "x"}, "alpha_fid": {"references": "x"}}.get(path.stem, {})
    needed |= {"object_shares": {"objects": ["x", "y"]}, "word_choice": {"words": ["x", "y"]}}.get(path.stem, {})
    needed |= {"class_shares": {"classes": ["A", "B"]}}.get(path.stem, {})
    overrides = [f"metrics.{path.stem}.{key}={value}" for key, value in needed.items()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate", ["run=x", f"metrics=[{path.stem}]", *overrides]).metrics
    assert list(cfg) == [path.stem]
    made = build.create(cfg[path.stem], path.stem)
    assert callable(made.measure)
    assert set(cfg[path.stem]) - {"_target_"} == set(vars(made))
    assert made == type(made)(**needed)


def test_results_and_table(evaluate: Verb, run: Path, judge: Path, tmp_path: Path) -> None:
    reference = make_folder(tmp_path / "reference", 30)
    settings = [f"metrics.frechet.reference={reference}", f"metrics.frechet.weights={judge}"]
    outcome = evaluate(*judged(run, judge), "metrics=[judge,frechet]", *settings)
    assert outcome.status == 0, outcome.err
    assert {path.name for path in (run / "metrics").iterdir()} == {"judge.json", "frechet.json"}
    found = json.loads((run / "metrics" / "judge.json").read_text())
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert found["count"] == len(found["per_image"]) == 6
    assert found["settings"] == {"weights": str(judge), "prompt": None}
    assert found["bootstrap"] == {"resamples": 20, "seed": 0, "unit": "pictures"}
    assert {"commit", "versions", "warnings", "against", "run"} <= set(found)
    distance = json.loads((run / "metrics" / "frechet.json").read_text())
    assert len(distance["about"]["reference"]["sha256"]) == 64
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["metric", "value", "95", "%", "interval", "n"]
    assert any(line.startswith("judge") for line in lines)
    assert any(line.startswith("  all_right") for line in lines)
    assert "warning: frechet: run: 6 pictures are no more than the 16 features" in outcome.err
    again = (run / "metrics" / "judge.json").read_bytes()
    assert evaluate(*judged(run, judge)).status == 0
    assert (run / "metrics" / "judge.json").read_bytes() == again


def test_against_another_run(evaluate: Verb, run: Path, judge: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", [{"prompt": "a red cat"}], [1, 2, 3])
    outcome = evaluate(*judged(run, judge), f"against={other}")
    assert outcome.status == 0, outcome.err
    against = json.loads((run / "metrics" / "judge.json").read_text())["against"]
    assert (against["pairs"], against["unpaired"]) == (2, 5)
    assert against["colours"]["wins"] + against["colours"]["losses"] + against["colours"]["ties"] == 2
    assert "both" not in against  # the pairs ask for one object
    assert "ties, sign test p" in outcome.out


def test_against_another_run_by_a_metric_of_some_pictures(evaluate: Verb, run: Path, tmp_path: Path) -> None:
    """Diversity scores each prompt's first picture alone: there are as many pairs as both have scored."""
    other = make_run(tmp_path / "other", [{"prompt": "a red cat"}, {"prompt": "a fish next to a dragon"}], [0, 1])
    save_judge(randomise(Judge(JUDGE)), tmp_path / "judge")
    metric = of("diversity", "features=judge", f"weights={tmp_path / 'judge'}")
    outcome = evaluate(*metric, f"run={run}", f"against={other}")
    assert outcome.status == 0, outcome.err
    against = json.loads((run / "metrics" / "diversity.json").read_text())["against"]
    assert (against["pairs"], against["unpaired"]) == (2, 0)


def test_a_metric_is_one_file_and_one_yaml(
    evaluate: Verb, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brightness, made here."""
    (tmp_path / "brightness.py").write_text(
        "from dataclasses import dataclass\n"
        "from experiments.metrics import Result\n"
        "from experiments.metrics.folders import read\n"
        "@dataclass(frozen=True)\n"
        "class Brightness:\n"
        "    scale: float = 1.0\n"
        "    def measure(self, run, bench):\n"
        "        grey = [read(file).convert('L').resize((1, 1)) for file in run.pictures.files]\n"
        "        scores = [self.scale * pixel.getpixel((0, 0)) for pixel in grey]\n"
        "        return Result(bench.bootstrap.mean(scores, run.captions))\n"
    )
    (tmp_path / "conf" / "metrics").mkdir(parents=True)
    (tmp_path / "conf" / "metrics" / "brightness.yaml").write_text(
        "brightness:\n  _target_: brightness.Brightness\n  scale: 2.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = evaluate(f"run={run}", "metrics=[brightness]", f"hydra.searchpath=[file://{tmp_path / 'conf'}]")
    assert outcome.status == 0, outcome.err
    assert json.loads((run / "metrics" / "brightness.json").read_text())["value"] > 2


def test_unreadable_pictures_are_named_and_counted(evaluate: Verb, run: Path, judge: Path) -> None:
    path = run / "images" / "00000_1.png"
    path.write_bytes(path.read_bytes()[:60])
    outcome = evaluate(*judged(run, judge))
    assert outcome.status == 0
    assert "warning: judge: run: 1 unreadable images left out: 00000_1.png" in outcome.err
    found = json.loads((run / "metrics" / "judge.json").read_text())
    assert [record["file"] for record in found["per_image"]][:2] == ["images/00000_0.png", "images/00000_2.png"]
    assert "00000_1.png" in found["warnings"][0]


def of(name: str, *settings: str) -> list[str]:
    """Overrides that choose a metric and its settings."""
    return [f"metrics=[{name}]", *(f"metrics.{name}.{setting}" for setting in settings)]


BAD = {
    "no run": (["run=/no/run"], "run=/no/run: no run folder of experiments.sample"),
    "not a run": (["-run.json"], "no run folder of experiments.sample"),
    "no grid": (["-grid.png"], "unfinished, 6 pictures so far"),
    "a picture gone": (["-images/00000_1.png"], "unfinished, 5 pictures so far"),
    "no metrics": (["metrics=[]"], "metrics: at least one"),
    "unknown metric": (["metrics=[magic]"], "Could not load 'metrics/magic'"),
    "no setting": (
        ["+metrics.judge.size=3"],
        "metrics.judge.size: experiments.metrics.judge.JudgeMetric has no such setting; it has ",
    ),
    "no judge": (of("judge", "weights=/no/judge"), "no judge in /no/judge"),
    "batch": (["batch_size=0"], "batch_size=0"),
    "unit": (["bootstrap.unit=seeds"], "bootstrap.unit=seeds"),
    "against": (["against={run}/images"], "no run folder"),
    "unpaired": (["against={other}"], "has no picture of the same prompt and seed"),
    "reference": (of("frechet"), "metrics.frechet.reference"),
    "no reference": (of("frechet", "reference=/no/folder"), "no such folder"),
    "empty reference": (of("frechet", "reference={empty}"), "holds no images"),
    "one picture": (of("frechet", "reference={one}", "weights={judge}"), "holds 1 picture, and at least 2 are needed"),
    "mixed sizes": (of("frechet", "reference={mixed}", "weights={judge}"), "mixed sizes, 16x16 (2), 24x24 (1)"),
    "no image": (of("frechet", "reference={text}", "weights={judge}"), "none of its 1 images can be read"),
    "features": (of("frechet", "reference={one}", "features=vgg"), "features=vgg: must be inception, judge or"),
    "splits": (of("inception_score"), "6 pictures make no 10 splits"),
    "references": (of("alpha_fid", "references={one}"), "must hold a folder of pictures for each object"),
    "clip model": (of("clip_score", "model=ViT-x"), "model=ViT-x: neither a folder nor a name"),
    "clip weights": (of("clip_score", "model=ViT-B-32"), "model=ViT-B-32: say pretrained=FILE"),
    "clip tag": (of("clip_score", "model=RN50", "pretrained=x"), "the weights x of RN50 cannot be had"),
    "pick model": (of("pick_score", "model={one}"), "no PickScore at model="),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(evaluate: Verb, run: Path, judge: Path, tmp_path: Path, case: str) -> None:
    overrides, said = BAD[case]
    (tmp_path / "empty").mkdir()
    save_png(to_image(drawing(1, 24)), make_folder(tmp_path / "mixed", 2) / "large.png")
    make_folder(tmp_path / "one", 1)
    make_folder(tmp_path / "text", 1)
    (tmp_path / "text" / "0.png").write_text("no picture")
    make_run(tmp_path / "other", [{"prompt": "a red cat"}], [7])
    places = {name: tmp_path / name for name in ("empty", "mixed", "text", "one", "other", "run")} | {"judge": judge}
    for name, place in places.items():
        overrides = [override.replace(f"{{{name}}}", str(place)) for override in overrides]
    for gone in [override[1:] for override in overrides if override.startswith("-")]:
        (run / gone).unlink()
    usual = [f"run={run}"] if any(o.startswith("metrics=") for o in overrides) else judged(run, judge)
    outcome = evaluate(*usual, *(o for o in overrides if not o.startswith("-")))
    assert outcome.status == 1
    said_lines = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert len(said_lines) == 1, outcome.err
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(run.glob("metrics/*"))


def test_resize_mends_mixed_sizes(evaluate: Verb, run: Path, judge: Path, tmp_path: Path) -> None:
    mixed = make_folder(tmp_path / "mixed", 20)
    save_png(to_image(drawing(1, 24)), mixed / "large.png")
    settings = {"reference": mixed, "weights": judge, "resize": 12}
    outcome = evaluate(f"run={run}", "metrics=[frechet]", *(f"metrics.frechet.{k}={v}" for k, v in settings.items()))
    assert outcome.status == 0, outcome.err
    about = json.loads((run / "metrics" / "frechet.json").read_text())["about"]
    assert about["resize"] == 12
    assert about["reference"]["sizes"] == {"16x16": 20, "24x24": 1}


WORLD = [
    "world.image_size=16", "~world.concepts", "+world.concepts={square: square, disc: disc}", "~world.styles",
    "+world.styles={warm: warm-set, icy: icy-set}", "world.sizes_one={small: [10], large: [14]}",
    "world.sizes_more={small: [6], large: [8]}", "world.share_held_out=0.3",
]  # fmt: skip


def test_reference_folders(verb: Verb, tmp_path: Path) -> None:
    write_package(tmp_path / "icons", "warm-set", "#ff4000", packed=True)
    write_package(tmp_path / "icons", "icy-set", "#00a0ff", packed=False)
    asked = [*WORLD, f"icons={tmp_path / 'icons'}", f"cache={tmp_path / 'cache'}", "count=3"]
    reference = experiments.data.reference
    for out in ("one", "two"):
        outcome = verb(reference, *asked, f"out={tmp_path / out}")
        assert outcome.status == 0, outcome.err
    names = ["00000.png", "00001.png", "00002.png"]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [*names, "captions.jsonl"]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    lines = [json.loads(line) for line in (tmp_path / "one" / "captions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == names
    assert verb(reference, *asked, f"out={tmp_path / 'each'}", "concepts=all").status == 0
    assert Image.open(tmp_path / "each" / "disc" / "00002.png").size == (16, 16)
    captions = (tmp_path / "each" / "disc" / "captions.jsonl").read_text()
    assert captions.count("disc") == 3
    assert "square" not in captions
    for wrong, said in [
        (f"out={tmp_path / 'one'}", "is there already"),
        ("concepts=[cube]", "concepts=['cube']"),
        ("split=test", "split=test"),
        ("count=0", "count=0"),
    ]:
        outcome = verb(reference, *asked, f"out={tmp_path / 'new'}", wrong)
        assert (outcome.status, outcome.err.count("\n")) == (1, 1), outcome.err
        assert said in outcome.err
