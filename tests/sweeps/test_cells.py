"""What a cell measures: what cannot be measured is said and left out, what is broken is not."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import BENCH, make_run
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import experiments.attention.draw as attention
from experiments.attention.maps import Recorder
from experiments.files import CONF
from experiments.metrics import Bench, Result, Unmeasurable
from experiments.metrics.effective_scale import Scales
from experiments.metrics.estimates import Estimate
from experiments.metrics.folders import FinishedRun
from experiments.run import draw
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


def prepared(tiny_folder: Path, *overrides: str) -> draw.Job:
    small = ["model=file", f"model.path={tiny_folder}", "seeds=[3,4]", "sampler.steps=4", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return draw.prepare(compose("sample", small))


@pytest.mark.parametrize(
    "overrides",
    [
        ["prompt=a cat"],
        ["prompt=a cat", "guidance=multistage", 'guidance.stages=[{prompt: "", steps: 1}, {prompt: dog, steps: 3}]'],
    ],
)
def test_maps_are_of_the_run_s_own_noise_and_prompts(
    overrides: list[str], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"x_T": torch.randn(2, 4, 8, 8)}, tmp_path / "noise.safetensors")
    job = prepared(tiny_folder, f"noise={tmp_path / 'noise.safetensors'}", *overrides)
    asked: list[str] = []
    shown: list[Any] = []
    monkeypatch.setattr(attention, "check_words", lambda model, prompts: asked.extend(prompts))
    monkeypatch.setattr(attention, "save_sheets", lambda *args: shown.extend(args))
    batch = draw.batch_of(job, 0, 2)
    drawn = draw.draw_batch(job.machine, batch, lambda: None, [attention.Sheets(job, 2, tmp_path)])
    assert torch.equal(drawn.x_T, load_file(tmp_path / "noise.safetensors")["x_T"])
    assert asked == (["a cat"] if len(overrides) == 1 else ["", "dog"])
    recorder = Recorder(job.machine.guidance)
    with torch.no_grad():
        all_of_them = {step.i: x_0 for step, _, x_0 in draw.moments(job.machine, batch, recorder)}
        picture, seen, title, _ = shown
        assert torch.equal(picture, drawn.images[0])
        assert [moment.step.i for moment in seen] == [0, 3]
        assert title.endswith("seed 3")
        for moment in seen:
            expected = job.machine.model.decode(all_of_them[moment.step.i][:1])[0]
            torch.testing.assert_close(moment.image, expected)
            for layer, maps in recorder.steps[moment.step.i].maps.items():
                assert torch.equal(moment.seen.maps[layer], maps)


@pytest.mark.parametrize(
    ("guidance", "beside"),
    [
        (["guidance.scale=3"], 0),
        (["guidance=interval", "guidance.start=0.5", "guidance.stop=1"], 2),  # steps without a negative pass
        (["guidance=segmentation_free", "guidance.cfg_steps=1"], 3),
    ],
)
def test_observers_change_no_byte_and_add_no_evaluation(
    guidance: list[str], beside: int, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepared(tiny_folder, "prompt=a cat", "dtype=bfloat16", *guidance)
    passes: list[int] = []
    main = job.machine.networks["main"]

    def counted(x_t: torch.Tensor, *others: Any) -> torch.Tensor:
        passes.append(len(x_t))
        return main(x_t, *others)

    machine = replace(job.machine, networks={"main": counted})
    batch = draw.batch_of(job, 0, 2)
    alone = draw.draw_batch(machine, batch, lambda: None)
    before = len(passes)
    watched = draw.draw_batch(machine, batch, lambda: None, [Scales(), attention.Sheets(job, 2, tmp_path)])
    assert torch.equal(watched.images, alone.images)
    assert watched.evaluations == alone.evaluations
    assert len(passes) == 2 * before + beside
    assert (tmp_path / "semantics.png").exists()
    assert [len(record["effective_scale"]["scale"]) for record in watched.seen] == [4, 4]


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
