"""What `python -m experiments.sample` does: pictures of prompts x seeds under a guidance, in a run folder."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from experiments import files
from experiments.pictures import captioned, save_png, sheet
from experiments.run import build
from experiments.run.folder import Run
from experiments.run.logger import Logger
from experiments.run.prompts import Prompt
from guidance import Guidance, guided
from ldm import LatentDiffusion
from ldm.condition import Conditions
from samplers import ImageNoise, KeyedNoise, Step, as_x_0
from samplers.predict import Denoise, Network, Predict


@dataclass(frozen=True)
class Job:
    """A config that was found good, with all that it takes to draw its pictures. Nothing is written yet."""

    cfg: DictConfig
    settings: dict[str, Any]  # the config, less what no picture depends on
    prompts: list[Prompt]
    batches: list[list[tuple[int, int]]]  # prompt index and seed of each picture
    ours: list[int]  # the batches of this shard
    columns: int | None  # pictures of a prompt; None where prompts bring seeds of their own
    guidance: Guidance
    stages: list[build.Stretch]  # of its guidance
    device: torch.device
    model: LatentDiffusion
    network: Network  # the model's U-Net, compiled if so wanted
    sampler: Callable[..., Iterator[tuple[Step, Tensor, Tensor]]]
    size: tuple[int, int]
    noise: Tensor | None


def main(cfg: DictConfig) -> None:
    folder, job = Path(HydraConfig.get().runtime.output_dir), prepare(cfg)
    with Logger(cfg.logger, job.settings, folder) as logger:
        records = draw(job, folder, logger)
    if records is None:
        print(f"shard {cfg.shard}: its {len(job.ours)} batches are done; others are missing yet: {folder}")
        return
    mean = sum(record["seconds"] for record in records) / len(records)
    evaluations = sum(record["evaluations"] for record in records) / len(records)
    print(f"{len(records)} pictures, {mean:.2f} s and {evaluations:g} U-Net evaluations each: {folder}/grid.png")


def prepare(cfg: DictConfig) -> Job:
    """Raises ValueError, or OSError of a file, for whatever keeps the config from being drawn."""
    prompts, seeds = build.prompts(cfg), build.seeds(cfg)
    guidance = build.guidance(cfg.guidance)
    device = build.device(cfg.device)
    for name in ("batch_size", "max_batch"):
        if not (type(cfg[name]) is int and cfg[name] > 0) and (name, cfg[name]) != ("max_batch", None):
            raise ValueError(f"{name}={cfg[name]}: must be a whole number of at least 1")

    model = build.text_to_image(cfg.model, device, cfg.dtype)
    config = model.config
    size = cfg.height or config.image_size, cfg.width or config.image_size
    plan = [(p, seed) for p, prompt in enumerate(prompts) for seed in (seeds if prompt.seed is None else [prompt.seed])]
    batches = [plan[i : i + cfg.batch_size] for i in range(0, len(plan), cfg.batch_size)]
    shard, shards = build.shard(cfg.shard)  # the batches are the same whatever the shards, and so the pictures
    shape = len(plan), *model.latent_shape(*size)
    noise = None if cfg.noise is None else read_noise(Path(cfg.noise), shape)

    stages = build.stretches(guidance, build.steps(cfg.sampler, config.schedule))
    if prompts[0].text is None and any(stage.prompt is None for stage in stages):
        raise ValueError("nothing to draw: give prompt='...', prompts=NAME, or prompts=file prompts.path=FILE")
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    del settings["logger"], settings["shard"]
    return Job(
        cfg,
        settings,
        prompts,
        batches,
        list(range(len(batches)))[shard::shards],
        None if any(prompt.seed is not None for prompt in prompts) else len(seeds),
        guidance,
        stages,
        device,
        model,
        build.network(model.unet, cfg.compile),
        build.sampler(cfg.sampler, config.schedule),
        size,
        noise,
    )


def draw(job: Job, folder: Path, logger: Logger) -> list[dict[str, Any]] | None:
    """Make what is missing in the run folder; its records, or None while another shard's batches are missing."""
    cfg = job.cfg
    cut = warn_of_cut_prompts(job.model, job.prompts, job.stages)
    run = Run(folder, job.settings, job.device, build.shard(cfg.shard))
    steps = sum(len(job.batches[b]) if cfg.deterministic else 1 for b in job.ours) * cfg.sampler.steps
    with torch.no_grad(), tqdm(total=steps, unit="step", desc="sampling") as bar:
        for b in job.ours:
            batch = job.batches[b]
            if run.has(b, batch, cfg.save_latents):
                bar.update(cfg.sampler.steps * (len(batch) if cfg.deterministic else 1))
                continue
            start = time.perf_counter()
            together = 1 if cfg.deterministic else cfg.batch_size
            parts = [
                draw_together(job, batch[i : i + together], b * cfg.batch_size + i, bar.update)
                for i in range(0, len(batch), together)
            ]
            *tensors, rows = zip(*parts, strict=True)
            x_T, x_0, images = (torch.cat(some) for some in tensors)
            evaluations = sum(rows) // len(batch)
            if cfg.save_latents:
                run.add_latents(b, x_T, x_0)
            seconds = (time.perf_counter() - start) / len(batch)
            for (p, seed), image in zip(batch, images, strict=True):
                record = {"prompt_index": p, **asked(job.prompts[p], job.stages), "seed": seed}
                record |= {"evaluations": evaluations, "seconds": round(seconds, 4)}
                record |= {"cut": cut[p]} if p in cut else {}
                run.add(image, determined_by(job.settings, job.prompts[p], seed, job.size), record)
            logger.log({"seconds_per_image": seconds, "images": len(run.records)})

    records = run.finish(job.batches, cfg.save_latents)
    if records is not None:
        picture = contact_sheet(folder, records) if job.columns is None else grid(folder, records, job.columns)
        save_png(picture, folder / "grid.png")
        mean = sum(record["seconds"] for record in records) / len(records)
        evaluations = sum(record["evaluations"] for record in records) / len(records)
        logger.summary({"mean_seconds_per_image": mean, "unet_evaluations_per_image": evaluations})
        logger.images("samples", records, folder)
    return records


