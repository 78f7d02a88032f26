"""What is measured of a model of drawings: memory, and a judge's share of one class over another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import BENCH
from PIL import Image
from tiny import DRAWN, tiny_model

from experiments.emoji.judge import save_judge
from experiments.files import UserError
from experiments.metrics.class_shares import ClassShares
from experiments.metrics.folders import open_run
from experiments.pictures import save_png
from experiments.run.folder import Run
from experiments.studies import drawings as study
from experiments.vectors.data import STEP, Drawings
from experiments.vectors.judge import VectorJudge, VectorJudgeConfig, judged
from ldm.svg.drawing import BOX
from ldm.svg.sequences import CLOSE, END, KINDS, LINE, MOVE

NAMES = DRAWN.classes.names


def triangles(sizes: list[float]) -> Drawings:
    """One triangle of each size, of the five classes in turn."""
    count = len(sizes)
    kinds = torch.tensor([MOVE, LINE, LINE, CLOSE, END, END], dtype=torch.uint8).repeat(count, 1)
    arguments = torch.zeros(count, 6, 6)
    arguments[:, :3, 4:] = 12 + torch.tensor(sizes)[:, None, None] * torch.tensor([[0.0, -1], [1, 1], [-1, 1]])
    renders = (torch.rand(count, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).byte()
    labels = torch.arange(count) % len(NAMES)
    return Drawings(NAMES, None, kinds, (arguments / STEP).round().short(), renders, labels, tuple("x" * count))


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_judge(VectorJudge(VectorJudgeConfig(NAMES, (8, 16))), tmp_path / "judge")
    return tmp_path / "judge"


def test_the_same_drawing_again() -> None:
    training = triangles([4, 5, 6, 7, 8, 4.2])
    drawn = training.sequences()[[0, 1, 2, 3]]
    drawn[1, :, KINDS:] += 2 * 0.4 / BOX  # within half a unit
    drawn[2, :, KINDS:] += 2 * 0.6 / BOX  # beyond
    drawn[3, 2, :KINDS] = torch.eye(KINDS)[CLOSE]  # another command
    found = study.same_as(drawn, torch.tensor([0, 1, 2, 3]), training)
    # the sixth triangle is the first one's class, and 0.2 units smaller on each of six coordinates but one
    assert found.tolist() == [[True] + [False] * 4 + [True], [False, True] + [False] * 4, [False] * 6, [False] * 6]
    other = study.same_as(drawn[:1], torch.tensor([1]), training)  # under the name of another class
    assert not other.any()


def test_study(judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that draws what it was handed: the numbers are those of the hand's choice."""
    training, held_out = triangles([4.0 + i for i in range(10)]), triangles([4.5 + 0.8 * i for i in range(10)])
    monkeypatch.setattr(study, "load_drawings", lambda *settings: (training, held_out))
    model = tiny_model(DRAWN)
    learnt = model.autoencoder.encode(training.sequences())[0]
    handed = torch.cat([learnt[i : i + 1] for i in range(5) for _ in range(2)])
    monkeypatch.setattr(study.DrawingStudy, "draw", lambda self, model, prompts, bench: handed)
    asked = study.DrawingStudy({"name": "x", "classes": "names", "packages": {}, "stroke": None, "paths": 1,
                                "commands": 6}, "", "", str(judge), per_class=2)  # fmt: skip
    result = asked.measure(model, BENCH, tmp_path)
    details = {name: estimate.value for name, estimate in result.details.items()}
    assert details["nearest"] < 1e-4 < details["nearest_held_out"]
    assert details["again"] + details["new"] == 1 and 0 <= details["coverage"] <= 1
    logits = judged(study.load_vector_judge(judge), training.renders)[0]
    assert 0 <= result.estimate.value <= 1 and details["frechet"] >= 0
    assert details["judge_on_true"] == (logits.argmax(dim=1) == held_out.labels).float().mean().item()
    assert Image.open(tmp_path / "figure.png").size[1] > 5 * 64
    with pytest.raises(UserError, match="trained on other classes"):
        names = ("B", "A", *NAMES[2:])
        asked.measure(tiny_model(replace(DRAWN, classes=replace(DRAWN.classes, names=names))), BENCH, tmp_path)
    with pytest.raises(UserError, match="models of drawings"):
        asked.measure(replace(model, autoencoder=torch.nn.Identity()), BENCH, tmp_path)


def test_drawn_from_seeds() -> None:
    """Its drawings are those of the sampling loop: the seed is the position, whatever the batches."""
    model, asked = tiny_model(DRAWN), study.DrawingStudy({}, "", "", per_class=1, steps=2)
    whole = asked.draw(model, list(NAMES), BENCH)
    parts = asked.draw(model, list(NAMES), replace(BENCH, batch_size=1))
    torch.testing.assert_close(whole, parts)
    assert whole.shape == (5, 12)
    never, unguided = replace(asked, interval=(0.0, 0.0)), replace(asked, scale=1.0)
    torch.testing.assert_close(never.draw(model, list(NAMES), BENCH), unguided.draw(model, list(NAMES), BENCH))
    assert not torch.allclose(whole, unguided.draw(model, list(NAMES), BENCH))
    with pytest.raises(ValueError, match="start=0.8, stop=0.2"):
        replace(asked, interval=(0.8, 0.2))


def test_class_shares(judge: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run(folder, {"model": {"name": "glyphs", "subject": "drawing"}}, BENCH.device)
    covered = triangles([4.0, 5.0]).renders
    for i, render in enumerate(covered):
        image = (1 - render.float() / 255).expand(3, -1, -1)
        run.add(image, {}, {"prompt_index": 0, "seed": i, "prompt": "A", "negative_prompt": ""})
    run.finish([[(0, 0), (0, 1)]], False)
    save_png(Image.new("RGB", (8, 8)), folder / "grid.png")
    result = ClassShares(["A", "7"], str(judge)).measure(open_run(folder), BENCH)
    logits = judged(study.load_vector_judge(judge), covered)[0]
    shares = logits[:, [0, 4]].softmax(dim=1)[:, 0]
    assert [record["value"] for record in result.per_image] == pytest.approx(shares.tolist(), abs=1e-6)
    assert result.estimate.value == pytest.approx(shares.mean().item(), abs=1e-6)
    assert json.dumps(result.about)
    with pytest.raises(UserError, match="two of A, B, a, light bulb, 7"):
        ClassShares(["A", "Q"], str(judge)).measure(open_run(folder), BENCH)
    with pytest.raises(UserError, match="no judge in"):
        ClassShares(["A", "B"], str(tmp_path)).measure(open_run(folder), BENCH)
