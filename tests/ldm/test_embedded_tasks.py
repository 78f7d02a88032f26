"""The embedded models of tasks draw what they are told, by the judge, on the autoencoder that their cards name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import Outcome
from torch import Tensor

from experiments.emoji.judge import JudgeOutput, load_judge
from ldm import load_model
from ldm.boxes import read_layout
from ldm.files.reading import EMBEDDED, WEIGHTS

JUDGE = WEIGHTS / "emoji_sixteen_judge"


def drawn(cli: Callable[..., Outcome], folder: Path, task: str, *asked: str) -> Tensor:
    """Pictures [N, 3, H, W] in [-1, 1] of 20 steps, in the order of their files."""
    run = [f"model=emoji_{task}", "sampler.steps=20", "batch_size=16", f"hydra.run.dir={folder}"]
    assert cli("sample", *run, *asked).status == 0
    files = sorted((folder / "images").iterdir())
    return torch.stack([torch.tensor(np.array(Image.open(file))).permute(2, 0, 1) / 127.5 - 1 for file in files])


def judged(images: Tensor) -> tuple[JudgeOutput, list[str]]:
    judge = load_judge(JUDGE)
    return judge(images), list(judge.config.concepts)


@pytest.mark.parametrize(
    ("name", "most"), [("emoji_classes", 5e6), ("emoji_boxes", 5e6), ("emoji_upscale", 5e6), ("emoji_inpaint", 5.4e6)]
)
def test_a_folder_is_small_and_shares_what_its_card_names(name: str, most: float) -> None:
    """That of inpainting has the layers of a text encoder, too."""
    folder = EMBEDDED[name]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < most
    shared = json.loads((folder / "model_index.json").read_text())["shared_weights"]
    (autoencoder,) = (folder / shared["vae"]).glob("*.safetensors")
    assert hashlib.sha256(autoencoder.read_bytes()).hexdigest() in (folder / "README.md").read_text()


def test_classes_are_found(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    images = drawn(cli, tmp_path / "run", "classes", "prompts=classes", "seeds=[0,1]", "guidance.scale=3")
    output, concepts = judged(images)
    assert tuple(concepts) == load_model("emoji_classes").config.classes.names
    asked = torch.arange(len(concepts)).repeat_interleave(2)
    assert (output.presence[range(32), asked] > 0).float().mean() >= 0.8


def test_things_are_found_in_their_boxes(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    images = drawn(cli, tmp_path / "run", "boxes", "prompts=layouts", "prompts.count=16", "guidance.scale=3")
    output, concepts = judged(images)
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    shares = []
    for labels, prompt in zip(output.labels.argmax(dim=1), prompts, strict=True):
        for box in read_layout(prompt):
            seen = labels == 1 + concepts.index(box.label)
            sides = ((box.top, box.bottom), (box.left, box.right))
            rows, columns = (slice(round(64 * a), round(64 * b)) for a, b in sides)
            shares.append((seen[rows, columns].sum() / seen.sum().clamp(min=1)).item())
    assert np.mean(shares) >= 0.8


def test_a_small_picture_is_enlarged_better_than_by_bicubic(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    """The small picture is that of a layout that the boxes' model draws."""
    asked = ["prompt='fish 0.06 0.3 0.46 0.7; strawberry 0.54 0.3 0.94 0.7'", "seeds=[0]", "guidance.scale=3"]
    given = drawn(cli, tmp_path / "given", "boxes", *asked)
    small = F.avg_pool2d(given, 4)
    Image.fromarray(((small[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).save(tmp_path / "small.png")
    asked = ["task=upscale", f"task.image={tmp_path / 'small.png'}", "seeds=[0,1,2,3]", "guidance.scale=1"]
    large = drawn(cli, tmp_path / "large", "upscale", *asked)
    bicubic = F.interpolate(small, given.shape[-2:], mode="bicubic")
    assert (large - given).square().mean() < (bicubic - given).square().mean()


def test_a_hidden_half_shows_what_is_asked_for(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    """The given picture is of two boxes; what is not hidden stays byte for byte."""
    asked = ["prompt='fish 0.06 0.3 0.46 0.7; strawberry 0.54 0.3 0.94 0.7'", "seeds=[0]", "guidance.scale=3"]
    given = drawn(cli, tmp_path / "given", "boxes", *asked)
    (image,) = (tmp_path / "given" / "images").iterdir()
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    task = ["task=inpaint", f"task.image={image}", f"task.mask={tmp_path / 'mask.png'}", "guidance.scale=3"]
    names = ["pear", "cat", "heart", "fox"]
    images = []
    for name in names:
        told = [f"prompt='a {name}'", "seeds=[0,1,2,3]"]
        images.append(drawn(cli, tmp_path / name, "inpaint", *task, *told))
    for some in images:
        assert torch.equal(some[..., 32:], given[..., 32:].expand(4, -1, -1, -1))
    output, concepts = judged(torch.cat(images))
    asked_for = torch.tensor([concepts.index(name) for name in names]).repeat_interleave(4)
    assert (output.presence[range(16), asked_for] > 0).float().mean() >= 0.8
