"""python -m experiments.ablate -m experiment=NAME: an experiment of conf/experiment, cell by cell (conf/ablate.yaml).

Each cell, one setting of the sweep, is a run folder of experiments.sample with its metrics, or the results of a study:
CELL/cell.json (its values of the axes), metrics/*.json, maps.png and semantics.png, and error.txt if it failed.
The sweep's folder holds sweep.json, what all cells have in common, and, when they are done, report.html.
"""

import json
import shlex
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

import experiments.attention.draw as attention
from experiments import files
from experiments.attention.maps import Recorder
from experiments.files import UserError
from experiments.metrics import Bench
from experiments.metrics.estimates import Bootstrap
from experiments.metrics.measuring import described, evaluate, store
from experiments.run import build, cli, draw
from experiments.run.logger import Logger
from experiments.sweeps import page
from experiments.sweeps.folder import Begun, overrides

DRAWN = (  # what of the config the sampling verb knows
    *("model", "sampler", "guidance", "prompts", "prompt", "negative_prompt", "seeds", "height", "width"),
    *(
        "batch_size",
        "shard",
        "noise",
        "save_latents",
        "device",
        "dtype",
        "max_batch",
        "compile",
        "deterministic",
        "logger",
    ),
)
MAY_DIFFER = (  # between the cells of a sweep
    *("cell", "out", "shard", "device", "logger", "icons", "cache", "maps"),
    *("claim", "claims", "page", "measures", "metrics", "references", "again", "bootstrap"),
)
Measured = tuple[dict[str, dict[str, Any]], dict[str, str]]  # results by the measures' names; why others are missing


def main(cfg: DictConfig) -> None:
    """Raises UserError for what cannot be drawn, and for a folder that holds a sweep of another config."""
    hydra = HydraConfig.get()
    folder, multirun = Path(hydra.runtime.output_dir), hydra.mode == RunMode.MULTIRUN
    keys = swept(hydra.sweeper.get("params"), Path(cfg.out) / "multirun.yaml" if multirun else None)
    choices = hydra.runtime.choices
    values = {key: choices.get(key) or on_axis(OmegaConf.select(cfg, path)) for key, path in keys.items()}
    enter(Path(cfg.out), cfg, list(keys.values()), command(hydra))
    try:
        cell = {"name": str(cfg.cell), "axes": values}
        files.write(folder / "cell.json", json.dumps(cell, indent=1) + "\n")
        results, missing = (study if cfg.study is not None else pictures)(cfg, folder)
        files.write(folder / "cell.json", json.dumps(cell | {"unmeasured": missing}, indent=1) + "\n")
        print(f"{cfg.cell}: " + ", ".join(f"{name} {r['value']:.4g}" for name, r in results.items()))
    except Exception as error:
        files.write(folder / "error.txt", f"{type(error).__name__}: {error}\n")
        raise
    (folder / "error.txt").unlink(missing_ok=True)


def swept(params: DictConfig | None, record: Path | None) -> dict[str, str]:
    """The keys that a sweep varies, and where in the config each lies.

    They are the experiment's own, `hydra.sweeper.params`, and those of the command line, in Hydra's record of it.
    """
    typed = [] if record is None else OmegaConf.load(record).hydra.overrides.task
    found = overrides(plain(params), typed)
    return {o.get_key_element(): o.package or o.key_or_group for o in found if o.is_sweep_override()}


def enter(sweep: Path, cfg: DictConfig, axes: list[str], command: str) -> None:
    """Note in sweep.json what all cells share. Raises UserError, naming the difference, where they share another."""
    shared = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))  # as written, so that what hangs on an
    for path in (*MAY_DIFFER, *axes):  # axis is the same in all cells
        remove(shared, path.split("."))
    sweep.mkdir(parents=True, exist_ok=True)
    with files.locked(sweep):
        file = sweep / "sweep.json"
        if file.exists() and (differs := files.difference(json.loads(file.read_text())["config"], shared)):
            raise UserError(f"{sweep} holds a sweep of another config ({differs}): choose another out=FOLDER")
        told = {key: plain(cfg[key]) for key in ("name", "claim", "claims", "page")}
        told |= {"command": command, "commit": files.commit(), "config": shared}
        files.write(file, json.dumps(told, indent=1) + "\n")


def remove(config: dict[str, Any], path: list[str]) -> None:
    """The entry at a path, if it is there."""
    for key in path[:-1]:
        config = config.get(key) or {}
        if not isinstance(config, dict):  # an interpolation stands here
            return
    config.pop(path[-1], None)


def command(hydra: HydraConf) -> str:
    """What was typed, near enough to be typed again."""
    multirun = hydra.mode == RunMode.MULTIRUN
    typed = OmegaConf.load(Path(hydra.sweep.dir) / "multirun.yaml").hydra.overrides if multirun else hydra.overrides
    words = [word for word in [*typed.hydra, *typed.task] if not word.startswith("hydra.mode=")]
    return shlex.join(["python", "-m", "experiments.ablate", *(["-m"] if multirun else []), *words])


