"""python -m experiments.visualize: where the words of a prompt act while one picture is drawn; see conf/visualize.yaml.

maps.png          words x some steps: the word's share of attention, over the finished picture; mean of heads and layers
semantics.png     layers x some steps: which word owns which patch
steps.gif         every step: the x_0 predicted, the owners, the words
maps.safetensors  by step and layer, maps/III/LAYER [words, h, w] and owners/III/LAYER [h, w] (indices of words; their
                  number where no word owns); metadata, as JSON: words and timesteps, by step
picture.png, run.json
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from experiments import build, cli, runs
from experiments.attention_maps import Recorder, owner_map
from experiments.attention_pictures import Moment, colours_of, frame, labels, owners_sheet, titled, words_sheet
from experiments.pictures import save_png, to_image
from experiments.prompts import Prompt, checked_seed
from guidance import guided
from ldm import LatentDiffusion
from ldm.attention import Attention
from samplers import ImageNoise, Step, as_eps


def main(cfg: DictConfig) -> None:
    (prompt,) = build.prompts(cfg)
    seed = checked_seed(cfg.seed)
    guidance, device = build.guidance(cfg.guidance), build.device(cfg.device)
    if type(cfg.columns) is not int or cfg.columns < 1:
        raise ValueError(f"columns={cfg.columns}: must be a whole number of at least 1")

    model = build.text_to_image(cfg.model, device, cfg.dtype)
    config = model.config
    shape = model.latent_shape(cfg.height or config.image_size, cfg.width or config.image_size)
    stages = build.rehearse(guidance, build.steps(cfg.sampler, config.schedule)).stages
    if prompt.text is None and any(stage.prompt is None for stage in stages):
        raise ValueError("nothing to draw: give prompt='...'")
    asked = [build.Stretch(prompt.text if s.prompt is None else s.prompt, s.steps) for s in stages]
    check_words(model, [str(stage.prompt) for stage in asked])

    recorder = Recorder(guidance, layers_meant(model, cfg.layers), cfg.argmax, cfg.candidates)
    noise = ImageNoise([seed], shape, device)
    sampler = partial(build.sampler(cfg.sampler, config.schedule), noise=noise)
    picture, moments = draw(model, recorder, sampler, noise(), prompt)

    folder = Path(HydraConfig.get().runtime.output_dir)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    title = title_of(asked, seed)
    save_png(to_image(picture), folder / "picture.png")
    save_sheets(picture, moments, asked, title, cfg.columns, folder)
    colours = colours_of(moments)
    save_animation([frame(moment, colours, title) for moment in moments], folder / "steps.gif")
    save_maps(moments, folder / "maps.safetensors")
    runs.write(folder / "run.json", json.dumps(runs.describe(settings, device), indent=1))
    print(f"{len(colours)} words in {len(moments)} steps: {folder}/maps.png, semantics.png, steps.gif")


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
            cli.say(f"warning: a prompt is longer than 77 tokens; cut off: {cut!r}")


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
    schedule = model.config.schedule
    predict = as_eps(model.unet, schedule.prediction, build.schedule(schedule).alpha_bar)
    denoise = guided(predict, recorder, model.texts([prompt.text or ""], [prompt.negative]))
    moments = []
    with torch.inference_mode():
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
    timesteps = {f"{moment.step.i:03d}": moment.step.t for moment in moments}
    save_file(tensors, path, {"words": json.dumps(words), "timesteps": json.dumps(timesteps)})


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """A GIF of 4 frames a second, that rests on the last, over and over."""
    durations = [250] * (len(frames) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


if __name__ == "__main__":
    cli.run(main, "visualize")