def draw_together(
    job: Job, pictures: list[tuple[int, int]], first: int, progress: Callable[[], Any]
) -> tuple[Tensor, Tensor, Tensor, int]:
    """x_T and x_0 [B, C, h, w], images [B, 3, H, W] and the rows that the network evaluated for them.

    pictures  (prompt index, seed) of each; `first` counts those before them
    """
    prompts, seeds = [job.prompts[p] for p, _ in pictures], [seed for _, seed in pictures]
    noise = ImageNoise(seeds, job.model.latent_shape(*job.size), job.device)
    x_T = noise()
    if job.noise is not None:
        x_T = job.noise[first:][: len(pictures)].to(job.device)
    sampler = partial(job.sampler, noise=noise)
    predict = Counted(as_x_0(job.network, job.model.config.schedule.prediction))
    conditions = conditions_of(job.model, prompts, seeds)
    x_0 = sample(guided(predict, job.guidance, conditions, job.cfg.max_batch), sampler, x_T, progress)
    return x_T, x_0, job.model.decode(x_0).cpu(), predict.rows


@dataclass
class Counted:
    """A predictor, and the rows it has evaluated."""

    predict: Predict
    rows: int = 0

    def __call__(self, x_t: Tensor, *told: Any) -> Tensor:
        self.rows += len(x_t)
        return self.predict(x_t, *told)


def conditions_of(model: LatentDiffusion, prompts: list[Prompt], seeds: list[int]) -> Conditions:
    """What a guidance draws on for pictures of these prompts and seeds."""
    texts, negative = [prompt.text or "" for prompt in prompts], [prompt.negative for prompt in prompts]
    return model.conditions(texts, negative, KeyedNoise(seeds, model.device))


