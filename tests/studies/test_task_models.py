"""What a task's model is measured by: one for the truth, low for another scene's, and from a folder to a number."""

import pytest
import torch
from folders import JUDGE
from tiny import TOLD, tiny_model
from torch import Tensor

from experiments.emoji.judge import JudgeOutput
from experiments.emoji.world import Batch
from experiments.studies import task_models
from experiments.studies.task_models import iou, task_of


def test_iou_of_boxes() -> None:
    assert iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert iou((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert iou((0, 0, 2, 2), (2, 2, 4, 4)) == iou((0, 0, 1, 1), (3, 0, 4, 1)) == 0


class Knowing:
    """A judge that sees what a map of labels says, whatever it is shown."""

    def __init__(self, labels: Tensor):
        self.config, self.labels = JUDGE, labels

    def __call__(self, images: Tensor) -> JudgeOutput:
        hot = torch.nn.functional.one_hot(self.labels.long(), 1 + len(JUDGE.concepts)).permute(0, 3, 1, 2).float()
        presence = 2 * hot.amax(dim=(2, 3))[:, 1:] - 1
        return JudgeOutput(presence, hot, torch.zeros(1), torch.zeros(1))


@pytest.fixture
def batch() -> Batch:
    """Three scenes of two objects each, 16 px."""
    labels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    for b, (left, right) in enumerate([(1, 2), (3, 1), (2, 4)]):
        labels[b, 2:7, 1:6], labels[b, 8:15, 9:14] = left, right
    images = torch.randint(256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    words = [{1: "one", 2: "two"}, {3: "three", 1: "uno"}, {2: "due", 4: "four"}]
    return Batch(images, ["x", "y", "z"], labels, torch.zeros_like(labels), words)


def test_scores_are_one_for_the_truth_and_low_for_its_opposite(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def drawn(machine: object, task: object, prompts: list[str], seeds: list[int]) -> Tensor:
        asked.append(prompts)
        return batch.images.float() / 127.5 - 1

    monkeypatch.setattr(task_models, "drawn", drawn)
    machine = type("Machine", (), {"model": tiny_model()})
    right, wrong = Knowing(batch.labels), Knowing(batch.labels.flip(-1).roll(1, dims=0))
    seeds = [0, 1, 2]
    assert task_models.of_boxes(machine, batch, seeds, right) == {"iou": [1, 1, 1]}
    assert asked[-1][0] == "dragon 0.062 0.125 0.375 0.438; fish 0.562 0.5 0.875 0.938"
    assert max(task_models.of_boxes(machine, batch, seeds, wrong)["iou"]) < 0.2
    assert task_models.of_classes(machine, batch, seeds, right) == {"found": [1, 1, 1]}
    assert asked[-1] == ["fish", "dragon", "light bulb"]  # the larger ones
    assert task_models.of_classes(machine, batch, seeds, wrong) != {"found": [1, 1, 1]}
    found = task_models.inpainted(machine, batch, seeds, right)
    assert found == {"found": [1, 1, 1], "found by caption": [1, 1, 1]}
    assert asked[-2:] == [["one", "three", "due"], ["x", "y", "z"]]
    found = task_models.inpainted(machine, batch, seeds, Knowing(batch.labels.flip(-1)))
    assert found == {"found": [0, 0, 0], "found by caption": [0, 0, 0]}
    scores = task_models.upscaled(machine, batch, seeds, right)
    assert scores["labels"] == scores["bicubic labels"] == [1, 1, 1]
    assert min(scores["psnr"]) > 100 > 30 > max(scores["bicubic psnr"])
    assert scores["gain"][0] == pytest.approx(scores["psnr"][0] - scores["bicubic psnr"][0])


def test_the_model_says_which_task_it_is_of() -> None:
    assert task_of(tiny_model(TOLD["token"])) == "classes"
    with pytest.raises(ValueError, match="of none of the tasks"):
        task_of(tiny_model())
