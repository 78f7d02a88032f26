"""What a cell measures: what cannot be measured is said and left out, what is broken is not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import BENCH, make_run
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from experiments.files import CONF
from experiments.metrics import Bench, Result, Unmeasurable
from experiments.metrics.estimates import Estimate
from experiments.metrics.folders import FinishedRun
from experiments.run import draw
from experiments.sweeps import cells
from experiments.sweeps.cells import drawn_keys, measured, written


@dataclass(frozen=True)
class Scripted:
    """A metric that measures, cannot measure, is broken, or finds what is no number."""

    outcome: str

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        if self.outcome == "unmeasurable":
            raise Unmeasurable("no weights here")
        if self.outcome == "broken":
            list(zip([1], [1, 2], strict=True))
        return Result(Estimate(float("nan" if self.outcome == "nan" else 1), None, None, 1))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", [{"prompt": "a cat"}], [0])


def measured_with(run: Path, *outcomes: str) -> Any:
    metrics = {outcome: {"_target_": f"{__name__}.Scripted", "outcome": outcome} for outcome in outcomes}
    return measured(OmegaConf.create({"metrics": metrics, "again": False, "cell": "c"}), run, BENCH)


def test_only_what_cannot_be_measured_is_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, missing = measured_with(run, "unmeasurable", "fine")
    assert list(results) == ["fine"]
    assert missing == {"unmeasurable": "unmeasurable: no weights here"}
    assert capsys.readouterr().err == "warning: c: not measured: unmeasurable: no weights here\n"
    with pytest.raises(ValueError, match="zip"):
        measured_with(run, "broken", "fine")


def test_a_number_that_is_none_names_its_metric(run: Path) -> None:
    with pytest.raises(ValueError, match="^nan: value is not a finite number$"):
        measured_with(run, "nan")
    assert not list(run.glob("metrics/*"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["prompt=a cat"],
        ["prompt=a cat", "guidance=multistage", 'guidance.stages=[{prompt: "", steps: 1}, {prompt: dog, steps: 1}]'],
    ],
)
def test_maps_are_of_the_run_s_own_noise_and_prompts(
    overrides: list[str], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"x_T": torch.randn(2, 4, 8, 8)}, tmp_path / "noise.safetensors")
    small = ["model=file", f"model.path={tiny_folder}", f"noise={tmp_path / 'noise.safetensors'}", "seeds=[3,4]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = draw.prepare(compose("sample", [*small, "sampler.steps=2", *overrides]))
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cells.attention, "check_words", lambda model, prompts: seen.update(prompts=prompts))
    monkeypatch.setattr(cells.attention, "draw", lambda machine, recorder, first: (seen.update(x_T=first.x_T), []))
    monkeypatch.setattr(cells.attention, "save_sheets", lambda *args: None)
    cells.draw_maps(job, tmp_path)
    assert torch.equal(seen["x_T"], load_file(tmp_path / "noise.safetensors")["x_T"][:1])
    assert seen["prompts"] == (["a cat"] if len(overrides) == 1 else ["", "dog"])


def test_ablate_has_every_setting_of_sample() -> None:
    """A cell draws what the sampling verb would, so the two configs know the same settings, with the same defaults."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sample, ablate = compose("sample"), compose("ablate", ["experiment=grid"])
    ours = {"seeds", "batch_size"}  # ${range:${n}}; and what experiment=grid says
    assert set(sample) <= set(drawn_keys()) <= {*sample, "prompts"}
    assert {key: ablate[key] for key in sample if key not in ours} == {
        key: sample[key] for key in sample if key not in ours
    }


def test_a_study_s_axes_are_no_difference_in_how_it_is_written() -> None:
    """Else no two cells along `study.timestep` could be compared."""
    texts = []
    for t in (101, 501):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("ablate", ["experiment=segfree_motivation", f"study.timestep={t}", "study.count=9"])
        texts.append(written(cfg, {"study.timestep": t})["segfree_motivation"])
    assert texts[0] == texts[1] and texts[0]["count"] == 9 and "timestep" not in texts[0]
