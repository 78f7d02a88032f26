"""From a composed config to the objects it names."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from experiments.files import UserError, as_user_error
from experiments.run.prompts import Prompt, checked_seed, suite
from guidance import Guidance
from ldm import LatentDiffusion, load_model
from ldm.attention import AttentionEdit
from ldm.config import ScheduleConfig
from ldm.text import Text, Texts
from ldm.unet import UNet
from samplers import Schedule, Step
from samplers.schedule import Network

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Stretch:
    """A run of steps under one prompt; None is the image's own."""

    prompt: str | None
    steps: int


@dataclass(frozen=True)
class Rehearsal:
    """What a guidance is going to do, learnt by asking it for the branches of every step."""

    evaluations: int  # of the U-Net, per image
    stages: list[Stretch]


def device(name: str) -> torch.device:
    """The device meant; "auto" is the first GPU, or the CPU. Raises UserError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here: use device=cpu, or device=auto") from error
    torch.backends.cudnn.allow_tf32 = False
    return chosen


def model(cfg: DictConfig, device: torch.device, dtype: str) -> LatentDiffusion:
    """The model group's checkpoint. Raises UserError or OSError naming what is wrong with it."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    with as_user_error():
        return load_model(
            cfg.path, config=cfg.config, prediction=cfg.prediction, ema=cfg.ema, dtype=DTYPES[dtype], device=device
        )


def text_to_image(cfg: DictConfig, device: torch.device, dtype: str) -> LatentDiffusion:
    """`model`, which must draw from text alone. Raises UserError for an inpainting model too."""
    made = model(cfg, device, dtype)
    if made.config.unet.in_channels != made.config.autoencoder.latent_channels:
        raise UserError(f"{cfg.path} is an inpainting model: this verb makes pictures from text alone")
    return made


def network(unet: UNet, compile: bool) -> Network:
    """The U-Net as guidances call it; if wanted compiled, once per shape and kind of edits, on a GPU to CUDA graphs."""
    if not compile:
        return unet
    on_gpu = unet.conv_in.weight.is_cuda
    compiled = torch.compile(unet, fullgraph=True, mode="reduce-overhead" if on_gpu else "default")

    def network(x_t: Tensor, t: int, text: Tensor, edits: Sequence[AttentionEdit | None] = ()) -> Tensor:
        # a number would be compiled in; and what a CUDA graph returns is overwritten by its next call
        out = compiled(x_t, torch.full((1,), t, device=x_t.device), text, edits)
        return out.clone() if on_gpu else out

    return network


def schedule(config: ScheduleConfig) -> Schedule:
    return Schedule(config.num_timesteps, config.kind, config.beta_start, config.beta_end)


def steps(cfg: DictConfig, config: ScheduleConfig) -> list[Step]:
    """The sampler group's steps through the model's schedule."""
    if type(cfg.steps) is not int:
        raise UserError(f"sampler.steps={cfg.steps}: must be a whole number")
    with as_user_error("sampler: "):
        return schedule(config).steps(cfg.steps, cfg.spacing or config.spacing, config.steps_offset)


def sampler(cfg: DictConfig, config: ScheduleConfig) -> Callable[..., Iterator[tuple[Step, Tensor, Tensor]]]:
    """sampler(denoise, x_T, noise=...) -> generator: the sampler group's function with its settings and steps."""
    if not 0 <= cfg.get("eta", 0) <= 1:
        raise UserError(f"sampler.eta={cfg.eta}: must be between 0 and 1")
    settings = {key: value for key, value in cfg.items() if key not in ("steps", "spacing")}
    if "final" in cfg and cfg.final is None and config.ends_clean:
        settings["final"] = 1.0
    function = create({"_partial_": True, **settings}, "sampler")
    return partial(function, steps=steps(cfg, config), alpha_bar=schedule(config).alpha_bar)


def guidance(cfg: DictConfig) -> Guidance:
    """The guidance group's object, with whatever it is nested of."""
    return create(cfg, "guidance")


def create(cfg: DictConfig | dict[Any, Any], group: str) -> Any:
    """What the config's `_target_` makes of its other keys. Raises UserError naming a wrong setting."""
    try:
        return instantiate(cfg, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{group}: {error.__cause__ or error}") from error


def rehearse(guidance: Guidance, steps: list[Step]) -> Rehearsal:
    """Raises UserError for a guidance that does not fit these steps, before anything is sampled."""
    known: list[tuple[Text, str | None]] = []

    def encode(prompt: str | None) -> Text:
        known.append((Text(torch.empty(0)), prompt))
        return known[-1][0]

    texts = Texts(encode(None), encode(""), encode)
    evaluations, stages = 0, list[Stretch]()
    for step in steps:
        with as_user_error("guidance: "):
            branches = guidance.branches(texts, step)
        evaluations += len(branches)
        prompt = next(prompt for text, prompt in known if text is branches["cond"].text)
        if stages and stages[-1].prompt == prompt:
            stages[-1] = Stretch(prompt, stages[-1].steps + 1)
        else:
            stages.append(Stretch(prompt, 1))
    return Rehearsal(evaluations, stages)


def prompts(cfg: DictConfig) -> list[Prompt]:
    """The prompts asked for: `prompt`, or the prompts group. Raises UserError naming file and line of a wrong one."""
    negative = str(cfg.negative_prompt)
    if cfg.get("prompts") is None:
        return [Prompt(None if cfg.prompt is None else str(cfg.prompt), negative)]
    if cfg.prompt is not None:
        raise UserError("both prompt and prompts are given: leave one of them out")
    return suite(cfg.prompts, negative)


def seeds(cfg: DictConfig) -> list[int]:
    """Raises UserError for a seed that is no whole number of 32 bits, and for repeated ones."""
    wanted = [checked_seed(seed) for seed in (cfg.seeds if isinstance(cfg.seeds, list | ListConfig) else [cfg.seeds])]
    if len(set(wanted)) < len(wanted) or not wanted:
        raise UserError(f"seeds={wanted}: at least one, and none of them twice")
    return wanted


def shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n", the i-th of n shards, i from 0. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", str(text))
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"shard={text}: must be i/n, with i from 0 to n - 1")
    return int(match[1]), int(match[2])
