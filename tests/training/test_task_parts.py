"""U-Nets of tasks beside text to image: what they see of a scene, and that their folders draw."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from test_train import TINY_WORLD, config, earlier_parts, world_of
from tiny import Outcome

from experiments.emoji.judge import Judge, JudgeConfig, save_judge
from experiments.emoji.world import EmojiScenes, batch_of
from experiments.files import UserError
from experiments.training import loop as verb
from experiments.training import tasks
from experiments.training.recipes import build_part
from ldm import load_model
from ldm.boxes import read_layout

SMALL = ["part.unet.channels=[8,16]", "part.unet.attention=[false,true]", "part.unet.heads=[1,2]"]
SMALL += ["part.unet.norm_groups=4"]
NAMES = ("upscale", "classes", "inpaint", "boxes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return earlier_parts(tmp_path_factory.mktemp("tasks"))


def recipe(folder: Path, out: Path, name: str, *more: str) -> DictConfig:
    wide = [] if name == "upscale" else ["part.unet.text_width=16"]
    return config(folder, f"tasks/{name}", f"out={out}", "part.steps=2", "picture_every=2", *SMALL, *wide, *more)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """Each task's U-Net after two steps, the second of them after a restart."""
    for name in NAMES:
        for more in (["stop_after=1"], []):
            verb.train(recipe(folder, folder / name, name, *more))
    return folder


def scenes_of(folder: Path) -> EmojiScenes:
    return EmojiScenes(*world_of(folder, recipe(folder, folder, "boxes")), "held_out")


def test_what_is_told_of_a_scene_is_its_truth(folder: Path) -> None:
    scenes = scenes_of(folder)
    batch, names = batch_of(scenes, range(12)), list(scenes.world.concepts)
    for i, labels in enumerate(batch.labels):
        truth = {thing.label: thing.box for thing in scenes[i].objects}
        boxes = read_layout(tasks.layout_of(labels, names))
        assert {box.label: tuple(round(16 * c) for c in box.corners) for box in boxes} == truth
        if len(truth) == 1:
            assert tasks.class_of(labels, names) in truth
        assert tasks.grown(boxes and next(iter(truth.values())), 16, 99) == (0, 0, 16, 16)
    masks, things = tasks.masks_of(batch, 0.0, torch.Generator().manual_seed(0))
    for i, (mask, k) in enumerate(zip(masks, things, strict=True)):  # that object lies within it wholly
        (thing,) = (thing for thing in scenes[i].objects if thing.label == names[k - 1])
        assert mask[0].bool()[thing.mask].all() and batch.words[i][k] == thing.words
    masks, things = tasks.masks_of(batch, 1.0, torch.Generator().manual_seed(0))
    assert things == [0] * 12
    assert (masks.sum(dim=(1, 2, 3)) >= 4).all() and len({int(m.sum()) for m in masks}) > 3


def test_upscaling_sees_means_of_pixels_and_their_noise(folder: Path) -> None:
    batch = batch_of(scenes_of(folder), range(3))
    seen = tasks.shrunk(batch, 4, torch.tensor([0.0, 0.0, 0.8]), torch.Generator().manual_seed(0))
    assert torch.allclose(seen[0, 0, 0, 0], batch.pixels()[0, 0, :4, :4].mean(), atol=1e-6)
    assert seen[:, 3].flatten(1).unique(dim=1).flatten().tolist() == pytest.approx([0, 0, 0.8])
    assert (seen[2, :3] - batch.pixels()[2].unfold(1, 4, 4).unfold(2, 4, 4).mean(dim=(3, 4))).std() > 0.4


@pytest.mark.parametrize(("share", "whole"), [(0.0, 12), (1.0, 0)])
def test_inpainting_is_told_the_hidden_objects_own_words(
    trained: Path, monkeypatch: pytest.MonkeyPatch, share: float, whole: int
) -> None:
    cfg = recipe(trained, trained / "inpaint", "inpaint", f"part.share_own={share}", "part.share_random=0")
    scenes = EmojiScenes(*world_of(trained, cfg), "train")
    part, batch, told = build_part(cfg, scenes), batch_of(scenes, range(12)), list[str]()
    tell = part.tokenizer
    monkeypatch.setattr(part, "tokenizer", lambda captions: told.extend(captions) or tell(captions))
    condition = part.condition_of(batch, torch.zeros(12, dtype=torch.bool), torch.Generator().manual_seed(0))
    things = tasks.masks_of(batch, 0.0, torch.Generator().manual_seed(0))[1]
    assert condition.channels is not None and condition.tokens is not None and 0 not in things
    assert told == (batch.captions if whole else [words[k] for words, k in zip(batch.words, things, strict=True)])
    moving = [name for name, value in part.text_encoder.named_parameters() if value.requires_grad]
    assert moving and "token_embedding.weight" not in moving


