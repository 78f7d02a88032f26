"""The demo draws in one process what the commands that it prints draw, each in a process of its own."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Outcome

from experiments import demo
from experiments.run import build


def test_demo_loads_one_model_and_draws_what_its_commands_draw(
    cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads, load = [], build.loaded
    rows = {"one": demo.classifier_free("a cat"), "two": demo.multistage(("a cat", 1), ("a dog", 1))}
    monkeypatch.setattr(demo, "ROWS", rows)
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(build, "loaded", lambda cfg: loads.append(cfg) or load(cfg))
    shown = cli("demo", "n=2", f"out={tmp_path}")
    assert shown.status == 0, shown.err
    assert len(loads) == 1
    assert (tmp_path / "sheet.png").exists()
    commands = [shlex.split(line) for line in shown.out.splitlines() if line.startswith("python -m experiments.sample")]
    for (_, _, verb, *overrides, folder), label in zip(commands, rows, strict=True):
        again = tmp_path / "again" / label
        assert cli(verb.removeprefix("experiments."), *overrides, f"hydra.run.dir={again}").status == 0
        drawn = sorted(Path(folder.removeprefix("hydra.run.dir=")).glob("images/*.png"))
        assert [path.name for path in drawn] == ["00000_0.png", "00000_1.png"]
        assert [path.read_bytes() for path in drawn] == [(again / "images" / p.name).read_bytes() for p in drawn]
