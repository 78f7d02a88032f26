"""A few prompts that stand for many, chosen as for the segmentation-free paper's raters: see experiments.subset.

First a size: the Frechet distance between the text embeddings of a random subset and of all prompts falls as the subset
grows, and where it no longer does, the subset is large enough. Then, of that subset's classifier-free pictures, those
prompts whose CLIP scores lie around given percentiles (Azarian et al., arXiv 2407.04800).

Letters of shapes: N prompts, D the width of a text embedding.
"""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from experiments import files
from experiments.files import UserError, read_lines
from experiments.frechet import frechet_distance, gaussian
from experiments.metrics.clip import EMBEDDED, cut_warnings, is_cut, load_clip
from experiments.run import build
from experiments.run.prompts import Prompt

SMALLEST = 8  # prompts in the first subset of the curve


def distance_curve(x: Tensor, repeats: int, seed: int) -> dict[int, list[float]]:
    """Returns, for 8, 16, 32, ... and all N samples x [N, D], the Frechet distances of `repeats` random subsets to all.

    Subsets are drawn without replacement, and a repeat's smaller ones lie in its larger ones.
    """
    whole, orders = gaussian(x), [shuffled(len(x), seed, repeat) for repeat in range(repeats)]
    sizes = [*doubling(len(x)), len(x)]
    return {n: [frechet_distance(gaussian(x[order[:n]]), whole) for order in orders] for n in sizes}


def shuffled(count: int, seed: int, repeat: int) -> list[int]:
    return np.random.default_rng([seed, repeat]).permutation(count).tolist()


def doubling(count: int) -> list[int]:
    """Returns 8, 16, 32, ... below `count`."""
    return [SMALLEST << i for i in range(count.bit_length()) if SMALLEST << i < count]


def flat_from(curve: dict[int, list[float]], least_gain: float) -> int:
    """Returns the smallest size from which on every doubling lowers the mean distance by less than `least_gain`.

    The last size is all there is; it is the answer where the curve falls until then.
    """
    sizes, means = list(curve), [float(np.mean(distances)) for distances in curve.values()]
    gains = [before - after for before, after in zip(means, means[1:], strict=False)]
    return sizes[max((i + 1 for i, gain in enumerate(gains) if gain >= least_gain), default=0)]


def bands(total: int, percentiles: list[float], around: int) -> dict[float, range]:
    """Returns for each percentile the `around` ranks nearest to its own, of ranks 0 (low) to `total` - 1.

    Raises UserError for what is no percentile, and for bands that share a rank.
    """
    if not percentiles or not all(type(p) in (int, float) and 0 <= p <= 100 for p in percentiles):
        raise UserError(f"percentiles={percentiles}: at least one, each from 0 to 100")
    if type(around) is not int or not 1 <= around <= total:
        raise UserError(f"around={around}: must be a whole number from 1 to {total}, the size of the subset")
    found = {}
    for percentile in percentiles:
        first = round(percentile / 100 * (total - 1) - (around - 1) / 2)
        first = min(max(first, 0), total - around)
        found[percentile] = range(first, first + around)
    if len(set().union(*found.values())) < around * len(percentiles):
        raise UserError(f"around={around}: among {total} prompts the percentiles {percentiles} would share some")
    return found


@torch.inference_mode()
def text_embeddings(texts: list[str], cfg: DictConfig) -> Tensor:
    """Returns unit text embeddings [N, D], float64, of the CLIP that `cfg` names. Raises UserError without it."""
    device = build.device(cfg.device)
    network, _, tokenizer, _ = load_clip(cfg.clip.model or str(EMBEDDED), cfg.clip.pretrained, device)
    context = network.context_length
    for warning in cut_warnings([text for text in texts if is_cut(tokenizer, text, context)], context):
        files.say(f"warning: {warning}")
    batches = tokenizer(texts).split(cfg.batch_size)
    embedded = torch.cat([network.encode_text(tokens.to(device)) for tokens in batches])
    return F.normalize(embedded.double().cpu(), dim=-1)


