"""The sheets of the demo and the gallery, drawn by a stand-in for the sampling verb that composes what it is asked."""

import itertools
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from experiments import demo, gallery
from experiments.files import CONF, embedded
from experiments.run import build, draw
from ldm.files.reading import TASKS
from samplers import Schedule


def check(cfg: DictConfig) -> None:
    assert cfg.dtype == "bfloat16"
    assert cfg.model.path == (cfg.model.name if cfg.model.name in ("glyphs", *TASKS) else "elsewhere")
    steps = build.stages(build.guidance(cfg.guidance), Schedule().steps(cfg.sampler.steps))
    assert cfg.prompt is not None or sum(stage.steps for stage in steps) == cfg.sampler.steps
    if cfg.task.name == "upscale":
        return  # told nothing
    world = OmegaConf.load(CONF / "world" / f"{embedded('world')}.yaml")
    known = world.concepts if cfg.model.path != "glyphs" else "ABEFOSXZ"
    for text in [cfg.prompt] if cfg.prompt else [stage.prompt for stage in steps]:
        assert any(concept in text for concept in known), text


def write(seeds: list[int], run: Path, number: int = 0) -> list[dict]:
    records = [{"file": f"{seed}.png", "seconds": 1.0, "evaluations": 1} for seed in seeds]
    run.mkdir(parents=True)
    for seed in seeds:
        Image.new("RGB", (8, 8), (number, seed, 0)).save(run / f"{seed}.png")
    (run / "samples.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return records


def drawn(cfg: DictConfig, folder: Path, load: object) -> list[dict]:
    """Stands in for the drawing of one run."""
    check(cfg)
    return write(cfg.seeds, folder)


def sampled(*overrides: str) -> list[str]:
    """Writes a run for each job of a command: a flat picture of each seed."""
    parsed = OverridesParser.create().parse_overrides([o for o in overrides if o != "-m"])
    axes = [[f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()] if o.is_sweep_override() else [o.input_line]
            for o in parsed if not o.key_or_group.startswith("hydra.")]  # fmt: skip
    cfg = OmegaConf.create()
    place = Path(next(o.value() for o in parsed if o.key_or_group in ("hydra.run.dir", "hydra.sweep.dir")))
    for number, job in enumerate(itertools.product(*axes)):
        cfg = compose("sample", list(job)) if number % 7 == 0 else cfg  # of each pair of objects one
        check(cfg)
        write(cfg.seeds, place if "-m" not in overrides else place / str(number), number)
    return list(overrides)


@pytest.mark.parametrize(
    ("verb", "sheets"),
    [(demo, ["sheet"]), (gallery, ["scales", "multistage", "two_colours", "tasks", "task_models", "letters"])],
)
def test_every_run_of_a_sheet_composes_for_another_model(
    verb: object, sheets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompts are of concepts that both worlds have, its stages take all steps, and `settings` reach each run."""
    monkeypatch.setattr(gallery, "sample", sampled)
    monkeypatch.setattr(draw, "draw_run", drawn)
    monkeypatch.setattr(build, "loaded", lambda cfg: None)
    cfg = OmegaConf.create({"out": str(tmp_path), "n": 2, "settings": ["model.path=elsewhere", "dtype=bfloat16"]})
    with initialize_config_dir(str(CONF), version_base="1.3"):
        verb.main(cfg)
    for name in sheets:
        assert Image.open(tmp_path / f"{name}.png").width > 16