def sample(
    denoise: Denoise,
    sampler: Callable[..., Iterator[tuple[Step, Tensor, Tensor]]],
    x_T: Tensor,
    progress: Callable[[], Any],
) -> Tensor:
    """Latents x_0 [B, C, h, w] of a batch. Raises ValueError naming the first step after which they are not finite."""
    steps, finite = [], []
    for step, x_t, _ in sampler(denoise, x_T):  # noqa: B007
        steps.append(step)
        finite.append(x_t.isfinite().all())
        progress()
    bad = (~torch.stack(finite)).nonzero().flatten().tolist()  # looked at once, so that the loop never waits for a GPU
    if bad:
        step = steps[bad[0]]
        raise ValueError(
            f"latents are not finite after step {step.i + 1} of {step.n} (t={step.now.t:g}): "
            "lower the guidance's scales, or use dtype=float32 if this was float16"
        )
    return x_t


def asked(prompt: Prompt, stages: list[build.Stretch]) -> dict[str, Any]:
    """What a picture was asked to show: its prompt, and its stages if they have prompts of their own."""
    record: dict[str, Any] = {} if prompt.text is None else {"prompt": prompt.text}
    if any(stage.prompt is not None for stage in stages):
        record["stages"] = [{"prompt": stage.prompt or prompt.text, "steps": stage.steps} for stage in stages]
    record["negative_prompt"] = prompt.negative
    return record | ({"objects": list(prompt.objects)} if prompt.objects else {})


def determined_by(settings: dict[str, Any], prompt: Prompt, seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """What a picture depends on, so that equal pictures are equal files: no path, device, time or neighbours."""
    noise = settings["noise"] and hashlib.sha256(Path(settings["noise"]).read_bytes()).hexdigest()
    return {
        "prompt": prompt.text,
        "negative_prompt": prompt.negative,
        "seed": seed,
        "size": size,
        "noise": noise,
        "model": {key: settings["model"][key] for key in ("name", "prediction", "ema")},
        **{key: settings[key] for key in ("sampler", "guidance", "dtype")},
    }


def read_noise(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The first draws x_T [images, C, h, w] from a file. Raises ValueError if they are not of this shape."""
    if not path.is_file():
        raise ValueError(f"noise={path}: there is no such file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"noise={path}: not a whole safetensors file: {error}") from error
    if "x_T" not in tensors:
        raise ValueError(f"noise={path}: has no tensor x_T, only {', '.join(tensors) or 'nothing'}")
    if tensors["x_T"].shape != shape:
        raise ValueError(f"noise={path}: x_T is {list(tensors['x_T'].shape)}, but these images need {list(shape)}")
    return tensors["x_T"].float()


def warn_of_cut_prompts(model: LatentDiffusion, prompts: list[Prompt], plan: list[build.Stretch]) -> dict[int, str]:
    """Warn of text beyond the 77 tokens; what is cut off, by prompt index."""
    cut: dict[int, list[str]] = {p: [] for p in range(len(prompts))}
    stages = [stage.prompt for stage in plan if stage.prompt is not None]
    for p, prompt in enumerate(prompts):
        texts = [*stages, prompt.text or "", prompt.negative]
        cut[p] = [rest for rest in model.tokenizer(texts).cut if rest]
        for rest in cut[p]:
            files.say(f"warning: a prompt of picture {p} is longer than 77 tokens; cut off: {rest!r}")
    return {p: " | ".join(rests) for p, rests in cut.items() if rests}


def grid(folder: Path, records: list[dict[str, Any]], columns: int) -> Image.Image:
    """At most 32 prompts x 12 seeds of a run, labelled."""
    rows = [records[i : i + columns] for i in range(0, len(records), columns)][:32]
    pictures = [[Image.open(folder / record["file"]) for record in row[:12]] for row in rows]
    cell = min(max(128, *pictures[0][0].size), 256)
    return sheet(pictures, [told(row[0]) for row in rows], [f"seed {r['seed']}" for r in rows[0][:12]], cell)


def contact_sheet(folder: Path, records: list[dict[str, Any]]) -> Image.Image:
    """The first 64 pictures of a run whose prompts bring seeds of their own, in 8 columns, each with its prompt."""
    pictures = [Image.open(folder / record["file"]) for record in records[:64]]
    return captioned(pictures, [told(r) for r in records[:64]], columns=8, cell=min(max(128, *pictures[0].size), 256))


def told(record: dict[str, Any]) -> str:
    return record.get("prompt") or " > ".join(f"{s['prompt']} ({s['steps']})" for s in record["stages"])
