"""The frame of every verb: Hydra composes the config; what the user can mend becomes one line and exit status 1.

What is the user's to mend, and what is a bug:
- UserError, which this project raises with a message for the user, and nothing else raises. The rooms below experiments
  raise plain ValueErrors, and only their callers know whether a value came from the user: `as_user_error` converts
  them where settings become objects (run/build.py). A constructor named by `_target_` is such a place too: whatever
  keeps it from taking its settings, a TypeError included, is told in one line as theirs.
- OSError: a file or folder that is missing, full or forbidden.
- The errors of Hydra and OmegaConf: an override that names no setting or has no such choice; and Hydra's ValueErrors,
  before any job runs: a group that is given a number or null.
Everything else is a bug and shows its traceback: also the ValueError of a failing zip(strict=True) or numpy call, and
a TypeError outside a constructor. Interrupting ends with status 130. HYDRA_FULL_ERROR=1 shows the traceback of any.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.files import CONF, UserError, one_line, say
from experiments.run.settings import check

USER_ERRORS = (UserError, OSError, HydraException, OmegaConfBaseException)
OmegaConf.register_new_resolver("range", lambda *ends: list(range(*ends)))  # ${range:3} is [0, 1, 2]
# ${fit:20,2,-1} is 10, the most things of which 2 each, and -1 besides, come to 20
OmegaConf.register_new_resolver("fit", lambda whole, each, besides: (whole - besides) // each)


HYDRAS = ("config.yaml", "hydra.yaml", "overrides.yaml")  # what Hydra writes into a job's folder, in .hydra


class JobFailed(Exception):
    """A job of which the user has been told why."""


def run(main: Callable[[DictConfig], None], config_name: str) -> None:
    """Runs a verb under the config of its name; exits with 1 if it fails.

    A failing job of a sweep is reported, the others run, and the sweep exits with 1 at its end.
    """
    traceback_wanted = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print, so that it can be said in one line here

    failed, composed = list[DictConfig](), list[DictConfig]()

    def job(cfg: DictConfig) -> None:
        composed.append(cfg)
        try:
            check(cfg)
            main(cfg)
        except USER_ERRORS as error:
            if traceback_wanted:
                raise
            hydra_config = HydraConfig.get()
            withdraw(Path(hydra_config.runtime.output_dir))
            if hydra_config.mode == RunMode.RUN:
                say(f"error: {one_line(error)}")
                failed.append(cfg)
            else:
                say(f"error in job {hydra_config.job.override_dirname}: {one_line(error)}")
                raise JobFailed from error  # which every launcher keeps, runs the other jobs, and raises at the end

    job.__module__ = f"experiments.{config_name}"  # from which Hydra takes the job's name
    try:
        hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(job)()
    except KeyboardInterrupt:
        sys.exit(130)
    except JobFailed:
        sys.exit(1)
    except (*USER_ERRORS, ValueError) as error:
        if traceback_wanted or (composed and not isinstance(error, USER_ERRORS)):
            raise
        say(f"error: {one_line(error)}")
        sys.exit(1)
    finally:
        if not traceback_wanted:
            del os.environ["HYDRA_FULL_ERROR"]
    if failed:
        sys.exit(1)


def withdraw(folder: Path) -> None:
    """Removes the folder of a refused job if it holds nothing but Hydra's record of the job."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [".hydra"]:
            for name in HYDRAS:
                (folder / ".hydra" / name).unlink()
            (folder / ".hydra").rmdir()
            folder.rmdir()
