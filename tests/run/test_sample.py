"""The sampling verb: its run folder, its promises about seeds and restarts, and what it says of bad input."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import TINY, Outcome, tiny_model

from experiments.files import CONF, UserError
from experiments.run import draw
from guidance import Branch
from ldm import load_model
from ldm.condition import Conditions, stack
from ldm.files.writing import write_folder
from samplers import ImageNoise, Step, as_x_0

Sample = Callable[..., Outcome]


@pytest.fixture
def sample(cli: Callable[..., Outcome], tiny_folder: Path) -> Sample:
    def run(out: Path, *overrides: str) -> Outcome:
        model = () if any(o.startswith("model=") for o in overrides) else ("model=file", f"model.path={tiny_folder}")
        return cli("sample", *model, "sampler.steps=4", f"hydra.run.dir={out}", *overrides)

    return run


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def pixels(out: Path, name: str) -> torch.Tensor:
    return torch.tensor(list(Image.open(out / "images" / name).tobytes()), dtype=torch.int16)


def test_run_folder(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = sample(
        out, "prompt='a dragon, ink (1920s)'", "seeds=[3,1]", "save_latents=true", "negative_prompt=blurry"
    )
    assert outcome.status == 0, outcome.err
    assert {p.name for p in out.iterdir()} == {
        ".hydra", ".lock", "images", "grid.png", "latents.safetensors", "run.json", "samples.jsonl"
    }  # fmt: skip
    first, second = lines(out)
    assert [first["file"], second["file"]] == ["images/00000_3.png", "images/00000_1.png"]
    assert first["prompt"] == "a dragon, ink (1920s)"
    assert first["negative_prompt"] == "blurry"
    assert first["evaluations"] == 8
    assert first["seconds"] > 0
    assert first["sha256"] == hashlib.sha256((out / first["file"]).read_bytes()).hexdigest()
    assert "stages" not in first
    picture = Image.open(out / first["file"])
    assert picture.size == (16, 16)
    said = json.loads(picture.text["ldm-guidance"])
    assert said["seed"] == 3
    assert str(tmp_path) not in picture.text["ldm-guidance"]
    about = json.loads((out / "run.json").read_text())
    assert {"commit", "versions", "device", "config"} <= set(about)
    assert about["config"]["guidance"]["scale"] == 7.5
    latents = load_file(out / "latents.safetensors")
    assert torch.equal(latents["x_T"], ImageNoise([3, 1], (4, 8, 8))())
    image = tiny_model().decode(latents["x_0"])[0]
    assert (image * 255 - torch.tensor(picture.getdata()).reshape(16, 16, 3).permute(2, 0, 1)).abs().max() <= 0.51


def test_same_seed_in_batches_of_1_3_and_8(sample: Sample, tmp_path: Path) -> None:
    seeds = "seeds=[0,1,2,3,4,5,6,7]"
    for size in (1, 3, 8):
        sample(tmp_path / str(size), "prompt=x", seeds, f"batch_size={size}", "save_latents=true", "sampler.eta=1")
    latents = {size: load_file(tmp_path / str(size) / "latents.safetensors") for size in (1, 3, 8)}
    for size in (1, 3):
        assert torch.equal(latents[size]["x_T"], latents[8]["x_T"])
        assert (latents[size]["x_0"] - latents[8]["x_0"]).norm() < 1e-4 * latents[8]["x_0"].norm()
        for seed in range(8):
            name = f"00000_{seed}.png"
            assert (pixels(tmp_path / str(size), name) - pixels(tmp_path / "8", name)).abs().max() <= 1


def test_deterministic_bits_whatever_the_batch(sample: Sample, tmp_path: Path) -> None:
    asked = ["prompt=x", "seeds=[0,1,2,3,4,5,6,7]", "deterministic=true", "save_latents=true", "sampler.eta=1"]
    for size in (1, 3, 8):
        assert sample(tmp_path / str(size), *asked, f"batch_size={size}").status == 0
    digests = [[record["sha256"] for record in lines(tmp_path / str(size))] for size in (1, 3, 8)]
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests[0])) == 8
    latents = [load_file(tmp_path / str(size) / "latents.safetensors") for size in (1, 3, 8)]
    assert all(torch.equal(latents[0][key], other[key]) for other in latents for key in ("x_T", "x_0"))
    noise = f"noise={tmp_path / '8' / 'latents.safetensors'}"
    assert sample(tmp_path / "noise", *asked[:-1], "batch_size=3", noise).status == 0


def test_max_batch_changes_no_picture(sample: Sample, tmp_path: Path) -> None:
    for name, *asked in [("a",), ("b", "max_batch=2"), ("c", "max_batch=1")]:
        assert sample(tmp_path / name, "prompt=x", "seeds=[0,1]", "save_latents=true", *asked).status == 0
    a, b, c = (load_file(tmp_path / name / "latents.safetensors")["x_0"] for name in "abc")
    assert max((a - b).norm(), (a - c).norm()) < 1e-4 * a.norm()


def test_order_of_prompts_and_seeds_and_noise_file(sample: Sample, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text('prompt,negative_prompt\n"a cat, sitting",\na dog,blurry\n')
    asked = ("prompts=file", f"prompts.path={prompts}", "seeds=[5,6]", "save_latents=true", "negative_prompt=dark")
    assert sample(tmp_path / "a", *asked, "batch_size=3").status == 0
    records = lines(tmp_path / "a")
    assert [(r["prompt_index"], r["seed"]) for r in records] == [(0, 5), (0, 6), (1, 5), (1, 6)]
    assert [r["negative_prompt"] for r in records] == ["dark", "dark", "blurry", "blurry"]
    latents = load_file(tmp_path / "a" / "latents.safetensors")
    assert torch.equal(latents["x_T"], ImageNoise([5, 6, 5, 6], (4, 8, 8))())
    # the same noise as a file gives the same pictures under other seeds
    again = [o.replace("seeds=[5,6]", "seeds=[8,9]") for o in asked]
    out = tmp_path / "b"
    assert sample(out, *again, "batch_size=3", f"noise={tmp_path / 'a' / 'latents.safetensors'}").status == 0
    assert torch.equal(load_file(out / "latents.safetensors")["x_0"], latents["x_0"])


@pytest.mark.parametrize("suite", ["emoji", "multistage_paper", "segmentation_free_paper", "two_objects", "emoji_one"])
def test_shipped_suites(sample: Sample, tmp_path: Path, suite: str) -> None:
    count = ("prompts.count=6",) if suite in ("two_objects", "emoji_one") else ()
    outcome = sample(tmp_path / "run", f"prompts={suite}", *count, "sampler.steps=1", "batch_size=16")
    assert outcome.status == 0, outcome.err
    assert len(lines(tmp_path / "run")) >= 6


def test_multistage_without_prompt(sample: Sample, tmp_path: Path) -> None:
    stages = "guidance.stages=[{prompt: 'a Chinese dragon', steps: 1}, {prompt: a fish, steps: 3}]"
    outcome = sample(tmp_path / "run", "guidance=multistage", stages)
    assert outcome.status == 0, outcome.err
    (record,) = lines(tmp_path / "run")
    assert "prompt" not in record
    assert record["stages"] == [{"prompt": "a Chinese dragon", "steps": 1}, {"prompt": "a fish", "steps": 3}]
    assert record["evaluations"] == 8


def test_guidances_nest_from_the_command_line(sample: Sample, tmp_path: Path) -> None:
    stages = "guidance.inner.stages=[{prompt: a dragon, steps: 0.5}, {prompt: a fish, steps: 0.5}]"
    nested = (
        "guidance=rescale",
        "guidance@guidance.inner=multistage",
        "guidance@guidance.inner.inner=segmentation_free",
        "guidance.inner.inner.sf_scale=5",
        "guidance.phi=0.5",
        stages,
    )
    assert sample(tmp_path / "a", *nested).status == 0
    config = json.loads((tmp_path / "a" / "run.json").read_text())["config"]["guidance"]
    assert config["inner"]["inner"]["_target_"] == "guidance.SegmentationFree"
    assert lines(tmp_path / "a")[0]["evaluations"] == 8
    # a stage with a guidance of its own
    own = "{prompt: a fish, steps: 2, guidance: {_target_: guidance.ClassifierFree, scale: 1}}"
    stages = "guidance.stages=[{prompt: a dragon, steps: 2}, " + own + "]"
    assert sample(tmp_path / "b", "guidance=multistage", stages).status == 0
    assert lines(tmp_path / "b")[0]["evaluations"] == 2 * 2 + 2 * 1


def test_number_as_prompt_is_text(sample: Sample, tmp_path: Path) -> None:
    assert sample(tmp_path / "run", "prompt=42").status == 0
    assert lines(tmp_path / "run")[0]["prompt"] == "42"


def test_long_prompt_is_cut_and_says_so(sample: Sample, tmp_path: Path) -> None:
    prompt = "cat " * 80 + "dragon"
    outcome = sample(tmp_path / "run", f"prompt='{prompt}'")
    assert outcome.status == 0
    assert outcome.err.startswith("warning: a prompt of picture 0 is longer than 77 tokens; cut off: 'cat cat")
    assert lines(tmp_path / "run")[0]["cut"].endswith("cat dragon")


def test_interrupted_run_goes_on(sample: Sample, tmp_path: Path) -> None:
    asked = ("prompt=x", "seeds=[0,1,2,3,4]", "batch_size=2", "save_latents=true")
    sample(tmp_path / "whole", *asked)
    out = tmp_path / "cut"
    sample(out, *asked)
    # as if killed: two pictures gone, the last line half written, the latents of the first two batches in parts
    whole = load_file(out / "latents.safetensors")
    (out / "latents.safetensors").unlink()
    (out / "latents").mkdir()
    for b in range(2):
        save_file(
            {k: v[2 * b : 2 * b + 2].contiguous() for k, v in whole.items()}, out / "latents" / f"{b:05d}.safetensors"
        )
    text = (out / "samples.jsonl").read_text()
    (out / "samples.jsonl").write_text(text[:-20])
    (out / "images" / "00000_3.png").unlink()
    (out / "images" / "00000_4.png").unlink()
    (out / "grid.png").unlink()
    untouched = (out / "images" / "00000_0.png").stat().st_mtime_ns
    outcome = sample(out, *asked)
    assert outcome.status == 0, outcome.err
    assert (out / "images" / "00000_0.png").stat().st_mtime_ns == untouched
    for path in [*(tmp_path / "whole" / "images").iterdir(), tmp_path / "whole" / "latents.safetensors"]:
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "whole")).read_bytes()
    timeless = [[{k: v for k, v in r.items() if k != "seconds"} for r in lines(tmp_path / n)] for n in ("whole", "cut")]
    assert timeless[0] == timeless[1]


def same_run(one: Path, other: Path) -> None:
    """Two folders hold the same files with the same bytes, but for times, paths and what Hydra writes."""
    files = [{p.relative_to(f) for p in f.rglob("*") if p.is_file() and ".hydra" not in p.parts} for f in (one, other)]
    assert files[0] == files[1]
    for file in files[0] - {Path("samples.jsonl"), Path("run.json")}:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    timeless = [[{k: v for k, v in r.items() if k != "seconds"} for r in lines(folder)] for folder in (one, other)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(("shards", "sampler"), [(2, "sampler.eta=1"), (5, "sampler=dpmpp_2m_sde")])
def test_shards_make_what_one_process_makes(sample: Sample, tmp_path: Path, shards: int, sampler: str) -> None:
    asked = ("prompt=x", "seeds=[0,1,2,3,4,5,6]", "batch_size=2", "save_latents=true", sampler)
    sample(tmp_path / "whole", *asked)
    for i in reversed(range(shards)):
        outcome = sample(tmp_path / "shards", *asked, f"shard={i}/{shards}")
        assert outcome.status == 0, outcome.err
        assert ("others are missing yet" in outcome.out) == (i > 0)
        assert (tmp_path / "shards" / "samples.jsonl").exists() == (i == 0)
    same_run(tmp_path / "whole", tmp_path / "shards")


def test_a_run_begun_in_shards_is_gone_on_with_by_one_process(sample: Sample, tmp_path: Path) -> None:
    asked = ("prompt=x", "seeds=[0,1,2,3,4]", "batch_size=2")
    sample(tmp_path / "whole", *asked)
    sample(tmp_path / "mixed", *asked, "shard=1/2")
    untouched = (tmp_path / "mixed" / "images" / "00000_2.png").stat().st_mtime_ns
    assert sample(tmp_path / "mixed", *asked).status == 0
    assert (tmp_path / "mixed" / "images" / "00000_2.png").stat().st_mtime_ns == untouched
    same_run(tmp_path / "whole", tmp_path / "mixed")


@pytest.mark.parametrize("shard", ["2/2", "1", "-1/2", "0/0", "a/b"])
def test_a_shard_that_is_none_is_refused(sample: Sample, tmp_path: Path, shard: str) -> None:
    outcome = sample(tmp_path / "run", "prompt=x", f"shard={shard}")
    assert outcome.status == 1
    assert outcome.err == f"error: shard={shard}: must be i/n, with i from 0 to n - 1\n"


def test_going_on_under_other_code_is_recorded(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.files.commit", lambda: "first")
    sample(tmp_path / "run", "prompt=x")
    monkeypatch.setattr("experiments.files.commit", lambda: "second")
    for _ in range(2):
        assert sample(tmp_path / "run", "prompt=x").status == 0
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert record["commit"] == "first"
        assert record["resumed"] == [{"commit": "second"}]


def test_another_config_in_the_same_folder_is_refused(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert sample(out, "prompt=x").status == 0
    before = (out / "run.json").read_bytes()
    outcome = sample(out, "prompt=x", "guidance.scale=3")
    assert outcome.status == 1
    assert "guidance.scale was 7.5, now is 3" in outcome.err
    assert (out / "run.json").read_bytes() == before


def moved(folder: Path, tiny: Path, by: float = 0.01) -> Path:
    """The tiny model with all its weights moved."""
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    for path in folder.rglob("*.safetensors"):
        save_file({key: value + by for key, value in load_file(path).items()}, path)
    return folder


def test_contents_that_changed_under_the_same_name_are_refused(
    sample: Sample, tiny_folder: Path, tmp_path: Path
) -> None:
    prompts, noise, model = tmp_path / "p.txt", tmp_path / "noise.safetensors", tmp_path / "model"
    asked = ["prompts=file", f"prompts.path={prompts}", f"noise={noise}", "model=file", f"model.path={model}"]

    def begin() -> None:
        prompts.write_text("a fish\n")
        save_file({"x_T": torch.zeros(1, 4, 8, 8)}, noise)
        moved(model, tiny_folder, 0.0)

    begin()
    assert sample(tmp_path / "run", *asked).status == 0
    assert sample(tmp_path / "run", *asked).status == 0
    picture = (tmp_path / "run" / "images" / "00000_0.png").read_bytes()
    for name, change in {
        "prompts": lambda: prompts.write_text("a pear\n"),
        "noise": lambda: save_file({"x_T": torch.ones(1, 4, 8, 8)}, noise),
        "weights of the model": lambda: moved(model, tiny_folder),
    }.items():
        begin()
        change()
        outcome = sample(tmp_path / "run", *asked)
        assert outcome.status == 1
        assert outcome.err.startswith(f"error: {tmp_path}/run was begun with other contents of {name}, under the same")
        assert outcome.err.count("\n") == 1
    assert (tmp_path / "run" / "images" / "00000_0.png").read_bytes() == picture


def test_a_picture_names_its_weights_and_not_their_place(sample: Sample, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "same")
    models = {"a": tiny_folder, "b": tmp_path / "same", "c": moved(tmp_path / "other", tiny_folder)}
    for name, folder in models.items():
        assert sample(tmp_path / name, "prompt=x", "model=file", f"model.path={folder}").status == 0
    a, b, c = (tmp_path / name / "images" / "00000_0.png" for name in "abc")
    assert a.read_bytes() == b.read_bytes()
    weights = [json.loads(Image.open(p).text["ldm-guidance"])["contents"]["weights of the model"] for p in (a, c)]
    assert weights[0] != weights[1]
    said = json.loads(Image.open(a).text["ldm-guidance"])
    assert (said["batch_size"], said["deterministic"], said["max_batch"]) == (4, False, None)


def test_the_files_of_others_stay(sample: Sample, tmp_path: Path) -> None:
    theirs = [
        "mine.tmp",
        "build/run.json.0.tmp",
        "images/mine.png",
        "images/x.tmp",
        "latents/y.safetensors",
        "latents/z",
    ]
    left = ["images/00000_0.png", "run.json", "samples.jsonl"]  # by a process that was killed while it wrote
    out = tmp_path / "run"
    for name in [*theirs, *(f"{name}.{'0' * 32}.tmp" for name in left)]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("x")
    assert sample(out, "prompt=x", "save_latents=true").status == 0
    assert all((out / name).read_text() == "x" for name in theirs)
    assert not list(out.rglob(f"*{'0' * 32}.tmp"))
    assert [path.name for path in sorted((out / "latents").iterdir())] == ["y.safetensors", "z"]


def test_a_stage_without_words_is_drawn_and_recorded_so(sample: Sample, tmp_path: Path) -> None:
    for name, first in (("empty", "''"), ("own", "null")):
        stages = f"guidance.stages=[{{prompt: {first}, steps: 2}}, {{prompt: null, steps: 2}}]"
        assert sample(tmp_path / name, "prompt=a cat", "guidance=multistage", stages).status == 0
    (record,) = lines(tmp_path / "empty")
    assert record["stages"] == [{"prompt": "", "steps": 2}, {"prompt": "a cat", "steps": 2}]
    assert lines(tmp_path / "empty")[0]["sha256"] != lines(tmp_path / "own")[0]["sha256"]


def prepared(tiny_folder: Path, *overrides: str) -> draw.Job:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked = ["model=file", f"model.path={tiny_folder}", "prompt=x", "sampler.steps=3", *overrides]
        return draw.prepare(compose("sample", asked))


def test_any_part_of_a_run_begins_at_its_own_noise(tiny_folder: Path, tmp_path: Path) -> None:
    x_T = torch.randn(3, 4, 8, 8)
    save_file({"x_T": x_T}, tmp_path / "noise.safetensors")
    job = prepared(tiny_folder, "seeds=[5,6,7]", f"noise={tmp_path / 'noise.safetensors'}")
    assert torch.equal(draw.batch_of(job, 1, 2).x_T, x_T[1:])
    assert torch.equal(draw.batch_of(prepared(tiny_folder, "seeds=[5,6,7]"), 2, 1).x_T, ImageNoise([7], (4, 8, 8))())


@dataclass(frozen=True)
class Auto:
    """Autoguidance: away from what a second network says."""

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        return {"cond": Branch(conditions.cond), "weak": Branch(conditions.cond, network="weak")}

    def combine(self, x_0: dict[str, torch.Tensor], x_t: torch.Tensor, step: Step) -> torch.Tensor:
        return 2 * x_0["cond"] - x_0["weak"]


def test_a_second_network_is_named_on_the_command_line(tiny_folder: Path, tmp_path: Path) -> None:
    weak = moved(tmp_path / "weak", tiny_folder, 0.02)
    job = prepared(tiny_folder, f"networks.weak={weak}")
    batch = draw.batch_of(job, 0, 1)
    step, _, x_0 = next(draw.moments(job.machine, batch, Auto()))
    with torch.no_grad():
        strong, other = job.machine.model, load_model(weak)
        told = [stack([strong.condition(["x"])]), stack([strong.condition(["x"])])]  # the main model's text encoder
        estimates = [as_x_0(m.unet, "eps")(batch.x_T, step.now, c) for m, c in zip((strong, other), told, strict=True)]
    assert torch.allclose(x_0, 2 * estimates[0] - estimates[1], rtol=1e-4, atol=1e-4)
    assert set(job.contents) == {"prompts", "weights of the model", "weights of weak"}
    drawn = draw.draw_batch(replace(job.machine, guidance=Auto()), batch, lambda: None)
    assert (drawn.evaluations, drawn.idle) == ([6], set())
    assert draw.draw_batch(job.machine, batch, lambda: None).idle == {"weak"}
    write_folder(tiny_model(replace(TINY, schedule=replace(TINY.schedule, kind="linear"))), tmp_path / "linear")
    with pytest.raises(UserError, match="another noise schedule"):
        prepared(tiny_folder, f"networks.weak={tmp_path / 'linear'}")
    alone = prepared(tiny_folder)
    with pytest.raises(UserError, match="guidance: Auto: branch 'weak' needs a network 'weak': there is main"):
        next(draw.moments(alone.machine, batch, Auto()))


def inpainting_model(folder: Path) -> Path:
    write_folder(tiny_model(replace(TINY, unet=replace(TINY.unet, in_channels=9))), folder)
    return folder


def wrong_noise(folder: Path) -> str:
    save_file({"x_T": torch.zeros(2, 4, 8, 8)}, folder / "two.safetensors")
    save_file({"noise": torch.zeros(1, 4, 8, 8)}, folder / "other.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "two.safetensors").read_bytes()[:200])
    return str(folder)


class Trap:
    """Unpickled without care, it would leave a file behind."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch trapped",)


