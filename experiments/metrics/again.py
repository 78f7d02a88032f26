"""A finished run's request and machine, made once more from its run.json, which may be a stranger's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from experiments.files import UserError
from experiments.metrics import Bench
from experiments.metrics.folders import FinishedRun
from experiments.run import draw


def job_of(run: FinishedRun, bench: Bench, packages: Sequence[str], **changes: Any) -> draw.Job:
    """Returns the job that draws a run's pictures again, on the bench's device, some settings changed.

    Raises UserError where the run's config would make anything that these packages do not define.
    """
    check_stored(run.config, run.folder / "run.json", packages)
    again = {**run.config, "device": str(bench.device), "logger": {"name": "none"}, "shard": "0/1", **changes}
    return draw.prepare(OmegaConf.create(again))


def check_stored(config: Any, file: Path, packages: Sequence[str]) -> None:
    """Raises UserError where a config of a file of results would make anything but what these packages define.

    The file may be a stranger's: `_target_` may name any function that Python can reach, also by way of a module that
    one of the packages imports, and an interpolation may hold another config. A run's own config has none.
    """
    if isinstance(config, str) and "${" in config:
        raise UserError(f"{file}: {config!r}: an interpolation has no place in a finished run's config")
    if isinstance(config, dict | list):
        for entry in config.values() if isinstance(config, dict) else config:
            check_stored(entry, file, packages)
    if isinstance(config, dict) and "_target_" in config and not defined_in(config["_target_"], packages):
        raise UserError(f"{file}: _target_: {config['_target_']}: is not of {', '.join(packages)}")


def defined_in(target: Any, packages: Sequence[str]) -> bool:
    """Whether a dotted name lies in one of the packages, and what it names was defined there."""
    within = [package for package in packages if isinstance(target, str) and target.startswith(f"{package}.")]
    try:
        found = get_object(target) if within else None
    except (ImportError, ValueError):
        return False
    home = getattr(found, "__module__", None) or ""
    return any(f"{home}.".startswith(f"{package}.") for package in within)
