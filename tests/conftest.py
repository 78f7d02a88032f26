import importlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub: no test may reach for the network
os.environ["WANDB_SILENT"] = "true"

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Outcome, tiny_model

from ldm.files.writing import write_folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(tiny_model(), folder)
    return folder


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """cli("sample", "prompt=x", ...): a verb in this process, as `python -m experiments.sample` would run it."""
    import experiments.run.cli
    from experiments.sweeps import progress

    def run(verb: str, *overrides: str) -> Outcome:
        main = importlib.import_module(f"experiments.{verb}").main
        monkeypatch.setattr(sys, "argv", [f"experiments/{verb}.py", *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capsys.readouterr()
        status = 0
        try:
            experiments.run.cli.run(main, verb)
        except SystemExit as stop:
            status = stop.code
        progress.close()  # a sweep's bar, which ends with its process
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run
