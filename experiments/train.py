"""python -m experiments.train part=small/autoencoder: train one part of the embedded model. See conf/train.yaml."""

from experiments.run import cli
from experiments.training.loop import train as main

if __name__ == "__main__":
    cli.run(main, "train")
