"""How far a run is from converged, against samplers called by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import BENCH, metric
from safetensors.torch import load_file
from tiny import Outcome

from experiments.metrics import Unmeasurable
from experiments.metrics.measuring import evaluate
from guidance import ClassifierFree, guided
from ldm import load_model
from samplers import Schedule, as_x_0, dpmpp_2m

Draw = Callable[..., Path]


@pytest.fixture
def draw(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> Draw:
    def run(name: str, *overrides: str) -> Path:
        model = "model=file", f"model.path={tiny_folder}", "prompt=a cat", "guidance.scale=2", "device=cpu"
        asked = "seeds=[3,4]", "save_latents=true", "sampler.steps=4", f"hydra.run.dir={tmp_path / name}", *overrides
        assert cli("sample", *model, *asked).status == 0
        return tmp_path / name

    return run


def measured(run: Path, folder: Path) -> dict:
    return evaluate(run, metric("convergence", steps=12, folder=str(folder)), BENCH)["convergence"]


def test_the_distance_is_that_to_many_steps_from_the_same_noise(draw: Draw, tiny_folder: Path, tmp_path: Path) -> None:
    runs = [draw("euler", "sampler=euler"), draw("heun", "sampler=heun", "sampler.spacing=karras")]
    results = [measured(run, tmp_path / "converged") for run in runs]

    model, latents = load_model(tiny_folder), load_file(runs[0] / "latents.safetensors")
    denoise = guided(as_x_0(model.unet, "eps"), ClassifierFree(2.0), model.conditions(["a cat"] * 2))
    with torch.no_grad():
        *_, (_, exact, _) = dpmpp_2m(denoise, latents["x_T"], Schedule().steps(12, "karras"))
    for run, found in zip(runs, results, strict=True):
        off = load_file(run / "latents.safetensors")["x_0"] - exact
        errors = (off.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).tolist()
        assert [row["value"] for row in found["per_image"]] == pytest.approx(errors, rel=1e-3)
        assert found["value"] == pytest.approx(sum(errors) / 2, rel=1e-3)
        assert found["details"]["log10"]["value"] == pytest.approx(torch.tensor(errors).log10().mean().item(), abs=1e-3)
    assert len(list((tmp_path / "converged").iterdir())) == 1, "both share the pictures that converged"
    first, second = (row["file"] for row in results[1]["per_image"])
    (runs[1] / first).write_bytes(b"torn")
    assert measured(runs[1], tmp_path / "converged")["per_image"] == results[1]["per_image"][1:], second


def test_the_solver_itself_is_converged(draw: Draw, tmp_path: Path) -> None:
    run = draw("itself", "sampler=dpmpp_2m", "sampler.steps=12", "sampler.spacing=karras")
    assert measured(run, tmp_path)["value"] < 1e-6


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sampler=euler_ancestral"], "the sampler draws noise"),
        (["sampler=ddim", "sampler.eta=0.5"], "the sampler draws noise"),
        (["sampler=euler", "sampler.s_churn=2"], "the sampler draws noise"),
        (["save_latents=false"], "no latents: draw it with save_latents=true"),
    ],
)
def test_what_does_not_converge_is_not_measured(draw: Draw, tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(Unmeasurable, match=said):
        measured(draw("run", *overrides), tmp_path / "converged")
    assert not (tmp_path / "converged").exists()
