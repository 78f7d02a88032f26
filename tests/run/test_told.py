"""Verbs on models that are told a class, or nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import CLASSES, TOLD, Outcome, tiny_model

from ldm.files.writing import write_folder

QUICK = ["model=file", "sampler.steps=2", "height=16", "width=16"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("told")
    for name, config in TOLD.items():
        write_folder(tiny_model(config), path / name)
    return path


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_every_class_is_a_suite(cli: Callable[..., Outcome], folders: Path, tmp_path: Path) -> None:
    model, out = f"model.path={folders / 'vector'}", tmp_path / "out"
    outcome = cli("sample", *QUICK, model, "prompts=classes", "seeds=[0,1]", f"hydra.run.dir={out}")
    assert outcome.status == 0, outcome.err
    assert [record["prompt"] for record in records(out)] == [name for name in CLASSES.names for _ in range(2)]
    some, out = "prompts.classes=[B,7]", tmp_path / "some"
    assert cli("sample", *QUICK, model, "prompts=classes", some, f"hydra.run.dir={out}").status == 0
    assert [record["prompt"] for record in records(out)] == ["B", "7"]


def test_stages_of_classes_and_nothing(cli: Callable[..., Outcome], folders: Path, tmp_path: Path) -> None:
    stages = ["guidance=multistage", "guidance.stages=[{prompt: A, steps: 1}, {prompt: 7, steps: 1}]"]
    out = tmp_path / "stages"
    outcome = cli("sample", *QUICK, f"model.path={folders / 'token'}", *stages, f"hydra.run.dir={out}")
    assert outcome.status == 0, outcome.err
    assert [stage["prompt"] for stage in records(out)[0]["stages"]] == ["A", "7"]
    out = tmp_path / "nothing"
    outcome = cli(
        "sample", *QUICK, f"model.path={folders / 'nothing'}", "guidance.scale=1", f"hydra.run.dir={out}", "seeds=[3]"
    )
    assert outcome.status == 0, outcome.err
    assert (out / "grid.png").exists() and records(out)[0]["seed"] == 3


CROSS = {
    "segmentation_free": "SegmentationFree",
    "segmentation_free guidance.apply=scores": "SegmentationFree",
    "attend_and_excite": "AttendAndExcite of ClassifierFree",
    "pladis": "SparseCross of ClassifierFree",
    "temperature": "AttentionTemperature of ClassifierFree",
    "scfg": "SemanticAware",
    "cdg": "DegradedCondition",
}
WRONG = [
    ("token", ["prompt=Z"], "prompt: there is no class 'Z': there are A, B, a, light bulb, 7"),
    ("token", ["prompt=A", "negative_prompt='light bulbs'"], "near it are light bulb"),
    ("token", ["guidance=multistage", "guidance.stages=[{prompt: C, steps: 2}]"], "guidance: there is no class 'C'"),
    ("token", ["prompts=classes", "prompts.classes=[A,C]"], "prompt: there is no class 'C'"),
    ("token", [], "nothing to draw"),
    ("nothing", ["prompts=classes"], "this model is not told classes"),
    ("nothing", ["prompt=A"], "this model is told nothing: leave out 'A'"),
    ("nothing", [], "told nothing: it takes guidance.scale=1"),
    *(
        (model, ["prompt=A", *f"guidance={name}".split(), "sampler.steps=4"], f"guidance: {owner}: ")
        for name, owner in CROSS.items()
        for model in ("token", "vector")
    ),
]


@pytest.mark.parametrize(("model", "asked", "message"), WRONG, ids=lambda value: "".join(value))
def test_one_line_for_what_a_model_cannot_be_told(
    model: str, asked: list[str], message: str, cli: Callable[..., Outcome], folders: Path, tmp_path: Path
) -> None:
    path, out = f"model.path={folders / model}", f"hydra.run.dir={tmp_path / 'out'}"
    outcome = cli("sample", *QUICK, path, out, *asked)
    assert outcome.status == 1 and message in outcome.err and outcome.err.count("\n") <= 2, outcome.err
    assert not list(tmp_path.rglob("*.png"))


def test_visualize_needs_words(cli: Callable[..., Outcome], folders: Path, tmp_path: Path) -> None:
    outcome = cli("visualize", *QUICK[:2], f"model.path={folders / 'token'}", "prompt=A", f"hydra.run.dir={tmp_path}")
    assert outcome.status == 1 and "visualize shows where words act, and this model is told classes" in outcome.err
