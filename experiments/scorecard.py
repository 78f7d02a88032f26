"""python -m experiments.scorecard: how good the embedded model is, on captions that its training never saw.

Everything is measured by the judge, against scenes whose truth is known. See conf/scorecard.yaml.
"""

import json
from pathlib import Path

from omegaconf import DictConfig

from experiments.emoji.judge import load_judge
from experiments.emoji.truth import judge_scores, psnr
from experiments.emoji.world import EmojiScenes, World, load_atlas, settings_of
from experiments.files import write
from experiments.metrics import Bench
from experiments.metrics.estimates import Estimate
from experiments.pictures import save_png
from experiments.run import build, cli
from experiments.run.commands import STEPS
from experiments.studies.scorecard import (
    ATTENTIVE,
    KINDS,
    STRICT,
    attentive_layers,
    draw,
    estimate,
    estimates,
    failures,
    frechet_distances,
    hardest,
    mean_share,
    scores_table,
    seconds,
)
from ldm.autoencoder import Autoencoder


def main(cfg: DictConfig) -> None:
    out, device = Path(cfg.out), build.device(cfg.device)
    world = World(**settings_of(cfg.world))
    atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
    bench = Bench(device)
    judge = load_judge(device=device) if cfg.judge is None else load_judge(Path(cfg.judge), device)
    model = build.picture_model(cfg.model, device, "float32")
    assert isinstance(model.autoencoder, Autoencoder)

    draw(cfg, out / "validation", KINDS, list(cfg.scales), cfg.validation, cfg.validation_seed)
    worth = {scale: mean_share(cfg, out / "validation", scale, bench) for scale in cfg.scales}
    scale = max(worth, key=lambda s: worth[s])
    draw(cfg, out / "test", KINDS | STRICT, [scale], cfg.count, cfg.test_seed)

    held_out = EmojiScenes(world, atlas, "held_out")
    rows = {"autoencoder: PSNR on held-out scenes, dB": estimate(bench, psnr(model.autoencoder, held_out, cfg.count))}
    for name, values in judge_scores(judge, held_out, cfg.count).items():
        rows[f"judge on held-out scenes: {name}"] = estimate(bench, values)
    rows |= estimates(cfg, out / "test", KINDS, scale, bench)
    distances = frechet_distances(cfg, out / "test", scale, world, atlas, judge)
    rows["Frechet distance, over that of two sets of scenes"] = Estimate(
        distances["drawn"] / distances["scenes"], None, None, len(KINDS) * cfg.count
    )
    how = f"{STEPS} steps, scale {scale:g}, {cfg.dtype}, {cfg.device}"
    rows[f"8 pictures, {how}, s"] = Estimate(seconds(cfg, out / "speed", scale), None, None, 8)
    rows |= estimates(cfg, out / "test", STRICT, scale, bench)
    judges = {"judge": cfg.judge} | ({} if cfg.second_judge is None else {"second_judge": cfg.second_judge})
    alone = {name: hardest(out / "test", scale, bench, weights, name) for name, weights in judges.items()}
    rows |= {f"the hardest concept alone: found, by the {name.replace('_', ' ')}": e for name, (_, e) in alone.items()}
    rows[ATTENTIVE] = attentive_layers(cfg, model, bench, out / "attention")

    scores = {name: vars(estimate) for name, estimate in rows.items()}
    settings = {"scale": scale, "validation": worth, "frechet": distances, "steps": cfg.steps, "dtype": cfg.dtype}
    settings["hardest"] = {name: concept for name, (concept, _) in alone.items()}
    write(out / "scorecard.json", json.dumps({"settings": settings, "scores": scores}, indent=1) + "\n")
    write(out / "scorecard.md", scores_table(rows))
    save_png(failures(out / "test", scale), out / "failures.png")
    print(scores_table(rows))
    print(f"scale {scale}, of {worth}; hardest: {settings['hardest']}; failures: {out / 'failures.png'}")


if __name__ == "__main__":
    cli.run(main, "scorecard")
