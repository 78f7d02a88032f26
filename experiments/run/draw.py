"""Draws the pictures of a request: what is asked, on what it runs, becomes latents, images and records.

The loop is in `moments`; everything that samples goes through it.
"""

import html
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from experiments.files import UserError, locked, say, write
from experiments.pictures import captioned, save_png, sheet
from experiments.run import build, settings
from experiments.run.build import ASIDE, Loaded, Machine, Moments, Request
from experiments.run.contents import contents
from experiments.run.folder import Run
from experiments.run.logger import Logger
from experiments.run.memory import check_memory
from experiments.run.prompts import Prompt
from experiments.run.tasks import Given, Task, check_resampling, given, read_task
from experiments.vectors.raster import on_paper
from guidance import Guidance, Stage, Unfit, guided
from guidance.branch import name_of
from ldm import LatentDiffusion
from ldm.condition import Sizes
from ldm.svg.drawing import to_svg
from samplers import ImageNoise, KeyedNoise, Step
from samplers.predict import Predict, prediction_of

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A request, and the machine that it was found to fit. Nothing is written yet.

    settings  the config, less what no picture depends on
    task      what the pictures start from
    contents  hashes of the files that it names, see `contents`
    size      height and width in pixels
    sizes     the same and more, as models like SDXL are told of it
    stages    the prompts that the guidance shows, and for how many steps; None is the picture's own
    x_T       the first draws of all pictures [N, C, h, w], where a file gives them
    """

    request: Request
    machine: Machine
    task: Task
    settings: dict[str, Any]
    contents: dict[str, str]
    size: tuple[int, int]
    sizes: Sizes
    stages: list[Stage]
    x_T: Tensor | None


def prepare(cfg: DictConfig, load: Callable[[DictConfig], Loaded] | None = None) -> Job:
    """Raises UserError, or OSError of a file, for whatever keeps the config from being drawn.

    load  what loads its models, see `build.machine`
    """
    settings.check(cfg)
    machine = build.machine(cfg, load)
    model = machine.model
    task, request = read_task(cfg.get("task"), build.request(cfg, model.config.classes.names), model)
    check_resampling(task, machine)
    size = build.size(model, request.height, request.width)
    sizes = build.sizes(cfg.get("task"), model, size)
    check_memory(model, size, request.together)
    shape = len(request.pictures), *model.latent_shape(*size)
    x_T = None if request.noise is None else read_noise(request.noise, shape)
    all_stages = build.stages(machine.guidance, build.steps(cfg.sampler, model.config.schedule))
    stages = build.stages(machine.guidance, machine.steps) if machine.steps else all_stages
    say_start(machine, all_stages, stages)
    build.check_prompts(model, request.prompts, stages)
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    kept = {key: value for key, value in config.items() if key not in ("logger", "shard")}
    hashes = contents(request.prompts, request.noise, {"the model": model, **machine.others}, machine.guidance)
    hashes |= task.contents
    return Job(request, machine, task, kept, hashes, size, sizes, stages, x_T)


def say_start(machine: Machine, all_stages: Sequence[Stage], stages: Sequence[Stage]) -> None:
    """Says which steps are taken where it is not all of them, and warns of a guidance's stages that are not."""
    if not machine.steps:
        say("no step is taken: nothing is drawn anew")
        return
    first, shown = machine.steps[0], {stage.prompt for stage in stages}
    if first.i:
        say(f"the last {len(machine.steps)} of {first.n} steps are taken")
        for prompt in dict.fromkeys(stage.prompt for stage in all_stages if stage.prompt not in shown):
            say(f"warning: the stage of {prompt!r} lies before them, and is never drawn")


