"""Draws one picture with a record of its attention, and saves what was seen as sheets, an animation and tensors."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from experiments import files
from experiments.attention.maps import Recorder, owner_map
from experiments.attention.sheets import Moment, colours_of, labels, owners_sheet, titled, words_sheet
from experiments.pictures import save_png
from experiments.run import build
from experiments.run.prompts import Prompt
from guidance import guided
from ldm import LatentDiffusion
from ldm.attention import Attention
from samplers import Step, as_x_0


def title_of(stages: Sequence[build.Stretch], seed: int) -> str:
    return " > ".join(f"{s.prompt} ({s.steps} steps)" for s in stages) + f", seed {seed}"


def save_sheets(
    picture: Tensor, moments: list[Moment], stages: Sequence[build.Stretch], title: str, columns: int, folder: Path
) -> None:
    """maps.png and semantics.png, of about `columns` of the moments."""
    some = [moments[i] for i in spread(len(moments), columns, [stage.steps for stage in stages])]
    colours = colours_of(moments)
    save_png(titled(words_sheet(picture, some, list(colours)), title), folder / "maps.png")
    save_png(titled(owners_sheet(some, colours), title), folder / "semantics.png")


def check_words(model: LatentDiffusion, prompts: list[str]) -> None:
    """Warn of text beyond the 77 tokens. Raises ValueError for a prompt without words."""
    tokens = model.tokenizer(prompts)
    for prompt, words, cut in zip(prompts, tokens.spans, tokens.cut, strict=True):
        if not words:
            raise ValueError(f"prompt '{prompt}' has no words to look for")
        if cut:
            files.say(f"warning: a prompt is longer than 77 tokens; cut off: {cut!r}")


def layers_meant(model: LatentDiffusion, wanted: Sequence[str] | None) -> list[str]:
    """Beginnings of names, each of at least one cross-attention layer. Raises ValueError listing the layers if not."""
    names = [name for name, m in model.unet.named_modules() if isinstance(m, Attention) and m.kind == "cross"]
    layers = [wanted] if isinstance(wanted, str) else [str(layer) for layer in wanted or [""]]
    for layer in layers:
        if not any(name.startswith(layer) for name in names):
            raise ValueError(f"layers={layer}: no cross-attention layer begins so; there are {', '.join(names)}")
    return layers


def draw(
    model: LatentDiffusion,
    recorder: Recorder,
    sampler: Callable[..., Iterator[tuple[Step, Tensor, Tensor]]],
    x_T: Tensor,
    prompt: Prompt,
) -> tuple[Tensor, list[Moment]]:
    """The picture [3, H, W] in [0, 1] of one latent x_T [1, C, h, w], and the steps on the way to it."""
    predict = as_x_0(model.unet, model.config.schedule.prediction)
    denoise = guided(predict, recorder, model.conditions([prompt.text or ""], [prompt.negative]))
    moments = []
    with torch.no_grad():
        for step, x_t, x_0 in tqdm(sampler(denoise, x_T), unit="step", desc="sampling"):
            if not x_t.isfinite().all():
                raise ValueError(
                    f"latents are not finite after step {step.i + 1} of {step.n}: lower the guidance's scales"
                )
            moments.append(Moment(step, model.decode(x_0)[0].cpu(), recorder.steps[step.i]))
        return model.decode(x_t)[0].cpu(), moments


def spread(n: int, columns: int, stages: Sequence[int]) -> list[int]:
    """About `columns` of n step indices, evenly spread, the first and the last and each stage's last among them."""
    even = {round(k * (n - 1) / max(columns - 1, 1)) for k in range(columns)}
    return sorted(even | {sum(stages[: k + 1]) - 1 for k in range(len(stages))})


def save_maps(moments: list[Moment], path: Path) -> None:
    tensors, words = {}, {}
    for moment in moments:
        i = f"{moment.step.i:03d}"
        words[i] = labels(moment.seen.words)
        for layer, maps in moment.seen.maps.items():
            tensors[f"maps/{i}/{layer}"] = maps.contiguous()
            tensors[f"owners/{i}/{layer}"] = owner_map(moment.seen.votes[layer]).byte()
    timesteps = {f"{moment.step.i:03d}": moment.step.now.t for moment in moments}
    save_file(tensors, path, {"words": json.dumps(words), "timesteps": json.dumps(timesteps)})


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """A GIF of 4 frames a second, that rests on the last, over and over."""
    durations = [250] * (len(frames) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
