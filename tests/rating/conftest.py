"""Studies of runs of our own making, and the verb in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import make_run
from kit import WORDS, MakeStudy, settings, stored
from tiny import Outcome

from experiments.rating import make as making
from experiments.rating.store import Store


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished runs of 8 prompts and a seed: plain_run, new_run, third_run, human_works."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("plain_run", "new_run", "third_run", "human_works"):
        make_run(folder / name, [{"prompt": words} for words in WORDS], [7])
    return folder


@pytest.fixture(scope="session")
def make_study(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeStudy:
    def make(*overrides: str, methods: int = 2) -> Path:
        names = ["plain_run", "new_run", "third_run", "human_works"][:methods]
        joined = ",".join(str(runs / name) for name in names)
        study, made = making.study(settings(f"runs=[{joined}]", *overrides))
        folder = tmp_path_factory.mktemp("studies") / "study"
        making.write(folder, study, made)
        return folder

    return make


@pytest.fixture(scope="session")
def pairs(make_study: MakeStudy) -> Path:
    """A study of pairs for 6 raters in two groups. It is shared: stores lie elsewhere."""
    return make_study("kind=preference", "groups={public: 4, artists: 2}", "answers=2")


@pytest.fixture
def pair_store(pairs: Path, tmp_path: Path) -> Store:
    return stored(pairs, tmp_path / "answers.sqlite")


@pytest.fixture
def raters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """raters("action=status", ...): the verb in this process."""
    import experiments.raters
    import experiments.run.cli

    def run(*overrides: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["experiments/raters.py", *map(str, overrides)])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capsys.readouterr()
        status = 0
        try:
            experiments.run.cli.run(experiments.raters.main, "raters")
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run