# --- one batch --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Pictures that are drawn together: their prompts and seeds, their first draws, and the stream of the later ones.

    x_T    [B, ...], standard normal
    noise  () -> the next draw [B, ...] of each picture's stream, for samplers that add noise
    given  what the run's task gives them; None: they start from x_T
    sizes  of the pictures, and what models like SDXL are told of them
    """

    prompts: list[Prompt]
    seeds: list[int]
    x_T: Tensor
    noise: ImageNoise
    sizes: Sizes
    given: Given | None = None


def batch_of(job: Job, first: int, count: int) -> Batch:
    """Returns so many of a job's pictures, from the one at position `first` on."""
    pictures = job.request.pictures[first : first + count]
    prompts, seeds = [job.request.prompts[p] for p, _ in pictures], [seed for _, seed in pictures]
    batch = replace(from_seeds(job.machine.model, prompts, seeds, job.size), sizes=job.sizes)
    x_T = batch.x_T if job.x_T is None else job.x_T[first : first + count].to(job.machine.model.device)
    return replace(batch, x_T=x_T, given=given(job.task, job.machine, [p for p, _ in pictures], seeds, x_T))


def from_seeds(model: LatentDiffusion, prompts: list[Prompt], seeds: list[int], size: tuple[int, int]) -> Batch:
    """Returns a batch whose first draws come from the seeds."""
    noise = ImageNoise(seeds, model.latent_shape(*size), model.device)
    return Batch(prompts, seeds, noise(), noise, Sizes(size))


@torch.no_grad()
def moments(machine: Machine, batch: Batch, guidance: Guidance | None = None) -> Moments:
    """Yields (step, x_t, x_0) after every step of drawing a batch, under the machine's guidance or another.

    Raises UserError, after the last step, if latents are not finite, and names the step at which they ceased to be.
    """
    texts, negative = [prompt.text or "" for prompt in batch.prompts], [prompt.negative for prompt in batch.prompts]
    task, noise = batch.given or Given(batch.x_T), KeyedNoise(batch.seeds, machine.model.device)
    conditions = machine.model.conditions(texts, negative, noise, batch.sizes, task.channels)
    denoise = guided(machine.networks, guidance or machine.guidance, conditions, machine.max_batch)
    finite = []
    try:
        for step, x_t, x_0 in task.around(machine.sampler)(denoise, task.start, machine.steps, noise=batch.noise):
            finite.append(x_t.isfinite().all())
            yield step, x_t, x_0
    except Unfit as error:
        raise UserError(f"guidance: {name_of(guidance or machine.guidance)}: {error}") from error
    if not finite:
        return
    bad = (~torch.stack(finite)).nonzero().flatten().tolist()  # looked at once, so that the loop never waits for a GPU
    if bad:
        step = machine.steps[bad[0]]
        raise UserError(
            f"latents are not finite after step {step.i + 1} of {step.n} (t={step.now.t:g}): "
            "lower the guidance's scales, or use dtype=float32 if this was float16"
        )


class Observer(Protocol):
    """Looks on while a batch is drawn. The pictures have the same bytes without it.

    A pass that it needs beside the guidance's own is a branch of the network ASIDE, the main one by another name: so it
    goes in a forward of its own, and is not counted among the pictures' evaluations.
    """

    def around(self, guidance: Guidance) -> Guidance:
        """Returns the guidance that draws in the place of this one, with the same results."""

    def see(self, step: Step, x_0: Tensor) -> None:
        """Is told the clean estimate [B, C, h, w] of every step."""

    def done(self, images: Tensor) -> list[Record]:
        """Returns what the record of each picture is to hold, given the pictures [B, 3, H, W] in [0, 1]."""


@dataclass(frozen=True)
class Drawn:
    """Pictures: the first and the last latents [B, ...], images [B, 3, H, W] in [0, 1], and what they took.

    texts        the SVG of each picture that is a drawing; none of others
    evaluations  of the networks for each picture, those that only another of its batch needed among them
    seen         what observers add to the record of each picture
    idle         names of the networks that took no part
    """

    x_T: Tensor
    x_0: Tensor
    images: Tensor
    texts: list[str]
    evaluations: list[int]
    seen: list[Record]
    idle: set[str]


