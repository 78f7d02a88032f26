"""How well a model of a task beside text to image does it, on held-out scenes whose truth is known.

Letters of shapes: B scenes, H x W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from experiments.emoji.judge import WEIGHTS, Judge, load_judge
from experiments.emoji.world import Batch, EmojiScenes, World, collate, load_atlas, settings_of
from experiments.files import UserError, sha256
from experiments.metrics import Bench, Result
from experiments.run import build, draw
from experiments.run.build import Machine
from experiments.run.prompts import Prompt
from experiments.run.tasks import Task, given
from experiments.training.tasks import class_of, grown, layout_of, objects_of
from guidance import ClassifierFree
from ldm import LatentDiffusion
from samplers import Schedule, ddim

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom exclusive
Scores = dict[str, list[float]]  # of each scene, by what is measured; the first is the result
MARGIN = 4  # pixels that an inpainting mask has around its object


@dataclass(frozen=True)
class TaskModel:
    """What a model of a task draws of held-out scenes, by the judge. Which task it is, the model says.

    upscale  PSNR in dB; that of bicubic enlargement, and the gain over it; whether the judge sees the scene's concepts
             and no others, in either
    inpaint  whether the object told by its own words is found where it was hidden: the judge sees its concept, and
             most of its pixels within the mask; and whether it is if the whole caption is told
    classes  whether the judge sees the class asked for
    boxes    mean over a scene's objects of the intersection over union of the box asked for and that of the pixels in
             which the judge sees its concept; 0 for one that is not seen

    world    the content of a file in conf/world; icons, cache: the icon packages' folder, the rendered atlas's
    weights  a judge's folder; None: the embedded one
    """

    world: dict[str, Any]
    icons: str = "icons"
    cache: str = "outputs/cache"
    weights: str | None = None
    count: int = 200
    steps: int = 50
    scale: float = 3.0
    any_task = True  # it is measured of other models than text to image, too

    @torch.no_grad()
    def measure(self, model: LatentDiffusion, bench: Bench, folder: Path) -> Result:
        world, task = World(**settings_of(self.world)), task_of(model)
        layouts = {"classes": ("one",), "boxes": ("beside", "above")}.get(task, tuple(world.layouts))
        atlas = load_atlas(world, Path(self.icons), Path(self.cache))
        scenes = EmojiScenes(world, atlas, "held_out", layouts=layouts)
        weights = Path(self.weights) if self.weights else WEIGHTS
        judge = load_judge(weights, bench.device)
        names = list(world.concepts)
        if list(judge.config.concepts) != names:
            raise UserError(f"the judge in {weights} knows other concepts than the world {world.name}")
        if not set(model.config.classes.names + model.config.boxes.names) <= set(names):
            raise UserError(f"the model is told other concepts than those of the world {world.name}")
        steps = Schedule.of(model.config.schedule).steps(self.steps)
        scale = 1.0 if task == "upscale" else self.scale
        machine = Machine(model, {}, {"main": build.predictor(model)}, ClassifierFree(scale), partial(ddim), steps)
        scores: Scores = {}
        for i in tqdm(range(0, self.count, bench.batch_size), desc=task):
            indices = range(i, min(i + bench.batch_size, self.count))
            batch = collate([scenes[j] for j in indices], world)
            for name, values in SCORES[task](machine, batch, list(indices), judge).items():
                scores.setdefault(name, []).extend(values)
        (first, values), *others = scores.items()
        captions = [scenes.caption(i)[0] for i in range(self.count)]
        return Result(
            bench.bootstrap.mean(values, captions),
            {name: bench.bootstrap.mean(found, captions) for name, found in others},
            [
                {"file": f"scene {i}", "value": values[i], **{name: found[i] for name, found in scores.items()}}
                for i in range(self.count)
            ],
            {"task": task, "measured": first, "judge": sha256(weights / "model.safetensors"), "world": world.name},
        )


def task_of(model: LatentDiffusion) -> str:
    """Returns the task that a model was trained for. Raises UserError for text to image, which the judge metric has."""
    latent = model.config.autoencoder.latent_channels
    beside = build.tasks_of(model.config.unet.in_channels - latent, latent)
    found = model.config.condition if "text" in beside else beside[0] if beside else ""
    if found not in SCORES:
        raise UserError("this model is of none of the tasks upscale, inpaint, classes and boxes")
    return found


def drawn(machine: Machine, task: Task, prompts: list[str], seeds: list[int]) -> Tensor:
    """Returns pictures [B, 3, H, W] in [-1, 1], one of each prompt; a seed is its scene's index."""
    size = machine.model.config.image_size
    batch = draw.from_seeds(machine.model, [Prompt(prompt) for prompt in prompts], seeds, (size, size))
    gives = given(task, machine, range(len(prompts)), seeds, batch.x_T)
    images = draw.draw_batch(machine, replace(batch, given=gives), lambda: None).images
    return 2 * images.to(machine.model.device) - 1


