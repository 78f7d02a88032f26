"""The values that a model's settings may have, as a table, and configs made of settings that keep to it.

The bounds are wide enough for any model of the family, and narrow enough that none takes long to build.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

from ldm.config import (
    AutoencoderConfig,
    ClassesConfig,
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
    },
    ClassesConfig: {
        "names": Rule(f"{NAMES.text}, none of them twice", lambda value: NAMES.admits(value) and distinct(value)),
        "width": SIZE,
        "as_vector": FLAG,
    },
    ScheduleConfig: {
        "num_timesteps": whole(1, 10**6),
        "kind": one_of("linear", "scaled_linear", "cosine", "flow"),
        "beta_start": between(0, 1),
        "beta_end": between(0, 1),
        "zero_terminal_snr": FLAG,
        "shift": between(0, 1000),
        "prediction": one_of(*PREDICTIONS, ""),
        "spacing": one_of("leading", "trailing", "linspace"),
        "steps_offset": whole(0, 10**6),
        "ends_clean": FLAG,
    },
    ModelConfig: {"condition": one_of("text", "classes", "nothing"), "image_size": SIZE},
}


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
        elif is_dataclass(old := getattr(default, name)):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {name}={quoted(value)} should be a mapping of settings")
            changes[name] = from_fields(old, value, f"{where}: {name}")
        else:
            check(name, value, RULES[type(default)][name], where)
            changes[name] = tuple(value) if isinstance(value, list) else value
    return replace(default, **changes)  # type: ignore[type-var]


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """Returns the config itself. Raises ValueError where its numbers contradict each other."""
    unet, text, schedule = config.unet, config.text, config.schedule
    if not len(unet.channels) == len(unet.attention) == len(unet.heads):
        raise ValueError(f"{where}: the U-Net's channels, attention and heads must have one entry per level")
    with_heads = [*zip(unet.channels, unet.heads, strict=True)]
    for width, heads in [*with_heads, (text.width, text.heads)] if config.condition == "text" else with_heads:
        if width % heads:
            raise ValueError(f"{where}: {width} channels cannot be split over {heads} heads")
    for part in (unet, config.autoencoder):
        if any(c % part.norm_groups for c in part.channels):
            raise ValueError(f"{where}: channels {part.channels} cannot be normed in {part.norm_groups} groups")
    if unet.channels[0] % 2:
        raise ValueError(f"{where}: the U-Net's channels {unet.channels} must begin with an even number")
    check_condition(config, where)
    if text.pad_id >= text.vocab:
        raise ValueError(f"{where}: pad_id={text.pad_id} is not among the {text.vocab} tokens")
    if schedule.zero_terminal_snr and schedule.prediction == "eps":
        raise ValueError(
            f"{where}: zero_terminal_snr (rescale_betas_zero_snr) with prediction eps: "
            "at the last timestep eps says nothing of the picture; it takes v, x0 or flow"
        )
    return config


def check_condition(config: ModelConfig, where: str) -> None:
    """Raises ValueError where the U-Net is not made for what it would be told."""
    unet, text, classes = config.unet, config.text, config.classes
    if config.condition == "text" and unet.text_width != text.width:
        raise ValueError(f"{where}: the U-Net expects text of width {unet.text_width}, its encoder gives {text.width}")
    if config.condition == "nothing" and unet.text_width is not None:
        raise ValueError(f"{where}: the U-Net expects text of width {unet.text_width}, and is told nothing")
    if config.condition != "classes":
        return
    if not classes.names:
        raise ValueError(f"{where}: condition=classes, and classes.names is empty")
    expected = (None, classes.width) if classes.as_vector else (classes.width, 0)
    if (unet.text_width, unet.vector_width) != expected:
        kind = "a vector" if classes.as_vector else "a token"
        raise ValueError(
            f"{where}: a class is {kind} of width {classes.width}, and the U-Net expects "
            f"text_width={unet.text_width} vector_width={unet.vector_width}"
        )
