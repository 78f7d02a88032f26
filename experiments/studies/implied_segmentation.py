"""Whether a patch attends to the words of what it shows: the premise of segmentation-free guidance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from experiments.attention.maps import average
from experiments.emoji.world import Object, Scene
from experiments.metrics import Bench, Result
from experiments.metrics.estimates import Estimate
from experiments.pictures import save_png, to_image
from experiments.studies.scenes import (
    OWNERS,
    PICTURED,
    Noised,
    Range,
    SceneStudy,
    check_choice,
    figure,
    in_spoken_order,
    on_grid,
    owners,
    owners_image,
    predict_each,
    true_owners,
)
from guidance import Branch
from guidance.edits import record, strongest
from ldm import LatentDiffusion
from ldm.attention import Site
from ldm.text import Span, Tokenizer

ALL = "all_layers"


@dataclass(frozen=True)
class Tokens:
    """In one layer, positions [H or 1, h, w] of each patch's strongest token, and of that among the objects' tokens."""

    strongest: Tensor
    of_objects: Tensor


@dataclass(frozen=True)
class ImpliedSegmentation(SceneStudy):
    """The segmentation that cross-attention implies (Azarian et al. 2024) against the true masks.

    One pass of the U-Net under the scene's caption. In each layer, a patch is predicted to be of the object in whose
    words its strongest token k* lies; it is of an object if at least half of its pixels are.

    argmax      "head": each head predicts, and the heads' scores are averaged; "mean": the heads' average predicts
    candidates  for k*: "words", or "all_but_bos", which adds EOS and padding
    span        an object's words: "phrase" is "a small blue noto cat", "noun" is "cat"

    value: intersection over union over the patches of a layer; the mean over a scene's objects that have a patch there,
    over layers and over scenes. Details: LAYER, the same of one layer; all_layers, of the attention averaged over all
    layers and heads on their finest grid; majority, of patches that more than half of a layer's heads give to the
    object. chance: the value of the same predictions against the next scene's masks, objects paired in the order of
    their captions; chance_LAYER and chance_all_layers likewise. owned_by_words: the share of patches whose k* is of a
    word. right_object (and right_object_LAYER): of the patches that are of an object, those where the strongest among
    the objects' tokens is of the right one; chance is one half for two objects.
    """

    argmax: str = "head"
    candidates: str = "words"
    span: str = "phrase"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("argmax", self.argmax, ("head", "mean"))
        check_choice("candidates", self.candidates, ("words", "all_but_bos"))
        check_choice("span", self.span, ("phrase", "noun"))

    @torch.no_grad()
    def measure(self, model: LatentDiffusion, bench: Bench, folder: Path) -> Result:
        scenes, words, maps = list[Scene](), list[Sequence[Span]](), list[dict[str, Tokens]]()
        for noised in self.batches(model, bench):
            scenes += noised.scenes
            words += noised.conditions.cond.spans
            maps += self.look(model, noised)
        scores = [
            self.scores(seen, scene, scenes[(i + 1) % len(scenes)], spans)
            for i, (scene, seen, spans) in enumerate(zip(scenes, maps, words, strict=True))
        ]
        captions = [scene.caption for scene in scenes]
        estimates = {name: bench.bootstrap.mean([s[name] for s in scores], captions) for name in scores[0]}
        value: Estimate = estimates.pop("value")
        layers = ranked({name: estimates[name] for name in maps[0] if name != ALL})
        shown = zip(scenes[:PICTURED], maps, words, strict=False)
        rows = [self.pictures(scene, [seen[name] for name in (*layers, ALL)], spans) for scene, seen, spans in shown]
        title = f"Whose a patch's strongest token is, t={self.timestep}; colours mix where heads disagree"
        columns = [f"{name}, IoU {estimates[name].value:.2f}" for name in layers]
        save_png(figure(rows, scenes[:PICTURED], ["scene", "true masks", *columns, ALL], title), folder / "figure.png")
        return Result(value, estimates, about=self.about(model))

    def look(self, model: LatentDiffusion, noised: Noised) -> list[dict[str, Tokens]]:
        """Returns for each scene the tokens by layer, and those of all layers together."""
        found: list[dict[str, Tokens]] = [{} for _ in noised.scenes]
        means: list[list[Tensor]] = [[] for _ in noised.scenes]  # [L, h, w] of each layer
        words = noised.conditions.cond.spans
        of_objects = [[Span("", *span) for span in self.spans(scene.objects)] for scene in noised.scenes]

        def tokens(weights: Tensor, argmax: str, b: int, height: int, width: int) -> Tokens:
            k = [
                strongest(weights, argmax, among)[0, ..., 0].reshape(-1, height, width).cpu()
                for among in ([words[b]] if self.candidates == "words" else None, [of_objects[b]])
            ]
            return Tokens(*k)

        def store(site: Site, weights: Tensor) -> None:
            for b in range(len(found)):
                own = weights[b : b + 1]
                found[b][layer_name(site)] = tokens(own, self.argmax, b, site.height, site.width)
                means[b].append(own[0].mean(dim=0).mT.reshape(-1, site.height, site.width))

        predict_each(model, noised, {"cond": Branch(noised.conditions.cond, (record(store),))})
        for b, layers in enumerate(means):
            mean = average(layers)
            found[b][ALL] = tokens(mean.flatten(1).mT[None, None], "mean", b, *mean.shape[1:])
        return found

    def spans(self, objects: Sequence[Object]) -> list[Range]:
        """Returns the tokens of each object's words."""
        return [thing.tokens if self.span == "phrase" else noun(thing) for thing in objects]

    def scores(
        self, seen: dict[str, Tokens], scene: Scene, other: Scene, words: Sequence[Span]
    ) -> dict[str, float | None]:
        """Returns one scene's numbers by the estimates' names; None where no object has a patch."""
        spans = self.spans(in_spoken_order(scene))
        masks, others = ([thing.mask for thing in in_spoken_order(s)] for s in (scene, other))
        layers = {name: tokens for name, tokens in seen.items() if name != ALL}
        iou = {name: overlap(tokens.strongest, spans, masks) for name, tokens in seen.items()}
        chance = {name: overlap(tokens.strongest, spans, others) for name, tokens in seen.items()}
        right = {name: share_right(tokens.of_objects, spans, masks) for name, tokens in seen.items()}
        by_a_word = [
            (owners(tokens.strongest, spans, words) < len(OWNERS)).float().mean().item() for tokens in layers.values()
        ]
        return {
            "value": mean_of([iou[name] for name in layers]),
            **iou,
            "majority": mean_of([overlap(t.strongest, spans, masks, vote=True) for t in layers.values()]),
            "chance": mean_of([chance[name] for name in layers]),
            **{f"chance_{name}": share for name, share in chance.items()},
            "owned_by_words": mean_of(by_a_word),
            "right_object": mean_of([right[name] for name in layers]),
            **{f"right_object_{name}": share for name, share in right.items()},
        }

    def pictures(self, scene: Scene, seen: Sequence[Tokens], words: Sequence[Span]) -> list[Image.Image]:
        columns = [tokens.strongest for tokens in seen]
        spans = self.spans(scene.objects)
        maps = [true_owners(scene, *columns[-1].shape[1:]), *(owners(k, spans, words) for k in columns)]
        return [to_image(scene.image / 255), *(owners_image(scene, index) for index in maps)]


