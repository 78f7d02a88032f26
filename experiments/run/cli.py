"""The frame of every verb: Hydra composes the config; errors a user can cause become one line and an exit status."""

import os
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.files import CONF, one_line, say

USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)
OmegaConf.register_new_resolver("range", lambda n: list(range(n)))  # ${range:3} is [0, 1, 2]


class JobFailed(Exception):
    """A job of which the user has been told why."""


def run(main: Callable[[DictConfig], None], config_name: str) -> None:
    """Run a verb. A failing job of a sweep is reported, the others run, and the sweep exits with 1 at its end.

    HYDRA_FULL_ERROR=1 shows the traceback of any error.
    """
    traceback_wanted = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print, so that it can be said in one line here

    failed: list[DictConfig] = []

    def job(cfg: DictConfig) -> None:
        try:
            main(cfg)
        except USER_ERRORS as error:
            if traceback_wanted:
                raise
            hydra_config = HydraConfig.get()
            if hydra_config.mode == RunMode.RUN:
                say(f"error: {one_line(error)}")
                failed.append(cfg)
            else:
                say(f"error in job {hydra_config.job.override_dirname}: {one_line(error)}")
                raise JobFailed from error  # which every launcher keeps, runs the other jobs, and raises at the end

    try:
        hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(job)()
    except KeyboardInterrupt:
        sys.exit(130)
    except JobFailed:
        sys.exit(1)
    except USER_ERRORS as error:
        if traceback_wanted:
            raise
        say(f"error: {one_line(error)}")
        sys.exit(1)
    finally:
        if not traceback_wanted:
            del os.environ["HYDRA_FULL_ERROR"]
    if failed:
        sys.exit(1)
