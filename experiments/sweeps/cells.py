"""A cell of a sweep: what it draws, measures and stores; or, of a study, what it measures of the network itself."""

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from experiments import files
from experiments.attention.draw import Sheets
from experiments.metrics import Bench, Unmeasurable
from experiments.metrics.estimates import Bootstrap
from experiments.metrics.measuring import as_json, described, evaluate, store
from experiments.run import build, draw
from experiments.run.logger import Logger
from experiments.sweeps.entry import remove, resolved
from experiments.sweeps.folder import Axes
from experiments.sweeps.kept import Kept
from experiments.sweeps.progress import CellLogger

COLUMNS = 6  # steps on the sheets of a cell's attention
Measured = tuple[dict[str, dict[str, Any]], dict[str, str]]  # results by the measures' names; why others are missing


def measure_cell(cfg: DictConfig, folder: Path) -> Measured | None:
    """Returns a cell's results, all of them stored in its folder; None while other shards' pictures are missing."""
    return (study if cfg.study is not None else pictures)(cfg, folder)


@lru_cache
def drawn_keys() -> list[str]:
    """Returns the settings that the sampling verb knows: the groups of conf/sample.yaml, and its own keys."""
    sample = OmegaConf.load(files.CONF / "sample.yaml")
    groups = [key for entry in sample.defaults if isinstance(entry, DictConfig) for key in entry]
    keys = [*map(str, groups), *map(str, sample)]
    return [key for key in keys if key not in ("defaults", "hydra") and not key.startswith("override ")]


def asked(cfg: DictConfig) -> DictConfig:
    """Returns the config of the cell's pictures as the sampling verb would have it."""
    config = OmegaConf.create({key: resolved(cfg.get(key)) for key in drawn_keys()})
    suite = resolved(cfg.suite)[cfg.model.subject]
    if config.prompts is None and config.prompt is None and suite is not None:
        group = OmegaConf.load(files.CONF / "prompts" / f"{suite}.yaml")
        config.prompts = OmegaConf.merge(group, {} if cfg.count is None else {"count": cfg.count})
    return config


def pictures(cfg: DictConfig, folder: Path) -> Measured | None:
    """Draws, measures and logs a cell of pictures; None, and nothing is measured, before all shards are done."""
    job = draw.prepare(asked(cfg), Kept.load)
    observing = observers(cfg)
    worded = job.machine.model.config.condition == "text"  # else there are no words whose maps could be drawn
    maps = worded and cfg.maps and job.machine.steps and not (folder / "semantics.png").exists()

    def watch(first: int, count: int) -> list[draw.Observer]:
        found = [one for observer in observing if (one := observer(first, count)) is not None]
        return [*found, Sheets(job, COLUMNS, folder)] if maps and first == 0 else found

    with CellLogger(logger_settings(cfg), resolved(cfg), folder, len(job.request.pictures)) as logger:
        if draw.draw(job, folder, logger, watch) is None:
            return None
        if maps and not (folder / "semantics.png").exists():  # the pictures were there already
            first = draw.batch_of(job, 0, min(job.request.together, len(job.request.batches[0])))
            draw.draw_batch(job.machine, first, lambda: None, [Sheets(job, COLUMNS, folder)])
        results, missing = measured(cfg, folder, bench_of(cfg))
        logger.summary({key: value for name, result in results.items() for key, value in logged(name, result)})
    return results, missing


def observers(cfg: DictConfig) -> list[Callable[[int, int], draw.Observer | None]]:
    """Returns the `observer` of each metric that has one: it measures pictures while they are drawn."""
    found = []
    for name, settings in chosen(cfg).items():
        with suppress(MissingMandatoryValue):  # then it is not measured, which `measured` says
            metric = build.create(settings, f"metrics.{name}")
            found += [metric.observer] if hasattr(metric, "observer") else []
    return found


def measured(cfg: DictConfig, folder: Path, bench: Bench) -> Measured:
    """Returns the results, and why a metric has none: it cannot be measured here, or a setting of it is missing.

    Raises whatever else goes wrong in a metric.
    """
    results, missing = dict[str, dict[str, Any]](), dict[str, str]()
    for name, settings in chosen(cfg).items():
        try:
            results |= evaluate(folder, {name: settings}, bench, again=cfg.again)
        except (Unmeasurable, MissingMandatoryValue) as error:
            missing[name] = files.one_line(error)
            files.say(f"warning: {cfg.cell}: not measured: {missing[name]}")
    return results, missing


def chosen(cfg: DictConfig) -> dict[str, Any]:
    """Returns the metrics asked for on the command line, or the experiment's for what the model draws."""
    if cfg.get("metrics"):
        return dict(cfg.metrics)
    if not cfg.measures[cfg.model.subject]:
        return {}
    wanted = cast(dict[str, Any], resolved(cfg.measures[cfg.model.subject]))
    known = [OmegaConf.load(files.CONF / "metrics" / f"{name}.yaml") for name in wanted]
    return cast(dict[str, Any], resolved(OmegaConf.merge(*known, wanted)))


def written(cfg: DictConfig, axes: Axes) -> dict[str, Any]:
    """Returns the metrics' settings as the config writes them, with interpolations where an axis sets them.

    A study's settings that are axes themselves are left out.
    """
    if cfg.study is not None:
        told = {"study": OmegaConf.to_container(cfg.study, resolve=False)}
        for key in axes:
            remove(told, key.split("."))
        return {cfg.name: told["study"]}
    metrics = cfg.metrics if cfg.get("metrics") else cfg.measures[cfg.model.subject]
    return cast(dict[str, Any], OmegaConf.to_container(metrics, resolve=False)) if metrics else {}


def study(cfg: DictConfig, folder: Path) -> Measured:
    """Measures the network itself; the result goes by the experiment's name."""
    measure, bench = build.create(cfg.study, "study"), bench_of(cfg)
    drawings, any_task = getattr(measure, "latents", "images") == "drawings", getattr(measure, "any_task", False)
    load = build.model if any_task else build.text_to_image if drawings else build.picture_model
    model = load(cfg.model, bench.device, cfg.dtype)
    with Logger(logger_settings(cfg), resolved(cfg), folder) as logger:
        result = described(measure.measure(model, bench, folder))
        result |= {"settings": resolved(cfg.study), "bootstrap": as_json(bench.bootstrap)}
        store(folder, cfg.name, result)
        logger.summary(dict(logged(cfg.name, result)))
    return {cfg.name: result}, {}


def bench_of(cfg: DictConfig) -> Bench:
    return Bench(build.device(cfg.device), 32, Bootstrap(**cfg.bootstrap))


def logger_settings(cfg: DictConfig) -> DictConfig:
    """Returns the logger's settings: a sweep is one group in W&B, and a cell a run."""
    ours = {"group": cfg.name, "run_name": str(cfg.cell)}
    given = {key: value for key, value in cfg.logger.items() if value is not None}
    return OmegaConf.create({**cfg.logger, **ours, **given})


def logged(name: str, result: dict[str, Any]) -> list[tuple[str, float]]:
    """Returns a result's value, under the metric's name, and its details'."""
    details = [(f"{name}/{key}", found["value"]) for key, found in result["details"].items()]
    return [(name, result["value"]), *details]
