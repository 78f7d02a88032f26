"""python -m experiments.report sweep=FOLDER: one page of a sweep of experiments.ablate, finished or not."""

from pathlib import Path

from omegaconf import DictConfig

from experiments.run import cli
from experiments.sweeps.page import write_page


def main(cfg: DictConfig) -> None:
    print(write_page(Path(cfg.sweep), None if cfg.out is None else Path(cfg.out), cfg.pictures))


if __name__ == "__main__":
    cli.run(main, "report")