@pytest.mark.parametrize("name", ["boxes", "inpaint"])
def test_a_part_begins_with_the_classes_network(trained: Path, name: str) -> None:
    """Bit for bit; what only it sees changes nothing yet. Another's layers, or no model, are refused."""
    cfg = recipe(trained, trained / name, name)
    scenes = EmojiScenes(*world_of(trained, cfg), "train")
    unet = build_part(cfg, scenes).unet
    classes = load_model(trained / "classes" / "model").unet.state_dict()
    beside = classes["conv_in.weight"].shape[1]
    for key, value in unet.state_dict().items():
        assert torch.equal(value[:, :beside] if key == "conv_in.weight" else value, classes[key])
    assert not unet.conv_in.weight[:, beside:].any()
    with pytest.raises(UserError, match="begins_with: no model in .*none/model"):
        build_part(recipe(trained, trained / name, name, "part.begins_with=none/model"), scenes)
    with pytest.raises(UserError, match="its U-Net has other layers"):
        build_part(recipe(trained, trained / name, name, "part.unet.channels=[8,24]"), scenes)


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_folder_draws(cli: Callable[..., Outcome], trained: Path, tmp_path: Path, name: str) -> None:
    model = load_model(trained / name / "model")
    latent = model.config.autoencoder.latent_channels
    beside = {"upscale": 4, "inpaint": 1 + latent}.get(name, 0)
    assert model.config.unet.in_channels == latent + beside and model.config.unet.out_channels == latent
    assert model.config.condition == {"upscale": "nothing", "inpaint": "text"}.get(name, name)
    assert (trained / name / "picture.png").exists()
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(tmp_path / "e.png")
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(tmp_path / "m.png")
    image, size = f"task.image={tmp_path / 'e.png'}", ["height=16", "width=16"]
    asked = {
        "upscale": ["task=upscale", image, "guidance.scale=1"],
        "inpaint": ["task=inpaint", image, f"task.mask={tmp_path / 'm.png'}", "prompt=a disc", *size],
        "classes": ["prompts=classes"],
        "boxes": ["prompt='disc 0.1 0.2 0.5 0.6; square 0.5 0.5 1 1'"],
    }[name]
    where = ["model=file", f"model.path={trained / name / 'model'}", f"hydra.run.dir={tmp_path / 'run'}"]
    outcome = cli("sample", *where, *asked, "sampler.steps=2")
    assert outcome.status == 0, outcome.err
    assert len(list((tmp_path / "run" / "images").iterdir())) == (2 if name == "classes" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_one_command_judges_any_of_them(cli: Callable[..., Outcome], trained: Path, tmp_path: Path, name: str) -> None:
    """With intervals, by a judge that has learnt nothing: the numbers are those of chance."""
    names = tuple(world_of(trained, recipe(trained, trained, name))[0].concepts)
    save_judge(Judge(JudgeConfig(names, ("red", "blue"), 16, (8, 16))), tmp_path / "judge")
    settings = [setting.replace("world.", "study.world.", 1) for setting in TINY_WORLD]
    scales = ["-m", "study.scale=1.0,3.0"] if name == "classes" else []
    where = [] if scales else [f"hydra.run.dir={tmp_path / 'out' / 'file'}"]
    outcome = cli(
        "ablate", *scales, "experiment=task_model", "model=file", f"model.path={trained / name / 'model'}",
        "study.count=4",
        "study.steps=2", f"study.weights={tmp_path / 'judge'}", *settings, f"icons={trained / 'icons'}",
        f"cache={trained / 'cache'}", f"out={tmp_path / 'out'}", *where,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    files = sorted(tmp_path.rglob("task_model.json"))
    assert len(files) == (2 if scales else 1)
    if scales:  # a sweep, whose claim compares scene with scene
        assert cli("report", f"sweep={tmp_path / 'out'}").status == 0
        assert "does better than none" in (tmp_path / "out" / "report.html").read_text()
    file = files[0]
    found = json.loads(file.read_text())
    assert (found["about"]["task"], found["count"], len(found["per_image"])) == (name, 4, 4)
    measured = {"upscale": "psnr", "boxes": "iou"}.get(name, "found")
    assert found["about"]["measured"] == measured
    assert found["value"] == pytest.approx(np.mean([row[measured] for row in found["per_image"]]))
    assert found["low"] <= found["value"] <= found["high"]


def test_recipes_fit_into_five_megabytes_of_16_bits() -> None:
    from hydra import compose, initialize_config_dir

    from experiments.emoji.world import settings_of
    from experiments.files import CONF
    from ldm.config import UNetConfig
    from ldm.unet import UNet

    for name in NAMES:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            unet = compose("train", [f"part=tasks/{name}"]).part.unet
        with torch.device("meta"):
            count = sum(p.numel() for p in UNet(UNetConfig(**settings_of(unet))).parameters())
        assert 2.1e6 < count < 2.4e6, (name, count)
