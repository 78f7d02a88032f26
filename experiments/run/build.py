"""From a composed config to the objects it names."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from experiments.run.prompts import Prompt, checked_seed, suite
from guidance import Guidance
from guidance.branch import plan
from ldm import LatentDiffusion, load_model
from ldm.attention import Edits
from ldm.condition import Condition
from ldm.config import ScheduleConfig
from ldm.unet import UNet
from samplers import Denoised, Schedule, Step
from samplers.predict import Network

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Stretch:
    """A run of steps under one prompt; None is the image's own."""

    prompt: str | None
    steps: int


def device(name: str) -> torch.device:
    """The device meant; "auto" is the first GPU, or the CPU. Raises ValueError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name} is not available here: use device=cpu, or device=auto") from error
    torch.backends.cudnn.allow_tf32 = False
    return chosen


def model(cfg: DictConfig, device: torch.device, dtype: str) -> LatentDiffusion:
    """The model group's checkpoint. Raises ValueError or OSError naming what is wrong with it."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    return load_model(
        cfg.path, config=cfg.config, prediction=cfg.prediction, ema=cfg.ema, dtype=DTYPES[dtype], device=device
    )


def text_to_image(cfg: DictConfig, device: torch.device, dtype: str) -> LatentDiffusion:
    """`model`, which must draw from text alone. Raises ValueError for an inpainting model too."""
    made = model(cfg, device, dtype)
    if made.config.unet.in_channels != made.config.autoencoder.latent_channels:
        raise ValueError(f"{cfg.path} is an inpainting model: this verb makes pictures from text alone")
    return made


def network(unet: UNet, compile: bool) -> Network:
    """The U-Net as guidances call it; if wanted compiled, once per shape and kind of edits, on a GPU to CUDA graphs."""
    if not compile:
        return unet
    on_gpu = unet.conv_in.weight.is_cuda
    compiled = torch.compile(unet, fullgraph=True, mode="reduce-overhead" if on_gpu else "default")

    def network(x_t: Tensor, t: float | Tensor, condition: Condition, edits: Edits = ()) -> Tensor:
        # a number would be compiled in; and what a CUDA graph returns is overwritten by its next call
        t = torch.as_tensor(t, dtype=torch.float32, device=x_t.device).reshape(-1)
        out = compiled(x_t, t, replace(condition, kept=None), edits)
        return out.clone() if on_gpu else out

    return network


def steps(cfg: DictConfig, config: ScheduleConfig) -> list[Step]:
    """The sampler group's steps through the model's schedule."""
    if type(cfg.steps) is not int:
        raise ValueError(f"sampler.steps={cfg.steps}: must be a whole number")
    return Schedule.of(config).steps(cfg.steps, cfg.spacing, final=cfg.final)


def sampler(cfg: DictConfig, config: ScheduleConfig) -> Callable[..., Iterator[tuple[Step, Tensor, Tensor]]]:
    """sampler(denoise, x_T, noise=...) -> generator: the sampler group's function with its settings and steps."""
    if not 0 <= cfg.get("eta", 0) <= 1:
        raise ValueError(f"sampler.eta={cfg.eta}: must be between 0 and 1")
    settings = {key: value for key, value in cfg.items() if key not in ("steps", "spacing", "final")}
    made = partial(create({"_partial_": True, **settings}, "sampler"), steps=steps(cfg, config))
    zero = torch.zeros(1)
    try:  # its first step, on nothing: a sampler looks at its settings and steps as it begins
        next(made(lambda x_t, step: Denoised(x_t, x_t), zero, noise=lambda: zero))
    except TypeError as error:
        raise ValueError(f"sampler: {error}") from error
    return made


def guidance(cfg: DictConfig) -> Guidance:
    """The guidance group's object, with whatever it is nested of."""
    return create(cfg, "guidance")


def create(cfg: DictConfig | dict[Any, Any], group: str) -> Any:
    """What the config's `_target_` makes of its other keys. Raises ValueError naming a wrong setting."""
    try:
        return instantiate(cfg, _convert_="all")
    except InstantiationException as error:
        raise ValueError(f"{group}: {error.__cause__ or error}") from error


def stretches(guidance: Guidance, steps: list[Step]) -> list[Stretch]:
    """What a guidance shows, and for how long. Raises ValueError for one that does not fit these steps."""
    return [Stretch(prompt, len(list(same))) for prompt, same in groupby(plan(guidance, steps))]


def prompts(cfg: DictConfig) -> list[Prompt]:
    """The prompts asked for: `prompt`, or the prompts group. Raises ValueError naming file and line of a wrong one."""
    negative = str(cfg.negative_prompt)
    if cfg.get("prompts") is None:
        return [Prompt(None if cfg.prompt is None else str(cfg.prompt), negative)]
    if cfg.prompt is not None:
        raise ValueError("both prompt and prompts are given: leave one of them out")
    return suite(cfg.prompts, negative)


def seeds(cfg: DictConfig) -> list[int]:
    """Raises ValueError for a seed that is no whole number of 32 bits, and for repeated ones."""
    wanted = [checked_seed(seed) for seed in (cfg.seeds if isinstance(cfg.seeds, list | ListConfig) else [cfg.seeds])]
    if len(set(wanted)) < len(wanted) or not wanted:
        raise ValueError(f"seeds={wanted}: at least one, and none of them twice")
    return wanted


def shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n", the i-th of n shards, i from 0. Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", str(text))
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"shard={text}: must be i/n, with i from 0 to n - 1")
    return int(match[1]), int(match[2])
