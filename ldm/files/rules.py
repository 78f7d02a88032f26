"""The values that a model's settings may have, as a table, and configs made of settings that keep to it.

The bounds are wide enough for any model of the family, and narrow enough that none takes long to build.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

from ldm.classifier import ClassifierConfig
from ldm.config import (
    AutoencoderConfig,
    BoxesConfig,
    ClassesConfig,
    DiTConfig,
    ModelConfig,
    ScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
    VectorAutoencoderConfig,
)
from ldm.files.messages import quoted

T = TypeVar("T")


class Rule(NamedTuple):
    """The values that a setting may have: in words, and as a test."""

    text: str
    admits: Callable[[Any], bool]


def whole(least: int, most: int) -> Rule:
    return Rule(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def between(low: float, high: float) -> Rule:
    return Rule(
        f"a number above {low:g} and below {high:g}", lambda value: type(value) in (int, float) and low < value < high
    )


def one_of(*values: str) -> Rule:
    return Rule(f"one of {', '.join(filter(None, values))}", lambda value: isinstance(value, str) and value in values)


def or_none(rule: Rule) -> Rule:
    return Rule(f"{rule.text}, or null", lambda value: value is None or rule.admits(value))


def several(rule: Rule, least: int, most: int) -> Rule:
    return Rule(
        f"a list of {least} to {most} entries, each {rule.text}",
        lambda value: isinstance(value, list | tuple) and least <= len(value) <= most and all(map(rule.admits, value)),
    )


def distinct(value: Any) -> bool:
    return isinstance(value, list | tuple) and len({*map(str, value)}) == len(value)


PREDICTIONS = ("eps", "v", "x0", "flow")
FLAG = Rule("true or false", lambda value: type(value) is bool)
SIZE = whole(1, 65536)
LEVELS = 8
NAME = Rule("a name of 1 to 200 characters", lambda value: isinstance(value, str) and 1 <= len(value) <= 200)
NAMES = several(NAME, 0, 65536)
BLOCKS = whole(1, 8)  # per level
RULES: dict[type, dict[str, Rule]] = {
    UNetConfig: {
        "in_channels": SIZE,
        "out_channels": SIZE,
        "channels": several(SIZE, 1, LEVELS),
        "blocks_per_level": BLOCKS,
        "attention": several(FLAG, 1, LEVELS),
        "heads": several(SIZE, 1, LEVELS),
        "depth": several(whole(1, 64), 0, LEVELS),
        "text_width": or_none(SIZE),
        "vector_width": whole(0, 65536),
        "linear_projection": FLAG,
        "norm_groups": SIZE,
    },
    AutoencoderConfig: {
        "image_channels": SIZE,
        "latent_channels": SIZE,
        "channels": several(SIZE, 1, LEVELS),
        "blocks_per_level": BLOCKS,
        "norm_groups": SIZE,
        "scale": between(0, 1000),
        "overflows": FLAG,
    },
    VectorAutoencoderConfig: {
        "commands": whole(1, 1024),
        "latent_width": whole(1, 8192),
        "width": whole(1, 8192),
        "blocks": whole(0, 64),
        "octaves": whole(0, 16),
        "scale": between(0, 1000),
    },
    TextEncoderConfig: {
        "width": SIZE,
        "mlp_width": SIZE,
        "layers": whole(1, 128),
        "heads": SIZE,
        "vocab": whole(49408, 2**24),  # CLIP's vocabulary, and room for added words
        "context": whole(3, 4096),
        "activation": one_of("quick_gelu", "gelu"),
        "pad_id": whole(0, 2**24),
        "penultimate": FLAG,
        "projection": whole(0, 65536),
    },
    ClassifierConfig: {
        "classes": NAMES,
        "latent_channels": SIZE,
        "channels": several(whole(2, 65536), 1, LEVELS),
        "norm_groups": SIZE,
        "scale": between(0, 1000),
    },
    ClassesConfig: {
        "names": Rule(f"{NAMES.text}, none of them twice", lambda value: NAMES.admits(value) and distinct(value)),
        "width": SIZE,
        "as_vector": FLAG,
    },
    BoxesConfig: {
        "names": Rule(f"{NAMES.text}, none of them twice", lambda value: NAMES.admits(value) and distinct(value)),
        "width": SIZE,
        "most": whole(2, 1024),
    },
    ScheduleConfig: {
        "num_timesteps": whole(1, 10**6),
        "kind": one_of("linear", "scaled_linear", "cosine", "flow"),
        "beta_start": between(0, 1),
        "beta_end": between(0, 1),
        "zero_terminal_snr": FLAG,
        "shift": between(0, 1000),
        "times": one_of("logit_normal", "uniform"),
        "prediction": one_of(*PREDICTIONS, ""),
        "spacing": one_of("leading", "trailing", "linspace"),
        "steps_offset": whole(0, 10**6),
        "ends_clean": FLAG,
    },
    DiTConfig: {
        "in_channels": SIZE,
        "width": SIZE,
        "layers": whole(1, 128),
        "heads": whole(0, 65536),
        "mlp_ratio": whole(1, 64),
        "patch_size": whole(1, 64),
        "size": SIZE,
        "tokens": whole(0, 65536),
        "learn_sigma": FLAG,
    },
    ModelConfig: {
        "condition": one_of("text", "classes", "boxes", "nothing"),
        "denoiser": one_of("unet", "dit"),
        "latents": one_of("images", "drawings"),
        "stroke": or_none(between(0, 24)),
        "image_size": SIZE,
        "zeros_for_empty": FLAG,
        "text_2": Rule("null, or a mapping of settings", lambda value: value is None),
    },
}
OPTIONAL = {"text_2": TextEncoderConfig()}  # fields that may be None, and what their settings change otherwise


def check(name: str, value: object, rule: Rule, where: str) -> None:
    if not rule.admits(value):
        raise ValueError(f"{where}: {name}={quoted(value)} should be {rule.text}")


def from_fields(default: T, data: Mapping[str, Any], where: str) -> T:
    """Returns `default` with the fields that `data` names changed; data nests as the dataclasses do.

    Raises ValueError for an unknown field, or a value outside its rule.
    """
    assert is_dataclass(default)
    known = [field.name for field in fields(default)]
    changes: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            raise ValueError(f"{where}: unknown field {quoted(name)}; there are {', '.join(known)}")
        if is_dataclass(value):
            changes[name] = value
        elif is_dataclass(old := getattr(default, name) or OPTIONAL.get(name)) and value is not None:
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {name}={quoted(value)} should be a mapping of settings")
            changes[name] = from_fields(old, value, f"{where}: {name}")
        else:
            check(name, value, RULES[type(default)][name], where)
            changes[name] = tuple(value) if isinstance(value, list) else value
    return replace(default, **changes)  # type: ignore[type-var]


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """Returns the config itself. Raises ValueError where its numbers contradict each other."""
    schedule, texts = config.schedule, [config.text, *([config.text_2] if config.text_2 else [])]
    check_dit(config, where) if config.denoiser == "dit" else check_unet(config.unet, where)
    if config.latents == "images":
        check_norms(config.autoencoder, where)
    elif config.denoiser != "dit" or not config.dit.tokens:
        raise ValueError(f"{where}: latents of drawings are vectors: they take denoiser=dit, dit.tokens of at least 1")
    for text in texts if config.condition == "text" else ():
        check_heads(text.width, text.heads, where)
        if text.pad_id >= text.vocab:
            raise ValueError(f"{where}: pad_id={text.pad_id} is not among the {text.vocab} tokens")
    check_condition(config, texts, where)
    if schedule.zero_terminal_snr and schedule.prediction == "eps":
        raise ValueError(
            f"{where}: zero_terminal_snr (rescale_betas_zero_snr) with prediction eps: "
            "at the last timestep eps says nothing of the picture; it takes v, x0 or flow"
        )
    return config


def check_unet(unet: UNetConfig, where: str) -> None:
    if not len(unet.channels) == len(unet.attention) == len(unet.heads):
        raise ValueError(f"{where}: the U-Net's channels, attention and heads must have one entry per level")
    if len(unet.depth) not in (0, len(unet.channels)):
        raise ValueError(f"{where}: the U-Net's depth must have one entry per level, or none")
    for width, heads in zip(unet.channels, unet.heads, strict=True):
        check_heads(width, heads, where)
    check_norms(unet, where)
    if unet.channels[0] % 2:
        raise ValueError(f"{where}: the U-Net's channels {unet.channels} must begin with an even number")


def check_dit(config: ModelConfig, where: str) -> None:
    dit = config.dit
    if dit.width % 4:
        raise ValueError(f"{where}: the transformer's width {dit.width} must be a multiple of 4")
    if dit.heads:
        check_heads(dit.width, dit.heads, where)
    if bool(dit.tokens) != (config.latents == "drawings"):
        raise ValueError(f"{where}: dit.tokens={dit.tokens}, and latents are of {config.latents}")
    if dit.tokens and dit.in_channels % dit.tokens:
        raise ValueError(f"{where}: {dit.in_channels} numbers cannot be cut into {dit.tokens} slices")
    if dit.in_channels != config.latent_channels:
        raise ValueError(f"{where}: dit.in_channels={dit.in_channels}, and latents have {config.latent_channels}")
    if not dit.tokens and dit.size % dit.patch_size:
        raise ValueError(f"{where}: a grid of {dit.size} cannot be cut into patches of {dit.patch_size}")


def check_heads(width: int, heads: int, where: str) -> None:
    if width % heads:
        raise ValueError(f"{where}: {width} channels cannot be split over {heads} heads")


def check_norms(part: UNetConfig | AutoencoderConfig, where: str) -> None:
    if any(c % part.norm_groups for c in part.channels):
        raise ValueError(f"{where}: channels {part.channels} cannot be normed in {part.norm_groups} groups")


def check_condition(config: ModelConfig, texts: Sequence[TextEncoderConfig], where: str) -> None:
    """Raises ValueError where the denoiser is not made for what it would be told."""
    classes, width = config.classes, sum(text.width for text in texts)
    # a DiT adds a vector of its own width to the time embedding, and looks at no tokens
    dit = config.denoiser == "dit"
    text_width = None if dit else config.unet.text_width
    vector_width = (config.dit.width if config.condition == "classes" else 0) if dit else config.unet.vector_width
    if config.condition == "text" and text_width != width:
        raise ValueError(f"{where}: the U-Net expects text of width {text_width}, its encoder gives {width}")
    check_pooled(config, where)
    if config.condition == "nothing" and text_width is not None:
        raise ValueError(f"{where}: the U-Net expects text of width {text_width}, and is told nothing")
    if config.condition == "boxes" and (not config.boxes.names or text_width != config.boxes.width):
        raise ValueError(
            f"{where}: condition=boxes with {len(config.boxes.names)} labels and tokens of width {config.boxes.width}, "
            f"and a U-Net that expects text_width={text_width}"
        )
    if config.condition != "classes":
        return
    if not classes.names:
        raise ValueError(f"{where}: condition=classes, and classes.names is empty")
    expected = (None, classes.width) if classes.as_vector else (classes.width, 0)
    if (text_width, vector_width) != expected:
        kind = "a vector" if classes.as_vector else "a token"
        raise ValueError(
            f"{where}: a class is {kind} of width {classes.width}, and the denoiser expects "
            f"text_width={text_width} vector_width={vector_width}"
        )


def check_pooled(config: ModelConfig, where: str) -> None:
    """Raises ValueError where the U-Net's vector does not hold a second encoder's pooled text and six sizes."""
    width, second = config.unet.vector_width, config.text_2
    if config.text.projection or (second and not (second.projection and config.condition == "text")):
        raise ValueError(f"{where}: a pooled text (projection) is what a second text encoder gives, and that alone")
    if second and (width <= second.projection or (width - second.projection) % 12):
        raise ValueError(
            f"{where}: the U-Net's vector of {width} does not hold a pooled text of {second.projection} and six sizes "
            "of an even width"
        )
