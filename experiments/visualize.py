"""python -m experiments.visualize: where the words of a prompt act while one picture is drawn; see conf/visualize.yaml.

maps.png          words x some steps: the word's share of attention, over the finished picture; mean of heads and layers
semantics.png     layers x some steps: which word owns which patch
steps.gif         every step: the x_0 predicted, the owners, the words
maps.safetensors  by step and layer, maps/III/LAYER [words, h, w] and owners/III/LAYER [h, w] (indices of words; their
                  number where no word owns); metadata, as JSON: words and timesteps, by step
picture.png, run.json
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments import files
from experiments.attention.draw import check_words, draw, layers_meant, save_animation, save_maps, save_sheets, title_of
from experiments.attention.maps import Recorder
from experiments.attention.sheets import colours_of, frame
from experiments.pictures import save_png, to_image
from experiments.run import build, cli
from experiments.run.prompts import checked_seed
from samplers import ImageNoise


def main(cfg: DictConfig) -> None:
    (prompt,) = build.prompts(cfg)
    seed = checked_seed(cfg.seed)
    guidance, device = build.guidance(cfg.guidance), build.device(cfg.device)
    if type(cfg.columns) is not int or cfg.columns < 1:
        raise ValueError(f"columns={cfg.columns}: must be a whole number of at least 1")

    model = build.text_to_image(cfg.model, device, cfg.dtype)
    config = model.config
    shape = model.latent_shape(cfg.height or config.image_size, cfg.width or config.image_size)
    stages = build.stretches(guidance, build.steps(cfg.sampler, config.schedule))
    if prompt.text is None and any(stage.prompt is None for stage in stages):
        raise ValueError("nothing to draw: give prompt='...'")
    asked = [build.Stretch(prompt.text if s.prompt is None else s.prompt, s.steps) for s in stages]
    check_words(model, [str(stage.prompt) for stage in asked])

    recorder = Recorder(guidance, layers_meant(model, cfg.layers), cfg.argmax, cfg.candidates)
    noise = ImageNoise([seed], shape, device)
    sampler = partial(build.sampler(cfg.sampler, config.schedule), noise=noise)
    picture, moments = draw(model, recorder, sampler, noise(), prompt)

    folder = Path(HydraConfig.get().runtime.output_dir)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    title = title_of(asked, seed)
    save_png(to_image(picture), folder / "picture.png")
    save_sheets(picture, moments, asked, title, cfg.columns, folder)
    colours = colours_of(moments)
    save_animation([frame(moment, colours, title) for moment in moments], folder / "steps.gif")
    save_maps(moments, folder / "maps.safetensors")
    files.write(folder / "run.json", json.dumps(files.describe(settings, device), indent=1))
    print(f"{len(colours)} words in {len(moments)} steps: {folder}/maps.png, semantics.png, steps.gif")


if __name__ == "__main__":
    cli.run(main, "visualize")
