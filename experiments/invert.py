"""python -m experiments.invert image=FILE prompt=...: the noise that DDIM draws a picture from. See conf/invert.yaml.

noise.safetensors  x_T [1, C, h, w], for `noise=` of experiments.sample; and x_0, the picture's latent
again.png          what DDIM draws from x_T by the same steps, beside the picture itself
"""

import json
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.files import UserError, describe, write, write_tensors
from experiments.pictures import save_png, sheet, to_image
from experiments.run import build, cli
from experiments.studies.inversion import denoiser, inverted, read_picture


def main(cfg: DictConfig) -> None:
    if cfg.image is None or cfg.prompt is None:
        raise UserError("give image=FILE and prompt='...', which says what the picture shows")
    if type(cfg.refinements) is not int or cfg.refinements < 0:
        raise UserError(f"refinements={cfg.refinements}: must be a whole number, 0 or more")
    if cfg.sampler._target_ != "samplers.ddim" or cfg.sampler.eta != 0:
        raise UserError("inversion undoes DDIM's steps, with no noise added: sampler=ddim sampler.eta=0")
    model = build.picture_model(cfg.model, build.device(cfg.device), cfg.dtype)
    build.say_dtype(model)
    steps = build.steps(cfg.sampler, model.config.schedule)
    size = build.size(model, cfg.height, cfg.width)
    picture = read_picture(Path(cfg.image), *size)

    with torch.no_grad():
        x_0 = model.autoencoder.encode(picture.to(model.device))[0].float()
    denoise = denoiser(model, str(cfg.prompt), str(cfg.negative_prompt), cfg.scale)
    x_T, again = inverted(denoise, x_0, steps, cfg.refinements)

    folder = Path(HydraConfig.get().runtime.output_dir)
    with torch.no_grad():
        pictures = [picture[0] / 2 + 0.5, model.decode(x_0)[0], model.decode(again)[0]]
    names = ["picture", "its latent, decoded", "drawn again"]
    save_png(sheet([[to_image(image) for image in pictures]], [""], names), folder / "again.png")
    write_tensors(folder / "noise.safetensors", {"x_T": x_T.cpu().contiguous(), "x_0": x_0.cpu().contiguous()})
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    write(folder / "run.json", json.dumps(describe(settings, model.device), indent=1))
    error = ((again - x_0).norm() / x_0.norm()).item()
    print(f"drawn again, the latent is off by {100 * error:.2f} %: {folder}/noise.safetensors, again.png")


if __name__ == "__main__":
    cli.run(main, "invert")
