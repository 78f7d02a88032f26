"""python -m experiments.gallery: what guidance does on the embedded model, on three sheets for the README."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

from experiments.files import read_lines
from experiments.pictures import save_png, sheet

FOLDER = Path("outputs/gallery")
SCALE = 6  # at which the embedded model is at its best, see its card
STEPS = 20
SCALES = [1, 2, 4, 8, 16]
PAIRS = [("a dragon", "a fish"), ("a cat", "a dog"), ("a light bulb", "a pear"), ("a maple leaf", "a heart")]
FIRST = [0, 4, 6, 8, 10, 14, 20]  # steps of the first stage
TWO_COLOURS = [
    "a blue cat next to a red dog on a white background",
    "a green heart next to a yellow fish on a black background",
    "a purple dragon above an orange pear on a white background",
]


def sweep(name: str, seeds: list[int], *overrides: str) -> list[list[Image.Image]]:
    """The pictures of each job of a sweep, in the jobs' order, seed by seed."""
    folder = FOLDER / name
    settings = [f"seeds=[{','.join(map(str, seeds))}]", f"batch_size={len(seeds)}", f"hydra.sweep.dir={folder}"]
    command = [
        sys.executable,
        "-m",
        "experiments.sample",
        "-m",
        *overrides,
        *settings,
        "hydra.sweep.subdir=${hydra.job.num}",
    ]
    subprocess.run(command, check=True)
    jobs = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: int(path.name))
    return [[Image.open(job / record["file"]) for record in read_lines(job / "samples.jsonl")] for job in jobs]


def main() -> None:
    seeds = list(range(8))
    columns = [f"seed {seed}" for seed in seeds]
    prompt = "a blue cat on a white background"
    rows = sweep("scales", seeds, f"prompt='{prompt}'", f"guidance.scale={','.join(map(str, SCALES))}")
    save_png(sheet(rows, [f"scale {s}" for s in SCALES], columns, title=prompt), FOLDER / "scales.png")

    compositions = [
        f"[{{prompt: {one}, steps: {n}}}, {{prompt: {other}, steps: {STEPS - n}}}]"
        for one, other in PAIRS
        for n in FIRST
    ]
    stages = ["guidance=multistage", f"guidance.stages={','.join(compositions)}", f"guidance.inner.scale={SCALE}"]
    drawn = sweep("multistage", seeds[:2], *stages, f"sampler.steps={STEPS}")
    rows, labels = [], []
    for p, (one, other) in enumerate(PAIRS):
        for s in range(2):
            rows.append([drawn[p * len(FIRST) + i][s] for i in range(len(FIRST))])
            labels.append(f"{one}, then {other}, seed {s}")
    columns = [f"{n}, then {STEPS - n} steps" for n in FIRST]
    save_png(
        sheet(rows, labels, columns, title="multistage guidance, from 0 > 20 to 20 > 0"), FOLDER / "multistage.png"
    )

    prompts = f"prompt={','.join(repr(prompt) for prompt in TWO_COLOURS)}"
    plain = sweep("two_colours_cfg", seeds, prompts, f"guidance.scale={SCALE}")
    ours = sweep("two_colours_sf", seeds, prompts, "guidance=segmentation_free", f"guidance.scale={SCALE}",
                 "guidance.sf_strength=1", "guidance.sf_scale=2")  # fmt: skip
    rows = [row for pair in zip(plain, ours, strict=True) for row in pair]
    labels = [f"{method}: {text}" for text in TWO_COLOURS for method in ("classifier-free", "segmentation-free")]
    save_png(
        sheet(rows, labels, [f"seed {s}" for s in seeds], title="50 steps, same seeds"), FOLDER / "two_colours.png"
    )
    print(f"three sheets: {FOLDER}/scales.png, multistage.png, two_colours.png")


if __name__ == "__main__":
    main()
