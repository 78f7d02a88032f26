"""python -m experiments.sample: pictures of prompts x seeds under a guidance. See conf/sample.yaml and the README."""

from omegaconf import DictConfig

from experiments import cli


def main(cfg: DictConfig) -> None:
    from experiments import drawing  # not above: torch takes seconds to import, and --help does without it

    drawing.main(cfg)


if __name__ == "__main__":
    cli.run(main, "sample")
