"""python -m experiments.data.drawings drawings=glyphs: a set of vector drawings, prepared, counted and checked.

See conf/drawings.yaml. A training prepares what it needs by itself; this shows what there is.
"""

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from experiments.emoji.world import settings_of
from experiments.files import write
from experiments.run import cli
from experiments.vectors.data import Drawings, Prepared, Source, load_drawings, prepare
from experiments.vectors.measures import round_trip
from experiments.vectors.packages import credit, find
from ldm.svg.sequences import decode_commands


def main(cfg: DictConfig) -> None:
    """Raises UserError for packages that are missing or damaged."""
    source = Source(**settings_of(cfg.drawings))
    folder, cache = Path(cfg.icons), Path(cfg.cache)
    prepared = prepare(source, folder, cache, cfg.workers)
    print(kept(prepared))
    train, held_out = load_drawings(source, folder, cache)
    print(f"{len(train.classes)} classes: {train.count} drawings to learn from, {held_out.count} held out")
    if cfg.check:
        print(checked(train, held_out))
    if cfg.credits is not None:
        write(Path(cfg.credits), credits(source, folder))
        print(f"whose work they are: {cfg.credits}")


def kept(prepared: dict[str, Prepared]) -> str:
    """Returns a line that says how many drawings of all packages are in, and why the others are not."""
    count, left_out = sum(len(package.names) for package in prepared.values()), Counter[str]()
    for package in prepared.values():
        left_out.update(package.left_out)
    share = count / (count + left_out.total())
    reasons = "".join(f"\n  {number:6d} {reason}" for reason, number in left_out.most_common())
    return f"{count} drawings of {len(prepared)} packages are in, {share:.1%}; left out:{reasons}"


def checked(*sets: Drawings) -> str:
    """Returns a line with the greatest error of SVG text -> tensors -> SVG text."""
    worst, count = 0.0, 0
    for drawings in sets:
        for sequence in tqdm(drawings.sequences(), desc="check", leave=False, mininterval=5):
            worst = max(worst, round_trip(decode_commands(sequence, drawings.stroke)))
            count += 1
    return f"SVG text -> tensors -> SVG text: no coordinate of {count} drawings moves by more than {worst:.4f} of 24"


def credits(source: Source, folder: Path) -> str:
    """Returns a Markdown table of the packages: name, authors, licence."""
    rows = [credit(find(folder, name)) for name in sorted(source.packages)]
    lines = [f"| {row['name']} | {row['title']} | {row['authors']} | {row['licence']} |" for row in rows]
    return "\n".join(["| package | title | authors | licence |", "| --- | --- | --- | --- |", *lines, ""])


if __name__ == "__main__":
    cli.run(main, "drawings")
