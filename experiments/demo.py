"""python -m experiments.demo: a sheet of what the embedded model draws under each guidance. `make demo` runs it."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import DictConfig
from PIL import Image

from experiments.files import read_lines
from experiments.pictures import save_png, sheet
from experiments.run import cli

PAIR = "a blue cat next to a red dog on a white background"


def classifier_free(cfg: DictConfig, prompt: str) -> dict[str, list[str]]:
    return {f"classifier-free: {prompt}": [f"prompt='{prompt}'", f"guidance.scale={cfg.scale}"]}


def segmentation_free(cfg: DictConfig, prompt: str) -> dict[str, list[str]]:
    settings = [f"prompt='{prompt}'", f"guidance.scale={cfg.scale}", "guidance=segmentation_free"]
    return {f"segmentation-free: {prompt}": settings}


def multistage(cfg: DictConfig, one: str, other: str, share: float) -> dict[str, list[str]]:
    """`share` of the steps under one prompt, the rest under the other."""
    first = round(share * cfg.steps)
    stages = f"{{prompt: {one}, steps: {first}}}, {{prompt: {other}, steps: {cfg.steps - first}}}"
    settings = ["guidance=multistage", f"guidance.stages=[{stages}]", f"guidance.inner.scale={cfg.scale}"]
    return {f"multistage: {one} {first}, {other} {cfg.steps - first}": settings}


def main(cfg: DictConfig) -> None:
    start, out = time.perf_counter(), Path(cfg.out)
    rows = {  # what each shows, and the settings of experiments.sample that draw it
        **classifier_free(cfg, "a cat"),
        **multistage(cfg, "a cat", "a dog", 0.2),
        **multistage(cfg, "a cat", "a dog", 0.4),
        **multistage(cfg, "a cat", "a dog", 0.6),
        **classifier_free(cfg, "a dog"),
        **multistage(cfg, "a dragon", "a fish", 0.4),
        **classifier_free(cfg, PAIR),
        **segmentation_free(cfg, PAIR),
    }
    pictures, commands = [], []
    for n, (label, overrides) in enumerate(rows.items()):
        run = out / f"{n}_{label.split(':')[0]}"
        settings = [f"seeds=[{','.join(map(str, cfg.seeds))}]", f"sampler.steps={cfg.steps}"]
        settings += [f"batch_size={len(cfg.seeds)}", f"hydra.run.dir={run}"]
        command = ["-m", "experiments.sample", *overrides, *settings]
        print(f"[{n + 1}/{len(rows)}] {label}", flush=True)
        subprocess.run([sys.executable, *command], check=True)
        commands.append(shlex.join(["python", *command]))
        pictures.append([Image.open(run / record["file"]) for record in read_lines(run / "samples.jsonl")])
    title = f"{cfg.steps} DDIM steps, one seed a column"
    save_png(sheet(pictures, list(rows), [f"seed {seed}" for seed in cfg.seeds], title=title), out / "sheet.png")
    print("\nMade by, row by row:\n" + "\n".join(commands))
    print(f"\nThe sheet, in {time.perf_counter() - start:.0f} s: {out / 'sheet.png'}")


if __name__ == "__main__":
    cli.run(main, "demo")
