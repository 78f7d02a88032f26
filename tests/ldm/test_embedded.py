"""The embedded model: diffusers loads it and draws the same pictures, and the README's program runs on it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from omegaconf import OmegaConf
from PIL import Image
from tiny import Outcome

from experiments.emoji.judge import load_judge
from experiments.files import CONF, embedded
from experiments.metrics import Bench
from experiments.metrics.measuring import evaluate

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "ldm" / "weights" / "emoji"
PROMPT = "a cat next to a dog on a blue background"


def test_the_judge_knows_its_world() -> None:
    config = load_judge().config
    told = OmegaConf.load(CONF / "world" / f"{embedded('world')}.yaml")
    assert config.concepts == tuple(told.concepts)
    assert config.colours == tuple(told.colours)
    assert config.image_size == told.image_size


def test_diffusers_draws_the_same_pictures(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32, local_files_only=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        [PROMPT] * 2,
        negative_prompt=["a heart"] * 2,
        num_inference_steps=20,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        output_type="np",
    ).images
    asked = [
        "seeds=[3,4]",
        "sampler.steps=20",
        "guidance.scale=5",
        "negative_prompt='a heart'",
        f"hydra.run.dir={tmp_path}",
    ]
    assert cli("sample", f"prompt='{PROMPT}'", *asked).status == 0
    for seed, image in zip((3, 4), theirs, strict=True):
        ours = np.array(Image.open(tmp_path / "images" / f"00000_{seed}.png")).astype(float)
        assert np.abs(ours - image * 255).max() <= 1


def test_readme_program(capsys: pytest.CaptureFixture[str]) -> None:
    program, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    names: dict[str, torch.Tensor] = {}
    exec(program, names)
    assert names["images"].shape == (2, 3, 64, 64)
    assert names["images"].std() > 0.02
    assert len(capsys.readouterr().out.splitlines()) == 50


def test_weights_are_small_16_bit_shards() -> None:
    files = list(FOLDER.rglob("*"))
    assert sum(path.stat().st_size for path in files if path.is_file()) < 64e6
    shards = [path for path in files if path.suffix == ".safetensors"]
    assert shards
    assert (FOLDER / "unet" / "diffusion_pytorch_model.safetensors.index.json").exists()
    assert all(path.stat().st_size < 15e6 for path in shards)
    assert (FOLDER / "README.md").exists()


def test_the_judge_finds_what_the_model_draws(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red heart\na green pear\na blue cat on a white background\na yellow light bulb\n")
    asked = ["prompts=file", f"prompts.path={prompts}", "seeds=[0,1]", "sampler.steps=20", "guidance.scale=3"]
    assert cli("sample", *asked, "batch_size=8", f"hydra.run.dir={tmp_path / 'run'}").status == 0
    settings = {"judge": {"_target_": "experiments.metrics.judge.JudgeMetric"}}
    found = evaluate(tmp_path / "run", settings, Bench(torch.device("cpu")))["judge"]
    assert found["count"] == 8
    assert found["value"] >= 0.85
    assert found["details"]["colours"]["value"] >= 0.85


def test_all_embedded_weights_are_small() -> None:
    files = [path for path in FOLDER.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100e6
    assert all(path.stat().st_size < 15e6 for path in files)
