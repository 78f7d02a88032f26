"""python -m experiments.interpolate model=glyphs ends=[A,B]: drawings between drawings. See conf/interpolate.yaml.

interpolation.svg  an animation that stays vectors, from the first end to the last and back
interpolation.gif  the same as pixels
frames.png         some of its frames, beside each other
run.json
"""

import json
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.files import UserError, describe, write
from experiments.pictures import save_gif, save_png, sheet, to_image
from experiments.run import build, cli
from experiments.run.draw import from_seeds, moments
from experiments.run.prompts import Prompt
from experiments.run.settings import check
from experiments.vectors.animation import animated, between
from experiments.vectors.raster import on_paper

SHOWN = 9  # frames of frames.png


def main(cfg: DictConfig) -> None:
    check(cfg)
    ends = [str(end) for end in cfg.ends]
    seeds = [cfg.seed] * len(ends) if cfg.seeds is None else list(cfg.seeds)
    if len(ends) < 2 or len(seeds) != len(ends):
        raise UserError(f"ends={ends} seeds={seeds}: at least two ends, and as many seeds, if they are given")
    machine = build.machine(cfg)
    model = machine.model
    if model.config.latents != "drawings":
        raise UserError(f"{cfg.model.path} makes pictures: between their latents lie no pictures; use model=glyphs")
    prompts = [Prompt(end) for end in ends]
    build.check_prompts(model, prompts, build.stages(machine.guidance, machine.steps))
    size = build.size(model, cfg.height, cfg.width)

    *_, (_, latents, _) = moments(machine, from_seeds(model, prompts, seeds, size))
    with torch.no_grad():
        drawings = model.draw(between(latents, cfg.frames))
    folder = Path(HydraConfig.get().runtime.output_dir)
    pictures = [to_image(image) for image in on_paper(drawings, size[0])]
    write(folder / "interpolation.svg", animated(drawings, cfg.seconds))
    there_and_back, pace = [*pictures, *pictures[-2:0:-1]], round(1000 * cfg.seconds / len(drawings))
    save_gif(there_and_back, folder / "interpolation.gif", [pace] * len(there_and_back))
    some = torch.linspace(0, len(pictures) - 1, min(SHOWN, len(pictures))).round().int().tolist()
    save_png(sheet([[pictures[i] for i in some]], [""], [str(i) for i in some]), folder / "frames.png")
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    write(folder / "run.json", json.dumps(describe(settings, model.device), indent=1))
    way = " to ".join(ends)
    print(f"{len(drawings)} drawings from {way}: {folder}/interpolation.svg, interpolation.gif, frames.png")


if __name__ == "__main__":
    cli.run(main, "interpolate")
