"""Measures the judge and the autoencoder on scenes whose truth is known."""

import torch
from torch import nn

from experiments.emoji.judge import Judge
from experiments.emoji.world import EmojiScenes, collate, first_images
from ldm.autoencoder import Autoencoder


@torch.no_grad()
def psnr(autoencoder: Autoencoder, scenes: EmojiScenes, count: int) -> list[float]:
    """Returns the PSNR of each scene decoded from its posterior mean, in dB for pixels in [0, 1]."""
    found = []
    for images in first_images(scenes, count):
        images = images.to(device_of(autoencoder))
        decoded = autoencoder.decode(autoencoder.encode(images)[0]).clamp(-1, 1)
        error = ((decoded - images) / 2).square().mean(dim=(1, 2, 3))
        found += (-10 * error.log10()).tolist()
    return found


@torch.no_grad()
def judge_scores(judge: Judge, scenes: EmojiScenes, count: int) -> dict[str, list[float]]:
    """Returns a judge's scores on scenes whose truth is known.

    labels: for each scene, whether its whole set of concepts is right. masks: for each object, intersection over union
    of its pixels. colours: for each tinted object, whether it is given its colour.
    """
    found: dict[str, list[float]] = {"labels": [], "masks": [], "colours": []}
    concepts, colours = list(scenes.world.concepts), list(scenes.world.colours)
    for i in range(0, count, 20):
        some = [scenes[j] for j in range(i, min(i + 20, count))]
        output = judge(collate(some, scenes.world).pixels().to(device_of(judge)))
        present, where = (output.presence > 0).cpu(), output.labels.argmax(dim=1).cpu()
        for b, scene in enumerate(some):
            indices = [concepts.index(thing.label) for thing in scene.objects]
            found["labels"].append(present[b].nonzero().flatten().tolist() == sorted(indices))
            for thing, k in zip(scene.objects, indices, strict=True):
                seen = where[b] == 1 + k
                found["masks"].append(((seen & thing.mask).sum() / (seen | thing.mask).sum()).item())
                if thing.colour is not None:
                    best = int(output.colour_of(k)[b].argmax())
                    found["colours"].append(colours[best] == thing.colour)
    return found


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
