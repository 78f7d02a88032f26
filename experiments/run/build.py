"""From a composed config to the objects it names: what is asked (Request), and what it runs on (Machine).

The config is read here, once; nothing below sees it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from experiments.files import UserError, as_user_error, say
from experiments.run.contents import modules_in
from experiments.run.prompts import Prompt, suite
from experiments.run.settings import check_arguments, written
from guidance import Guidance, Stage
from guidance.branch import plan, within
from ldm import LatentDiffusion, load_model
from ldm.attention import Edits
from ldm.autoencoder import Autoencoder
from ldm.classifier import LatentClassifier
from ldm.condition import Condition, Sizes
from ldm.config import ModelConfig, ScheduleConfig
from ldm.dit import DiT
from ldm.unet import UNet
from samplers import Denoised, Schedule, Step, as_x_0
from samplers.predict import Network, Predict

ASIDE = "aside"  # the main network by another name, for passes that observers need
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Picture = tuple[int, int]  # index of its prompt, and its seed
Moments = Iterator[tuple[Step, Tensor, Tensor]]


# --- what is asked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """The pictures that a run is to hold, in order, and how they are shared out among batches and shards.

    height, width  pixels; None is the model's own
    noise          a file with the first draws of all pictures, in the place of their seeds'
    shard          (i, n): this process makes every n-th batch, from the i-th on. The batches are the same whatever the
                   shards, and so the pictures
    max_batch      rows of one forward of a network at most, and so pictures that are drawn at once; None: no limit
    deterministic  pictures are drawn one by one, although a batch is stored together
    """

    prompts: list[Prompt]
    pictures: list[Picture]
    batch_size: int
    max_batch: int | None
    height: int | None
    width: int | None
    noise: Path | None
    shard: tuple[int, int]
    deterministic: bool
    save_latents: bool

    @property
    def batches(self) -> list[list[Picture]]:
        return [self.pictures[i : i + self.batch_size] for i in range(0, len(self.pictures), self.batch_size)]

    @property
    def ours(self) -> list[int]:
        """Indices of the batches of this shard."""
        shard, shards = self.shard
        return list(range(len(self.batches)))[shard::shards]

    @property
    def together(self) -> int:
        """How many pictures are drawn at once, at most."""
        return 1 if self.deterministic else min(self.batch_size, len(self.pictures), self.max_batch or self.batch_size)

    @property
    def columns(self) -> int | None:
        """Pictures of each prompt; None where prompts have seeds of their own."""
        each = len(self.pictures) // len(self.prompts)
        own = any(prompt.seed is not None for prompt in self.prompts)
        return None if own or len({seed for _, seed in self.pictures}) > each else each


def request(cfg: DictConfig, classes: Sequence[str] = ()) -> Request:
    """Raises UserError for prompts that cannot be read, and for a seed that is given twice.

    classes  those of the model, if it is told classes
    """
    wanted, common = prompts(cfg, classes), seeds(cfg)
    apart = (cfg.get("prompts") or {}).get("seeds_apart", 0)
    own = [
        [seed + apart * p for seed in common] if prompt.seed is None else [prompt.seed]
        for p, prompt in enumerate(wanted)
    ]
    shard, shards = map(int, str(cfg.shard).split("/"))
    return Request(
        prompts=wanted,
        pictures=[(p, seed) for p, some in enumerate(own) for seed in some],
        batch_size=cfg.batch_size,
        max_batch=cfg.max_batch,
        height=cfg.height,
        width=cfg.width,
        noise=None if cfg.noise is None else Path(str(cfg.noise)),
        shard=(shard, shards),
        deterministic=cfg.deterministic,
        save_latents=cfg.save_latents,
    )


def prompts(cfg: DictConfig, classes: Sequence[str] = ()) -> list[Prompt]:
    """The prompts asked for: `prompt`, or the prompts group. Raises UserError naming file and line of a wrong one."""
    negative = str(cfg.negative_prompt)
    if cfg.get("prompts") is None:
        return [Prompt(None if cfg.prompt is None else str(cfg.prompt), negative)]
    if cfg.prompt is not None:
        raise UserError("both prompt and prompts are given: leave one of them out")
    return suite(cfg.prompts, negative, classes)


def seeds(cfg: DictConfig) -> list[int]:
    """Returns the seeds of every prompt that brings none. Raises UserError for repeated ones."""
    wanted = list(cfg.seeds or []) if not isinstance(cfg.seeds, int) else [cfg.seeds]
    if len(set(wanted)) < len(wanted) or not wanted:
        raise UserError(f"seeds={wanted}: at least one, and none of them twice")
    return wanted


# --- what it runs on --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A model with the guidance and the sampler that draw from it.

    others     further models, by the names that a guidance asks for them by
    networks   the model's U-Net as "main", and those of the others; all of them return x_0
    sampler    sampler(denoise, x_T, steps, noise=...), its other settings bound
    max_batch  rows of one forward at most; None: no limit
    """

    model: LatentDiffusion
    others: Mapping[str, LatentDiffusion]
    networks: Mapping[str, Predict]
    guidance: Guidance
    sampler: Callable[..., Moments]
    steps: list[Step]
    max_batch: int | None = None


