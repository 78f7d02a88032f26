"""python -m experiments.report sweep=FOLDER: one page of a sweep of experiments.ablate, finished or not."""

from pathlib import Path

from omegaconf import DictConfig

from experiments.files import UserError
from experiments.run import cli
from experiments.sweeps.page import write_page


def main(cfg: DictConfig) -> None:
    if type(cfg.pictures) is not int or cfg.pictures < 1:
        raise UserError(f"pictures={cfg.pictures}: must be a whole number of at least 1")
    print(write_page(Path(cfg.sweep), None if cfg.out is None else Path(cfg.out), cfg.pictures))


if __name__ == "__main__":
    cli.run(main, "report")
