"""python -m experiments.sample: pictures of prompts x seeds under a guidance, in a run folder.

The folder (hydra.run.dir) holds images/PPPPP_SEED.png, samples.jsonl (a line for each picture), run.json (settings and
provenance), grid.png, and latents.safetensors where they are asked for. The same command goes on where it stopped.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.run import cli, draw


def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    records = draw.draw_run(cfg, folder)
    if records is None:
        print(f"shard {cfg.shard}: its batches are done; others are missing yet: {folder}")
    else:
        print(draw.summary(records, folder))


if __name__ == "__main__":
    cli.run(main, "sample")
