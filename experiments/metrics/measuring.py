"""python -m experiments.evaluate run=FOLDER metrics=[...]: measures of a finished run. See conf/evaluate.yaml."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.files import UserError, commit, write
from experiments.metrics import Bench, Metric, Result, Unmeasurable
from experiments.metrics.estimates import Bootstrap, compare_paired
from experiments.metrics.folders import FinishedRun, open_run
from experiments.run import build

PACKAGES = ("torch", "numpy", "pillow", "open_clip_torch", "torch-fidelity", "transformers")


def evaluate(
    folder: Path, metrics: Mapping[str, Any], bench: Bench, against: Path | None = None, again: bool = True
) -> dict[str, dict[str, Any]]:
    """Measures a run folder; returns what FOLDER/metrics/NAME.json holds, by the metrics' names.

    `metrics` maps each name to its settings, as in conf/metrics. `against` is another run, whose pictures are compared
    with those of the same prompts and seeds here, for every metric that scores single pictures. Without `again` a
    result that is there already, of the same pictures under the same settings, is taken as it is.
    Raises UserError naming the metric and what it lacks; the results before it are kept.
    """
    made: dict[str, Metric] = {name: build.create(settings, f"metrics.{name}") for name, settings in metrics.items()}
    run, other = open_run(folder), None if against is None else open_run(against)
    results = {}
    for name, metric in made.items():
        old = read_result(folder, name)
        if again or old is None or any(old.get(key) != value for key, value in basis(metric, run, bench).items()):
            store(folder, name, measure(name, metric, run, other, bench))
        results[name] = read_result(folder, name) or {}
    return results


def basis(metric: Metric, run: FinishedRun, bench: Bench) -> dict[str, Any]:
    """Returns what a result depends on, beside the code and the files that the settings name."""
    return as_json({"settings": metric, "bootstrap": bench.bootstrap, "run": run.pictures.described()})


def store(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Writes metrics/NAME.json. Raises UserError naming the first number in the result that is not finite."""
    if bad := next(not_finite(result), None):
        raise UserError(f"{name}: {bad} is not a finite number")
    (folder / "metrics").mkdir(exist_ok=True)
    text = json.dumps({"metric": name, **result}, indent=1, allow_nan=False)
    write(folder / "metrics" / f"{name}.json", text + "\n")


def not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Yields where in a result a number is infinite or none."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from not_finite(entry, f"{name}.{key}" if name else str(key))
    if isinstance(value, float) and not math.isfinite(value):
        yield name


def read_result(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns what was stored in a run folder under a metric's name."""
    path = folder / "metrics" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def measure(name: str, metric: Metric, run: FinishedRun, other: FinishedRun | None, bench: Bench) -> dict[str, Any]:
    """Returns what a metric says of a run, in JSON's types. Raises Unmeasurable or ValueError, naming the metric."""
    try:
        result = metric.measure(run, bench)
        versus = None
        if other is not None and result.per_image:
            versus = compare_runs(run, result, other, metric.measure(other, bench), bench.bootstrap)
    except Unmeasurable as error:
        raise Unmeasurable(f"{name}: {error}") from error
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    found = described(result) | {"against": as_json(versus)} | basis(metric, run, bench)
    return found | {"warnings": [*run.pictures.warnings, *result.warnings]}


def described(result: Result) -> dict[str, Any]:
    """Returns a result in JSON's types, with the commit and the versions of its code."""
    return as_json(
        {
            **asdict(result.estimate),
            "details": result.details,
            "about": result.about,
            "commit": commit(),
            "versions": {package: v for package in PACKAGES if (v := installed(package))},
            "warnings": result.warnings,
            "per_image": result.per_image,
        }
    )


def compare_runs(
    run: FinishedRun, ours: Result, other: FinishedRun, theirs: Result, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Compares each score of the pictures that have a counterpart, of the same prompts and seed, in the other run."""
    mine_by, theirs_by = scored(run, ours), scored(other, theirs)
    pairs = [(key, mine, theirs_by[key]) for key, mine in mine_by.items() if key in theirs_by]
    if not pairs:
        raise UserError(f"against={other.folder}: has no picture of the same prompt and seed")
    found: dict[str, Any] = {"run": other.pictures.described(), "pairs": len(pairs)}
    found["unpaired"] = len(mine_by) + len(theirs_by) - 2 * len(pairs)
    for name in ours.per_image[0]:
        known = [(key, a[name], b[name]) for key, a, b in pairs if is_score(a[name]) and is_score(b[name])]
        if known:
            some_keys, mine, yours = zip(*known, strict=True)
            found[name] = compare_paired(mine, yours, [caption for caption, _ in some_keys], bootstrap)
    return found


def scored(run: FinishedRun, result: Result) -> dict[tuple[tuple[str, ...], int], dict[str, Any]]:
    """Returns what a metric said of each picture that it scored, by prompts and seed."""
    keys = {r["file"]: (caption, r["seed"]) for caption, r in zip(run.captions, run.records, strict=True)}
    return {keys[row["file"]]: row for row in result.per_image}


def is_score(value: Any) -> bool:
    return isinstance(value, int | float)


def as_json(value: Any) -> Any:
    """Returns a value in JSON's types."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, DictConfig):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {key: as_json(entry) for key, entry in value.items()}
    return [as_json(entry) for entry in value] if isinstance(value, list | tuple) else value


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def results_table(results: dict[str, dict[str, Any]]) -> str:
    """Returns a line for each number: its name, value, 95 % interval and count."""
    rows = [("metric", "value", "95 % interval", "n")]
    for name, result in results.items():
        rows.append((name, *cells(result)))
        rows += [(f"  {detail}", *cells(found)) for detail, found in result["details"].items()]
        for score, found in (result["against"] or {}).items():
            if isinstance(found, dict) and "difference" in found:
                rows += versus_rows(score, found)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows)


def cells(found: dict[str, Any]) -> tuple[str, str, str]:
    low, high = found["low"], found["high"]
    return f"{found['value']:.4g}", "" if low is None else f"{low:.4g} .. {high:.4g}", str(found["count"])


def versus_rows(score: str, found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns the lines of a comparison."""
    rows = [(f"  {score}, less the other run's", *cells(found["difference"]))]
    if found["win_rate"]:
        rows.append((f"  {score}, higher in, of {found['wins'] + found['losses']}", *cells(found["win_rate"])))
    return [*rows, (f"    {found['ties']} ties, sign test p", f"{found['p']:.3g}", "", "")]
