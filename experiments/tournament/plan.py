"""What the arena draws: cells, each of them a run of experiments.sample, told by its overrides alone."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from experiments.files import UserError
from experiments.run.cli import USER_ERRORS
from experiments.sweeps.cells import drawn_keys

CFG = "cfg"  # the method of the curve
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")  # text that Hydra reads as it stands


@dataclass(frozen=True)
class Method:
    """An entry of the table of methods, see conf/methods/zoo.yaml.

    overrides  of experiments.sample
    nominal    the classifier-free scale that it goes by; None: there is none, or its settings say it (`scale_of`)
    parts      names of the methods that it is put together from
    """

    name: str
    overrides: tuple[str, ...]
    knob: str | None
    values: tuple[Any, ...]
    nominal: float | None
    reads_nominal: bool
    parts: tuple[str, ...] = ()

    def scale_of(self, guidance: dict[str, Any]) -> float | None:
        """Returns the nominal scale under these settings: that of the innermost guidance."""
        if not self.reads_nominal:
            return self.nominal
        while isinstance(guidance.get("inner"), dict):
            guidance = guidance["inner"]
        scale = guidance.get("scale")
        return float(scale) if isinstance(scale, int | float) else None


@dataclass(frozen=True)
class Planned:
    """A cell: a setting of a method, and all overrides of experiments.sample that draw it.

    role  curve and tuning: classifier-free guidance at a scale; defaults and knob: a method; evaluations and followed:
          classifier-free guidance as a method's control
    """

    role: str
    method: str
    setting: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.method}/{self.setting}"


def methods(cfg: DictConfig) -> list[Method]:
    """Returns the methods asked for. A name that is not in the table is a guidance at its defaults.

    Further networks are for those that need them by the table, and for those that are not in it.
    """
    names = list(cfg.methods) if cfg.only is None else list(cfg.only)
    found = [(str(name), entry_of(cfg, name)) for name in names]
    networks = tuple(
        f"++networks.{name}={literal(str(path))}" for name, path in (cfg.networks or {}).items() if path is not None
    )
    made = [
        (method_of(name, entry, cfg.model.subject), "needs" in entry or name not in cfg.methods)
        for name, entry in found
        if "needs" not in entry or OmegaConf.select(cfg, entry.needs) is not None
    ]
    return [replace(m, overrides=(*m.overrides, *networks)) if takes else m for m, takes in made]


def entry_of(cfg: DictConfig, name: str) -> DictConfig:
    return cfg.methods.get(name) or OmegaConf.create({})


def method_of(name: str, entry: DictConfig, subject: str) -> Method:
    """Raises UserError for an entry with a key that means nothing, or with a knob without values."""
    if unknown := entry.keys() - {"set", "emoji", "photo", "knob", "values", "nominal", "needs", "parts"}:
        raise UserError(f"methods.{name}: {', '.join(map(str, unknown))} means nothing: see conf/methods/zoo.yaml")
    if name in (CFG, "tuning"):
        raise UserError(f"methods.{name}: is the name of the arena's own curve: choose another")
    if ("knob" in entry) != ("values" in entry):
        raise UserError(f"methods.{name}: a knob and its values belong together")
    return Method(
        name,
        (*entry.get("set", [f"guidance={name}"]), *entry.get(subject, [])),
        entry.get("knob"),
        tuple(entry.get("values", ())),
        entry.get("nominal"),
        "nominal" not in entry,
        tuple(entry.get("parts", ())),
    )


@dataclass(frozen=True)
class Plan:
    """All cells that are known before anything is drawn.

    base     overrides that all cells have in common
    nominal  the classifier-free scale that methods go by in the place of their own; None: their own
    """

    base: tuple[str, ...]
    tuning: tuple[str, ...]
    league: DictConfig
    nominal: float | None = None

    def curve(self) -> Iterator[Planned]:
        """Yields classifier-free guidance at each scale, on the prompts and on others, for tuning."""
        for scale in self.league.curve:
            at = ("guidance=cfg", f"guidance.scale={float(scale)}")
            yield self.cell("curve", CFG, f"{float(scale):g}", at, self.league.prompts)
            yield self.cell("tuning", "tuning", f"{float(scale):g}", (*self.tuning, *at), self.league.tuning_prompts)

    def defaults(self, method: Method) -> Planned:
        return self.cell("defaults", method.name, "defaults", self.own(method), self.league.prompts)

    def knob(self, method: Method) -> Iterator[Planned]:
        """Yields a method at further values of its knob."""
        if self.league.knob_prompts is not None:
            for value in method.values:
                at = (*self.own(method), f"{method.knob}={value}")
                setting = f"{str(method.knob).rpartition('.')[2]}={value}"
                yield self.cell("knob", method.name, setting, at, self.league.knob_prompts)

    def own(self, method: Method) -> tuple[str, ...]:
        """Returns a method's overrides, at the nominal scale if there is one and the method's settings have one."""
        if self.nominal is None or not method.reads_nominal:
            return method.overrides
        try:
            guidance, path = compose("sample", overrides=[*self.base, *method.overrides]).guidance, "guidance"
        except USER_ERRORS:
            return method.overrides  # whose cell fails, and says why
        while isinstance(guidance.get("inner"), DictConfig):
            guidance, path = guidance.inner, f"{path}.inner"
        return (*method.overrides, f"{path}.scale={self.nominal}") if "scale" in guidance else method.overrides

    def same_evaluations(self, method: Method, scale: float, steps: int) -> Planned:
        """Returns classifier-free guidance at a method's nominal scale, in so many steps."""
        at = ("guidance=cfg", f"guidance.scale={scale}", f"sampler.steps={steps}")
        return self.cell("evaluations", method.name, "evaluations", at, self.league.prompts)

    def followed(self, method: Method, scales: Sequence[float]) -> Planned:
        """Returns classifier-free guidance that has one of these scales in each step, be it below 1 or below 0."""
        table = [round(scale - 1, 6) for scale in scales]
        at = ["guidance=scheduled", "guidance.inner.scale=2.0", "guidance.curve._target_=guidance.Table"]
        at += ["~guidance.curve.end", "~guidance.curve.least", f"+guidance.curve.values={literal(table)}"]
        return self.cell("followed", method.name, "followed", at, self.league.prompts)

    def cell(self, role: str, method: str, setting: str, overrides: Sequence[str], count: int) -> Planned:
        name = re.sub(r"[^A-Za-z0-9_=.,+-]+", "_", setting)
        return Planned(role, method, name, (*self.base, f"++prompts.count={count}", *overrides))


