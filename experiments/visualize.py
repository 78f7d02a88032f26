"""python -m experiments.visualize: where the words of a prompt act while one picture is drawn; see conf/visualize.yaml.

maps.png          words x some steps: the word's share of attention, over the finished picture; mean of heads and layers
semantics.png     layers x some steps: which word owns which patch
steps.gif         every step: the x_0 predicted, the owners, the words
maps.safetensors  by step and layer, maps/III/LAYER [words, h, w] and owners/III/LAYER [h, w] (indices of words; their
                  number where no word owns); metadata, as JSON: words and timesteps, by step
picture.png, run.json
"""

import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments import files
from experiments.attention.draw import (
    check_words,
    draw,
    layers_meant,
    save_animation,
    save_maps,
    save_sheets,
    spread,
    title_of,
)
from experiments.attention.maps import Recorder
from experiments.attention.sheets import colours_of, frame
from experiments.files import UserError
from experiments.pictures import save_png, to_image
from experiments.run import build, cli
from experiments.run.draw import from_seeds, with_own_prompt
from experiments.run.memory import check_memory


def main(cfg: DictConfig) -> None:
    (prompt,) = build.prompts(cfg)
    machine = build.machine(cfg)
    size = build.size(machine.model, cfg.height, cfg.width)
    check_memory(machine.model, size, 1)
    stages = with_own_prompt(build.stages(machine.guidance, machine.steps), prompt)
    if any(stage.prompt is None for stage in stages):
        raise UserError("nothing to draw: give prompt='...'")
    check_words(machine.model, [str(stage.prompt) for stage in stages])

    recorder = Recorder(machine.guidance, layers_meant(machine.model, cfg.layers), cfg.argmax, cfg.candidates)
    picture, moments = draw(machine, recorder, from_seeds(machine.model, [prompt], [cfg.seed], size))

    folder = Path(HydraConfig.get().runtime.output_dir)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    title = title_of(stages, cfg.seed)
    save_png(to_image(picture), folder / "picture.png")
    some = spread(len(moments), cfg.columns, [int(stage.steps) for stage in stages])
    save_sheets(picture, [moments[i] for i in some], title, folder)
    colours = colours_of(moments)
    save_animation([frame(moment, colours, title) for moment in moments], folder / "steps.gif")
    save_maps(moments, folder / "maps.safetensors")
    files.write(folder / "run.json", json.dumps(files.describe(settings, machine.model.device), indent=1))
    print(f"{len(colours)} words in {len(moments)} steps: {folder}/maps.png, semantics.png, steps.gif")


if __name__ == "__main__":
    cli.run(main, "visualize")
