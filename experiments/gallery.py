"""python -m experiments.gallery: three sheets of what guidance does on the embedded model, for the README."""

import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig
from PIL import Image

from experiments.files import read_lines
from experiments.pictures import save_png, sheet
from experiments.run import cli

SCALES = [1, 2, 4, 8, 16]
PAIRS = [("a dragon", "a fish"), ("a cat", "a dog"), ("a light bulb", "a pear"), ("a maple leaf", "a heart")]
FIRST = [0, 0.2, 0.3, 0.4, 0.5, 0.7, 1]  # shares of the first stage
TWO_COLOURS = [
    "a blue cat next to a red dog on a white background",
    "a green heart next to a yellow fish on a black background",
    "a purple dragon above an orange pear on a white background",
]


def sweep(folder: Path, seeds: list[int], *overrides: str) -> list[list[Image.Image]]:
    """Draws a sweep. Returns the pictures of each of its jobs, in the jobs' order, seed by seed."""
    settings = [f"seeds=[{','.join(map(str, seeds))}]", f"batch_size={len(seeds)}", f"hydra.sweep.dir={folder}"]
    settings.append("hydra.sweep.subdir=${hydra.job.num}")
    subprocess.run([sys.executable, "-m", "experiments.sample", "-m", *overrides, *settings], check=True)
    jobs = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: int(path.name))
    return [[Image.open(job / record["file"]) for record in read_lines(job / "samples.jsonl")] for job in jobs]


def main(cfg: DictConfig) -> None:
    out, seeds = Path(cfg.out), list(cfg.seeds)
    for sheets in (scales, multistage, two_colours):
        sheets(cfg, out, seeds)
    print(f"three sheets: {out}/scales.png, multistage.png, two_colours.png")


def scales(cfg: DictConfig, out: Path, seeds: list[int]) -> None:
    prompt = "a blue cat on a white background"
    rows = sweep(out / "scales", seeds, f"prompt='{prompt}'", f"guidance.scale={','.join(map(str, SCALES))}")
    save_png(sheet(rows, [f"scale {s}" for s in SCALES], columns(seeds), title=prompt), out / "scales.png")


def multistage(cfg: DictConfig, out: Path, seeds: list[int]) -> None:
    first = [round(share * cfg.steps) for share in FIRST]
    compositions = [
        f"[{{prompt: {one}, steps: {n}}}, {{prompt: {other}, steps: {cfg.steps - n}}}]"
        for one, other in PAIRS
        for n in first
    ]
    stages = ["guidance=multistage", f"guidance.stages={','.join(compositions)}", f"guidance.inner.scale={cfg.scale}"]
    drawn = sweep(out / "multistage", seeds[:2], *stages, f"sampler.steps={cfg.steps}")
    rows, labels = [], []
    for p, (one, other) in enumerate(PAIRS):
        for s, seed in enumerate(seeds[:2]):
            rows.append([drawn[p * len(first) + i][s] for i in range(len(first))])
            labels.append(f"{one}, then {other}, seed {seed}")
    above = [f"{n}, then {cfg.steps - n} steps" for n in first]
    title = f"multistage guidance, from 0 > {cfg.steps} to {cfg.steps} > 0"
    save_png(sheet(rows, labels, above, title=title), out / "multistage.png")


def two_colours(cfg: DictConfig, out: Path, seeds: list[int]) -> None:
    prompts = f"prompt={','.join(repr(prompt) for prompt in TWO_COLOURS)}"
    plain = sweep(out / "two_colours_cfg", seeds, prompts, f"guidance.scale={cfg.scale}")
    pushed = ["guidance=segmentation_free", "guidance.sf_strength=1", "guidance.sf_scale=2"]
    ours = sweep(out / "two_colours_sf", seeds, prompts, *pushed, f"guidance.scale={cfg.scale}")
    rows = [row for pair in zip(plain, ours, strict=True) for row in pair]
    labels = [f"{method}: {text}" for text in TWO_COLOURS for method in ("classifier-free", "segmentation-free")]
    save_png(sheet(rows, labels, columns(seeds), title="50 steps, same seeds"), out / "two_colours.png")


def columns(seeds: list[int]) -> list[str]:
    return [f"seed {seed}" for seed in seeds]


if __name__ == "__main__":
    cli.run(main, "gallery")