def plan(cfg: DictConfig, choices: dict[str, Any], search: Sequence[str]) -> Plan:
    """Returns the plan of a config of the verb, whose groups were chosen so; `search` are Hydra's search paths."""
    found = [f"hydra.searchpath={literal(list(search))}"] if search else []
    suite = cfg.suite[cfg.model.subject] if cfg.get("prompts") is None else choices["prompts"]
    groups = [f"model={choices['model']}", f"sampler={choices['sampler']}", f"prompts={suite}"]
    shared = [key for key in drawn_keys() if key not in ("guidance", "networks", "logger", "shard", "prompt", "noise")]
    plain = compose("sample", overrides=[*found, *groups])
    for key in shared:
        if key in cfg and cfg[key] is not None:
            groups += changes(key, container(plain.get(key)), container(cfg[key]))
    nominal = None if cfg.nominal is None else float(cfg.nominal)
    return Plan((*found, *groups), tuple(cfg.tuning[cfg.model.subject]), cfg.league, nominal)


def container(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def changes(name: str, old: Any, new: Any) -> list[str]:
    """Returns the overrides that make one value of a setting another."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [o for key in new for o in changes(f"{name}.{key}", old.get(key, ...), new[key])]
    if old == new and type(old) is type(new):
        return []
    return [f"{'+' if old is ... else ''}{name}={literal(new)}"]


def literal(value: Any) -> str:
    """Returns a value as Hydra's overrides are written."""
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, str) and not (PLAIN.fullmatch(value) and value not in ("null", "true", "false", "inf", "nan")):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return cast(str, value) if isinstance(value, str) else json.dumps(value)
