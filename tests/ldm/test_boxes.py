"""Layouts as conditions: how they are told, what is said of wrong ones, and that guidances and files take them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TINY, WORDLESS, Outcome, tiny_model

from guidance import ClassifierFree, SegmentationFree, guided
from ldm import LatentDiffusion, load_model
from ldm.boxes import Box, read_layout, write_layout
from ldm.condition import Unfit
from ldm.config import BoxesConfig, ModelConfig
from ldm.files.rules import checked
from ldm.files.writing import write_file, write_folder
from samplers import ImageNoise, Schedule, as_x_0

BOXES = replace(WORDLESS, condition="boxes", boxes=BoxesConfig(("cat", "light bulb", "dog"), 16, 3))
LAYOUT = "cat 0.1 0.2 0.5 0.6; light bulb 0.5 0.125 1 1"


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_model(BOXES)


def test_a_layout_is_read_as_it_is_written() -> None:
    boxes = [Box("cat", 0.1, 0.2, 0.5, 0.6), Box("light bulb", 0.5, 0.125, 1, 1)]
    assert read_layout(LAYOUT) == read_layout(f" {LAYOUT} ;") == boxes
    assert write_layout(boxes) == LAYOUT
    assert read_layout("") == []


def test_a_token_is_its_label_and_corners_whatever_stands_beside_it(model: LatentDiffusion) -> None:
    condition = model.condition([LAYOUT, "light bulb 0.5 0.125 1 1", "dog 0.1 0.2 0.5 0.6", ""])
    both, bulb, dog, none = condition.tokens
    assert condition.tokens.shape == (4, 3, 16)
    assert torch.equal(both[1], bulb[0]) and not torch.equal(both[0], bulb[0])
    table = model.text_encoder.embedding.weight
    assert torch.allclose(both[0] - dog[0], table[0] - table[2], atol=1e-6)  # the same corners
    assert torch.equal(none, table[3].expand(3, -1)) and torch.equal(both[2], none[0])
    assert [[span.word for span in row] for row in condition.spans] == [
        ["cat", "light bulb"],
        ["light bulb"],
        ["dog"],
        [],
    ]
    moved = model.condition(["cat 0.1 0.2 0.5 0.61"]).tokens[0, 0]
    assert (moved - both[0]).norm() > 1e-4


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("cat", "'cat' is no box: write LABEL LEFT TOP RIGHT BOTTOM"),
        ("cat 0 0 1", "is no box"),
        ("cat 0.5 0 0.5 1", "a box has 0 <= left < right <= 1"),
        ("cat 0 0 1 1.5", "a box has"),
        ("cta 0 0 1 1", "there is no label 'cta': near it are cat"),
        ("cat 0 0 1 1;" * 4, "4 boxes: this model is told 3 at most"),
    ],
)
def test_a_wrong_layout_is_one_line(model: LatentDiffusion, prompt: str, said: str) -> None:
    for refuse in (model.check_prompts, model.condition):
        with pytest.raises(Unfit) as error:
            refuse([prompt])
        assert said in str(error.value) and "\n" not in str(error.value)


def test_guidances_by_layouts(model: LatentDiffusion) -> None:
    step, x_T = Schedule().steps(4)[1], ImageNoise([0], (4, 8, 8))()
    predict, conditions = as_x_0(model.unet, "eps"), model.conditions([LAYOUT])
    cond, none = (predict(x_T, step.now, model.condition([told])) for told in (LAYOUT, ""))
    x_0 = guided(predict, ClassifierFree(3), conditions)(x_T, step).x_0
    assert torch.allclose(x_0, none + 3 * (cond - none), rtol=1e-4, atol=1e-4)
    assert (cond - none).norm() > 1e-3 * cond.norm()
    other = guided(predict, SegmentationFree(3, cfg_steps=0, candidates="words"), conditions)(x_T, step).x_0
    assert (other - x_0).norm() > 1e-3 * x_0.norm()


def test_files_keep_a_model_of_layouts(model: LatentDiffusion, tmp_path: Path) -> None:
    write_folder(model, tmp_path / "folder")
    again = load_model(tmp_path / "folder")
    assert again.config == BOXES
    assert torch.equal(again.condition([LAYOUT]).tokens, model.condition([LAYOUT]).tokens)
    assert json.loads((tmp_path / "folder" / "boxes" / "config.json").read_text())["most"] == 3
    write_file(model, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="tokens of width 8, and a U-Net that expects text_width=16"):
        checked(wrong(BoxesConfig(("a",), 8, 3)), "x")
    with pytest.raises(ValueError, match="0 labels"):
        checked(wrong(BoxesConfig((), 16, 3)), "x")


def wrong(boxes: BoxesConfig) -> ModelConfig:
    return replace(TINY, condition="boxes", boxes=boxes)


def test_the_suite_of_layouts_draws(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    labels = ("dragon", "fish", "shark", "snake", "cat", "dog", "fox", "bear", "light bulb", "pear", "balloon")
    labels += ("avocado", "maple leaf", "heart", "clover", "strawberry")
    write_folder(tiny_model(replace(BOXES, boxes=BoxesConfig(labels, 16, 4))), tmp_path / "model")
    asked = ["model=file", f"model.path={tmp_path / 'model'}", "sampler.steps=1", f"hydra.run.dir={tmp_path / 'run'}"]
    outcome = cli("sample", *asked, "prompts=layouts", "batch_size=100")
    assert outcome.status == 0, outcome.err
    records = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [len(records), records[0]["seed"], records[0]["objects"]] == [200, 0, ["fox", "shark"]]
    outcome = cli("sample", *asked[:3], f"hydra.run.dir={tmp_path / 'bad'}", "prompt='wolf 0 0 1 1'")
    assert (outcome.status, outcome.err.count("\n")) == (1, 1)
    assert "prompt: there is no label 'wolf': " in outcome.err and not (tmp_path / "bad").exists()
