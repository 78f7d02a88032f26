"""Pictures of held-out captions on one labelled sheet: `python -m experiments.sheet`, to see what a model can do."""

import textwrap
from pathlib import Path

import torch
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from experiments import build
from experiments.cli import run, say
from experiments.data.emoji import EmojiScenes, World, load_atlas
from experiments.pictures import fit, save_png, to_image
from experiments.train import numbers
from guidance import ClassifierFree, guided
from ldm import LatentDiffusion
from samplers import ImageNoise, as_eps, ddim


def held_out_captions(scenes: EmojiScenes, count: int) -> list[str]:
    """The first `count` captions of held-out scenes that differ from each other."""
    captions: dict[str, None] = {}
    index = 0
    while len(captions) < count:
        captions[scenes[index].caption] = None
        index += 1
    return list(captions)


@torch.inference_mode()
def draw(model: LatentDiffusion, captions: list[str], seeds: list[int], scale: float, steps: int) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of B captions under classifier-free guidance, by deterministic DDIM."""
    config = model.config
    schedule = build.schedule(config.schedule)
    predict = as_eps(model.unet, config.schedule.prediction, schedule.alpha_bar)
    denoise = guided(predict, ClassifierFree(scale), model.texts(captions))
    x_T = ImageNoise(seeds, model.latent_shape(config.image_size, config.image_size), model.device)()
    *_, (_, x_t, _) = ddim(denoise, x_T, schedule.steps(steps), schedule.alpha_bar)
    return model.decode(x_t)


def labelled(images: list[Image.Image], labels: list[str], columns: int, cell: int = 128) -> Image.Image:
    """Pictures in rows, each with its number and label below it."""
    font, line, lines, gap = ImageFont.load_default(12), 14, 4, 6
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + lines * line + gap) + gap), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = gap + i % columns * (cell + gap), gap + i // columns * (cell + lines * line + gap)
        canvas.paste(fit(image, cell), (x, y))
        words = textwrap.wrap(f"{i + 1}. {label}", cell // 6)[:lines]
        pen.multiline_text((x, y + cell), "\n".join(words), fill="black", font=font, spacing=1)
    return canvas


def sheet(cfg: DictConfig) -> None:
    model = build.model(cfg.model, build.device(cfg.device), cfg.dtype)
    if cfg.captions is None:
        world = World(**numbers(cfg.world))
        atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
        captions = held_out_captions(EmojiScenes(world, atlas, "held_out", cfg.scenes_seed), cfg.count)
    else:
        captions = Path(cfg.captions).read_text(encoding="utf-8").splitlines()
    images: list[Image.Image] = []
    for i in tqdm(range(0, len(captions), cfg.batch_size), desc="batches"):
        some = captions[i : i + cfg.batch_size]
        seeds = [cfg.seed + i + j for j in range(len(some))]
        images += [to_image(image) for image in draw(model, some, seeds, cfg.scale, cfg.steps)]
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "captions.txt").write_text("".join(caption + "\n" for caption in captions), encoding="utf-8")
    save_png(labelled(images, captions, cfg.columns), out / "sheet.png")
    say(f"{len(images)} pictures: {out / 'sheet.png'}")


if __name__ == "__main__":
    run(sheet, "sheet")
