"""python -m experiments.sample: pictures of prompts x seeds under a guidance, in a run folder.

The folder (hydra.run.dir) holds images/PPPPP_SEED.png, samples.jsonl (a line for each picture), run.json (settings and
provenance), grid.png, and latents.safetensors where they are asked for. The same command goes on where it stopped.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.run import cli, draw
from experiments.run.logger import Logger


def main(cfg: DictConfig) -> None:
    job, folder = draw.prepare(cfg), Path(HydraConfig.get().runtime.output_dir)
    with Logger(cfg.logger, job.settings, folder) as logger:
        records = draw.draw(job, folder, logger)
    if records is None:
        print(f"shard {cfg.shard}: its {len(job.request.ours)} batches are done; others are missing yet: {folder}")
        return
    seconds, evaluations = draw.mean_of(records, "seconds"), draw.mean_of(records, "evaluations")
    print(f"{len(records)} pictures, {seconds:.2f} s and {evaluations:g} U-Net evaluations each: {folder}/grid.png")


if __name__ == "__main__":
    cli.run(main, "sample")
