"""How good the embedded model is, on captions that its training never saw: see experiments.scorecard."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from experiments.emoji.judge import Judge
from experiments.emoji.world import OTHER_SCENES, EmojiScenes, World, first_images
from experiments.files import read_lines
from experiments.frechet import frechet_distance, gaussian
from experiments.metrics import Bench
from experiments.metrics.estimates import Estimate
from experiments.metrics.features import judge_input
from experiments.metrics.folders import read, to_tensor
from experiments.metrics.measuring import evaluate
from experiments.pictures import captioned
from experiments.run.commands import STEPS, sample
from experiments.studies.implied_segmentation import ALL, ImpliedSegmentation
from ldm import LatentDiffusion

Kinds = dict[str, tuple[str, str]]
KINDS: Kinds = {  # suites of conf/prompts, and what their pictures must show
    "emoji_one": ("one object: found", "all_found"),
    "emoji_one_coloured": ("one object with colour: object and colour right", "all_right"),
    "emoji_two": ("two objects: both found", "all_found"),
    "emoji_two_coloured": ("two objects, two colours, unseen combination: all four right", "all_right"),
}
STRICT: Kinds = {"emoji_two_strict": ("two objects, two colours, no combination seen: all four right", "all_right")}
MARGIN, MIDDLE = 0.15, 501  # of IoU; a timestep
ATTENTIVE = f"cross-attention layers whose strongest token beats chance by {MARGIN} IoU at t={MIDDLE}"


def draw(cfg: DictConfig, folder: Path, kinds: Kinds, scales: list[float], count: int, scenes_seed: int) -> None:
    """Draws the suites' pictures at each scale, in folder/SUITE_SCALE; what is there already is not drawn again."""
    sweep = [f"prompts={','.join(kinds)}", f"guidance.scale={','.join(map(str, scales))}"]
    sample_from(cfg, "-m", *sweep, f"++prompts.world={cfg.world.name}", f"++prompts.count={count}",
           f"++prompts.scenes_seed={scenes_seed}", f"sampler.steps={cfg.steps}",
           f"batch_size={cfg.batch_size}", f"hydra.sweep.dir={folder}",
           "hydra.sweep.subdir=${hydra:runtime.choices.prompts}_${guidance.scale}")  # fmt: skip


def sample_from(cfg: DictConfig, *overrides: str) -> None:
    """Runs the sampling verb with all that the config says of the model."""
    known = {key: "null" if value is None else value for key, value in cfg.model.items() if key != "name"}
    model = [f"model={cfg.model.name}", *(f"model.{key}={value}" for key, value in known.items())]
    sample(*overrides, *model, f"device={cfg.device}", f"dtype={cfg.dtype}")


def estimates(cfg: DictConfig, folder: Path, kinds: Kinds, scale: float, bench: Bench) -> dict[str, Estimate]:
    """Returns what the judge says of each suite's run, by the names of the scorecard's rows."""
    settings = {"judge": {"_target_": "experiments.metrics.judge.JudgeMetric", "weights": cfg.judge}}
    found = {kind: evaluate(folder / f"{kind}_{scale}", settings, bench)["judge"]["details"] for kind in kinds}
    return {name: Estimate(**found[kind][measure]) for kind, (name, measure) in kinds.items()}


def hardest(folder: Path, scale: float, bench: Bench, judge: str | None, name: str) -> tuple[str, Estimate]:
    """Returns the concept that a judge finds least often where it is asked for alone, and how often that is.

    judge  its folder; None: the embedded one. name: what its result is stored by
    """
    settings = {name: {"_target_": "experiments.metrics.judge.JudgeMetric", "weights": judge}}
    details = evaluate(folder / f"emoji_one_{scale}", settings, bench)[name]["details"]
    found = {key.removeprefix("found/"): value for key, value in details.items() if key.startswith("found/")}
    concept = min(found, key=lambda one: found[one]["value"])
    return concept, Estimate(**found[concept])


def attentive_layers(cfg: DictConfig, model: LatentDiffusion, bench: Bench, folder: Path) -> Estimate:
    """Returns how many layers know an object's noun, of as many as the count says: see ATTENTIVE."""
    world: Any = OmegaConf.to_container(cfg.world, resolve=True)
    study = ImpliedSegmentation(world, cfg.icons, cfg.cache, cfg.attended, timestep=MIDDLE, span="noun")
    folder.mkdir(parents=True, exist_ok=True)
    details = study.measure(model, bench, folder).details
    chance = {name.removeprefix("chance_"): e.value for name, e in details.items() if name.startswith("chance_")}
    layers = [name for name in chance if name != ALL]
    return Estimate(sum(details[name].value >= chance[name] + MARGIN for name in layers), None, None, len(layers))


def mean_share(cfg: DictConfig, folder: Path, scale: float, bench: Bench) -> float:
    """Returns what a scale is chosen by: the mean over the suites."""
    return fmean(estimate.value for estimate in estimates(cfg, folder, KINDS, scale, bench).values())


def estimate(bench: Bench, values: list[float]) -> Estimate:
    return bench.bootstrap.mean(values, range(len(values)))


@torch.inference_mode()
def frechet_distances(
    cfg: DictConfig, folder: Path, scale: float, world: World, atlas: Any, judge: Judge
) -> dict[str, float]:
    """Returns distances in the judge's features to other held-out scenes: of the pictures, and of their own scenes."""
    drawn, own, other = list[Tensor](), list[Tensor](), list[Tensor]()
    for kind in KINDS:
        records = read_lines(folder / f"{kind}_{scale}" / "samples.jsonl")
        images = torch.stack([to_tensor(read(folder / f"{kind}_{scale}" / record["file"])) for record in records])
        drawn += [judge_input(some, world.image_size) for some in images.split(32)]
        layouts, tinted = ("beside", "above") if "two" in kind else ("one",), "coloured" in kind
        for seed, into in ((cfg.test_seed, own), (OTHER_SCENES, other)):
            scenes = EmojiScenes(world, atlas, "held_out", seed, layouts=layouts, tinted=tinted)
            into += list(first_images(scenes, cfg.count))
    target = gaussian(features(judge, other))
    return {
        "drawn": frechet_distance(gaussian(features(judge, drawn)), target),
        "scenes": frechet_distance(gaussian(features(judge, own)), target),
    }


def features(judge: Judge, batches: list[Tensor]) -> Tensor:
    return torch.cat([judge(images.to(next(judge.parameters()).device)).features.cpu() for images in batches])


def seconds(cfg: DictConfig, folder: Path, scale: float) -> float:
    """Returns what 8 pictures take: the second batch of a run's two, so that the start is not counted."""
    suite = ["prompts=emoji_two", f"prompts.world={cfg.world.name}", "prompts.count=16", "batch_size=8"]
    settings = [f"sampler.steps={STEPS}", f"guidance.scale={scale}"]
    folder = folder.with_name(f"{folder.name}_{cfg.dtype}_{scale}_{STEPS}")
    sample_from(cfg, *suite, *settings, f"hydra.run.dir={folder}")
    return sum(record["seconds"] for record in read_lines(folder / "samples.jsonl")[8:])


def failures(folder: Path, scale: float, each: int = 10) -> Image.Image:
    """Draws the first pictures of each suite that the judge finds wrong."""
    pictures, captions = [], []
    for kind, (_, score) in (KINDS | STRICT).items():
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