def prompt_scores(run: Path, metric: str) -> dict[str, float]:
    """Returns the mean score of each prompt's pictures in an evaluated run. Raises UserError if it is not one."""
    path = run / "metrics" / f"{metric}.json"
    records = read_lines(run / "samples.jsonl")
    if not records:
        raise UserError(f"run={run}: holds no pictures")
    if not path.is_file():
        raise UserError(f"{path} is missing: `python -m experiments.evaluate run={run} metrics=[{metric}]` makes it")
    prompts = {record["file"]: record.get("prompt", "") for record in records}
    prompts |= {record["prompt_index"]: record.get("prompt", "") for record in records}
    scores = defaultdict(list)
    try:
        for picture in json.loads(path.read_text(encoding="utf-8"))["per_image"]:
            prompt = prompts[picture["file"] if "file" in picture else picture["prompt_index"]]
            scores[prompt].append(float(picture["value"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not hold scores per_image of this run: {error!r}") from error
    return {prompt: math.fsum(values) / len(values) for prompt, values in scores.items()}


def scores_of(prompts: list[Prompt], run: Path, metric: str) -> list[float]:
    """Returns the prompts' scores in a run. Raises UserError if some have none."""
    scores = prompt_scores(run, metric)
    missing = [prompt.text for prompt in prompts if not math.isfinite(scores.get(prompt.text or "", math.nan))]
    if missing:
        raise UserError(f"{run}: {len(missing)} of {len(prompts)} prompts have no score, the first: {missing[0]!r}")
    guidance = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]["guidance"]["_target_"]
    if guidance != "guidance.ClassifierFree":
        files.say(f"warning: {run} was drawn with {guidance}, and not with classifier-free guidance as the paper's")
    return [scores[str(prompt.text)] for prompt in prompts]


def prompt_record(prompt: Prompt, **more: Any) -> dict[str, Any]:
    """Returns a prompt as a record that `prompts=file` reads."""
    record: dict[str, Any] = {"prompt": prompt.text, "negative_prompt": prompt.negative, "seed": prompt.seed}
    record |= {"objects": list(prompt.objects), **more}
    return {key: value for key, value in record.items() if value not in (None, "", [])}


def curve_figure(curve: dict[int, list[float]], chosen: int, ranked: list[float], taken: dict[float, range]) -> Any:
    """Draws the curve with its range over the repeats and, if there are any, the ranked scores with their bands."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11 if taken else 5.5, 4), layout="constrained")
    left, *right = drawing.subplots(1, 2 if taken else 1, squeeze=False)[0]
    plot_curve(left, curve, chosen)
    for axes in right:
        plot_ranks(axes, ranked, taken)
    return drawing


def plot_curve(axes: Any, curve: dict[int, list[float]], chosen: int) -> None:
    sizes, distances = list(curve), np.array(list(curve.values()))
    axes.fill_between(sizes, distances.min(axis=1), distances.max(axis=1), alpha=0.3, linewidth=0)
    axes.plot(sizes, distances.mean(axis=1), marker="o", markersize=3)
    axes.axvline(chosen, color="black", linestyle=":", label=f"chosen: {chosen}")
    axes.set(xscale="log", xlabel="prompts in the subset", ylabel="Frechet distance to all, text embeddings")
    axes.set_xticks(sizes[:-1], labels=map(str, sizes[:-1]))
    axes.minorticks_off()
    axes.legend()


def plot_ranks(axes: Any, ranked: list[float], taken: dict[float, range]) -> None:
    axes.plot(ranked, color="grey")
    for percentile, ranks in taken.items():
        axes.plot(list(ranks), [ranked[rank] for rank in ranks], ".", label=f"around percentile {percentile}")
    axes.set(xlabel="rank of the prompt", ylabel="mean score")
    axes.legend()
