"""python -m experiments.scorecard: how good the embedded model is, on captions that its training never saw.

Everything is measured by the judge, against scenes whose truth is known. See conf/scorecard.yaml.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from experiments.emoji.judge import Judge, load_judge
from experiments.emoji.truth import judge_scores, psnr
from experiments.emoji.world import EmojiScenes, World, load_atlas, numbers, pixels
from experiments.files import read_lines, write
from experiments.metrics import Bench
from experiments.metrics.estimates import Estimate
from experiments.metrics.features import frechet_distance, gaussian, judge_input
from experiments.metrics.folders import read, to_tensor
from experiments.metrics.measuring import evaluate
from experiments.pictures import captioned, save_png
from experiments.run import build, cli

KINDS = {  # suites of conf/prompts, and what their pictures must show
    "emoji_one": ("one object: found", "all_found"),
    "emoji_one_coloured": ("one object with colour: object and colour right", "all_right"),
    "emoji_two": ("two objects: both found", "all_found"),
    "emoji_two_coloured": ("two objects, two colours, unseen combination: all four right", "all_right"),
}
OTHER_SCENES = 1_000_003  # a seed of scenes that no suite uses


def main(cfg: DictConfig) -> None:
    out, device = Path(cfg.out), build.device(cfg.device)
    world = World(**numbers(cfg.world))
    atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
    bench = Bench(device)
    judge = load_judge(device=device) if cfg.judge is None else load_judge(Path(cfg.judge), device)
    model = build.model(cfg.model, device, "float32")

    draw(cfg, out / "validation", list(cfg.scales), cfg.validation, cfg.validation_seed)
    worth = {scale: sum(shares(cfg, out / "validation", scale, bench).values()) / len(KINDS) for scale in cfg.scales}
    scale = max(worth, key=lambda s: worth[s])
    draw(cfg, out / "test", [scale], cfg.count, cfg.test_seed)

    held_out = EmojiScenes(world, atlas, "held_out")
    rows = {"autoencoder: PSNR on held-out scenes, dB": estimate(bench, psnr(model.autoencoder, held_out, cfg.count))}
    for name, values in judge_scores(judge, held_out, cfg.count).items():
        rows[f"judge on held-out scenes: {name}"] = estimate(bench, values)
    rows |= {KINDS[kind][0]: e for kind, e in estimates(cfg, out / "test", scale, bench).items()}
    distances = frechet_distances(cfg, out / "test", scale, world, atlas, judge)
    rows["Frechet distance, over that of two sets of scenes"] = Estimate(
        distances["drawn"] / distances["scenes"], None, None, len(KINDS) * cfg.count
    )
    rows[f"8 pictures, 20 steps, {cfg.device}, s"] = Estimate(seconds(cfg, out / "speed"), None, None, 8)

    scores = {name: vars(estimate) for name, estimate in rows.items()}
    settings = {"scale": scale, "validation": worth, "frechet": distances, "steps": cfg.steps, "dtype": cfg.dtype}
    write(out / "scorecard.json", json.dumps({"settings": settings, "scores": scores}, indent=1) + "\n")
    write(out / "scorecard.md", scores_table(rows))
    save_png(failures(out / "test", scale), out / "failures.png")
    print(scores_table(rows))
    print(f"scale {scale}, of {worth}; failures: {out / 'failures.png'}")


def draw(cfg: DictConfig, folder: Path, scales: list[float], count: int, scenes_seed: int) -> None:
    """The suites' pictures at each scale, in folder/SUITE_SCALE; what is there already is not drawn again."""
    sweep = [f"prompts={','.join(KINDS)}", f"guidance.scale={','.join(map(str, scales))}"]
    sample(cfg, "-m", *sweep, f"++prompts.world={cfg.world.name}", f"++prompts.count={count}",
           f"++prompts.scenes_seed={scenes_seed}", f"sampler.steps={cfg.steps}", f"dtype={cfg.dtype}",
           f"batch_size={cfg.batch_size}", f"hydra.sweep.dir={folder}",
           "hydra.sweep.subdir=${hydra:runtime.choices.prompts}_${guidance.scale}")  # fmt: skip


