"""The embedded model of vector drawings draws the glyphs that it is told, by a judge that names true ones."""

from collections.abc import Callable
from pathlib import Path

import torch
from tiny import Outcome

from experiments.metrics.class_shares import JUDGE
from experiments.vectors.judge import judged, load_vector_judge
from experiments.vectors.raster import renders
from ldm import load_model
from ldm.files.reading import EMBEDDED
from ldm.svg.parsing import parse


def test_both_folders_are_small_and_have_cards() -> None:
    folders = EMBEDDED["glyphs"], JUDGE
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 10e6
    assert all((folder / "README.md").exists() for folder in folders)


def test_glyphs_are_named_right(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    """From the SVG files of a run, of 62 classes two each: 25 steps."""
    told = ["prompts=classes", "seeds=[0,1]", "guidance.scale=2", "sampler.eta=1", "sampler.steps=25", "batch_size=62"]
    assert cli("sample", "model=glyphs", *told, f"hydra.run.dir={tmp_path}").status == 0
    drawings = [parse(file.read_text()) for file in sorted((tmp_path / "images").glob("*.svg"))]
    judge = load_vector_judge(JUDGE)
    assert judge.config.classes == load_model("glyphs").config.classes.names and len(drawings) == 124
    named = judged(judge, renders(drawings))[0].argmax(dim=1)
    right = named == torch.arange(62).repeat_interleave(2)
    assert right.float().mean() >= 0.85
    assert all(path.closed for drawing in drawings for path in drawing.paths)
