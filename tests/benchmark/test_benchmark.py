"""The benchmark's frame, on a tiny model: what it measures, writes and leaves out; its numbers are nobody's here."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import tiny_model
from tiny import TINY

from experiments.benchmark import __main__, fresh, growth, options, sides, training
from experiments.benchmark.timing import Timing, interleaved, rounds
from experiments.training import parts
from ldm import cpu


@pytest.fixture
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sides.SHAPES, "tiny", TINY)
    monkeypatch.setitem(options.SIZES, "tiny", ("tiny", 16))
    monkeypatch.setitem(sides.DOWNSCALE, "tiny", 2)


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *asked: str) -> list[dict]:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--sizes", "tiny", "--repeats", "1", "--out", str(out), *asked])
    __main__.main()
    return json.loads((out / "benchmark.json").read_text())["rows"]


def test_both_sides_are_measured(monkeypatch: pytest.MonkeyPatch, tiny_size: None, tmp_path: Path) -> None:
    cases = ["unet", "sample", "decode", "text", "guidance", "limits"]
    rows = run(monkeypatch, tmp_path, "--cases", *cases, "--steps", "2", "--tuned", "--batch", "1", "2")
    for batch in (1, 2):
        found = {(row["case"], row["against"]): row for row in rows if row["batch"] == batch}
        for case in cases[:4]:
            for against in ("diffusers", "diffusers, tuned"):
                row = found[case, against]
                assert row["ratio"] == row["theirs"]["median"] / row["ours"]["median"]
        assert ("segmentation-free", "ours, classifier-free") in found
        assert ("multistage", "ours, classifier-free") in found
    table = (tmp_path / "benchmark.md").read_text()
    assert table.count("| decode | tiny |") == 4


def test_both_sides_do_the_same(tiny_size: None, tmp_path: Path) -> None:
    path = sides.folder_of("tiny", tmp_path)
    assert sides.folder_of("tiny", tmp_path) == path
    x_T, prompts = torch.randn(2, 4, 8, 8), ["a fish", "a cat"]
    with torch.no_grad():
        ours = sides.ours(sides.load(path, torch.float32, "cpu"), compile=False)
        for tuned in (False, True):
            theirs = sides.theirs(path, torch.float32, "cpu", compile=False, tuned=tuned)
            text = ours.text(prompts)
            told = theirs.text(prompts)
            torch.testing.assert_close(text.tokens, told, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours.unet(x_T, 500, text), theirs.unet(x_T, 500, told), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours.decode(x_T), theirs.decode(x_T), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours.sample(x_T, prompts, 3), theirs.sample(x_T, prompts, 3), rtol=0, atol=1e-3)


def test_models_of_other_latents_are_measured(monkeypatch: pytest.MonkeyPatch, tiny_size: None, tmp_path: Path) -> None:
    unet = replace(TINY.unet, in_channels=8, out_channels=8)
    eight = replace(TINY, unet=unet, autoencoder=replace(TINY.autoencoder, latent_channels=8))
    monkeypatch.setitem(sides.SHAPES, "tiny", eight)
    rows = run(monkeypatch, tmp_path, "--cases", "unet", "sample", "decode", "guidance", "--steps", "2")
    assert [row["case"] for row in rows if row["against"] == "diffusers"] == ["unet", "sample", "decode"]
    settings = {"dtype": "float32", "device": "cpu", "batch": 1, "pixels": 16, "cells": 8, "steps": 1}
    for side in ("ours", "diffusers"):
        assert fresh.main("memory", side, sides.folder_of("tiny", tmp_path), settings) > 1e8


def test_without_diffusers_ours_is_measured_alone(
    monkeypatch: pytest.MonkeyPatch, tiny_size: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fresh, "has_diffusers", lambda: False)
    (row,) = run(monkeypatch, tmp_path, "--cases", "unet")
    assert row["theirs"] is row["ratio"] is None
    assert "diffusers is not installed here" in capsys.readouterr().out


def test_a_fresh_process_measures_loading_and_memory(tiny_folder: Path) -> None:
    settings = {"dtype": "float32", "device": "cpu", "batch": 1, "pixels": 16, "cells": 8, "steps": 1}
    for side in ("ours", "diffusers"):
        assert 0 < fresh.main("load", side, tiny_folder, settings) < 60
        assert fresh.main("memory", side, tiny_folder, settings) > 1e8
    assert fresh.printed([sys.executable, "-c", "print('loading'); print(2.5)"]) == 2.5
    calls = fresh.measures("start", tiny_folder, settings, Path("scratch"))
    assert list(calls["start (first picture)"][1]) == ["ours", "diffusers"]


def test_growth(monkeypatch: pytest.MonkeyPatch, tiny_size: None, tmp_path: Path) -> None:
    asked = ["--size", "tiny", "--repeats", "1", "--steps", "4", "--counts", "2", "125", "--resolutions", "16", "32"]
    monkeypatch.setattr(sys, "argv", ["growth", *asked, "--out", str(tmp_path)])
    growth.main()
    found = json.loads((tmp_path / "growth_tiny.json").read_text())
    assert list(found["steps"]) == ["2", "4", "8", "16"] and list(found["stages"]) == ["1", "2", "4"]
    assert {"batch", "resolution", "branches"} <= set(found)
    assert "ddim" not in found  # random weights: the way to 250 steps says nothing
    assert (tmp_path / "growth_tiny.svg").stat().st_size > 1000


def test_more_steps_come_nearer_to_250() -> None:
    found = growth.distances(tiny_model(TINY), [2, 125], seeds=1)
    assert found["ddim"][125] < found["ddim"][2]
    assert found["dpmpp_2m"][125] < found["dpmpp_2m"][2]
    growth.figure({"steps": {1: 1.0}, **found})


def test_turns() -> None:
    order: list[str] = []
    took = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b"] * 3  # the first round warms up
    assert 0 <= took["a"].least <= took["a"].median <= took["a"].most
    values = iter([9.0, 1.0, 5.0, 2.0])
    assert rounds({"x": lambda: next(values)}, 3) == {"x": Timing(2.0, 1.0, 5.0)}


def test_training_is_measured_both_ways_and_learns_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []

    class Watched(training.Training):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr(training, "Training", Watched)
    monkeypatch.setattr(training, "FIRST_EDITION", ["part.batch=4", "part.micro=4"])
    monkeypatch.setattr(training, "N", 64)
    monkeypatch.setattr(parts, "unit_variance_scale", lambda *_: 1.0)
    asked = ["--batch", "4", "--micro", "4", "--repeats", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["training", *asked])
    kernels = cpu.group_norm, cpu.attention
    training.main()
    assert (cpu.group_norm, cpu.attention) == kernels
    found = json.loads((tmp_path / "training.json").read_text())
    for name in ("ours", "first edition"):
        assert found["of the limit"][name] == pytest.approx(
            found["operations of a scene"] * found["scenes/s"][name] / found["machine, TFLOP/s"] / 1e12
        )
        assert sum(found["stages, s"][name].values()) == pytest.approx(1 / found["scenes/s"][name], rel=1e-6)
        assert all(seconds > 0 for seconds in found["stages, s"][name].values())
    assert "| scenes/s |" in (tmp_path / "training.md").read_text()
    ours, first = made
    assert first.part.text_encoder.token_embedding.weight.shape == (49408, 128)
    assert len(ours.part.text_encoder.token_embedding.weight) < 80
    losses = [[loss.item() for loss in way.state.losses[:2]] for way in made]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