@dataclass(frozen=True)
class Loaded:
    """What of a machine takes the time to load, and may serve another config of the same models; see `Machine`."""

    model: LatentDiffusion
    others: Mapping[str, LatentDiffusion]
    networks: Mapping[str, Predict]


def machine(cfg: DictConfig, load: Callable[[DictConfig], Loaded] | None = None) -> Machine:
    """Raises UserError, or OSError of a file, for whatever keeps one of its parts from being made.

    load  what loads the config's models, `loaded` by default
    """
    guides, draws = guidance(cfg.guidance), sampler(cfg.sampler)
    known = (load or loaded)(cfg)
    asked = cfg.get("task") or {"name": "text"}
    check_task(known.model, asked["name"], cfg.model.path)
    check_classifiers(guides, known.model)
    check_layers(guides, known.model.unet)
    through = steps(cfg.sampler, known.model.config.schedule, asked.get("strength", 1.0))
    check_start(draws, through)
    return Machine(known.model, known.others, known.networks, guides, draws, through, cfg.get("max_batch"))


def loaded(cfg: DictConfig) -> Loaded:
    """Loads the model and the further networks of a config. Raises UserError, or OSError of a file."""
    made = model(cfg.model, device(cfg.device), cfg.dtype)
    say_dtype(made)
    paths = {str(name): path for name, path in (cfg.get("networks") or {}).items() if path is not None}
    if taken := paths.keys() & {"main", ASIDE}:
        raise UserError(f"networks.{min(taken)}: is the name of the model's own: choose another")
    others = {name: another(made, f"networks.{name}", path) for name, path in paths.items()}
    networks = {name: predictor(one, cfg.get("compile", False)) for name, one in {"main": made, **others}.items()}
    return Loaded(made, others, networks)


def device(name: str) -> torch.device:
    """Returns the device meant; "auto" is the first GPU, or the CPU. Raises UserError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here: use device=cpu, or device=auto") from error
    if chosen.type == "meta":
        raise UserError("device=meta: holds no numbers: use device=cpu, or device=auto")
    if chosen.type == "cpu" and chosen.index:
        raise UserError(f"device={name}: there is one cpu: use device=cpu")
    torch.backends.cudnn.allow_tf32 = False
    return chosen


def model(cfg: DictConfig, device: torch.device, dtype: str) -> LatentDiffusion:
    """Loads the model group's checkpoint. Raises UserError or OSError naming what is wrong with it."""
    with as_user_error():
        return load_model(
            cfg.path, config=cfg.config, prediction=cfg.prediction, ema=cfg.ema, dtype=DTYPES[dtype], device=device
        )


def text_to_image(cfg: DictConfig, device: torch.device, dtype: str) -> LatentDiffusion:
    """Loads `model`, which must draw from text alone. Raises UserError for an inpainting model too."""
    made = model(cfg, device, dtype)
    check_task(made, "text", cfg.path)
    return made


def picture_model(cfg: DictConfig, device: torch.device, dtype: str) -> LatentDiffusion:
    """Loads `model`, which must draw pictures from text alone. Raises UserError for a model of drawings too."""
    made = text_to_image(cfg, device, dtype)
    if made.config.latents == "drawings":
        raise UserError(f"{cfg.path} makes vector drawings: this verb is about pictures")
    return made


def check_task(model: LatentDiffusion, task: str, path: str) -> None:
    """Raises UserError where a model's channels beside its latent are not those of the task."""
    latent = model.config.latent_channels
    beside = model.config.in_channels - latent
    if model.config.latents == "drawings" and task != "text":
        raise UserError(f"task={task}: {path} makes vector drawings, which begin at nothing but noise: task=text")
    if task not in tasks_of(beside, latent):
        fitting = " or ".join(f"task={name}" for name in tasks_of(beside, latent)) or "no task here"
        kind = {0: "takes no picture beside its latent", 1 + latent: "is an inpainting model"}.get(beside)
        kind = kind or f"takes {beside} channels beside its latent"
        raise UserError(f"task={task}: {path} {kind}: {fitting} is for it")


