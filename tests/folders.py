"""Run folders of our own making, and what tests measure them with."""

import itertools
from pathlib import Path

import torch
from PIL import Image

from experiments.emoji.judge import JudgeConfig
from experiments.metrics import Bench
from experiments.metrics.estimates import Bootstrap
from experiments.pictures import save_png
from experiments.run.folder import Run

CPU = torch.device("cpu")


BENCH = Bench(CPU, 4, Bootstrap(resamples=50))


JUDGE = JudgeConfig(("dragon", "fish", "cat", "light bulb", "bat"), ("red", "blue"), 16, (8, 16))


def drawing(seed: int, size: int = 16) -> torch.Tensor:
    """Blotches of colour, [3, size, size] in [0, 1]."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0]


def make_run(folder: Path, asked: list[dict], seeds: list[int], model: str = "emoji", size: int = 16) -> Path:
    """A finished run folder, whose pictures differ with prompt, seed and folder."""
    run = Run(folder, {"model": {"name": model, "subject": "emoji" if model == "emoji" else "photo"}}, CPU)
    for p, seed in itertools.product(range(len(asked)), seeds):
        image = drawing(1000 * p + seed + sum(folder.name.encode()), size)
        run.add(image, {}, {"prompt_index": p, "seed": seed, "negative_prompt": "", **asked[p]})
    save_png(Image.new("RGB", (8, 8)), folder / "grid.png")
    return folder


def make_folder(folder: Path, count: int, start: int = 5000, size: int = 16) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        save_png(Image.fromarray((drawing(start + i, size) * 255).byte().permute(1, 2, 0).numpy()), folder / f"{i}.png")
    return folder


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name != "logit_scale":
                p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.dim() < 2 else p[0].numel() ** -0.5))
    return module.eval()


def metric(name: str, **settings: object) -> dict[str, dict]:
    classes = {"judge": "JudgeMetric", "clip_score": "ClipScore", "pick_score": "PickScore", "frechet": "Frechet"}
    classes |= {"inception_score": "InceptionScore", "alpha_fid": "AlphaFid", "word_choice": "WordChoice"}
    classes |= {"object_shares": "ObjectShares", "effective_scale": "EffectiveScale", "look": "Look"}
    classes |= {"diversity": "Diversity", "convergence": "Convergence"}
    return {name: {"_target_": f"experiments.metrics.{name}.{classes[name]}", **settings}}


CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
    "text_cfg": {"layers": 1, "width": 32, "heads": 2},
}
