"""python -m experiments.sample: pictures of prompts x seeds under a guidance. See conf/sample.yaml and the README."""

from omegaconf import DictConfig

from experiments.run import cli


def main(cfg: DictConfig) -> None:
    from experiments.run import draw

    draw.main(cfg)


if __name__ == "__main__":
    cli.run(main, "sample")
