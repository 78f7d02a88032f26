"""Measures the judge and the autoencoder on scenes whose truth is known."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn

from experiments.emoji.judge import Judge
from experiments.emoji.world import EmojiScenes, Object, collate, first_images
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


@dataclass(frozen=True)
class Colours:
    """What a judge sees of colours in true scenes of several objects.

    natural  concept -> colour word -> its share in objects without a tint, of the style that has the most of it
    tinted   of each tinted object, the share of its own colour, where its concept has it not by nature
    alien    of each object without a tint, the largest share of another's colour that it has not by nature
    """

    natural: dict[str, dict[str, float]]
    tinted: list[float]
    alien: list[float]


@torch.no_grad()
def colours_seen(judge: Judge, scenes: EmojiScenes, count: int, mostly: float) -> Colours:
    """Returns what a judge sees in the first `count` scenes; natural is a share of at least `mostly`."""
    concepts, words = list(scenes.world.concepts), list(scenes.world.colours)
    seen = list[tuple[Object, set[str | None], dict[str, float]]]()
    for i in range(0, count, 20):
        some = [scenes[j] for j in range(i, min(i + 20, count))]
        output = judge(collate(some, scenes.world).pixels().to(device_of(judge)))
        for b, scene in enumerate(some):
            for thing in scene.objects:
                shares = output.colour_of(concepts.index(thing.label))[b].tolist()
                others = {other.colour for other in scene.objects if other is not thing}
                seen.append((thing, others, dict(zip(words, shares, strict=True))))
    plain = defaultdict[tuple[str, str], list[dict[str, float]]](list)
    for thing, _, shares in seen:
        if thing.colour is None:
            plain[thing.label, thing.style].append(shares)
    means = {key: {word: fmean(s[word] for s in rows) for word in words} for key, rows in plain.items()}
    natural = {
        label: {word: max(mean[word] for (other, _), mean in means.items() if other == label) for word in words}
        for label in concepts
    }
    strange = {label: {word for word in words if shares[word] < mostly} for label, shares in natural.items()}
    tinted = [shares[thing.colour] for thing, _, shares in seen if thing.colour in strange[thing.label]]
    alien = [
        max(shares[word] for word in strange[thing.label] & others)
        for thing, others, shares in seen
        if thing.colour is None and strange[thing.label] & others
    ]
    return Colours(natural, tinted, alien)


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