def noun(thing: Object) -> Range:
    """Returns the tokens of an object's noun, the end of its phrase."""
    return thing.tokens[1] - len(Tokenizer(pad_id=0).bpe.encode(thing.label)), thing.tokens[1]


def overlap(k: Tensor, spans: Sequence[Range], masks: Sequence[Tensor], vote: bool = False) -> float | None:
    """IoU of each mask [H, W] with the patches whose token in k [H, h, w] lies in its span; heads' and masks' mean.

    With `vote`, of the patches where that is so in more than half of the heads. None if no mask has a patch.
    """
    found = []
    for (start, stop), mask in zip(spans, masks, strict=False):
        true = on_grid(mask, *k.shape[1:])
        predicted = (start <= k) & (k < stop)
        if vote:
            predicted = predicted.float().mean(dim=0, keepdim=True) > 0.5
        if true.any():
            both, either = (predicted & true).sum(dim=(1, 2)), (predicted | true).sum(dim=(1, 2))
            found.append((both / either).mean().item())
    return mean_of(found)


def share_right(k: Tensor, spans: Sequence[Range], masks: Sequence[Tensor]) -> float | None:
    """Returns the share of the masks' patches whose token in k [heads, h, w] lies in the mask's span."""
    hits = patches = 0.0
    for (start, stop), mask in zip(spans, masks, strict=True):
        true = on_grid(mask, *k.shape[1:])
        hits += ((start <= k) & (k < stop) & true).float().mean(dim=0).sum().item()
        patches += true.sum().item()
    return hits / patches if patches else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """Returns the mean of those that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def layer_name(site: Site) -> str:
    """Returns "down1.0_8x8" of "down_blocks.1.attentions.0.transformer_blocks.0.attn2" on 8 x 8 patches."""
    place = site.name.split(".transformer_blocks")[0].replace(".attentions", "")
    return f"{place.replace('_blocks.', '').replace('_block', '')}_{site.height}x{site.width}"


def ranked(layers: dict[str, Estimate]) -> list[str]:
    """Returns what a figure shows: the layer of the largest value, the middle one and the one of the smallest."""
    names = sorted(layers, key=lambda name: layers[name].value, reverse=True)
    return [*dict.fromkeys((names[0], names[len(names) // 2], names[-1]))]
