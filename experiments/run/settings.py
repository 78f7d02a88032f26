"""What each setting of the verbs may be, told once and checked in one place, before anything is made or written.

A name means the same in every verb, so one table serves all of them. The settings of a group with a `_target_` are not
in it: their kinds are the annotations of the class or function that they go to (`check_arguments`).
"""

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.files import UserError


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words, and the test of it."""

    words: str
    fits: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.words}, or {other.words}", lambda value: self.fits(value) or other.fits(value))


def whole(least: int, most: float = float("inf")) -> Kind:
    limit = f"of at least {least}" if most == float("inf") else f"from {least} to {most}"
    return Kind(f"a whole number {limit}", lambda value: type(value) is int and least <= value <= most)


def number(least: float) -> Kind:
    return Kind(
        f"a finite number of at least {least:g}", lambda v: type(v) in (int, float) and least <= v < float("inf")
    )


def one_of(*names: str) -> Kind:
    return Kind(" or ".join([", ".join(names[:-1]), names[-1]]), lambda value: value in names)


def several(kind: Kind) -> Kind:
    return Kind(f"a list, each {kind.words}", lambda value: isinstance(value, list) and all(map(kind.fits, value)))


def groups(**kinds: Kind) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(one, dict) and whole_group(one) for one in value.values())

    def whole_group(one: dict[str, Any]) -> bool:
        return all(key in one and kind.fits(one[key]) for key, kind in kinds.items())

    return Kind(f"groups, each with {' and '.join(f'{key} ({kind.words})' for key, kind in kinds.items())}", fits)


def pair(kind: Kind) -> Kind:
    fits = several(kind).fits
    return Kind(f"two numbers [a, b], each {kind.words}", lambda value: fits(value) and len(value) == 2)


def is_shard(value: Any) -> bool:
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", str(value))
    return match is not None and int(match[1]) < int(match[2])


NULL = Kind("null", lambda value: value is None)
FLAG = Kind("true or false", lambda value: type(value) is bool)
TEXT = Kind("text", lambda value: type(value) in (str, int, float))  # YAML reads prompt=42 as a number
WORDS = Kind("text with something in it", lambda value: TEXT.fits(value) and bool(str(value).strip()))
GROUP = Kind("a group of settings", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
COUNT = whole(1)
SEED = Kind("a whole number from 0 to 4294967295", whole(0, 2**32 - 1).fits)
SHARD = Kind("i/n, with i from 0 to n - 1", is_shard)
DTYPE = one_of("float32", "bfloat16", "float16")
ANYTHING = Kind("anything", lambda value: True)

SETTINGS = {
    # what is drawn
    "prompt": WORDS | NULL,
    "negative_prompt": TEXT,
    "n": COUNT,  # before seeds, which are counted by it
    "seeds": several(SEED) | SEED | NULL,
    "seed": SEED,
    "height": COUNT | NULL,
    "width": COUNT | NULL,
    "noise": WORDS | NULL,
    "save_latents": FLAG,
    # the prompts of a suite
    "prompts.lines": several(WORDS),
    "prompts.classes": several(WORDS) | NULL,
    "prompts.path": WORDS,
    "prompts.file": WORDS,
    "prompts.world": WORDS,
    "prompts.split": one_of("train", "held_out", "strict"),
    "prompts.layouts": several(WORDS),
    "prompts.tinted": FLAG | NULL,
    "prompts.scenes_seed": SEED,
    "prompts.kinds": groups(layouts=several(WORDS), tinted=FLAG | NULL),
    "prompts.seeds_apart": whole(0),
    "prompts.geneval_seed": SEED,
    # how it is computed
    "batch_size": COUNT,
    "max_batch": COUNT | NULL,
    "shard": SHARD,
    "device": WORDS,
    "dtype": DTYPE,
    "compile": FLAG,
    "deterministic": FLAG,
    "networks": GROUP | NULL,
    # what pictures start from
    "task.name": one_of("text", "image", "inpaint", "upscale"),
    "task.image": WORDS | NULL,
    "task.mask": WORDS | NULL,
    "task.match": one_of("every", "in_order"),
    "task.strength": Kind("a number from 0 to 1", lambda value: number(0).fits(value) and value <= 1),
    "task.resample": COUNT,
    "task.blend": FLAG,
    "task.noise_level": Kind("a number from 0 to below 1", lambda value: number(0).fits(value) and value < 1),
    "task.original_size": pair(COUNT) | NULL,
    "task.crop": pair(whole(0)),
    # the model, the sampler and the logger
    "model.name": WORDS,
    "model.path": WORDS,
    "model.config": WORDS | NULL,
    "model.prediction": WORDS | NULL,
    "model.ema": FLAG,
    "model.subject": one_of("photo", "emoji", "drawing"),
    "logger.name": one_of("none", "wandb"),
    "logger.mode": one_of("online", "offline", "disabled"),
    "logger.timeout": number(0),
    # training
    "workers": whole(0),
    "bf16": FLAG,
    # files and folders
    "out": WORDS | NULL,
    "run": WORDS | NULL,
    "sweep": WORDS,
    "sweeps": WORDS,
    "second": WORDS | NULL,
    "against": WORDS | NULL,
    "icons": WORDS,
    "cache": WORDS,
    "references": WORDS | NULL,
    "judge": WORDS | NULL,
    "second_judge": WORDS | NULL,
    "autoencoder": WORDS,
    "clip": GROUP | WORDS,
    "format": one_of("diffusers", "compvis"),
    "max_shard_mb": number(0) | NULL,
    # sweeps and what is measured
    "name": WORDS,
    "cell": WORDS,
    "claim": TEXT | NULL,
    "claims": LIST,
    "page": GROUP,
    "study": GROUP | WORDS | NULL,  # a measurement; of the verb raters, a folder
    "suite": GROUP,
    "measures": GROUP,
    "again": FLAG,
    "maps": FLAG,
    "bootstrap": GROUP,
    "bootstrap.resamples": COUNT,
    "bootstrap.seed": SEED,
    "bootstrap.unit": one_of("pictures", "prompts"),
    "count": COUNT | NULL,
    "pictures": COUNT,
    "split": one_of("train", "held_out"),
    "concepts": several(WORDS) | WORDS | NULL,
    "scales": several(number(0)),
    "scale": number(0),
    "validation": COUNT,
    "validation_seed": SEED,
    "test_seed": SEED,
    "attended": whole(2),
    "steps": COUNT,
    # between drawings
    "ends": several(WORDS),
    "frames": whole(2),
    "seconds": number(0),
    "settings": LIST,
    # attention
    "layers": several(WORDS) | TEXT | NULL,
    "argmax": one_of("head", "mean"),
    "candidates": one_of("words", "all_but_bos"),
    "columns": COUNT,
    # subsets of prompts
    "repeats": whole(0),
    "tolerance": number(0),
    "score": WORDS,
    "percentiles": LIST,
    "around": COUNT,
    # the arena
    "clip_model": WORDS | NULL,
    "only": several(WORDS) | NULL,
    "nominal": number(0) | NULL,
    "draw": FLAG,
    "methods": GROUP,
    "tuning": GROUP,
    "best_by": GROUP,
    "table": GROUP,
    "frontier": GROUP,
    "league.name": WORDS,
    "league.prompts": COUNT,
    "league.knob_prompts": COUNT | NULL,
    "league.tuning_prompts": COUNT,
    "league.curve": several(number(0)),
    "league.pictures": COUNT,
    # studies with human raters
    "runs": several(WORDS),
    "labels": several(WORDS) | NULL,
    "subset": WORDS | NULL,
    "captions": WORDS | NULL,
    "groups": GROUP | NULL,
    "answers": COUNT | NULL,
    "practice": whole(0),
    "per": COUNT,
    "gold": whole(0),
    "same": whole(0),
    "break_after": COUNT,
    "rules": GROUP,
    "rules.gold_failed": number(0),
    "rules.fast_ms": number(0),
    "rules.fast_share": number(0),
    "about": GROUP,
    "simulated": FLAG,
    "host": WORDS,
    "port": whole(0, 65535),
    "public": FLAG,
    "url": WORDS | NULL,
    "renew": several(COUNT),
    "from": several(WORDS),
    "slots": several(COUNT),
    "by": one_of("bots", "judge"),
    "taste": GROUP,
    "taste.prompt": number(0),
    "taste.rater": number(0),
    "taste.tie": number(0),
    # training
    "part.steps": COUNT,
    "part.batch": COUNT,
    "part.micro": COUNT,
    "part.lr": number(0),
    "part.warmup": whole(0),
    "part.cooldown": whole(0) | NULL,
    "save_seconds": number(0),
    "log_every": COUNT,
    "picture_every": COUNT,
    "stop_after": COUNT | NULL,
}


def check(cfg: DictConfig) -> None:
    """Raises UserError for the first setting of a composed config whose value is not of its kind.

    Settings that are missing (???) are left to whoever needs them.
    """
    for name, kind in SETTINGS.items():
        parent, _, key = name.rpartition(".")
        group = OmegaConf.select(cfg, parent) if parent else cfg
        if isinstance(group, DictConfig) and key in group and not OmegaConf.is_missing(group, key):
            value = plain(group[key])
            if not kind.fits(value):
                raise UserError(f"{name}={written(value)}: must be {kind.words}")


def check_arguments(settings: Mapping[Any, Any], name: str) -> None:
    """Raises UserError for the first setting that does not fit the annotation of the `_target_`'s argument.

    Settings nested in it that have a `_target_` themselves are checked too.
    """
    settings = plain(settings)
    parameters = inspect.signature(target(settings, name), eval_str=True).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in settings.items():
        if not (key in parameters or takes_any or key.startswith("_")):
            there = ", ".join(parameters)
            raise UserError(f"{name}.{key}: {settings['_target_']} has no such setting; it has {there}")
        if key in parameters and value != "???" and not (kind := kind_of(parameters[key].annotation)).fits(value):
            raise UserError(f"{name}.{key}={written(value)}: must be {kind.words}")
        if isinstance(value, dict) and "_target_" in value:
            check_arguments(value, f"{name}.{key}")


def target(settings: Mapping[Any, Any], name: str) -> Any:
    """Returns the class or function that settings go to. Raises UserError where there is none, or it is not there."""
    path = settings.get("_target_")
    if not isinstance(path, str):
        raise UserError(f"{name}._target_={written(path)}: must name a class, as in guidance.ClassifierFree")
    try:
        found = get_object(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"{name}._target_={path}: there is no such class or function") from error
    if not callable(found):
        raise UserError(f"{name}._target_={path}: is a module, and no class or function of it")
    return found


def kind_of(hint: Any) -> Kind:
    """What a config may give to an argument with this annotation; anything for annotations that no config can spell."""
    if get_origin(hint) is Callable:
        return made("function")
    arguments = [kind_of(argument) for argument in get_args(hint) if argument is not Ellipsis]
    if hint in PLAIN:
        return PLAIN[hint]
    if get_origin(hint) in (Union, types.UnionType):
        return reduce(or_, arguments)
    if get_origin(hint) in (tuple, list, Sequence):
        return several(arguments[0])
    if get_origin(hint) in (dict, Mapping):
        return GROUP
    if isinstance(hint, type) and is_dataclass(hint) and not hasattr(hint, "combine"):
        return GROUP
    return made(hint.__name__) if isinstance(hint, type) else ANYTHING


def made(name: str) -> Kind:
    return Kind(f"a {name}: settings with a _target_", lambda value: isinstance(value, dict) and "_target_" in value)


PLAIN: dict[Any, Kind] = {
    bool: FLAG,
    int: Kind("a whole number", lambda value: type(value) is int),
    float: Kind("a number", lambda value: type(value) in (int, float)),
    str: TEXT,
    Path: TEXT,
    type(None): NULL,
}


def plain(value: Any) -> Any:
    """A config's value in Python's types, interpolations resolved."""
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