def sample(cfg: DictConfig, *overrides: str) -> None:
    model = [f"model={cfg.model.name}", f"model.path={cfg.model.path}", f"device={cfg.device}"]
    subprocess.run([sys.executable, "-m", "experiments.sample", *overrides, *model], check=True)


def judged(cfg: DictConfig, folder: Path, scale: float, bench: Bench) -> dict[str, dict[str, Any]]:
    """What the judge says of each suite's run."""
    settings = {"_target_": "experiments.metrics.judge.JudgeMetric", "weights": cfg.judge}
    return {kind: evaluate(folder / f"{kind}_{scale}", {"judge": settings}, bench)["judge"] for kind in KINDS}


def estimates(cfg: DictConfig, folder: Path, scale: float, bench: Bench) -> dict[str, Estimate]:
    return {
        kind: Estimate(**found["details"][KINDS[kind][1]]) for kind, found in judged(cfg, folder, scale, bench).items()
    }


def shares(cfg: DictConfig, folder: Path, scale: float, bench: Bench) -> dict[str, float]:
    return {kind: estimate.value for kind, estimate in estimates(cfg, folder, scale, bench).items()}


def estimate(bench: Bench, values: list[float]) -> Estimate:
    return bench.bootstrap.mean(values, range(len(values)))


@torch.inference_mode()
def frechet_distances(
    cfg: DictConfig, folder: Path, scale: float, world: World, atlas: Any, judge: Judge
) -> dict[str, float]:
    """In the judge's features, to other held-out scenes of the same kinds: of the pictures, and of their own scenes."""
    drawn, own, other = list[Tensor](), list[Tensor](), list[Tensor]()
    for kind in KINDS:
        records = read_lines(folder / f"{kind}_{scale}" / "samples.jsonl")
        images = torch.stack([to_tensor(read(folder / f"{kind}_{scale}" / record["file"])) for record in records])
        drawn += [judge_input(some, world.image_size) for some in images.split(32)]
        layouts, tinted = ("beside", "above") if "two" in kind else ("one",), "coloured" in kind
        for seed, into in ((cfg.test_seed, own), (OTHER_SCENES, other)):
            scenes = EmojiScenes(world, atlas, "held_out", seed, layouts=layouts, tinted=tinted)
            into += list(pixels(scenes, cfg.count))
    target = gaussian(features(judge, other))
    return {
        "drawn": frechet_distance(gaussian(features(judge, drawn)), target),
        "scenes": frechet_distance(gaussian(features(judge, own)), target),
    }


def features(judge: Judge, batches: list[Tensor]) -> Tensor:
    return torch.cat([judge(images.to(next(judge.parameters()).device)).features.cpu() for images in batches])


def seconds(cfg: DictConfig, folder: Path) -> float:
    """What 8 pictures take: the second batch of a run's two, so that the start is not counted."""
    suite = ["prompts=emoji_two", f"prompts.world={cfg.world.name}", "prompts.count=16", "batch_size=8"]
    sample(cfg, *suite, "sampler.steps=20", f"hydra.run.dir={folder}")
    return sum(record["seconds"] for record in read_lines(folder / "samples.jsonl")[8:])


def failures(folder: Path, scale: float, each: int = 10) -> Image.Image:
    """The first pictures of each suite that the judge finds wrong."""
    pictures, captions = [], []
    for kind, (_, score) in KINDS.items():
        run = folder / f"{kind}_{scale}"
        prompts = {record["file"]: record["prompt"] for record in read_lines(run / "samples.jsonl")}
        found = json.loads((run / "metrics" / "judge.json").read_text(encoding="utf-8"))["per_image"]
        wrong = [image["file"] for image in found if not image[score]][:each]
        pictures += [read(run / file) for file in wrong]
        captions += [prompts[file] for file in wrong]
    return captioned(pictures, captions, columns=each)


def scores_table(rows: dict[str, Estimate]) -> str:
    lines = ["| what | value | 95 % interval | n |", "| --- | --- | --- | --- |"]
    for name, e in rows.items():
        interval = "" if e.low is None else f"{e.low:.3g} to {e.high:.3g}"
        lines.append(f"| {name} | {e.value:.3g} | {interval} | {e.count} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cli.run(main, "scorecard")
