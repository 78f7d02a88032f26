"""python -m experiments.demo: what the embedded model draws under each guidance, on one sheet. Run by `make demo`."""

import shlex
import time
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig

from experiments.pictures import save_png, sheet
from experiments.run import build, cli, draw
from experiments.run.commands import SCALE, STEPS, pictures, stages


def classifier_free(prompt: str) -> list[str]:
    return [f"prompt='{prompt}'", f"guidance.scale={SCALE}"]


def multistage(*parts: tuple[str, int]) -> list[str]:
    return ["guidance=multistage", f"guidance.stages={stages(*parts)}", f"guidance.inner.scale={SCALE}"]


PAIR = "a blue cat next to a red dog on a white background"
ROWS = {
    "classifier-free: a cat": classifier_free("a cat"),
    "multistage: a cat 8, a dog 12": multistage(("a cat", 8), ("a dog", 12)),
    "multistage: a cat 12, a dog 8": multistage(("a cat", 12), ("a dog", 8)),
    "multistage: a cat 14, a dog 6": multistage(("a cat", 14), ("a dog", 6)),
    "classifier-free: a dog": classifier_free("a dog"),
    "multistage: a light bulb 12, a pear 8": multistage(("a light bulb", 12), ("a pear", 8)),
    f"no guidance: {PAIR}": [f"prompt='{PAIR}'", "guidance.scale=1"],
    f"classifier-free: {PAIR}": classifier_free(PAIR),
    f"segmentation-free: {PAIR}": [*classifier_free(PAIR), "guidance=segmentation_free"],
}


def main(cfg: DictConfig) -> None:
    start, out, seeds = time.perf_counter(), Path(cfg.out), list(range(cfg.n))
    known = build.loaded(compose("sample", list(cfg.settings)))
    rows, commands = [], []
    for n, (label, guided) in enumerate(ROWS.items()):
        run = out / f"{n}_{label.split(':')[0]}"
        print(f"[{n + 1}/{len(ROWS)}] {label}", flush=True)
        settings = [f"seeds={seeds}".replace(" ", ""), f"batch_size={len(seeds)}", f"sampler.steps={STEPS}"]
        overrides = [*guided, *settings, *cfg.settings]
        records = draw.draw_run(compose("sample", overrides), run, lambda _: known)
        assert records is not None, "one process draws them all"
        print(draw.summary(records, run), flush=True)
        commands.append(["python", "-m", "experiments.sample", *overrides, f"hydra.run.dir={run}"])
        rows.append(pictures(run))
    title = f"{STEPS} DDIM steps, one seed a column"
    save_png(sheet(rows, list(ROWS), [f"seed {seed}" for seed in seeds], title=title), out / "sheet.png")
    print("\nMade by, row by row:\n" + "\n".join(map(shlex.join, commands)))
    print(f"\nThe sheet, in {time.perf_counter() - start:.0f} s: {out / 'sheet.png'}")


if __name__ == "__main__":
    cli.run(main, "demo")
