"""python -m experiments.subset: a few prompts that stand for many, chosen as for the segmentation-free paper's raters.

subset.jsonl has the prompts, for prompts=file; subset.json and subset.png the curve by which their number was chosen.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments import files
from experiments.files import UserError, describe, write
from experiments.frechet import gaussian
from experiments.metrics.subset import (
    SMALLEST,
    bands,
    curve_figure,
    distance_curve,
    flat_from,
    prompt_record,
    scores_of,
    shuffled,
    text_embeddings,
)
from experiments.run import build, cli
from experiments.run.prompts import suite


def main(cfg: DictConfig) -> None:
    """Raises UserError for too few prompts, for a wrong setting, and for a run without the scores asked for."""
    if cfg.repeats < 1:
        raise UserError(f"repeats={cfg.repeats}: must be a whole number of at least 1")
    prompts = suite(cfg.prompts)
    if len(prompts) < 2 * SMALLEST:
        raise UserError(f"{len(prompts)} prompts: a curve needs at least {2 * SMALLEST}")

    embeddings = text_embeddings([str(prompt.text) for prompt in prompts], cfg)
    curve = distance_curve(embeddings, cfg.repeats, cfg.seed)
    variance = gaussian(embeddings).factor.square().sum().item()
    size = flat_from(curve, cfg.tolerance * variance)
    positions = sorted(shuffled(len(prompts), cfg.seed, 0)[:size])
    chosen = [prompt_record(prompts[i], position=i) for i in positions]

    scores, taken = list[float](), dict[float, range]()
    if cfg.run is not None:
        scores = scores_of([prompts[i] for i in positions], Path(cfg.run), cfg.score)
        taken = bands(size, list(cfg.percentiles), cfg.around)
        ranked = sorted(range(size), key=scores.__getitem__)
        chosen = [
            chosen[ranked[rank]] | {"percentile": percentile, "score": scores[ranked[rank]]}
            for percentile, ranks in taken.items()
            for rank in ranks
        ]

    out = Path(HydraConfig.get().runtime.output_dir)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    result = {
        "prompts": len(prompts),
        "size": size,
        "flattened": size < len(prompts),
        "total_variance": variance,
        "curve": [{"size": n, "mean": float(np.mean(d)), "distances": d} for n, d in curve.items()],
        "subset": positions,
        **describe(settings, build.device(cfg.device)),
    }
    write(out / "subset.json", json.dumps(result, indent=1) + "\n")
    write(out / "subset.jsonl", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in chosen))
    curve_figure(curve, size, sorted(scores), taken).savefig(out / "subset.png", dpi=150)
    if size == len(prompts):
        files.say(f"warning: half of them are still further away than tolerance={cfg.tolerance} allows: all are taken")
    print(f"{size} of {len(prompts)} prompts stand for all; {len(chosen)} are chosen: {out / 'subset.jsonl'}")


if __name__ == "__main__":
    cli.run(main, "subset")