def tasks_of(beside: int, latent: int) -> list[str]:
    """Returns the tasks of a network with so many channels beside those of its latent.

    Inpainting: a mask and a masked latent. Upscaling: a small picture in RGB, and perhaps how noisy it is.
    """
    known = {"text": (0,), "image": (0,), "inpaint": (0, 1 + latent), "upscale": (3, 4)}
    return [task for task, channels in known.items() if beside in channels]


def say_dtype(model: LatentDiffusion) -> None:
    """Says so where the autoencoder does not work in the dtype asked for."""
    if isinstance(model.autoencoder, Autoencoder) and model.autoencoder.quant_conv.weight.dtype != model.dtype:
        say("this model's autoencoder overflows float16: it works in float32")


def check_classifiers(guidance: Guidance, model: LatentDiffusion) -> None:
    """Puts the networks of a guidance on the model's device. Raises UserError for a classifier of other latents."""
    for name, network in modules_in(guidance, "guidance").items():
        if model.config.latents == "drawings":
            raise UserError(f"{name}: is a network that looks at pictures, and this model makes drawings")
        network.to(model.device)
        ours = model.config.autoencoder.latent_channels, model.config.autoencoder.scale
        if isinstance(network, LatentClassifier) and (network.config.latent_channels, network.config.scale) != ours:
            raise UserError(f"{name}: was trained on latents of another autoencoder than the model's")


def check_layers(guidance: Guidance, network: UNet | DiT) -> None:
    """Raises UserError where the `layers` of a guidance name one that the network does not have."""
    there = network.attention_layers
    for one in within(guidance):
        for name in getattr(one, "layers", ()):
            if there and not any(layer.startswith(name) for layer in there):
                blocks = dict.fromkeys(".".join(layer.split(".")[:2]) for layer in there)
                raise UserError(f"layers={name} of {type(one).__name__}: attention is in {', '.join(blocks)}")


def another(model: LatentDiffusion, setting: str, path: str) -> LatentDiffusion:
    """Loads a second model beside `model`. Raises UserError unless it denoises the same latents of the same process."""
    with as_user_error(f"{setting}: "):
        made = load_model(path, dtype=model.dtype, device=model.device)
    ours, theirs = model.config, made.config
    if process(ours.schedule) != process(theirs.schedule):
        raise UserError(f"{setting}={path}: was trained on another noise schedule than the model")
    if interface(ours) != interface(theirs):
        raise UserError(f"{setting}={path}: has other latents, or another width of text, than the model")
    return made


def process(schedule: ScheduleConfig) -> ScheduleConfig:
    """Returns what of a schedule the networks of one process share: neither what they predict nor how one samples."""
    plain = ScheduleConfig()
    return replace(schedule, prediction="", spacing=plain.spacing, steps_offset=plain.steps_offset,
                   ends_clean=plain.ends_clean, times=plain.times)  # fmt: skip


def interface(config: ModelConfig) -> tuple[Any, ...]:
    """Returns the sizes of what a network takes, by which another fits beside it, and the kinds of it."""
    told = config.classes if config.condition == "classes" else (config.unet.text_width, config.unet.vector_width)
    return config.latents, config.latent_channels, config.downscale, config.in_channels, config.condition, told


def predictor(model: LatentDiffusion, compile: bool = False) -> Predict:
    """Returns the model's U-Net as a guidance uses it: it returns x_0, whatever it was trained to predict."""
    return as_x_0(network(model.unet, compile), model.config.schedule.prediction)


def network(unet: UNet | DiT, compile: bool) -> Network:
    """Returns the denoiser, if so wanted compiled: once per shape and kind of edits, on a GPU to CUDA graphs."""
    if not compile:
        return unet
    on_gpu = next(unet.parameters()).is_cuda
    compiled = torch.compile(unet, fullgraph=True, mode="reduce-overhead" if on_gpu else "default")

    def network(x_t: Tensor, t: float | Tensor, condition: Condition, edits: Edits = ()) -> Tensor:
        # a number would be compiled in; and what a CUDA graph returns is overwritten by its next call
        t = torch.as_tensor(t, dtype=torch.float32, device=x_t.device).reshape(-1)
        out = compiled(x_t, t, replace(condition, kept=None), edits)
        return out.clone() if on_gpu else out

    return network


