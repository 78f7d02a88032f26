"""python -m experiments.gallery: what guidance does on the embedded model, on six sheets for the README."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from PIL import Image

from experiments.pictures import save_png, sheet
from experiments.run import cli
from experiments.run.commands import SCALE, SEGMENTATION_FREE, STEPS, pictures, sample, stages

SCALES = [1, 2, 4, 8, 16]
PAIRS = [("a dragon", "a fish"), ("a cat", "a dog"), ("a light bulb", "a pear"), ("a maple leaf", "a heart")]
FIRST = [0, 4, 6, 8, 10, 14, 20]  # steps of the first stage
TWO_COLOURS = [
    "a blue cat next to a red dog on a white background",
    "a green heart next to a yellow fish on a black background",
    "a purple dragon above an orange pear on a white background",
]
FISH, PEAR = (f"a {thing} to the left of a red heart on a white background" for thing in ("blue fish", "green pear"))
LETTERS = [("A", "B"), ("O", "X"), ("E", "F"), ("S", "Z")]
LAYOUT = "fish 0.06 0.3 0.46 0.7; strawberry 0.54 0.3 0.94 0.7"
TASK_SCALE = 3  # of the models of tasks
GIVEN = 5  # seed of the picture of a fish that the tasks are given
Rows = list[list[Image.Image]]


def main(cfg: DictConfig) -> None:
    out, seeds = Path(cfg.out), list(range(cfg.n))
    sheets = (scales, multistage, two_colours, tasks, task_models, letters)
    for draw in sheets:
        save_png(draw(out, seeds, list(cfg.settings)), out / f"{draw.__name__}.png")
    print(f"six sheets in {out}: {', '.join(draw.__name__ for draw in sheets)}")


def scales(out: Path, seeds: list[int], more: list[str]) -> Image.Image:
    prompt = "a blue cat on a white background"
    rows = sweep(out / "scales", seeds, f"prompt='{prompt}'", f"guidance.scale={joined(SCALES)}", *more)
    return sheet(rows, [f"scale {s}" for s in SCALES], labels_of(seeds), title=prompt)


def multistage(out: Path, seeds: list[int], more: list[str]) -> Image.Image:
    """Draws two seeds of each pair, from all steps for the second to all for the first."""
    return switches(out / "multistage", PAIRS, seeds[:2], [f"guidance.inner.scale={SCALE}", *more])


def letters(out: Path, seeds: list[int], more: list[str]) -> Image.Image:
    """Draws letters that begin as one and end as another, by the model of vector drawings."""
    told = ["model=glyphs", "guidance.inner.scale=2", "sampler.eta=1"]
    return switches(out / "letters", LETTERS, seeds[:2], [*told, *of_any_model(more)])


def switches(folder: Path, pairs: list[tuple[str, str]], seeds: list[int], settings: list[str]) -> Image.Image:
    compositions = [stages((one, n), (other, STEPS - n)) for one, other in pairs for n in FIRST]
    asked = ["guidance=multistage", f"guidance.stages={joined(compositions)}", f"sampler.steps={STEPS}", *settings]
    drawn = sweep(folder, seeds, *asked)
    by_pair = [drawn[p : p + len(FIRST)] for p in range(0, len(drawn), len(FIRST))]
    rows = [[of_steps[s] for of_steps in pair] for pair in by_pair for s in range(len(seeds))]
    labels = [f"{one}, then {other}, seed {seed}" for one, other in pairs for seed in seeds]
    title = f"multistage guidance, from 0 > {STEPS} to {STEPS} > 0"
    return sheet(rows, labels, [f"{n}, then {STEPS - n} steps" for n in FIRST], title=title)


def two_colours(out: Path, seeds: list[int], more: list[str]) -> Image.Image:
    asked = [f"prompt={joined([repr(prompt) for prompt in TWO_COLOURS])}", f"guidance.scale={SCALE}", *more]
    plain = sweep(out / "two_colours_cfg", seeds, *asked)
    ours = sweep(out / "two_colours_sf", seeds, *asked, *SEGMENTATION_FREE)
    rows = [row for pair in zip(plain, ours, strict=True) for row in pair]
    labels = [f"{method}: {text}" for text in TWO_COLOURS for method in ("classifier-free", "segmentation-free")]
    return sheet(rows, labels, labels_of(seeds), title="50 steps, same seeds")


def tasks(out: Path, seeds: list[int], more: list[str]) -> Image.Image:
    """Draws from a given picture, and its left half anew, with a switch of the prompt on the way and without."""
    common = [f"sampler.steps={STEPS}", *more]
    given = sweep(out / "tasks_given", [GIVEN], f"prompt='{FISH}'", f"guidance.scale={SCALE}", *common)[0][0]
    mask = Image.new("L", given.size, 0)
    mask.paste(255, (0, 0, given.width // 2, given.height))
    save_png(given, out / "given.png")
    save_png(mask, out / "mask.png")
    image = f"task.image={out / 'given.png'}"
    inpaint = ["task=inpaint", image, f"task.mask={out / 'mask.png'}"]
    pear = [f"prompt='{PEAR}'", f"guidance.scale={SCALE}"]
    switched = f"guidance.stages={stages((FISH, 10), (PEAR, STEPS - 10))}"
    runs = {
        "from it, the last 14 of 20 steps: a green pear": ["task=image", image, "task.strength=0.7", *pear],
        "its left half anew: a green pear": [*inpaint, *pear],
        "the same, segmentation-free": [*inpaint, *pear, *SEGMENTATION_FREE],
        "its left half anew: a fish for 10 steps, then a pear": [
            *inpaint, "guidance=multistage", f"guidance.inner.scale={SCALE}", switched,
        ],
    }  # fmt: skip
    rows = [sweep(out / f"tasks_{i}", seeds, *asked, *common)[0] for i, asked in enumerate(runs.values())]
    filler: list[Image.Image | None] = [None] * (len(seeds) - 1)
    return sheet([[given, *filler], *rows], ["given", *runs], labels_of(seeds), title="tasks, on the embedded model")


def task_models(out: Path, seeds: list[int], more: list[str]) -> Image.Image:
    """Draws by the models that were trained for a task each; settings of the model are not theirs."""
    common = [f"sampler.steps={STEPS}", *of_any_model(more)]
    told = f"guidance.scale={TASK_SCALE}"
    boxes = ["model=emoji_boxes", f"prompt='{LAYOUT}'", told]
    given = sweep(out / "boxes_given", [0], *boxes, *common)[0][0]
    side = given.width
    small = given.resize((side // 4, side // 4), Image.Resampling.BOX)
    mask = Image.new("L", given.size, 0)
    mask.paste(255, (0, 0, side // 2, side))
    files = {name: out / f"task_model_{name}.png" for name in ("given", "small", "mask")}
    for image, file in zip((given, small, mask), files.values(), strict=True):
        save_png(image, file)
    inpaint = ["model=emoji_inpaint", "task=inpaint", f"task.image={files['given']}", f"task.mask={files['mask']}"]
    switched = f"guidance.stages={stages(('dragon', 6), ('fish', STEPS - 6))}"
    half_switched = f"guidance.stages={stages(('a blue fish', 6), ('a green pear', STEPS - 6))}"
    runs = {
        "told a class: a fox": ["model=emoji_classes", "prompt=fox", told],
        "a dragon for 6 steps, then a fish": [
            "model=emoji_classes", "guidance=multistage", f"guidance.inner.scale={TASK_SCALE}", switched,
        ],
        "told boxes: a fish, a strawberry": boxes,
        "the same, segmentation-free": [*boxes, *SEGMENTATION_FREE, "guidance.candidates=words"],
        "the given one's left half anew: a pear": [*inpaint, "prompt='a green pear'", told],
        "a fish for 6 steps, then a pear": [
            *inpaint, "guidance=multistage", f"guidance.inner.scale={TASK_SCALE}", half_switched,
        ],
        "the given one, from 16 px": [
            "model=emoji_upscale", "task=upscale", f"task.image={files['small']}", "guidance.scale=1",
        ],
    }  # fmt: skip
    rows = [sweep(out / f"task_models_{i}", seeds, *asked, *common)[0] for i, asked in enumerate(runs.values())]
    filler: list[Image.Image | None] = [None] * (len(seeds) - 2)
    labels = ["given, and its 16 px", *runs]
    return sheet(
        [[given, small.resize(given.size, Image.Resampling.NEAREST), *filler], *rows],
        labels,
        labels_of(seeds),
        title="models of tasks, 20 steps",
    )


def of_any_model(settings: list[str]) -> list[str]:
    """Returns the settings that are not the embedded model's own."""
    return [setting for setting in settings if not setting.startswith("model")]


def sweep(folder: Path, seeds: list[int], *overrides: str) -> Rows:
    """Returns the pictures of each job of a sweep, in the jobs' order, seed by seed."""
    settings = [f"seeds=[{joined(seeds)}]", f"batch_size={len(seeds)}", f"hydra.sweep.dir={folder}"]
    sample("-m", *overrides, *settings, "hydra.sweep.subdir=${hydra.job.num}")
    jobs = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: int(path.name))
    return [pictures(job) for job in jobs]


def joined(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def labels_of(seeds: list[int]) -> list[str]:
    return [f"seed {seed}" for seed in seeds]


if __name__ == "__main__":
    cli.run(main, "gallery")
