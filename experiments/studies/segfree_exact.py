"""How near segmentation-free guidance as it is used comes to its exact form, which is too dear to use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from experiments.attention.maps import average, owner_map, word_votes
from experiments.emoji.world import Scene
from experiments.metrics import Bench, Result
from experiments.pictures import save_png, to_image
from experiments.studies.scenes import (
    OWNERS,
    PICTURED,
    Noised,
    SceneStudy,
    figure,
    heat_image,
    on_grid,
    owners,
    owners_image,
    predict_each,
    true_owners,
)
from guidance import Branch, SegmentationFree
from guidance.edits import leave_out, record
from ldm import LatentDiffusion
from ldm.attention import Site
from ldm.text import Span


@dataclass(frozen=True)
class SegfreeExact(SceneStudy):
    """Two directions for a scene's x_t (Azarian et al. 2024): exact (eq. 5-7) and practical (eq. 8-11).

    exact      a patch's word k is the one whose leaving-out changes the denoising of the patch most, and the direction
               there is eps(c) - eps(c without k). Without: masked from the keys of every cross-attention layer, the
               others renormalised. Patches are those of the finest cross-attention grid, a patch's change the L2
               norm over its latent cells and channels; the words are all of the caption's, with all their tokens.
    practical  eps(c) - eps(c with each patch's strongest token scaled by -a), guidance.SegmentationFree's
    sf_scale, argmax, candidates: settings of the practical form; sf_scale is a

    value: the cosine of the two over the whole latent, mean over scenes; inside, outside: over the cells inside and
    outside the objects' masks. norm_ratio: norm of the practical over that of the exact. same_word: the share of
    patches where the word with most heads' strongest tokens, over the layers with the finest grid, is the exact form's;
    same_word_chance: what it would be if either form's words were shuffled over the patches. exact_own_words,
    practical_own_words: of the patches that are of an object, those whose word is in its phrase. exact_vs_cfg,
    practical_vs_cfg: cosines with classifier-free guidance's eps(c) - eps(empty); exact_on_cfg, practical_on_cfg: their
    projections on it, 1 being its whole length.
    """

    sf_scale: float = 10.0
    argmax: str = "head"
    candidates: str = "all_but_bos"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.form()

    def form(self) -> SegmentationFree:
        """Raises UserError for a wrong setting."""
        return SegmentationFree(cfg_steps=0, sf_scale=self.sf_scale, argmax=self.argmax, candidates=self.candidates)

    @torch.no_grad()
    def measure(self, model: LatentDiffusion, bench: Bench, folder: Path) -> Result:
        scores, scenes, rows = list[dict[str, float | None]](), list[Scene](), list[list[Image.Image]]()
        for noised in self.batches(model, bench):
            eps, pushed = self.passes(model, noised)
            exact, words = exact_form(model, noised, eps["cond"], (pushed.shape[1], pushed.shape[2]))
            for b, (scene, spans) in enumerate(zip(noised.scenes, noised.conditions.cond.spans, strict=True)):
                practical, cfg = (eps["cond"][b] - eps[name][b] for name in ("rest", "empty"))
                found = Forms(spans, exact[b].cpu(), practical.cpu(), cfg.cpu(), words[b].cpu(), pushed[b])
                scores.append(score(scene, found))
                if len(rows) < PICTURED:
                    rows.append(pictures(scene, found))
            scenes += noised.scenes
        estimates = {
            name: bench.bootstrap.mean([s[name] for s in scores], [scene.caption for scene in scenes])
            for name in scores[0]
        }
        columns = ["scene", "exact: word", "practical: word", "exact: length", "practical: length", "classifier-free"]
        title = f"Words pushed out, and lengths of the directions (pale: the picture's longest), t={self.timestep}"
        save_png(figure(rows, scenes[:PICTURED], columns, title), folder / "figure.png")
        return Result(estimates.pop("value"), estimates, about=self.about(model))

    def passes(self, model: LatentDiffusion, noised: Noised) -> tuple[dict[str, Tensor], Tensor]:
        """eps [B, C, h, w] of the passes "cond", "rest" and "empty"; the words that the practical form pushes out.

        Those are indices [B, p, q] on the finest grid of the layers; the number of a caption's words means none.
        """
        conditions, votes = noised.conditions, [list[Tensor]() for _ in noised.scenes]

        def store(site: Site, weights: Tensor) -> None:
            for b, words in enumerate(conditions.cond.spans):
                votes[b].append(word_votes(weights[b], words, site, self.argmax, self.candidates).cpu())

        branches = self.form().branches(conditions, noised.step)
        branches["cond"] = Branch(conditions.cond, (record(store),))
        branches["empty"] = Branch(conditions.negative)
        eps = predict_each(model, noised, branches)
        return eps, torch.stack([owner_map(average(finest(layers))) for layers in votes])


@dataclass(frozen=True)
class Forms:
    """One scene's directions [C, h, w], and the indices [p, q] of the words that the two forms leave or push out."""

    words: Sequence[Span]
    exact: Tensor
    practical: Tensor
    cfg: Tensor
    exact_word: Tensor
    practical_word: Tensor

    def owners(self, word: Tensor, scene: Scene) -> Tensor:
        """Returns the owners of the words, as in `scenes.owners`."""
        starts = torch.tensor([*(span.start for span in self.words), 0])  # BOS is of no word
        return owners(starts[word], [thing.tokens for thing in scene.objects], self.words)


def finest(layers: Sequence[Tensor]) -> list[Tensor]:
    """Returns those of the maps [N, p, q] that have most patches."""
    most = max(layer[0].numel() for layer in layers)
    return [layer for layer in layers if layer[0].numel() == most]


def exact_form(model: LatentDiffusion, noised: Noised, eps_c: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns directions [B, C, h, w] and words [B, p, q], by a pass for each word of the longest caption."""
    text = noised.conditions.cond
    longest = max(len(words) for words in text.spans)
    directions = list[Tensor]()
    for k in range(longest):
        edit = leave_out([words[k : k + 1] for words in text.spans])
        directions.append(eps_c - predict_each(model, noised, {"cond": Branch(text, (edit,))})["cond"])
    every = torch.stack(directions)  # [words, B, C, h, w]
    change = torch.stack([F.adaptive_avg_pool2d(d.square().sum(dim=1), grid) for d in directions])
    for b, words in enumerate(text.spans):
        change[len(words) :, b] = -1
    word = change.argmax(dim=0)
    cells = F.interpolate(word[:, None].float(), eps_c.shape[2:], mode="nearest").long()
    return every.gather(0, cells[None].expand(1, *eps_c.shape))[0], word


def score(scene: Scene, found: Forms) -> dict[str, float | None]:
    """Returns one scene's numbers by the estimates' names; None where the objects have no cell."""
    practical, exact, cfg = found.practical, found.exact, found.cfg
    objects = on_grid(torch.stack([thing.mask for thing in scene.objects]).any(dim=0), *exact.shape[1:])
    truth = true_owners(scene, *found.exact_word.shape)
    shares = [
        F.one_hot(word.flatten(), len(found.words) + 1).float().mean(dim=0)
        for word in (found.exact_word, found.practical_word)
    ]
    return {
        "value": cosine(practical, exact),
        "inside": cosine(practical[:, objects], exact[:, objects]) if objects.any() else None,
        "outside": cosine(practical[:, ~objects], exact[:, ~objects]),
        "norm_ratio": (practical.norm() / exact.norm()).item(),
        "same_word": (found.exact_word == found.practical_word).float().mean().item(),
        "same_word_chance": (shares[0] * shares[1]).sum().item(),
        "exact_own_words": agreement(found.owners(found.exact_word, scene), truth),
        "practical_own_words": agreement(found.owners(found.practical_word, scene), truth),
        "exact_vs_cfg": cosine(exact, cfg),
        "practical_vs_cfg": cosine(practical, cfg),
        "exact_on_cfg": ((exact * cfg).sum() / cfg.square().sum()).item(),
        "practical_on_cfg": ((practical * cfg).sum() / cfg.square().sum()).item(),
    }


def cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def agreement(owner: Tensor, truth: Tensor) -> float | None:
    """Returns the share of the objects' patches [p, q] whose word is one of the object's own."""
    known = truth < len(OWNERS)
    return (owner == truth)[known].float().mean().item() if known.any() else None


def pictures(scene: Scene, found: Forms) -> list[Image.Image]:
    words = [found.owners(word, scene) for word in (found.exact_word, found.practical_word)]
    lengths = [direction.norm(dim=0) for direction in (found.exact, found.practical, found.cfg)]
    return [
        to_image(scene.image / 255),
        *(owners_image(scene, index) for index in words),
        *(heat_image(scene, length, length.max().item()) for length in lengths),
    ]
