"""Tasks from the command line: what they start from, what they keep, and what is said of what does not fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY, Outcome, tiny_model
from torch import Tensor

from ldm.config import ModelConfig
from ldm.files.writing import write_folder
from samplers import ImageNoise, Schedule

Sample = Callable[..., Outcome]


def pixels(height: int = 64, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 2, (x * y) % 200], axis=-1).astype(np.uint8)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and masks: e.png and m.png of 64 px; two pictures with masks of their names in folders."""
    folder = tmp_path_factory.mktemp("pictures")
    mask = np.zeros((64, 64), np.uint8)
    mask[21:42, 9:30] = 255  # not on the cells of the latent
    for name, image in {
        "e.png": pixels(), "wide.png": pixels(70, 101), "small.png": pixels(8, 8), "m.png": mask,
        "black.png": 0 * mask, "white.png": 0 * mask + 255, "other.png": mask[:, :32], "tiny.png": pixels(63, 80),
        "two/a.png": pixels(), "two/b.png": 255 - pixels(), "masks/a.png": mask, "masks/b.png": mask.T,
        "mixed/a.png": pixels(), "mixed/b.png": pixels(64, 80),
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / name)
    (folder / "cut.png").write_bytes((folder / "e.png").read_bytes()[:200])
    Image.new("1", (40_000, 8)).save(folder / "long.png")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Tiny models by the number of their network's input channels."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "4").symlink_to(tiny_folder)
    for channels in (5, 7, 8, 9):
        write_folder(tiny_model(with_channels(channels)), folder / str(channels))
    return folder


def with_channels(channels: int) -> ModelConfig:
    return replace(TINY, unet=replace(TINY.unet, in_channels=channels))


@pytest.fixture
def sample(cli: Callable[..., Outcome], models: Path) -> Sample:
    def run(out: Path, *overrides: str, channels: int = 4, steps: int = 4) -> Outcome:
        model = "model=file", f"model.path={models / str(channels)}"
        return cli("sample", *model, f"sampler.steps={steps}", "prompt=x", f"hydra.run.dir={out}", *overrides)

    return run


