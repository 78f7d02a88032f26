"""python -m experiments.data.natural judge=FOLDER: the colours that a judge sees in objects that have no tint.

They are written beside its weights, so that a leak of another's colour can be told from a concept's own. Printed is how
well: on other true scenes, what the judge sees of a foreign colour on objects that have it, and on objects that do not.
"""

import json
from pathlib import Path

from omegaconf import DictConfig

from experiments.emoji.judge import NATURAL, WEIGHTS, load_judge
from experiments.emoji.truth import colours_seen
from experiments.emoji.world import EmojiScenes, World, load_atlas, settings_of
from experiments.files import write
from experiments.metrics.judge import MOSTLY
from experiments.run import build, cli


def main(cfg: DictConfig) -> None:
    folder = WEIGHTS if cfg.judge is None else Path(cfg.judge)
    judge = load_judge(folder, build.device(cfg.device))
    world = World(**settings_of(cfg.world))
    atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
    layouts = tuple(name for name in world.layouts if name != "one")
    seen, fresh = (
        colours_seen(judge, EmojiScenes(world, atlas, "train", seed, layouts=layouts), cfg.count, MOSTLY)
        for seed in (cfg.seed, cfg.seed + 1)
    )
    rounded = {name: {word: round(share, 4) for word, share in shares.items()} for name, shares in seen.natural.items()}
    write(folder / NATURAL, json.dumps(rounded, indent=1) + "\n")
    print(f"{folder / NATURAL}: {len(rounded)} concepts")
    for name, shares in {"tinted in it": fresh.tinted, "without a tint": fresh.alien}.items():
        over = sum(share > 0.5 for share in shares) / len(shares)
        mean = sum(shares) / len(shares)
        print(f"a foreign colour on objects {name}: mean {mean:.4f}, above a half in {over:.2%} of {len(shares)}")


if __name__ == "__main__":
    cli.run(main, "natural")
