"""Sweeps: their folder, killed and gone on with, in shards, under launchers, with a bad cell, and on W&B's books."""

import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from omegaconf import OmegaConf
from tiny import Outcome
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from experiments.files import CONF
from experiments.metrics.effective_scale import EffectiveScale
from experiments.run import build
from experiments.sweeps.entry import folders
from experiments.sweeps.folder import Begun, open_sweep
from experiments.sweeps.progress import state_of

pytestmark = pytest.mark.filterwarnings("ignore:'experiments.ablate' found in sys.modules:RuntimeWarning")

TOY = """
# @package _global_
name: toy
claim: More guidance is more.
cell: ${guidance.scale},${sampler.eta}
prompt: a cat
n: 24
batch_size: 2
save_latents: true
maps: false
sampler:
  steps: 3
measures:
  photo: {effective_scale: {pictures: 1}}
hydra:
  sweeper:
    params:
      guidance.scale: 1,3
      sampler.eta: 0,1
page: {x: guidance.scale, by: sampler.eta}
"""
CELLS = ["1,0", "1,1", "3,0", "3,1"]
FILES = """
# @package _global_
defaults:
  - override /prompts: file
  - _self_
name: files
cell: ${here}
here: cats
prompts:
  path: ${here}.txt
n: 1
sampler:
  steps: 2
measures:
  photo: {effective_scale: {pictures: 1}}
hydra:
  sweeper:
    params:
      here: dogs,cats
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> list[str]:
    """The arguments of a sweep of 2 x 2 cells, into the folder `sweep` of where it is run."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "experiment").mkdir()
    for name, text in (("toy", TOY), ("files", FILES)):
        (folder / "experiment" / f"{name}.yaml").write_text(text)
    model = ["model=file", f"model.path={tiny_folder}"]
    return ["-m", f"hydra.searchpath=[file://{folder}]", "experiment=toy", *model, "out=sweep"]


