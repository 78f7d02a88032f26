"""The autoencoder and the judge of drawings learn on packages of our own making."""

import json
from dataclasses import replace
from pathlib import Path

import drawn
import pytest
import torch
from drawn import LETTERS
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from experiments.files import CONF, UserError
from experiments.training import loop, recipes
from experiments.training.vector_parts import VectorAutoencoderPart, latents_of, moved
from experiments.vectors.data import load_drawings
from experiments.vectors.judge import judged, load_vector_judge
from experiments.vectors.measures import reconstruction
from ldm.files.vectors import read_vector_autoencoder
from ldm.svg.sequences import KINDS, USED

TINY = {
    "autoencoder": [f"part.autoencoder.{x}" for x in ("commands=12", "latent_width=8", "width=16", "blocks=1")],
    "judge": ["part.channels=[8,16]"],
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    drawn.write_all(folder)
    return folder


@pytest.fixture(autouse=True)
def own_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "Source", lambda **settings: replace(LETTERS, share_held_out=0.5))


def config(packages: Path, part: str, out: Path, *more: str) -> DictConfig:
    short = ["part.steps=6", "part.batch=4", "part.micro=2", "part.warmup=2", "log_every=2", "save_seconds=1000"]
    places = ["device=cpu", f"icons={packages}", f"cache={packages / 'cache'}", f"out={out}", "bf16=false"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"part=vector/{part}", *places, *short, *TINY[part], *more])


@pytest.mark.parametrize("part", TINY)
def test_a_run_stopped_and_resumed_equals_an_undisturbed_one_bit_for_bit(
    packages: Path, tmp_path: Path, part: str
) -> None:
    loop.train(config(packages, part, tmp_path / "whole"))
    loop.train(config(packages, part, tmp_path / "parts", "stop_after=3"))
    loop.train(config(packages, part, tmp_path / "parts"))
    whole, parts = (torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 6
    assert whole["recipe"] == parts["recipe"] and "drawings" in whole["recipe"] and "world" not in whole["recipe"]
    for key in ("network", "ema"):
        assert whole[key].keys() == parts[key].keys()
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())


@pytest.mark.parametrize("part", TINY)
def test_drawings_of_which_none_are_held_out(
    packages: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured at the end is measured on those that were learnt."""
    monkeypatch.setattr(recipes, "Source", lambda **settings: replace(LETTERS, share_held_out=0.0))
    loop.train(config(packages, part, tmp_path, "picture_every=6"))
    assert (tmp_path / "model" / "config.json").exists()


def test_the_autoencoder_learns_and_its_written_latents_have_unit_variance(packages: Path, tmp_path: Path) -> None:
    settings = [
        "part.steps=150",
        "part.batch=12",
        "part.micro=12",
        "part.lr=0.005",
        "picture_every=150",
        "log_every=25",
    ]
    cfg = config(packages, "autoencoder", tmp_path, *settings)
    torch.manual_seed(0)
    train, held_out = load_drawings(replace(LETTERS, share_held_out=0.5), packages, packages / "cache")
    loop.train(cfg)
    trained = read_vector_autoencoder(tmp_path / "model")
    found = reconstruction(trained, train)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0], losses
    assert found["coordinate"] < 0.1
    assert found["commands"] > 0.98
    assert latents_of(trained, train, torch.arange(train.count)).std().item() == pytest.approx(1, abs=1e-2)
    assert (tmp_path / "picture.png").is_file()


def test_the_judge_learns_to_name(packages: Path, tmp_path: Path) -> None:
    loop.train(config(packages, "judge", tmp_path, "part.steps=60", "part.batch=12", "part.micro=12", "part.lr=0.01"))
    train, held_out = load_drawings(replace(LETTERS, share_held_out=0.5), packages, packages / "cache")
    judge = load_vector_judge(tmp_path / "model")
    assert judge.config.classes == ("H", "O", "x")
    for part in (train, held_out):
        assert (judged(judge, part.renders)[0].argmax(dim=1) == part.labels).float().mean() > 0.8, "chance is 1/3"


def test_a_single_drawing_is_enough_to_begin_with(packages: Path, tmp_path: Path) -> None:
    """Its components are those of the ways to move it: all of them come back."""
    train, _ = load_drawings(replace(LETTERS, most=1, only=("O",)), packages, packages / "cache")
    assert train.count == 1
    part = VectorAutoencoderPart(config(packages, "autoencoder", tmp_path).part, train)
    elsewhere = moved(train.sequences(), 0.08, 0.08, torch.Generator().manual_seed(9))
    decoded = part.network.decode(part.network.encode(elsewhere)[0])
    assert torch.allclose(decoded, elsewhere, atol=1e-3)


def test_drawings_of_another_length_are_refused(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"drawings of 12 commands, part.autoencoder.commands=40: they must be equal"):
        loop.train(config(packages, "autoencoder", tmp_path, "part.autoencoder.commands=40"))


def test_moving_is_one_scale_and_one_shift_for_all_points_of_a_drawing(packages: Path) -> None:
    train, _ = load_drawings(LETTERS, packages, packages / "cache")
    sequences = train.sequences()
    after = moved(sequences, 0.1, 0.2, torch.Generator().manual_seed(0))
    assert torch.equal(after[..., :KINDS], sequences[..., :KINDS])
    used = USED[sequences[..., :KINDS].argmax(dim=-1)]
    assert (after[..., KINDS:][~used] == 0).all()
    for before, moved_one, mask in zip(sequences[..., KINDS:], after[..., KINDS:], used, strict=True):
        for axis in (0, 1):
            x, y = before[:, axis::2][mask[:, axis::2]].double(), moved_one[:, axis::2][mask[:, axis::2]].double()
            line = torch.stack([x, torch.ones_like(x)], dim=1)
            scale, shift = torch.linalg.lstsq(line, y[:, None]).solution.flatten().tolist()
            assert torch.allclose(line @ torch.tensor([scale, shift], dtype=torch.float64), y, atol=1e-5)
            assert abs(scale - 1) <= 0.1 and abs(shift) <= 0.2 and (scale, shift) != (1, 0)
    assert torch.equal(moved(sequences, 0.0, 0.0, torch.Generator()), sequences)


def test_a_missing_judge_is_told_how_to_make(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="experiments.train part=vector/judge"):
        load_vector_judge(tmp_path)
