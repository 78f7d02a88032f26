"""True scenes of a suite, as Frechet ratios need them: to measure pictures against, and what scenes reach."""

import json
from pathlib import Path
from typing import cast

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from experiments import files
from experiments.emoji.world import OTHER_SCENES, World, load_atlas, settings_of
from experiments.files import CONF, say
from experiments.frechet import frechet_distance, gaussian
from experiments.metrics import Bench
from experiments.metrics.features import extract, load_extractor
from experiments.metrics.folders import FinishedRun, open_reference
from experiments.pictures import save_png
from experiments.run.prompts import scenes_of
from experiments.tournament.plan import Plan

OWN, OTHER, FOUND = "own", "other", "distance.json"


def references(folder: Path, plan: Plan, cfg: DictConfig, bench: Bench) -> Path | None:
    """Makes folder/references of a suite of emoji scenes: `own`, the suite's, and `other`; and their distance.

    As many scenes as a cell has pictures. None, and a line that says why, where there are no scenes or no icons.
    """
    suite = compose("sample", overrides=[*plan.base, f"++prompts.count={plan.league.prompts * len(cfg.seeds)}"]).prompts
    if "world" not in suite:
        return None
    out = folder / "references"
    if not Path(cfg.icons).is_dir():
        say(f"warning: no Frechet ratios: icons={cfg.icons}: there is no such folder")
        return None
    with files.locked(folder):
        if not ((out / FOUND).exists() and (out / OTHER).is_dir()):
            world = World(**settings_of(cast(DictConfig, OmegaConf.load(CONF / "world" / f"{suite.world}.yaml"))))
            atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
            for name, seed in ((OWN, suite.scenes_seed), (OTHER, OTHER_SCENES)):
                (out / name).mkdir(parents=True, exist_ok=True)
                group = cast(DictConfig, OmegaConf.merge(suite, {"scenes_seed": seed}))
                for position, (scenes, index) in enumerate(scenes_of(group, atlas)):
                    image = Image.fromarray(scenes[index].image.permute(1, 2, 0).numpy())
                    save_png(image, out / name / f"{position:05d}.png")
            files.write(out / FOUND, json.dumps({"frechet": distance(out, cfg, bench)}) + "\n")
    return out


def distance(out: Path, cfg: DictConfig, bench: Bench) -> float:
    """Returns the Frechet distance of the suite's own scenes to the others, in the judge's features."""
    nobody = FinishedRun(out, {}, (), open_reference(out / OWN))
    extractor = load_extractor("judge", cfg.judge, nobody, bench.device)
    own, other = (gaussian(extract(extractor, open_reference(out / name), None, bench).values) for name in (OWN, OTHER))
    return frechet_distance(own, other)
