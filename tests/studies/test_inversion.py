"""The verb that finds the noise of a picture."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import to_tensor

import experiments.invert
import experiments.run.cli
import experiments.sample
from experiments.studies.inversion import read_picture


def run(monkeypatch: pytest.MonkeyPatch, verb: object, name: str, *overrides: str) -> int:
    monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *overrides])
    try:
        experiments.run.cli.run(verb.main, name)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 x 16 pixels, of which a square model sees the middle."""
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(path)
    return path


def test_a_picture_is_read_as_its_middle(picture: Path) -> None:
    whole = to_tensor(Image.open(picture)) * 2 - 1
    assert torch.equal(read_picture(picture, 16, 16)[0], whole[:, :, 4:20])
    assert read_picture(picture, 32, 32).shape == (1, 3, 32, 32)


def test_sample_draws_the_picture_from_its_noise(
    picture: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model = ["model=file", f"model.path={tiny_folder}", "prompt=x"]
    same = ["sampler.steps=10", "sampler.spacing=trailing"]
    back = [*same, "refinements=1", f"hydra.run.dir={tmp_path}/back"]
    assert run(monkeypatch, experiments.invert, "invert", *model, f"image={picture}", *back) == 0
    said = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "back").iterdir()} >= {"noise.safetensors", "again.png", "run.json"}
    again = [*same, "guidance.scale=1", "save_latents=true"]
    again += [f"noise={tmp_path}/back/noise.safetensors", f"hydra.run.dir={tmp_path}/again"]
    assert run(monkeypatch, experiments.sample, "sample", *model, *again) == 0
    found, x_0 = (load_file(tmp_path / name)["x_0"] for name in ("again/latents.safetensors", "back/noise.safetensors"))
    error = (100 * (found - x_0).norm() / x_0.norm()).item()  # large: no such network was ever trained
    assert float(said.removeprefix("drawn again, the latent is off by ").split(" %")[0]) == pytest.approx(
        error, rel=0.01
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["image=nowhere.png"], "image=nowhere.png: there is no such file"),
        (["image=pyproject.toml"], "image=pyproject.toml: not a picture"),
        (["image=null"], "give image=FILE and prompt="),
        (["refinements=-1"], "refinements=-1: must be a whole number"),
        (["sampler.eta=0.5"], "inversion undoes DDIM's steps"),
        (["scale=-1"], "scale=-1"),
    ],
)
def test_wrong_settings_take_one_line(
    overrides: list[str], said: str, picture: Path, tiny_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(Path(experiments.invert.__file__).parent.parent)
    model = ["model=file", f"model.path={tiny_folder}", "prompt=x", f"image={picture}", f"hydra.run.dir={tmp_path}"]
    assert run(monkeypatch, experiments.invert, "invert", *model, *overrides) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and err.count("\n") == 1
    assert not (tmp_path / "noise.safetensors").exists()