def small(files: Path) -> list[str]:
    return [f"task.image={files / 'e.png'}", "height=16", "width=16", "save_latents=true"]


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def image(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def latent_of(path: Path, height: int, width: int) -> Tensor:
    """The posterior's mean of a picture, in [1, 4, h, w]."""
    resized = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    tensor = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        return tiny_model().autoencoder.encode(tensor)[0]


# --- task=image -------------------------------------------------------------------------------------------------------


def test_a_single_step_from_a_picture(sample: Sample, files: Path, tmp_path: Path) -> None:
    """The last of four steps: x_t is the picture's latent noised with the seed's first draw, and all else is DDIM."""
    out = tmp_path / "run"
    outcome = sample(out, "task=image", *small(files), "task.strength=0.25", "guidance.scale=1", "seeds=[5]")
    assert outcome.status == 0, outcome.err
    assert "task=image: e.png, 64 x 64 px, is drawn at 16 x 16 px\nthe last 1 of 4 steps are taken\n" in outcome.err
    model, x_T, alpha_bar = tiny_model(), ImageNoise([5], (4, 8, 8))(), Schedule().alpha_bar
    a, b = alpha_bar[1], alpha_bar[0]  # leading: t = 751, 501, 251, 1
    x_t = a.sqrt() * latent_of(files / "e.png", 16, 16) + (1 - a).sqrt() * x_T
    with torch.no_grad():
        eps = model.unet(x_t.float(), 1, model.condition(["x"]))
    expected = b.sqrt() * (x_t - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    latents = load_file(out / "latents.safetensors")
    assert torch.equal(latents["x_T"], x_T)
    assert (latents["x_0"] - expected).norm() < 1e-4 * expected.norm()
    (record,) = records(out)
    assert (record["image"], record["evaluations"]) == ("e.png", 1)


@pytest.mark.parametrize("sampler", ["ddim", "unipc", "euler_ancestral"])
def test_at_strength_0_the_picture_comes_back_decoded(
    sample: Sample, files: Path, tmp_path: Path, sampler: str
) -> None:
    asked = ["task=image", *small(files), "task.strength=0", "seeds=[5]", f"sampler={sampler}"]
    outcome = sample(tmp_path / "run", *asked)
    assert outcome.status == 0, outcome.err
    assert "no step is taken" in outcome.err and "took no part" not in outcome.err
    latents = load_file(tmp_path / "run" / "latents.safetensors")
    assert torch.equal(latents["x_0"], latent_of(files / "e.png", 16, 16))
    assert records(tmp_path / "run")[0]["evaluations"] == 0


def test_at_strength_0_there_still_has_to_be_a_prompt_and_its_stages_are_noted(
    sample: Sample, files: Path, tmp_path: Path
) -> None:
    asked = ["task=image", *small(files), "task.strength=0", "seeds=[5]"]
    outcome = sample(tmp_path / "none", *asked, "prompt=null")
    assert outcome.status == 1 and "nothing to draw" in outcome.err
    stages = "guidance.stages=[{prompt: a, steps: 1}, {prompt: b, steps: 3}]"
    assert sample(tmp_path / "run", *asked, "prompt=null", "guidance=multistage", stages).status == 0
    assert [stage["prompt"] for stage in records(tmp_path / "run")[0]["stages"]] == ["a", "b"]


def test_size_and_steps_are_said(sample: Sample, files: Path, tmp_path: Path) -> None:
    outcome = sample(tmp_path / "run", "task=image", f"task.image={files / 'wide.png'}", "task.strength=0.5")
    assert outcome.status == 0, outcome.err
    assert "wide.png, 101 x 70 px, is drawn at 100 x 68 px\nthe last 2 of 4 steps are taken" in outcome.err
    assert image(tmp_path / "run" / "images" / "00000_0.png").shape == (68, 100, 3)


def test_a_folder_s_pictures(sample: Sample, files: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("x\ny\n")
    prompts = ["prompt=null", "prompts=file", f"prompts.path={tmp_path / 'p.txt'}", "height=16", "width=16"]
    asked = ["task=image", f"task.image={files / 'two'}", "task.strength=0.25", *prompts, "seeds=[1,2]"]
    assert sample(tmp_path / "every", *asked).status == 0
    assert [(r["image"], r["prompt"], r["seed"]) for r in records(tmp_path / "every")] == [
        (file, prompt, seed) for file in ("a.png", "b.png") for prompt in "xy" for seed in (1, 2)
    ]
    assert sample(tmp_path / "order", *asked, "task.match=in_order").status == 0
    found = [(r["image"], r["prompt"], r["seed"]) for r in records(tmp_path / "order")]
    assert found == [("a.png", "x", 1), ("a.png", "x", 2), ("b.png", "y", 1), ("b.png", "y", 2)]
    every = {(r["image"], r["prompt"], r["seed"]): r["file"] for r in records(tmp_path / "every")}
    for key, record in zip(found, records(tmp_path / "order"), strict=True):  # whatever its neighbours are
        one, other = image(tmp_path / "every" / every[key]), image(tmp_path / "order" / record["file"])
        assert np.abs(one.astype(int) - other).max() <= 1


def test_contents_and_not_paths_decide_on_resuming(sample: Sample, files: Path, tmp_path: Path) -> None:
    def draw(path: Path) -> Outcome:
        asked = ["task=image", f"task.image={path}", "height=16", "width=16", "task.strength=0.25"]
        return sample(tmp_path / "run", *asked)

    moved = tmp_path / "moved.png"
    moved.write_bytes((files / "e.png").read_bytes())
    assert draw(files / "e.png").status == 0
    before = (tmp_path / "run" / "images" / "00000_0.png").stat().st_mtime_ns
    assert draw(moved).status == 0
    assert (tmp_path / "run" / "images" / "00000_0.png").stat().st_mtime_ns == before
    Image.fromarray(255 - pixels()).save(moved)
    outcome = draw(moved)
    assert outcome.status == 1
    assert "was begun with other contents of task.image_sha256, under the same name" in outcome.err
    said = json.loads(Image.open(tmp_path / "run" / "images" / "00000_0.png").text["ldm-guidance"])
    assert said["task"]["image_sha256"] == records(tmp_path / "run")[0]["image_sha256"]
    assert str(files) not in json.dumps(said)


def test_stages_that_are_never_drawn_are_named(sample: Sample, files: Path, tmp_path: Path) -> None:
    stages = "guidance.stages=[{prompt: a dragon, steps: 2}, {prompt: a fish, steps: 1}, {prompt: a cat, steps: 1}]"
    outcome = sample(tmp_path / "run", "task=image", *small(files), "task.strength=0.5", "guidance=multistage", stages)
    assert outcome.status == 0, outcome.err
    assert "warning: the stage of 'a dragon' lies before them, and is never drawn\n" in outcome.err
    assert records(tmp_path / "run")[0]["stages"] == [{"prompt": "a fish", "steps": 1}, {"prompt": "a cat", "steps": 1}]


# --- task=inpaint -----------------------------------------------------------------------------------------------------


def mask_of(files: Path) -> list[str]:
    return [f"task.image={files / 'e.png'}", f"task.mask={files / 'm.png'}", "save_latents=true"]


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "unipc"])
def test_what_the_mask_leaves_is_kept(sample: Sample, files: Path, tmp_path: Path, sampler: str) -> None:
    """To the byte in the picture; in the latent to the bit, and of the cells whose pixels are all black."""
    out = tmp_path / "run"
    assert sample(out, "task=inpaint", *mask_of(files), f"sampler={sampler}", "sampler.steps=2").status == 0
    drawn, mask = image(out / "images" / "00000_0.png"), image(files / "m.png")[..., 0] > 0
    assert (drawn == pixels())[~mask].all() and not (drawn == pixels())[mask].all()
    x_0 = load_file(out / "latents.safetensors")["x_0"][0]
    kept = ~torch.from_numpy(mask.reshape(32, 2, 32, 2).any(axis=(1, 3)))
    known = latent_of(files / "e.png", 64, 64)[0]
    assert torch.allclose(x_0[:, kept], known[:, kept], atol=1e-5)
    assert not torch.isclose(x_0[:, ~kept], known[:, ~kept], atol=1e-3).all(dim=0).any()


def test_without_blending_the_autoencoder_s_pixels_stay(sample: Sample, files: Path, tmp_path: Path) -> None:
    assert sample(tmp_path / "run", "task=inpaint", *mask_of(files), "task.blend=false").status == 0
    latents = load_file(tmp_path / "run" / "latents.safetensors")
    with torch.no_grad():
        decoded = tiny_model().decode(latents["x_0"])[0].permute(1, 2, 0) * 255
    assert np.abs(image(tmp_path / "run" / "images" / "00000_0.png") - decoded.numpy()).max() <= 0.51


def test_resampling_costs_its_steps_and_once_is_replacement(sample: Sample, files: Path, tmp_path: Path) -> None:
    asked = ["task=inpaint", *mask_of(files), "sampler=ddim", "seeds=[0,1]"]
    for times in (1, 3):
        assert sample(tmp_path / str(times), *asked, f"task.resample={times}").status == 0
    assert [records(tmp_path / str(times))[0]["evaluations"] for times in (1, 3)] == [8, 24]
    drawn = [image(tmp_path / str(times) / "images" / "00000_0.png") for times in (1, 3)]
    assert (drawn[0] != drawn[1]).any()


def test_an_inpainting_model_sees_mask_and_hidden_picture(sample: Sample, files: Path, tmp_path: Path) -> None:
    asked = ["task=inpaint", *mask_of(files), "guidance.scale=1", "sampler.steps=1"]
    assert sample(tmp_path / "run", *asked, channels=9).status == 0
    model, mask = tiny_model(with_channels(9)), image(files / "m.png")[..., 0] > 0
    cells = torch.from_numpy(mask.reshape(32, 2, 32, 2).any(axis=(1, 3)))[None, None].float()
    hidden = torch.from_numpy(np.where(mask[..., None], 127.5, pixels()).astype(np.float32)).permute(2, 0, 1)[None]
    x_T, a, b = ImageNoise([0], (4, 32, 32))(), Schedule().alpha_bar[1], Schedule().alpha_bar[0]
    with torch.no_grad():
        seen = torch.cat([x_T, cells, model.autoencoder.encode(hidden / 127.5 - 1)[0]], dim=1)
        eps = model.unet(seen, 1, model.condition(["x"]))
    expected = b.sqrt() * (x_T - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    assert (load_file(tmp_path / "run" / "latents.safetensors")["x_0"] - expected).norm() < 1e-4 * expected.norm()


def test_masks_of_a_folder_belong_to_pictures_of_their_names(sample: Sample, files: Path, tmp_path: Path) -> None:
    asked = [f"task.image={files / 'two'}", f"task.mask={files / 'masks'}", "sampler.steps=1"]
    assert sample(tmp_path / "run", "task=inpaint", *asked).status == 0
    for i, name in enumerate("ab"):
        drawn, given = image(tmp_path / "run" / "images" / f"{i:05d}_0.png"), image(files / "two" / f"{name}.png")
        changed = (drawn != given).any(axis=-1)
        assert changed.any() and not changed[image(files / "masks" / f"{name}.png")[..., 0] == 0].any()


# --- task=upscale -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [7, 8])
def test_upscaling_sees_the_small_picture(sample: Sample, files: Path, tmp_path: Path, channels: int) -> None:
    """Noised to s, and, of a network with one channel more, s itself."""
    out = tmp_path / "run"
    asked = ["task=upscale", f"task.image={files / 'small.png'}", "save_latents=true", "guidance.scale=1"]
    for s in (0.0, 0.6):
        assert sample(out / str(s), *asked, f"task.noise_level={s}", channels=channels, steps=1).status == 0
    assert image(out / "0.0" / "images" / "00000_0.png").shape == (16, 16, 3)
    model, x_T, alpha_bar = tiny_model(with_channels(channels)), ImageNoise([0], (4, 8, 8))(), Schedule().alpha_bar
    picture = torch.from_numpy(pixels(8, 8)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        seen = torch.cat([x_T, picture, torch.zeros(1, channels - 7, 8, 8)], dim=1)
        eps = model.unet(seen, 1, model.condition(["x"]))
    a, b = alpha_bar[1], alpha_bar[0]
    expected = b.sqrt() * (x_T - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    plain, noised = (load_file(out / str(s) / "latents.safetensors")["x_0"] for s in (0.0, 0.6))
    assert (plain - expected).norm() < 1e-4 * expected.norm()
    assert (plain - noised).norm() > 1e-3 * plain.norm()


# --- what does not fit ------------------------------------------------------------------------------------------------

BAD = {
    "no picture given": (4, ["task=image"], "task=image needs task.image=FILE, or a folder"),
    "no such file": (4, ["task=image", "task.image=/nowhere.png"], "task.image=/nowhere.png: there is no such file"),
    "damaged": (4, ["task=image", "task.image=FILES/cut.png"], "cut.png: not a picture that can be read"),
    "40,000 px": (4, ["task=image", "task.image=FILES/long.png"], "has 40000 x 8 pixels"),
    "too small": (4, ["task=image", "task.image=FILES/tiny.png"], "tiny.png is 80 x 63 px: at least 64"),
    "strength 2": (4, ["task=image", "task.image=FILES/e.png", "task.strength=2"], "task.strength=2: must be"),
    "strength": (4, ["task=image", "task.image=FILES/e.png", "task.strength=much"], "task.strength=much: must be"),
    "no step": (4, ["task=image", "task.image=FILES/e.png", "task.strength=0.2"], "none would be taken: at least 0.25"),
    "sizes": (4, ["task=image", "task.image=FILES/mixed"], "give height and width, which all are resized to"),
    "in order": (4, ["task=image", "task.image=FILES/two", "task.match=in_order"], "2 pictures and 1 prompts"),
    "multiple": (4, ["task=image", "task.image=FILES/e.png", "height=18"], "both must be multiples of 4"),
    "no mask": (4, ["task=inpaint", "task.image=FILES/e.png"], "task=inpaint needs task.mask=FILE"),
    "mask's size": (4, ["task=inpaint", "task.image=FILES/e.png", "task.mask=FILES/other.png"], "is 32 x 64 px, and e"),
    "black mask": (4, ["task=inpaint", "task.image=FILES/e.png", "task.mask=FILES/black.png"], "has no white in it"),
    "mask's name": (4, ["task=inpaint", "task.image=FILES/e.png", "task.mask=FILES/two"], "no mask for e.png in it"),
    "mask alone": (4, ["task=image", "task.image=FILES/e.png", "task.mask=FILES/m.png"], "mask"),
    "memory": (4, ["task=inpaint", "RESAMPLE", "sampler=dpmpp_2m"], "task.resample=2: this sampler remembers"),
    "sees the mask": (9, ["task=inpaint", "RESAMPLE"], "task.resample=2: an inpainting model sees the mask itself"),
    "inpainting model, no mask": (9, [], "is an inpainting model: task=inpaint is for it"),
    "inpainting model, picture": (9, ["task=image", "task.image=FILES/e.png"], "task=inpaint is for it"),
    "plain model": (4, ["task=upscale", "task.image=FILES/e.png"], "takes no picture beside its latent: task=text or"),
    "upscaler": (8, [], "takes 4 channels beside its latent: task=upscale is for it"),
    "stranger": (5, [], "takes 1 channels beside its latent: no task here is for it"),
    "noise level": (8, ["task=upscale", "task.image=FILES/e.png", "task.noise_level=1"], "from 0 to below 1"),
    "task": (4, ["task=outpaint"], "Could not find 'task/outpaint'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(
    sample: Sample, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    channels, overrides, said = BAD[case]
    monkeypatch.chdir(tmp_path)
    again = ["task.image=FILES/e.png", "task.mask=FILES/m.png", "task.resample=2"]
    overrides = [each for given in overrides for each in (again if given == "RESAMPLE" else [given])]
    outcome = sample(tmp_path / "run", *(o.replace("FILES", str(files)) for o in overrides), channels=channels)
    assert outcome.status == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not any(tmp_path.iterdir())


# --- with everything else ---------------------------------------------------------------------------------------------

TASKS = {
    "image": (4, ["task=image", "task.image=FILES/e.png", "task.strength=0.5", "height=16", "width=16"]),
    "inpaint": (4, ["task=inpaint", "task.image=FILES/e.png", "task.mask=FILES/m.png", "height=16", "width=16"]),
    "inpaint 9": (9, ["task=inpaint", "task.image=FILES/e.png", "task.mask=FILES/m.png", "height=16", "width=16"]),
    "upscale": (8, ["task=upscale", "task.image=FILES/small.png"]),
}


@pytest.mark.parametrize("task", TASKS)
def test_multistage_and_segmentation_free_on_each_task(sample: Sample, files: Path, tmp_path: Path, task: str) -> None:
    """A switch of the prompt in the middle, each stage under a guidance that edits attention."""
    channels, asked = TASKS[task]
    asked = [a.replace("FILES", str(files)) for a in asked]
    stages = "guidance.stages=[{prompt: a dragon, steps: 3}, {prompt: a fish, steps: 1}]"
    nested = ["guidance=multistage", "guidance@guidance.inner=segmentation_free", "guidance.inner.cfg_steps=3", stages]
    asked += ["save_latents=true"]
    assert sample(tmp_path / "both", *asked, *nested, channels=channels).status == 0
    plain = ["guidance=multistage", stages]
    assert sample(tmp_path / "multistage", *asked, *plain, channels=channels).status == 0
    one, other = (load_file(tmp_path / name / "latents.safetensors")["x_0"] for name in ("both", "multistage"))
    assert (one - other).norm() > 1e-4 * other.norm()


def test_a_sweep_over_strength_runs_resumes_and_reports(
    cli: Callable[..., Outcome], models: Path, files: Path, tmp_path: Path
) -> None:
    asked = [
        "-m", "experiment=grid", "model=file", f"model.path={models / '4'}", "task=image",
        f"task.image={files / 'e.png'}", "task.strength=0.25,1.0", "sampler.steps=4", "n=2", "prompt=x",
        "height=16", "width=16", "~measures.photo.clip_score", "maps=false", f"out={tmp_path}",
        "cell=strength_${task.strength}",
    ]  # fmt: skip
    outcome = cli("ablate", *asked)
    assert outcome.status == 0, outcome.err
    cells = [tmp_path / f"strength_{strength}" for strength in (0.25, 1.0)]
    assert [records(cell)[0]["evaluations"] for cell in cells] == [2, 8]
    assert cli("report", f"sweep={tmp_path}").status == 0
    page = (tmp_path / "report.html").read_text()
    assert "task.strength" in page and "data:image/webp" in page
    gone = cells[1] / records(cells[1])[1]["file"]
    kept = gone.read_bytes()
    gone.unlink()
    assert cli("ablate", *asked).status == 0
    assert gone.read_bytes() == kept
