"""The scorecard of the embedded model, in little: every row is there, and a second call draws nothing again."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from packages import SHAPES

from experiments import scorecard
from experiments.files import CONF, WEIGHTS, embedded
from experiments.studies.scorecard import ATTENTIVE, sample_from
from ldm import load_model


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    """Packages with the icons that the embedded world wants, all of them discs."""
    world = compose_cfg().world
    for package in world.styles.values():
        inside = tmp_path / "icons" / f"iconify-json-{package}-1.0.0" / "package"
        inside.mkdir(parents=True)
        icons = {name: {"body": SHAPES["disc"].format("#c06000")} for name in world.concepts.values()}
        (inside / "icons.json").write_text(json.dumps({"icons": icons, "width": 10, "height": 10}))
    return tmp_path / "icons"


def compose_cfg(*overrides: str):  # noqa: ANN201
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("scorecard", list(overrides))


def test_pictures_are_drawn_from_the_model_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its weights' average, its prediction and its config, in the dtype that the scorecard states."""
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr("experiments.studies.scorecard.sample", lambda *overrides: commands.append(overrides))
    model = {"path": "x.ckpt", "config": "c.yaml", "prediction": "v", "ema": "true"}
    cfg = compose_cfg("model=file", *(f"model.{key}={value}" for key, value in model.items()))
    sample_from(cfg, "prompt=x")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sampled = compose("sample", list(commands[0]))
    assert sampled.model == cfg.model
    assert (sampled.dtype, sampled.device) == (cfg.dtype, cfg.device)


def check_the_bars(found: dict, drawn: Path) -> None:
    """The hardest concept is the one least found among single objects; the second judge is the first one here."""
    told = json.loads((drawn / f"emoji_one_{found['settings']['scale']}" / "metrics" / "judge.json").read_text())
    things = [thing for image in told["per_image"] for thing in image["objects"]]
    shares = {c: [t["found"] for t in things if t["concept"] == c] for c in {t["concept"] for t in things}}
    least = min(sum(share) / len(share) for share in shares.values())
    for judge in ("judge", "second_judge"):
        row = found["scores"][f"the hardest concept alone: found, by the {judge.replace('_', ' ')}"]
        share = shares[found["settings"]["hardest"][judge]]
        assert (row["value"], row["count"]) == (least, len(share)) and sum(share) / len(share) == least
    layers = found["scores"][ATTENTIVE]
    assert layers["count"] == sum(name.endswith("attn2") for name, _ in load_model("emoji").unet.named_modules())
    assert layers["value"] in range(layers["count"] + 1)
    assert any(name.startswith("8 pictures, 20 steps, ") for name in found["scores"])


def test_scorecard(icons: Path, tmp_path: Path) -> None:
    small = ["count=5", "validation=2", "steps=2", "scales=[2.0,3.0]", "batch_size=4", "attended=2"]
    small += [f"second_judge={WEIGHTS / embedded('judge')}"]
    cfg = compose_cfg(f"icons={icons}", f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'out'}", *small)
    scorecard.main(cfg)
    found = json.loads((tmp_path / "out" / "scorecard.json").read_text())
    assert found["settings"]["scale"] in (2.0, 3.0)
    assert len(found["scores"]) == 14
    check_the_bars(found, tmp_path / "out" / "test")
    for name, score in found["scores"].items():
        assert score["count"] >= 1, name
        if score["low"] is not None:
            assert score["low"] <= score["value"] <= score["high"], name
    assert len((tmp_path / "out" / "scorecard.md").read_text().splitlines()) == 16
    assert (tmp_path / "out" / "failures.png").exists()
    pictures = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "test").rglob("images/*.png")}
    assert len(pictures) == 25

    scorecard.main(cfg)
    assert all(path.stat().st_mtime_ns == time for path, time in pictures.items())
    again = json.loads((tmp_path / "out" / "scorecard.json").read_text())["scores"]
    drawn = [name for name in again if "8 pictures" not in name]
    assert [again[name] for name in drawn] == [found["scores"][name] for name in drawn]