@pytest.fixture
def ablate(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """ablate("n=1", ...): a sweep in this process, as `python -m experiments.ablate` would run it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*overrides: str, experiment: str = "toy") -> Outcome:
        asked = [word.replace("=toy", f"={experiment}") for word in toy]
        monkeypatch.setattr(sys, "argv", ["experiments/ablate.py", *asked, *overrides])
        monkeypatch.setattr(Begun, "folders", [])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_module("experiments.ablate", run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


# Sweeps in processes of their own, forked so as to start fast; all with one thread, on which the bytes may depend.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
FORKS = """
import json, os, runpy, sys
import torch._dynamo  # seconds, which a model's first making would take in every child
import experiments.ablate
from hydra.core.plugins import Plugins
Plugins.instance()
for line in sys.stdin:
    folder, *arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["experiments/ablate.py", *arguments]
        del sys.modules["experiments.ablate"]
        status = 0
        try:
            runpy.run_module("experiments.ablate", run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        finally:
            os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    """Toy sweeps, one at a time."""

    def __init__(self, server: subprocess.Popen, toy: list[str]):
        self.server, self.toy = server, toy

    def start(self, folder: Path, *overrides: str) -> int:
        """The process that sweeps into `folder`/sweep."""
        self.server.stdin.write(json.dumps([str(folder), *self.toy, *overrides]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self) -> int:
        return int(self.server.stdout.readline())

    def run(self, folder: Path, *overrides: str) -> None:
        folder.mkdir(exist_ok=True)
        self.start(folder, *overrides)
        assert self.end() == 0


@pytest.fixture(scope="module")
def forks(toy: list[str]) -> Iterator[Forks]:
    command, pipe = [sys.executable, "-c", FORKS], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=ONE_THREAD) as server:
        yield Forks(server, toy)
        server.stdin.close()


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy sweep, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    forks.run(folder)
    return folder / "sweep"


def content(sweep: Path, cells: list[str] | None = None) -> dict[str, bytes]:
    """Every file but what Hydra and launchers write, less times and commits; those of some cells, if these are named.

    The page and run.json tell on which commits they were made, so they are only to be there.
    """
    found = {}
    for path in sweep.rglob("*"):
        name = str(path.relative_to(sweep))
        theirs = {".hydra", ".submitit", "multirun.yaml"} & set(path.relative_to(sweep).parts)
        if path.is_file() and not theirs and (cells is None or name.split("/")[0] in cells):
            told = b"" if path.name in ("report.html", "run.json") else path.read_bytes()
            found[name] = re.sub(rb'"(seconds|commit)": [^,}\n]+', b"", told) if "json" in path.suffix else told
    return found


def lines(cell: Path) -> list[dict]:
    return [json.loads(line) for line in (cell / "samples.jsonl").read_text().splitlines()]


def test_folder_of_a_sweep(whole: Path) -> None:
    assert {p.name for p in whole.iterdir()} == {*CELLS, ".lock", "sweep.json", "multirun.yaml", "report.html"}
    sweep = open_sweep(whole)
    assert [cell.name for cell in sweep.cells] == CELLS
    for cell in sweep.cells:
        assert cell.axes == dict(zip(["guidance.scale", "sampler.eta"], map(int, cell.name.split(",")), strict=True))
        assert cell.error is None
        assert len(cell.records) == 24
        assert {p.name for p in cell.folder.iterdir()} == {
            *(".hydra", ".lock", "cell.json", "grid.png", "images"),
            *("latents.safetensors", "metrics", "run.json", "samples.jsonl"),
        }
        assert cell.estimate("effective_scale")["value"] == pytest.approx(cell.axes["guidance.scale"], rel=1e-3)
    assert sweep.command.startswith("python -m experiments.ablate -m ")
    assert sweep.config["prompt"] == "a cat"
    assert all(name in (whole / "report.html").read_text() for name in ("More guidance is more.", "effective_scale"))


def test_a_second_start_makes_nothing_again(whole: Path, forks: Forks, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "sweep")

    def times() -> dict[Path, int]:
        made = [p for pattern in ("images/*.png", "metrics/*", "*.safetensors") for p in tmp_path.rglob(pattern)]
        return {path: path.stat().st_mtime_ns for path in made}

    before = times()
    forks.run(tmp_path)
    assert len(before) == 4 * (24 + 1 + 1)
    assert times() == before
    assert content(tmp_path / "sweep") == content(whole)


def test_a_sweep_killed_ten_times_equals_an_undisturbed_one(whole: Path, forks: Forks, tmp_path: Path) -> None:
    """Killed outright at random moments: between cells, pictures and measures, and within them."""
    rng = random.Random(0)

    def written() -> int:
        return sum(path.suffix in (".png", ".json", ".yaml") for path in tmp_path.rglob("*"))

    for _ in range(10):
        until = written() + rng.randrange(16)
        pid = forks.start(tmp_path)
        while written() < until:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert forks.end() == -signal.SIGKILL
    assert 0 < len(list(tmp_path.rglob("images/*.png"))) < 4 * 24
    forks.run(tmp_path)
    assert content(tmp_path / "sweep") == content(whole)


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_make_what_one_process_makes(whole: Path, forks: Forks, tmp_path: Path, shards: int) -> None:
    for i in reversed(range(shards)):
        assert not list(tmp_path.rglob("metrics"))
        forks.run(tmp_path, "sampler.eta=1", f"shard={i}/{shards}")
    assert content(tmp_path / "sweep", ["1,1", "3,1"]) == content(whole, ["1,1", "3,1"])


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_make_what_one_process_makes(whole: Path, toy: list[str], tmp_path: Path, launcher: str) -> None:
    """And a bad job of theirs leaves the others alone."""
    asked = [*toy, "guidance.scale=1,-3,3", "sampler.eta=1", f"hydra/launcher={launcher}"]
    asked += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    command = [sys.executable, "-m", "experiments.ablate", *asked]
    done = subprocess.run(command, cwd=tmp_path, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    sweep = tmp_path / "sweep"
    assert content(sweep, ["1,1", "3,1"]) == content(whole, ["1,1", "3,1"])
    assert all(json.loads((sweep / cell / "run.json").read_text())["threads"] == 1 for cell in ("1,1", "3,1"))
    log = done.stderr + "".join(path.read_text() for path in sweep.glob(".submitit/*/*.err"))
    (said,) = [line for line in log.splitlines() if "error in job" in line]  # another job's bar may stand before it
    assert "guidance.scale=-3" in said
    assert "scale=-3: must be a finite number of at least 0" in said
    assert "scale=-3: must be" in (sweep / "-3,1" / "error.txt").read_text()
    assert "scale=-3: must be" in (sweep / "report.html").read_text()


def test_a_bad_cell_is_recorded_until_it_is_mended(ablate: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text("a cat\na black cat\n")
    outcome = ablate(experiment="files")
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    (said,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert said.startswith("error in job here=dogs,")
    reason = said.split(": ", 1)[1]
    assert "dogs" in reason
    cats, dogs = open_sweep(tmp_path / "sweep").cells
    assert (cats.name, cats.error, len(cats.records)) == ("cats", None, 2)
    assert (cats.folder / "semantics.png").exists()
    assert cats.estimate("effective_scale")
    assert reason in dogs.error
    assert "failed" in (tmp_path / "sweep" / "report.html").read_text()
    (tmp_path / "dogs.txt").write_text("a dog\n")
    assert ablate(experiment="files").status == 0
    assert [cell.error for cell in open_sweep(tmp_path / "sweep").cells] == [None, None]


def test_cells_share_what_they_are_made_of_and_draw_once(
    ablate: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model for all cells, one config for each; and the pictures are those of cells that were drawn one by one."""
    made: list[str] = []

    def noted(what: str, function: Callable) -> Callable:
        return lambda *args, **kwargs: (made.append(what), function(*args, **kwargs))[1]

    monkeypatch.setattr(build, "load_model", noted("model", build.load_model))
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", noted("config", ConfigLoaderImpl.load_sweep_config))
    monkeypatch.setattr(EffectiveScale, "again", noted("drawn again", EffectiveScale.again))
    watched = ["n=3", "maps=true", "dtype=bfloat16", "sampler.eta=0", "guidance.scale=1,3"]
    outcome = ablate(*watched)
    assert outcome.status == 0, outcome.err
    assert sorted(made) == ["config", "config", "model"]
    bare = [word for word in watched if not word.startswith(("maps", "guidance"))]
    for scale in (1, 3):
        cell = tmp_path / "sweep" / f"{scale},0"
        assert (cell / "semantics.png").exists()
        assert [("effective_scale" in record) for record in lines(cell)] == [True, True, False]  # of its first batch
        assert ablate(*bare, f"guidance.scale={scale}", "out=alone", "measures.photo=null").status == 0
        for picture in (cell / "images").iterdir():
            assert picture.read_bytes() == (tmp_path / "alone" / cell.name / "images" / picture.name).read_bytes()


def test_a_sweep_of_another_config_is_refused_and_more_values_are_not(
    ablate: Callable[..., Outcome], tmp_path: Path
) -> None:
    small = ["n=1", "guidance.scale=1", "sampler.eta=0,1"]
    assert ablate(*small).status == 0
    before, planned = content(tmp_path), open_sweep(tmp_path / "sweep").planned
    assert [axes["sampler.eta"] for axes in planned] == [0, 1]
    outcome = ablate(*small, "sampler.steps=2", "sampler.eta=0,1,0.5")
    assert outcome.status == 1
    assert open_sweep(tmp_path / "sweep").planned == planned  # what is refused is not waited for
    assert "sweep holds a sweep of another config (sampler.steps was 3, now is 2)" in outcome.err
    assert content(tmp_path) == before
    assert ablate("n=1", "guidance.scale=1,2", "sampler.eta=0,1").status == 0
    assert [cell.name for cell in open_sweep(tmp_path / "sweep").cells] == ["1,0", "1,1", "2,0", "2,1"]


def test_hydra_s_own_folder_is_the_sweep_s_and_a_bar_shows_all_of_it(
    ablate: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = ablate("n=2", "guidance.scale=1,-3,3", "sampler.eta=0", "hydra.sweep.dir=elsewhere")
    assert outcome.status == 1
    assert not (tmp_path / "sweep").exists()
    assert "the report: elsewhere/report.html" in outcome.out
    sweep = open_sweep(tmp_path / "elsewhere")
    assert [cell.name for cell in sweep.cells if not cell.error] == ["1,0", "3,0"]
    bar = [line for line in re.split(r"[\r\n]+", outcome.err) if line.startswith("sweep: ")]
    assert bar[0].startswith("sweep: 0 of 3 cells") and "sweep: 1 of 3 cells, 2 pictures  33%" in " ".join(bar)
    assert bar[-1].startswith("sweep: 3 of 3 cells, 1 failed, 4 pictures 100%")
    assert state_of(tmp_path / "elsewhere") == "sweep: 3 of 3 cells, 1 failed, 4 pictures"
    assert [line for line in outcome.err.splitlines() if line.startswith("error in job")]  # on a line of its own


@pytest.mark.parametrize(("folder", "sweep"), [("out/1,0", "out"), ("elsewhere", "elsewhere")])
def test_a_single_run_is_of_the_sweep_in_out_or_of_its_own(tmp_path: Path, folder: str, sweep: str) -> None:
    cfg = OmegaConf.create({"out": str(tmp_path / "out"), "cell": "1,0"})
    hydra = OmegaConf.create({"mode": RunMode.RUN, "runtime": {"output_dir": str(tmp_path / folder)}})
    assert folders(cfg, hydra) == (tmp_path / sweep, tmp_path / folder)


def test_a_sweep_is_a_group_of_wandb_and_a_cell_a_run(
    ablate: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def init(**settings: object) -> SimpleNamespace:
        logged: dict = {}
        runs.append((settings, summary := {}, logged))
        return SimpleNamespace(summary=summary, log=logged.update, finish=lambda exit_code: None)

    monkeypatch.setattr("wandb.init", init)
    outcome = ablate("logger=wandb", "n=2", "guidance.scale=1,3", "sampler.eta=0")
    assert outcome.status == 0, outcome.err
    assert "warning" not in outcome.err
    assert [(s["group"], s["name"], s["mode"]) for s, _, _ in runs] == [("toy", c, "offline") for c in ("1,0", "3,0")]
    for settings, summary, logged in runs:
        assert settings["config"]["guidance"]["scale"] == pytest.approx(summary["effective_scale"], rel=1e-3)
        assert {"effective_scale/cosine", "mean_seconds_per_image", "unet_evaluations_per_image"} <= set(summary)
        assert len(logged["samples"].data) == 2


def test_wandb_agent_s_command_makes_a_cell(tiny_folder: Path, tmp_path: Path) -> None:
    """What `wandb agent` runs for one set of parameters of conf/wandb_sweep.yaml, but offline and small."""
    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    values = {name: {"value": told["values"][-1]} for name, told in sweep["parameters"].items()}
    known = {**create_sweep_command_args({"args": values}), "env": ["/usr/bin/env"], "interpreter": ["python"]}
    known["program"] = [sweep["program"]]
    command = []
    for word in create_sweep_command(sweep["command"]):  # as wandb.wandb_agent.Agent._command_run does
        command += known[word[2:-1]] if word.startswith("${") else [word]
    small = ["model=file", f"model.path={tiny_folder}", "count=1", "n=1", "sampler.steps=2", "logger.mode=offline"]
    small += ["metrics=[effective_scale]", "metrics.effective_scale.pictures=1"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*command, *small], cwd=tmp_path, env={**ONE_THREAD, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    (cell,) = open_sweep(tmp_path / "outputs" / "ablate" / "segfree_vs_cfg_wandb").cells
    assert cell.axes == {"method": "gentle", "scale": 14}
    assert len(cell.records) == 1
    (log,) = cell.folder.glob("wandb/offline-run-*/*.wandb")
    assert all(word in log.read_bytes() for word in (b"segfree_vs_cfg", b"gentle,14", b"effective_scale/cosine"))
