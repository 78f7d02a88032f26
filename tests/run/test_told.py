"""Verbs on models that are told a class, or nothing."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import CLASSES, DRAWN, TOLD, Outcome, tiny_model

from experiments.vectors.animation import between
from experiments.vectors.raster import rendered
from ldm.files.reading import EMBEDDED
from ldm.files.writing import write_folder
from ldm.svg.drawing import to_svg

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


# --- drawings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of vector drawings."""
    folder = tmp_path_factory.mktemp("drawn") / "model"
    write_folder(tiny_model(DRAWN), folder)
    return folder


def test_drawings_stay_vectors(cli: Callable[..., Outcome], drawn: Path, tmp_path: Path) -> None:
    """An SVG beside each picture, of the latents that are kept; and a page with all of them."""
    out = tmp_path / "out"
    asked = ["prompts=classes", "seeds=[0,1]", "save_latents=true", f"hydra.run.dir={out}"]
    outcome = cli("sample", *QUICK, f"model.path={drawn}", *asked)
    assert outcome.status == 0, outcome.err
    model, latents, page = (
        tiny_model(DRAWN),
        load_file(out / "latents.safetensors"),
        (out / "drawings.html").read_text(),
    )
    assert latents["x_T"].shape == (10, 12)
    found = records(out)
    for record, drawing in zip(found, model.draw(latents["x_0"]), strict=True):
        text = (out / record["svg"]).read_text()
        assert text == to_svg(drawing) and text in page and f"{record['prompt']}, seed {record['seed']}" in page
        # the picture is the drawing in black on white
        picture = np.asarray(Image.open(out / record["file"]).convert("L"))
        np.testing.assert_array_equal(picture, 255 - rendered(drawing, 16))
    again = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    assert cli("sample", *QUICK, f"model.path={drawn}", *asked).status == 0
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == again


def test_stages_guidances_and_samplers_of_drawings(cli: Callable[..., Outcome], drawn: Path, tmp_path: Path) -> None:
    model = f"model.path={drawn}"
    stages = "guidance.stages=[{prompt: A, steps: 1}, {prompt: B, steps: 1}]"
    for i, asked in enumerate([["guidance=multistage", stages], ["prompt=A", "sampler=dpmpp_2m_sde"]]):
        outcome = cli("sample", *QUICK, model, *asked, f"hydra.run.dir={tmp_path / str(i)}")
        assert outcome.status == 0, outcome.err
        assert (tmp_path / str(i) / "drawings.html").exists()
    outcome = cli("sample", *QUICK, model, "prompt=A", "width=32", f"hydra.run.dir={tmp_path / 'wide'}")
    assert outcome.status == 1 and "the box of a drawing is square" in outcome.err
    outcome = cli("invert", f"model.path={drawn}", "model=file", "image=x.png", f"hydra.run.dir={tmp_path / 'invert'}")
    assert outcome.status == 1 and "Traceback" not in outcome.err


def test_interpolation(cli: Callable[..., Outcome], drawn: Path, tmp_path: Path) -> None:
    """Its ends are what `sample` draws; every frame is in the SVG, shown at its moments of the way there and back."""
    model = ["model=file", f"model.path={drawn}", "sampler.steps=2"]
    asked = ["ends=[A,7]", "seeds=[3,4]", "frames=4", "seconds=2", f"hydra.run.dir={tmp_path / 'out'}"]
    outcome = cli("interpolate", *model, *asked)
    assert outcome.status == 0, outcome.err
    text = (tmp_path / "out" / "interpolation.svg").read_text()
    tree = ElementTree.fromstring(text)
    shown = [group.find("{*}animate").get("values").split(";") for group in tree]
    assert [[k for k, v in enumerate(values) if v == "visible"] for values in shown] == [[0], [1, 5], [2, 4], [3]]
    assert tree[0].find("{*}animate").get("dur") == "3.000s"
    for prompt, seed, i in (("A", 3, 0), ("'7'", 4, 3)):
        out = tmp_path / str(seed)
        assert cli("sample", *model, f"prompt={prompt}", f"seeds=[{seed}]", f"hydra.run.dir={out}").status == 0
        alone = ElementTree.parse(out / records(out)[0]["svg"]).getroot()
        assert tree[i].find("{*}path").get("d") == alone.find("{*}path").get("d")
    with Image.open(tmp_path / "out" / "interpolation.gif") as gif:
        assert gif.n_frames <= 6 and gif.size == (16, 16)
    for wrong, message in [
        (["ends=[A]"], "at least two ends"),
        (["ends=[A,Q]"], "no class 'Q'"),
        (["seeds=[1]"], "as many seeds"),
        (["frames=1"], "frames=1"),
    ]:
        outcome = cli("interpolate", *model, *wrong, f"hydra.run.dir={tmp_path / 'wrong'}")
        assert outcome.status == 1 and message in outcome.err, outcome.err


def test_latents_between_latents() -> None:
    ends = torch.tensor([[2.0, 0], [0, 2], [-2, 0]])
    found = between(ends, 5)
    half = 2**0.5
    expected = torch.tensor([[2.0, 0], [half, half], [0, 2], [-half, half], [-2, 0]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(between(torch.tensor([[1.0, 1], [3, 3]]), 3)[1], torch.tensor([2.0, 2]))


def test_embedded_glyphs_say_where_they_are(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMBEDDED, "glyphs", tmp_path / "glyphs")
    outcome = cli("sample", "model=glyphs", "prompt=A", f"hydra.run.dir={tmp_path / 'out'}")
    assert outcome.status == 1 and "glyphs: this installation has no weights of it" in outcome.err
    assert not (tmp_path / "out" / "images").exists()