def bad_models(folder: Path, tiny: Path) -> str:
    (folder / "text.safetensors").write_text("not a checkpoint")
    shutil.copytree(tiny, folder / "part")
    shutil.rmtree(folder / "part" / "vae")
    shutil.copytree(tiny, folder / "cut")
    weights = folder / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    torch.save({"state_dict": {"x": torch.zeros(1)}, "callbacks": Trap()}, folder / "trap.ckpt")
    return str(folder)


BAD = {
    "no prompt": ([], "nothing to draw"),
    "missing model": (["prompt=x", "model=file", "model.path=/no/such/model"], "/no/such/model"),
    "no model path": (["prompt=x", "model=sd15"], "model.path"),
    "stage field": (["guidance=multistage", "guidance.stages=[{promt: x, steps: 4}]"], "promt"),
    "infinite scale": (["prompt=x", "guidance.scale=inf"], "scale=inf"),
    "nested scale": (["prompt=x", "guidance=rescale", "guidance.inner.scale=nan"], "scale=nan"),
    "noise shape": (["prompt=x", "noise={noise}/two.safetensors"], "x_T is [2, 4, 8, 8], but these images need [1, 4,"),
    "noise key": (["prompt=x", "noise={noise}/other.safetensors"], "no tensor x_T"),
    "noise cut": (["prompt=x", "noise={noise}/cut.safetensors"], "not a whole safetensors file"),
    "empty prompts": (["prompts=file", "prompts.path={empty}"], "holds no prompts"),
    "no prompts file": (["prompts=file", "prompts.path=/no/prompts.txt"], "/no/prompts.txt"),
    "no cuda": (["prompt=x", "device=cuda"], "device=cuda is not available here"),
    "not finite": (["prompt=x", "guidance.scale=1e38"], "latents are not finite after step 2 of 4 (t=501)"),
    "no checkpoint": (["prompt=x", "model=file", "model.path={models}/text.safetensors"], "text.safetensors: no"),
    "no autoencoder": (["prompt=x", "model=file", "model.path={models}/part"], "vae"),
    "cut weights": (["prompt=x", "model=file", "model.path={models}/cut"], "diffusion_pytorch_model.safetensors: "),
    "pickled code": (["prompt=x", "model=file", "model.path={models}/trap.ckpt"], "refused: it would run"),
    "inpainting": (["prompt=x", "model=file", "model.path={inpainting}"], "is an inpainting model"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(
    sample: Sample, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    overrides, said = BAD[case]
    monkeypatch.chdir(tmp_path)
    if case == "no cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "empty.txt").write_text("\n\n")
    places = {"{noise}": wrong_noise(tmp_path), "{empty}": str(tmp_path / "empty.txt")}
    if case == "inpainting":
        places["{inpainting}"] = str(inpainting_model(tmp_path / "inpainting"))
    if "{models}" in str(overrides):
        (tmp_path / "models").mkdir()
        places["{models}"] = bad_models(tmp_path / "models", tiny_folder)
    for key, value in places.items():
        overrides = [o.replace(key, value) for o in overrides]
    out = tmp_path / "run"
    outcome = sample(out, *overrides)
    assert outcome.status == 1
    said_lines = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert len(said_lines) == 1
    assert said in outcome.err
    assert outcome.err.endswith(said_lines[0] + "\n")
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "trapped").exists()
    left = {p.name for p in out.rglob("*") if p.is_file() and ".hydra" not in p.parts} - {".lock"}
    assert left <= {"run.json", "samples.jsonl"}  # the non-finite run had begun


def test_wrong_lines_of_prompt_files_are_named(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    for text, said in [
        ('{"prompt": "x"}\n{"prompt": ', "line 2: not JSON"),
        ('{"text": "x"}', "line 1: must be an object"),
    ]:
        path.write_text(text)
        outcome = sample(tmp_path / "run", "prompts=file", f"prompts.path={path}")
        assert outcome.status == 1
        assert said in outcome.err


@pytest.mark.parametrize("place", ["/proc/run", "FILE/run"])
def test_run_folder_that_cannot_be_written(sample: Sample, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    outcome = sample(Path(place.replace("FILE", str(tmp_path / "file"))), "prompt=x")
    assert outcome.status == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def command(tiny_folder: Path, out: Path, *overrides: str) -> list[str]:
    model = ["model=file", f"model.path={tiny_folder}"]
    return [sys.executable, "-m", "experiments.sample", *model, f"hydra.run.dir={out}", "prompt=x", *overrides]


def test_full_disk_keeps_complete_pictures(tiny_folder: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: pictures fit into it, the lines about all of them do not."""
    out = tmp_path / "run"
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000)); "
    limited += "sys.argv.pop(0); runpy.run_module('experiments.sample', run_name='__main__', alter_sys=True)"
    arguments = command(tiny_folder, out, "sampler.steps=1", f"seeds=[{','.join(map(str, range(100)))}]")
    arguments[1:3] = ["-c", limited, "sample"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1, done.stderr
    assert "File too large" in errors[0]
    assert 0 < len(lines(out)) < 100
    assert {p.name for p in (out / "images").iterdir()} >= {Path(r["file"]).name for r in lines(out)}
    assert not list(out.rglob("*.tmp"))
    for picture in (out / "images").iterdir():
        Image.open(picture).load()


def test_ctrl_c_leaves_complete_images(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    seeds = f"seeds=[{','.join(map(str, range(400)))}]"
    process = subprocess.Popen(
        command(tiny_folder, out, seeds, "batch_size=2", "sampler.steps=20"), stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's & has children ignore it
    )  # fmt: skip
    while not (out / "images").exists() or len(list((out / "images").iterdir())) < 5:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    records = lines(out)
    assert 4 <= len(records) < 400
    for record in records:
        assert hashlib.sha256((out / record["file"]).read_bytes()).hexdigest() == record["sha256"]
    assert not list(out.rglob("*.tmp"))


def test_bad_job_of_a_sweep_is_reported_and_the_others_run(
    cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path
) -> None:
    outcome = cli(
        "sample", "-m", "model=file", f"model.path={tiny_folder}", "prompt=x", "sampler.steps=1",
        "guidance.scale=1,-3,2", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${guidance.scale}",
    )  # fmt: skip
    assert outcome.status == 1
    assert "scale=-3" in outcome.err
    assert len(lines(tmp_path / "1")) == len(lines(tmp_path / "2")) == 1


def test_wandb_offline(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = command(tiny_folder, out, "sampler.steps=2", "logger=wandb")
    done = subprocess.run(arguments, capture_output=True, text=True)  # W&B writes its last lines when a process ends
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    (log,) = (out / "wandb").glob("offline-run-*/*.wandb")
    written = log.read_bytes()
    assert b"unet_evaluations_per_image" in written
    (table,) = (out / "wandb").rglob("samples_*.table.json")
    columns = json.loads(table.read_text())["columns"]
    assert {"image", "prompt", "seed", "seconds", "evaluations"} <= set(columns)


def test_unreachable_wandb_does_not_stop_a_run(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    outcome = sample(tmp_path / "run", "prompt=x", "logger=wandb", "logger.mode=online", "logger.timeout=2")
    assert outcome.status == 0
    assert len(lines(tmp_path / "run")) == 1
