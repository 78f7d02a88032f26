"""Draws one picture with a record of its attention, and saves what was seen as sheets, an animation and tensors."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from experiments import files
from experiments.attention.maps import Recorder, StepMaps, owner_map
from experiments.attention.sheets import Moment, colours_of, labels, owners_sheet, titled, words_sheet
from experiments.files import UserError
from experiments.pictures import save_gif, save_png
from experiments.run.build import Machine
from experiments.run.draw import Batch, Job, Record, moments, with_own_prompt
from guidance import Guidance, Stage
from ldm import LatentDiffusion
from ldm.attention import Attention
from samplers import Step


class Sheets:
    """Observes the first picture of a batch, and writes its maps.png and semantics.png of about `columns` steps."""

    def __init__(self, job: Job, columns: int, folder: Path):
        first = job.request.pictures[0]
        stages = with_own_prompt(job.stages, job.request.prompts[first[0]])
        check_words(job.machine.model, [str(stage.prompt) for stage in stages])
        counts = [int(stage.steps) for stage in stages]
        self.model, self.folder, self.title = job.machine.model, folder, title_of(stages, first[1])
        self.some = [job.machine.steps[i].i for i in spread(len(job.machine.steps), columns, counts)]
        self.words: dict[int, StepMaps] = {}
        self.estimates: dict[Step, Tensor] = {}

    def around(self, guidance: Guidance) -> Guidance:
        return Recorder(guidance, steps=self.words, only=self.some)

    def see(self, step: Step, x_0: Tensor) -> None:
        if step.i in self.some:
            self.estimates[step] = x_0[:1]

    def done(self, images: Tensor) -> list[Record]:
        pictures = self.model.decode(torch.cat(list(self.estimates.values()))).cpu()
        seen = [Moment(s, image, self.words[s.i]) for s, image in zip(self.estimates, pictures, strict=True)]
        save_sheets(images[0], seen, self.title, self.folder)
        return [{} for _ in images]


def title_of(stages: Sequence[Stage], seed: int) -> str:
    return " > ".join(f"{s.prompt} ({s.steps} steps)" for s in stages) + f", seed {seed}"


def save_sheets(picture: Tensor, seen: list[Moment], title: str, folder: Path) -> None:
    """Writes maps.png and semantics.png of these moments."""
    colours = colours_of(seen)
    save_png(titled(words_sheet(picture, seen, list(colours)), title), folder / "maps.png")
    save_png(titled(owners_sheet(seen, colours), title), folder / "semantics.png")


def check_words(model: LatentDiffusion, prompts: list[str]) -> None:
    """Warns of text beyond the 77 tokens. Raises UserError for a prompt without words, and a model that takes none."""
    if model.config.condition != "text":
        raise UserError(f"visualize shows where words act, and this model is told {model.config.condition}")
    tokens = model.tokenizer(prompts)
    for prompt, words, cut in zip(prompts, tokens.spans, tokens.cut, strict=True):
        if not words:
            raise UserError(f"prompt '{prompt}' has no words to look for")
        if cut:
            files.say(f"warning: a prompt is longer than 77 tokens; cut off: {cut!r}")


def layers_meant(model: LatentDiffusion, wanted: Sequence[str] | None) -> list[str]:
    """Returns beginnings of names, each of at least one cross-attention layer.

    Raises UserError listing the layers if not.
    """
    names = [name for name, m in model.unet.named_modules() if isinstance(m, Attention) and m.kind == "cross"]
    layers = [wanted] if isinstance(wanted, str) else [str(layer) for layer in wanted or [""]]
    for layer in layers:
        if not any(name.startswith(layer) for name in names):
            raise UserError(f"layers={layer}: no cross-attention layer begins so; there are {', '.join(names)}")
    return layers


def draw(machine: Machine, recorder: Recorder, batch: Batch) -> tuple[Tensor, list[Moment]]:
    """Returns the picture [3, H, W] in [0, 1] of a batch of one, and the steps on the way to it."""
    seen = []
    with torch.no_grad():
        for step, x_t, x_0 in tqdm(moments(machine, batch, recorder), "sampling", len(machine.steps), unit="step"):  # noqa: B007
            seen.append(Moment(step, machine.model.decode(x_0)[0].cpu(), recorder.steps[step.i]))
        return machine.model.decode(x_t)[0].cpu(), seen


def spread(n: int, columns: int, stages: Sequence[int]) -> list[int]:
    """Returns about `columns` of n step indices, evenly spread, with the first, the last and each stage's last."""
    even = {round(k * (n - 1) / max(columns - 1, 1)) for k in range(columns)}
    return sorted(even | {sum(stages[: k + 1]) - 1 for k in range(len(stages))})


def save_maps(seen: list[Moment], path: Path) -> None:
    """Writes maps and owners of all steps as safetensors, with words and timesteps as metadata."""
    tensors, words = {}, {}
    for moment in seen:
        i = f"{moment.step.i:03d}"
        words[i] = labels(moment.seen.words)
        for layer, maps in moment.seen.maps.items():
            tensors[f"maps/{i}/{layer}"] = maps.contiguous()
            tensors[f"owners/{i}/{layer}"] = owner_map(moment.seen.votes[layer]).byte()
    timesteps = {f"{moment.step.i:03d}": moment.step.now.t for moment in seen}
    files.write_tensors(path, tensors, {"words": json.dumps(words), "timesteps": json.dumps(timesteps)})


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes a GIF of 4 frames a second that rests on the last, over and over."""
    save_gif(frames, path, [250] * (len(frames) - 1) + [2000])