def truth(batch: Batch) -> Tensor:
    """The scenes' pixels [B, 3, H, W] in [0, 1]."""
    return batch.images.float() / 255


def upscaled(machine: Machine, batch: Batch, seeds: list[int], judge: Judge) -> Scores:
    small = F.avg_pool2d(truth(batch), machine.model.config.downscale)
    task = Task("upscale", images=small, which=tuple(range(len(seeds))))
    pictures = {
        "": drawn(machine, task, [""] * len(seeds), seeds).cpu(),
        "bicubic ": 2 * F.interpolate(small, truth(batch).shape[-2:], mode="bicubic").clamp(0, 1) - 1,
    }
    scores: Scores = {}
    for name, images in pictures.items():
        error = (images / 2 + 0.5 - truth(batch)).square().mean(dim=(1, 2, 3))
        scores[f"{name}psnr"] = (-10 * error.log10()).tolist()
    scores["gain"] = [ours - theirs for ours, theirs in zip(scores["psnr"], scores["bicubic psnr"], strict=True)]
    for name, images in pictures.items():
        present = (judge(images.to(machine.model.device)).presence > 0).cpu()
        wanted = [{k - 1 for k, _ in objects_of(labels)} for labels in batch.labels]
        seen = [set(row.nonzero().flatten().tolist()) for row in present]
        scores[f"{name}labels"] = [float(a == b) for a, b in zip(seen, wanted, strict=True)]
    return scores


def inpainted(machine: Machine, batch: Batch, seeds: list[int], judge: Judge) -> Scores:
    things = [objects_of(labels) for labels in batch.labels]
    hidden = [objects[seed % len(objects)] for objects, seed in zip(things, seeds, strict=True)]
    masks = torch.zeros(len(seeds), 1, *batch.labels.shape[1:])
    for mask, (_, box) in zip(masks, hidden, strict=True):
        left, top, right, bottom = grown(box, mask.shape[-1], MARGIN)
        mask[:, top:bottom, left:right] = 1
    task = Task("inpaint", images=truth(batch), masks=masks, which=tuple(range(len(seeds))))
    own = [words[k] for words, (k, _) in zip(batch.words, hidden, strict=True)]
    scores: Scores = {}
    for name, prompts in (("found", own), ("found by caption", batch.captions)):
        output = judge(drawn(machine, task, prompts, seeds))
        scores[name] = []
        for b, (k, _) in enumerate(hidden):
            pixels = (output.labels[b].argmax(dim=0) == k).cpu()
            inside = (pixels & masks[b, 0].bool()).sum().item()
            scores[name].append(float(output.presence[b, k - 1].item() > 0 and inside > pixels.sum().item() / 2))
    return scores


def of_classes(machine: Machine, batch: Batch, seeds: list[int], judge: Judge) -> Scores:
    names = list(judge.config.concepts)
    asked = [class_of(labels, names) for labels in batch.labels]
    presence = judge(drawn(machine, Task(), asked, seeds)).presence
    return {"found": [float(row[names.index(name)] > 0) for row, name in zip(presence, asked, strict=True)]}


def of_boxes(machine: Machine, batch: Batch, seeds: list[int], judge: Judge) -> Scores:
    names = list(judge.config.concepts)
    prompts = [layout_of(labels, names) for labels in batch.labels]
    seen = judge(drawn(machine, Task(), prompts, seeds)).labels.argmax(dim=1).cpu()
    scores = []
    for labels, found in zip(batch.labels, seen, strict=True):
        there, asked = dict(objects_of(found)), objects_of(labels)
        scores.append(sum(iou(box, there[k]) if k in there else 0.0 for k, box in asked) / len(asked))
    return {"iou": scores}


def iou(one: Box, other: Box) -> float:
    """Returns the intersection over union of two boxes."""

    def area(box: Sequence[int]) -> int:
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    both = area([max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])])
    return both / (area(one) + area(other) - both)


SCORES: dict[str, Callable[[Machine, Batch, list[int], Judge], Scores]] = {
    "upscale": upscaled,
    "inpaint": inpainted,
    "classes": of_classes,
    "boxes": of_boxes,
}
