"""python -m experiments.demo: what the embedded model draws under each guidance, on one sheet. Run by `make demo`."""

import shlex
import time
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig

from experiments.pictures import save_png, sheet
from experiments.run import build, cli, draw
from experiments.run.commands import SCALE, SEGMENTATION_FREE, STEPS, pictures, stages


def classifier_free(prompt: str) -> list[str]:
    return [f"prompt='{prompt}'", f"guidance.scale={SCALE}"]


def multistage(*parts: tuple[str, int]) -> list[str]:
    return ["guidance=multistage", f"guidance.stages={stages(*parts)}", f"guidance.inner.scale={SCALE}"]


PAIR = "a blue cat next to a red dog on a white background"
ROWS = {
    "classifier-free: a dragon": classifier_free("a dragon"),
    "multistage: a dragon 10, a fish 10": multistage(("a dragon", 10), ("a fish", 10)),
    "multistage: a dragon 7, a fish 13": multistage(("a dragon", 7), ("a fish", 13)),
    "classifier-free: a fish": classifier_free("a fish"),
    "multistage: a fox 12, a bear 8": multistage(("a fox", 12), ("a bear", 8)),
    f"no guidance: {PAIR}": [f"prompt='{PAIR}'", "guidance.scale=1"],
    f"classifier-free: {PAIR}": classifier_free(PAIR),
    f"segmentation-free: {PAIR}": [*classifier_free(PAIR), *SEGMENTATION_FREE],
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
