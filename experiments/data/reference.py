"""python -m experiments.data.reference out=FOLDER count=200: scenes as a folder of pictures, to measure others against.

Nothing of the model is in them: they are drawn from the icons. See conf/reference.yaml.
"""

import json
from pathlib import Path

from omegaconf import DictConfig
from PIL import Image

from experiments.emoji.world import EmojiScenes, World, load_atlas, settings_of
from experiments.files import UserError, write
from experiments.pictures import save_png
from experiments.run import cli


def main(cfg: DictConfig) -> None:
    """Raises UserError for a folder that is not empty, and for a split or concept that there is not."""
    out = Path(cfg.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: is there already, and not empty")
    world = World(**settings_of(cfg.world))
    concepts = list(world.concepts) if cfg.concepts == "all" else list(cfg.concepts or [])
    if unknown := [concept for concept in concepts if concept not in world.concepts]:
        raise UserError(f"concepts={unknown}: must be of {', '.join(world.concepts)}, or all")
    atlas = load_atlas(world, Path(cfg.icons), Path(cfg.cache))
    if concepts:
        scenes = EmojiScenes(world, atlas, cfg.split, cfg.seed, layouts=("one",))
        for concept in concepts:
            write_scenes(scenes, cfg.count, out / concept, concept)
    else:
        write_scenes(EmojiScenes(world, atlas, cfg.split, cfg.seed), cfg.count, out)
    print(f"{cfg.count} pictures{f' of each of {len(concepts)} concepts' if concepts else ''}: {out}")


def write_scenes(scenes: EmojiScenes, count: int, folder: Path, concept: str | None = None) -> None:
    """The first `count` scenes (in which the concept is) as PNGs, and captions.jsonl, a line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, index = list[str](), 0
    while len(lines) < count:
        caption, looks = scenes.caption(index)
        if concept is None or any(look.label == concept for look in looks):
            file = f"{len(lines):05d}.png"
            save_png(Image.fromarray(scenes[index].image.permute(1, 2, 0).numpy()), folder / file)
            lines.append(json.dumps({"file": file, "caption": caption, "scene": index}) + "\n")
        index += 1
    write(folder / "captions.jsonl", "".join(lines))


if __name__ == "__main__":
    cli.run(main, "reference")