def steps(cfg: DictConfig, config: ScheduleConfig, strength: float = 1.0) -> list[Step]:
    """Returns the sampler group's steps through the model's schedule, the last int(strength n) of n; at 0 none.

    Raises UserError if a strength above 0 leaves none.
    """
    if type(cfg.steps) is not int:
        raise UserError(f"sampler.steps={written(cfg.steps)}: must be a whole number")
    with as_user_error("sampler: "):
        through = Schedule.of(config).steps(cfg.steps, cfg.spacing, final=cfg.final, start=strength)
    if strength and not through:
        least = math.ceil(1000 / cfg.steps) / 1000
        raise UserError(
            f"task.strength={strength}: of {cfg.steps} steps none would be taken: at least {least:g}, or more steps"
        )
    return through


def sampler(cfg: DictConfig) -> Callable[..., Moments]:
    """Returns the sampler group's function with its settings, but for the steps."""
    settings = {key: value for key, value in cfg.items() if key not in ("steps", "spacing", "final")}
    return create({"_partial_": True, **settings}, "sampler")


def check_start(sampler: Callable[..., Moments], steps: Sequence[Step]) -> None:
    """Raises UserError if a sampler cannot take its settings or these steps: it looks at them as it begins."""
    nothing = torch.zeros(1)
    with as_user_error("sampler: "):
        next(sampler(lambda x_t, step: Denoised(x_t, x_t), nothing, steps, noise=lambda: nothing), None)


def guidance(cfg: DictConfig) -> Guidance:
    """Returns the guidance group's object, with whatever it is nested of."""
    return create(cfg, "guidance")


def create(cfg: Mapping[Any, Any], group: str) -> Any:
    """Returns what the config's `_target_` makes of its other keys. Raises UserError naming a wrong setting."""
    check_arguments(cfg, group)
    try:
        return instantiate(cfg, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{group}: {error.__cause__ or error}") from error


def stages(guidance: Guidance, steps: Sequence[Step]) -> list[Stage]:
    """Returns what a guidance shows, and for how many steps. Raises UserError for one that does not fit the steps."""
    with as_user_error("guidance: "):
        prompts = plan(guidance, steps)
    return [Stage(prompt, len(list(same))) for prompt, same in groupby(prompts)]


# --- whether the two fit ----------------------------------------------------------------------------------------------


def check_prompts(model: LatentDiffusion, prompts: Sequence[Prompt], stages: Sequence[Stage]) -> None:
    """Raises UserError where there is nothing to draw, and for a prompt that the model cannot be told."""
    if prompts[0].text is None and any(stage.prompt is None for stage in stages) and model.text_encoder is not None:
        raise UserError("nothing to draw: give prompt='...', prompts=NAME, or prompts=file prompts.path=FILE")
    with as_user_error("prompt: "):
        model.check_prompts([text or "" for prompt in prompts for text in (prompt.text, prompt.negative)])
    with as_user_error("guidance: "):
        model.check_prompts([stage.prompt or "" for stage in stages])


def size(model: LatentDiffusion, height: int | None, width: int | None) -> tuple[int, int]:
    """Returns height and width in pixels. Raises UserError for sides that the networks cannot take."""
    pixels = height or model.config.image_size, width or model.config.image_size
    with as_user_error():
        model.latent_shape(*pixels)
    if model.config.latents == "drawings" and pixels[0] != pixels[1]:
        raise UserError(f"height={pixels[0]} width={pixels[1]}: the box of a drawing is square")
    return pixels


def sizes(task: Mapping[str, Any] | None, model: LatentDiffusion, size: tuple[int, int]) -> Sizes:
    """Returns what the model is told of the pictures' size. Raises UserError for settings that it cannot be told of."""
    original, crop = ((task or {}).get(name) for name in ("original_size", "crop"))
    told = Sizes(size, (original[0], original[1]) if original else None, (crop[0], crop[1]) if crop else (0, 0))
    if model.config.text_2 is None and told != Sizes(size):
        raise UserError("task.original_size and task.crop are told to SDXL alone: leave them out for this model")
    if model.config.text_2 is not None and min(size) < 0.75 * model.config.image_size:
        say(f"warning: pictures of {size[0]} x {size[1]} px: SDXL draws poorly far below {model.config.image_size} px")
    return told