def on_axis(value: Any) -> Any:
    """A cell's value of an axis; of lists and groups of settings, their text."""
    return json.dumps(plain(value)) if OmegaConf.is_config(value) else value


def pictures(cfg: DictConfig, folder: Path) -> Measured:
    """A cell of pictures: drawn, measured and logged. Nothing is measured before all shards are done."""
    asked = OmegaConf.create({key: plain(cfg.get(key)) for key in DRAWN})
    if asked.prompts is None and asked.prompt is None and plain(cfg.suite)[cfg.model.subject] is not None:
        suite = OmegaConf.load(files.CONF / "prompts" / f"{cfg.suite[cfg.model.subject]}.yaml")
        asked.prompts = OmegaConf.merge(suite, {} if cfg.count is None else {"count": cfg.count})
    job = draw.prepare(asked)
    with Logger(grouped(cfg), plain(cfg), folder) as logger:
        if draw.draw(job, folder, logger) is None:
            return {}, {}
        if cfg.maps and not (folder / "semantics.png").exists():
            draw_maps(job, folder)
        results, missing = measured(cfg, folder, bench_of(cfg))
        logger.summary({key: value for name, result in results.items() for key, value in numbers(name, result)})
    return results, missing


def measured(cfg: DictConfig, folder: Path, bench: Bench) -> Measured:
    """A measure that cannot be had is said, and left out."""
    results, missing = dict[str, dict[str, Any]](), dict[str, str]()
    for name, settings in chosen(cfg).items():
        try:
            results |= evaluate(folder, {name: settings}, bench, again=cfg.again)
        except (UserError, MissingMandatoryValue) as error:
            missing[name] = files.one_line(error)
            files.say(f"warning: {cfg.cell}: not measured: {missing[name]}")
    return results, missing


def chosen(cfg: DictConfig) -> dict[str, Any]:
    """The metrics asked for on the command line, or the experiment's for what the model draws."""
    if cfg.get("metrics"):
        return dict(cfg.metrics)
    if not cfg.measures[cfg.model.subject]:
        return {}
    wanted = cast(dict[str, Any], plain(cfg.measures[cfg.model.subject]))
    known = [OmegaConf.load(files.CONF / "metrics" / f"{name}.yaml") for name in wanted]
    return cast(dict[str, Any], plain(OmegaConf.merge(*known, wanted)))


def study(cfg: DictConfig, folder: Path) -> Measured:
    """A cell that measures the network itself: the result, under the experiment's name."""
    measure, bench = build.create(cfg.study, "study"), bench_of(cfg)
    model = build.text_to_image(cfg.model, bench.device, cfg.dtype)
    with Logger(grouped(cfg), plain(cfg), folder) as logger:
        result = described(measure.measure(model, bench, folder)) | {"settings": plain(cfg.study)}
        store(folder, cfg.name, result)
        logger.summary(dict(numbers(cfg.name, result)))
    return {cfg.name: result}, {}


def draw_maps(job: draw.Job, folder: Path) -> None:
    """maps.png and semantics.png of the run's first picture."""
    machine, first = job.machine, draw.batch_of(job, 0, 1)
    stages = draw.with_own_prompt(job.stages, first.prompts[0])
    attention.check_words(machine.model, [str(stage.prompt) for stage in stages])
    picture, moments = attention.draw(machine, Recorder(machine.guidance), first)
    attention.save_sheets(picture, moments, stages, attention.title_of(stages, first.seeds[0]), 6, folder)


def bench_of(cfg: DictConfig) -> Bench:
    return Bench(build.device(cfg.device), 32, Bootstrap(**cfg.bootstrap))


def grouped(cfg: DictConfig) -> DictConfig:
    """The logger's settings: a sweep is one group in W&B, and a cell a run."""
    ours = {"group": cfg.name, "run_name": str(cfg.cell)}
    given = {key: value for key, value in cfg.logger.items() if value is not None}
    return OmegaConf.create({**cfg.logger, **ours, **given})


def numbers(name: str, result: dict[str, Any]) -> list[tuple[str, float]]:
    """A result's value, under the metric's name, and its details'."""
    details = [(f"{name}/{key}", found["value"]) for key, found in result["details"].items()]
    return [(name, result["value"]), *details]


def plain(value: Any) -> Any:
    """In Python's types, without interpolations."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


if __name__ == "__main__":
    try:
        cli.run(main, "ablate")
    finally:  # whatever became of the jobs
        for folder in Begun.folders:
            if (folder / "sweep.json").exists():
                print(f"the report: {page.write(folder)}")
