"""python -m experiments.geneval run=FOLDER out=FOLDER: a run of prompts=geneval in GenEval's layout, for its own judge.

For each prompt NNNNN/metadata.jsonl, NNNNN/samples/0000.png, 0001.png, ... in the order of the seeds; NNNNN is its
place in GenEval's list, and pictures are copied as they are. The paper draws four seeds: seeds=[0,1,2,3].
"""

import json
import shutil
from pathlib import Path

from omegaconf import DictConfig

from experiments.files import UserError, write
from experiments.metrics.folders import open_run
from experiments.run import cli
from experiments.run.geneval import listed


def main(cfg: DictConfig) -> None:
    """Raises UserError for an unfinished run, one of other prompts, and a folder that is not empty."""
    run, out = open_run(Path(cfg.run)), Path(cfg.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: is there already, and not empty")
    suite = run.config.get("prompts") or {}
    if "geneval_seed" not in suite:
        raise UserError(f"run={run.folder}: is not of prompts=geneval, so it has no metadata for GenEval's judge")
    told = listed(suite["geneval_seed"])
    places = {scene["prompt"]: i for i, scene in enumerate(told)}
    drawn = dict[int, list[Path]]()
    for record in run.records:
        drawn.setdefault(places[record["prompt"]], []).append(run.folder / record["file"])
    for index, pictures in drawn.items():
        samples = out / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        for i, picture in enumerate(pictures):
            shutil.copyfile(picture, samples / f"{i:04d}.png")
        write(samples.parent / "metadata.jsonl", json.dumps(told[index]) + "\n")
    print(f"{len(drawn)} prompts, {len(run.records)} pictures: {out}")


if __name__ == "__main__":
    cli.run(main, "geneval")
