"""Every sampler from the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Outcome

from experiments.files import CONF

# of 4 steps with classifier-free guidance's two passes
EVALUATIONS = {"heun": 14, "plms": 10, "langevin": 2 * (4 + 3 * 2)}


@pytest.fixture
def sample(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> Callable[..., Outcome]:
    def run(*overrides: str) -> Outcome:
        model = "model=file", f"model.path={tiny_folder}", f"hydra.run.dir={tmp_path}/run"
        return cli("sample", *model, "prompt=x", "sampler.steps=4", *overrides)

    return run


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sampler").glob("*.yaml")))
def test_a_picture(sample: Callable[..., Outcome], name: str) -> None:
    few = ["sampler.corrections=2"] if name == "langevin" else []
    outcome = sample(f"sampler={name}", "sampler.spacing=karras", *few)
    assert outcome.status == 0, outcome.err
    assert f"and {EVALUATIONS.get(name, 8)} U-Net evaluations each" in outcome.out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sampler=euler", "sampler.s_churn=-1"], "s_churn=-1: must be at least 0"),
        (["sampler=euler", "sampler.s_churn=much"], "sampler.s_churn=much: must be a number"),
        (["sampler=lms", "sampler.order=9"], "order=9: must be 1, 2, 3 or 4"),
        (["sampler=langevin", "sampler.step_size=0"], "step_size=0, snr=None: must be above 0"),
    ],
)
def test_wrong_settings_take_one_line(
    sample: Callable[..., Outcome], tmp_path: Path, overrides: list[str], said: str
) -> None:
    outcome = sample(*overrides)
    assert outcome.status == 1
    assert outcome.err.startswith("error: ") and said in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "run" / "samples.jsonl").exists()
