"""python -m experiments.demo: what the embedded model draws under each guidance, on one sheet. Run by `make demo`."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from experiments.pictures import save_png, sheet

FOLDER = Path("outputs/demo")
SEEDS = list(range(8))
STEPS = 20
SCALE = 6  # at which the embedded model is at its best, see its card


def stages(*parts: tuple[str, int]) -> list[str]:
    listed = ", ".join(f"{{prompt: {prompt}, steps: {steps}}}" for prompt, steps in parts)
    return ["guidance=multistage", f"guidance.stages=[{listed}]", f"guidance.inner.scale={SCALE}"]


def classifier_free(prompt: str) -> list[str]:
    return [f"prompt='{prompt}'", f"guidance.scale={SCALE}"]


PAIR = "a blue cat next to a red dog on a white background"
ROWS = {
    "classifier-free: a cat": classifier_free("a cat"),
    "multistage: a cat 4, a dog 16": stages(("a cat", 4), ("a dog", 16)),
    "multistage: a cat 8, a dog 12": stages(("a cat", 8), ("a dog", 12)),
    "multistage: a cat 12, a dog 8": stages(("a cat", 12), ("a dog", 8)),
    "classifier-free: a dog": classifier_free("a dog"),
    "multistage: a dragon 8, a fish 12": stages(("a dragon", 8), ("a fish", 12)),
    f"classifier-free: {PAIR}": classifier_free(PAIR),
    f"segmentation-free: {PAIR}": [
        *classifier_free(PAIR),
        "guidance=segmentation_free",
    ],
}


def main() -> None:
    start = time.perf_counter()
    rows, commands = [], []
    for n, (label, overrides) in enumerate(ROWS.items()):
        run = FOLDER / f"{n}_{label.split(':')[0]}"
        settings = [f"seeds=[{','.join(map(str, SEEDS))}]", f"sampler.steps={STEPS}", f"batch_size={len(SEEDS)}"]
        command = ["-m", "experiments.sample", *overrides, *settings, f"hydra.run.dir={run}"]
        print(f"[{n + 1}/{len(ROWS)}] {label}", flush=True)
        subprocess.run([sys.executable, *command], check=True)
        commands.append(shlex.join(["python", *command]))
        records = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
        rows.append([Image.open(run / record["file"]) for record in records])
    picture = sheet(
        rows, list(ROWS), [f"seed {seed}" for seed in SEEDS], title=f"{STEPS} DDIM steps, one seed a column"
    )
    save_png(picture, FOLDER / "sheet.png")
    print("\nMade by, row by row:\n" + "\n".join(commands))
    print(f"\nThe sheet, in {time.perf_counter() - start:.0f} s: {FOLDER / 'sheet.png'}")


if __name__ == "__main__":
    main()