@torch.no_grad()
def draw_batch(
    machine: Machine, batch: Batch, progress: Callable[[], Any], observers: Sequence[Observer] = ()
) -> Drawn:
    """Draws a batch, and calls `progress` after every step."""
    counted = {name: Counted(predict) for name, predict in machine.networks.items()}
    aside = {ASIDE: machine.networks["main"]} if observers else {}
    watched = replace(machine, networks={**counted, **aside})
    guidance = reduce(lambda inner, observer: observer.around(inner), observers, machine.guidance)
    x_t = batch.x_T if batch.given is None else batch.given.start  # which it stays, if no step is taken
    for step, x_t, x_0 in moments(watched, batch, guidance):  # noqa: B007
        progress()
        for observer in observers:
            observer.see(step, x_0)
    rows = sum(network.rows for network in counted.values())
    drawings = None if machine.model.config.latents == "images" else machine.model.draw(x_t)
    images = machine.model.decode(x_t).cpu() if drawings is None else on_paper(drawings, batch.sizes.target[0])
    images = images if batch.given is None else batch.given.finished(images)
    seen: list[Record] = [{} for _ in batch.seeds]
    for observer in observers:
        seen = [one | more for one, more in zip(seen, observer.done(images), strict=True)]
    texts = [to_svg(drawing) for drawing in drawings or ()]
    idle = {name for name, network in counted.items() if machine.steps and not network.rows}
    return Drawn(batch.x_T, x_t, images, texts, [rows // len(batch.seeds)] * len(batch.seeds), seen, idle)


@dataclass
class Counted:
    """A network, and how many rows it has evaluated."""

    predict: Predict
    rows: int = 0

    @property
    def prediction(self) -> str:
        return prediction_of(self.predict)

    def __call__(self, x_t: Tensor, *others: Any) -> Tensor:
        self.rows += len(x_t)
        return self.predict(x_t, *others)


# --- a whole run ------------------------------------------------------------------------------------------------------


def draw_run(cfg: DictConfig, folder: Path, load: Callable[[DictConfig], Loaded] | None = None) -> list[Record] | None:
    """Draws what a config of the sampling verb asks for: `prepare`, then `draw`. Returns and raises what they do."""
    job = prepare(cfg, load)
    with Logger(cfg.logger, job.settings, folder) as logger:
        return draw(job, folder, logger)


def summary(records: Sequence[Record], folder: Path) -> str:
    """Returns what a finished run took, in a line."""
    seconds, evaluations = mean_of(records, "seconds"), mean_of(records, "evaluations")
    return f"{len(records)} pictures, {seconds:.2f} s and {evaluations:g} U-Net evaluations each: {folder}/grid.png"


Watch = Callable[[int, int], Sequence[Observer]]  # who looks on while pictures first .. first + count - 1 are drawn


def draw(job: Job, folder: Path, logger: Logger, watch: Watch = lambda first, count: ()) -> list[Record] | None:
    """Draws what is missing in the run folder. Returns its records; None while other shards' batches are missing."""
    request, machine = job.request, job.machine
    cut = cut_prompts(machine.model, request.prompts, job.stages)
    run = Run(folder, job.settings, machine.model.device, request.shard, job.contents)
    loops = {b: -(-len(request.batches[b]) // request.together) for b in request.ours}
    idle: set[str] | None = None
    with tqdm(total=sum(loops.values()) * len(machine.steps), unit="step", desc="sampling") as bar:
        for b in request.ours:
            pictures = request.batches[b]
            if run.has(b, pictures, request.save_latents):
                bar.update(loops[b] * len(machine.steps))
                continue
            start = time.perf_counter()
            drawn = draw_together(job, b, bar.update, watch)
            if request.save_latents:
                run.add_latents(b, drawn.x_T, drawn.x_0)
            took = (time.perf_counter() - start) / len(pictures)
            store(run, job, b, drawn, took, cut)
            idle = drawn.idle if idle is None else idle & drawn.idle
            logger.log({"seconds_per_image": took, "images": len(run.records)})
    for name in sorted(idle or ()):
        say(f"warning: networks.{name} took no part in any step")

    records = run.finish(request.batches, request.save_latents)
    if records is not None:
        show(folder, records, request.columns, machine.model.config.latents == "drawings")
        seconds, evaluations = mean_of(records, "seconds"), mean_of(records, "evaluations")
        logger.summary({"mean_seconds_per_image": seconds, "unet_evaluations_per_image": evaluations})
        logger.images("samples", records, folder)
    return records


def draw_together(job: Job, b: int, progress: Callable[[], Any], watch: Watch) -> Drawn:
    """Draws a stored batch: at once, or picture by picture. Raises UserError where a GPU has no room for it."""
    first, count, together = b * job.request.batch_size, len(job.request.batches[b]), job.request.together
    sizes = {first + i: min(together, count - i) for i in range(0, count, together)}
    try:
        parts = [draw_batch(job.machine, batch_of(job, i, n), progress, watch(i, n)) for i, n in sizes.items()]
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU is out of memory: use a smaller batch_size, max_batch, height or width") from error
    x_T, x_0, images = (torch.cat([getattr(part, name) for part in parts]) for name in ("x_T", "x_0", "images"))
    texts, evaluations, seen = (
        [one for part in parts for one in getattr(part, name)] for name in ("texts", "evaluations", "seen")
    )
    return Drawn(x_T, x_0, images, texts, evaluations, seen, set.intersection(*(part.idle for part in parts)))


def store(run: Run, job: Job, b: int, drawn: Drawn, seconds: float, cut: Mapping[int, str]) -> None:
    """Writes a batch's pictures and their records, each of which took so many seconds."""
    for k, (p, seed) in enumerate(job.request.batches[b]):
        record = {"prompt_index": p, **prompt_record(job.request.prompts[p], job.stages), "seed": seed}
        record |= job.task.about(p)
        record |= {"evaluations": drawn.evaluations[k], "seconds": round(seconds, 4)}
        record |= drawn.seen[k] | ({"cut": cut[p]} if p in cut else {})
        text = drawn.texts[k] if drawn.texts else None
        run.add(drawn.images[k], determined_by(job, p, seed), record, text)


def show(folder: Path, records: Sequence[Record], columns: int | None, drawings: bool) -> None:
    """Writes the sheet of a finished run, and of drawings a page."""
    picture = grid(folder, records, columns) if columns else contact_sheet(folder, records)
    with locked(folder):  # shards may get here at the same time
        save_png(picture, folder / "grid.png")
        if drawings:
            write(folder / "drawings.html", page(folder, records, columns or COLUMNS))


def mean_of(records: Sequence[Record], key: str) -> float:
    return sum(record[key] for record in records) / len(records)


def prompt_record(prompt: Prompt, stages: Sequence[Stage]) -> Record:
    """What a picture is to show, as its record says it: its prompt, and its stages if they have their own."""
    record: Record = {} if prompt.text is None else {"prompt": prompt.text}
    if any(stage.prompt is not None for stage in stages):
        record["stages"] = [{"prompt": stage.prompt, "steps": stage.steps} for stage in with_own_prompt(stages, prompt)]
    record["negative_prompt"] = prompt.negative
    return record | ({"objects": list(prompt.objects)} if prompt.objects else {})


def with_own_prompt(stages: Sequence[Stage], prompt: Prompt) -> list[Stage]:
    """The stages with the picture's own prompt where they leave it to the picture."""
    return [replace(stage, prompt=prompt.text) if stage.prompt is None else stage for stage in stages]


def determined_by(job: Job, p: int, seed: int) -> dict[str, Any]:
    """What a picture depends on, so that equal pictures are equal files: no path, device, time or neighbours."""
    asked, prompt = job.settings, job.request.prompts[p]
    hashes = {k: v for k, v in job.contents.items() if k != "prompts" and k not in job.task.contents}
    told = {} if job.machine.model.config.text_2 is None else {"sizes": job.sizes.numbers}
    return {
        "prompt": prompt.text,
        "negative_prompt": prompt.negative,
        "seed": seed,
        "size": job.size,
        "model": {key: asked["model"][key] for key in ("name", "prediction", "ema")},
        "contents": hashes,
        **job.task.determining(p),
        **told,
        "batch_size": None if job.request.deterministic else job.request.batch_size,
        "guidance": without_paths(asked["guidance"]),
        **{key: asked[key] for key in ("sampler", "dtype", "max_batch", "compile", "deterministic")},
    }


def without_paths(settings: Any) -> Any:
    """Settings without the paths of a guidance's networks, whose hashes are among the contents."""
    if isinstance(settings, dict):
        return {key: without_paths(value) for key, value in settings.items() if key != "path"}
    return [without_paths(value) for value in settings] if isinstance(settings, list) else settings


def read_noise(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Reads the first draws x_T [images, C, h, w]. Raises UserError if the file has none, or of another shape."""
    if not path.is_file():
        raise UserError(f"noise={path}: there is no such file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"noise={path}: not a whole safetensors file: {error}") from error
    if "x_T" not in tensors:
        raise UserError(f"noise={path}: has no tensor x_T, only {', '.join(tensors) or 'nothing'}")
    if tensors["x_T"].shape != shape:
        raise UserError(f"noise={path}: x_T is {list(tensors['x_T'].shape)}, but these images need {list(shape)}")
    return tensors["x_T"].float()


def cut_prompts(model: LatentDiffusion, prompts: Sequence[Prompt], stages: Sequence[Stage]) -> Mapping[int, str]:
    """Warns of text beyond the 77 tokens. Returns what is cut off, by prompt index."""
    if model.config.condition != "text":
        return {}
    cut: dict[int, list[str]] = {}
    own = [stage.prompt for stage in stages if stage.prompt is not None]
    for p, prompt in enumerate(prompts):
        cut[p] = [rest for rest in model.tokenizer([*own, prompt.text or "", prompt.negative]).cut if rest]
        for rest in cut[p]:
            say(f"warning: a prompt of picture {p} is longer than 77 tokens; cut off: {rest!r}")
    return {p: " | ".join(rests) for p, rests in cut.items() if rests}


# --- the sheet of a run -----------------------------------------------------------------------------------------------


def grid(folder: Path, records: Sequence[Record], columns: int) -> Image.Image:
    """Returns at most 32 prompts x 12 seeds of a run, labelled."""
    rows = [records[i : i + columns] for i in range(0, len(records), columns)][:32]
    pictures = [[Image.open(folder / record["file"]) for record in row[:12]] for row in rows]
    cell = min(max(128, *pictures[0][0].size), 256)
    return sheet(pictures, [title(row[0]) for row in rows], [f"seed {r['seed']}" for r in rows[0][:12]], cell)


COLUMNS = 8  # of pictures whose prompts bring seeds of their own


def contact_sheet(folder: Path, records: Sequence[Record]) -> Image.Image:
    """Returns the first 64 pictures of a run whose prompts bring seeds of their own, each with its prompt."""
    pictures = [Image.open(folder / record["file"]) for record in records[:64]]
    return captioned(
        pictures, [title(r) for r in records[:64]], columns=COLUMNS, cell=min(max(128, *pictures[0].size), 256)
    )


def title(record: Record) -> str:
    """What a picture shows, in a line."""
    return record.get("prompt") or " > ".join(f"{s['prompt']} ({s['steps']})" for s in record.get("stages", ()))


def page(folder: Path, records: Sequence[Record], columns: int) -> str:
    """Returns an HTML page with all drawings of a run as the vectors that they are, each with its prompt and seed."""
    figures = [
        f"<figure>{(folder / record['svg']).read_text(encoding='utf-8')}"
        f"<figcaption>{html.escape(title(record))}, seed {record['seed']}</figcaption></figure>"
        for record in records
    ]
    style = (
        f"body{{display:grid;grid-template-columns:repeat({columns},minmax(6em,1fr));gap:1em;font:14px sans-serif}}"
        "figure{margin:0}svg{width:100%;border:1px solid #ddd}"
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{len(records)} drawings</title>'
    return f"{head}<style>{style}</style>\n{''.join(figures)}</html>\n"
