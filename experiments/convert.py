"""python -m experiments.convert model.path=IN out=OUT: a checkpoint in either format. See conf/convert.yaml."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from experiments.files import UserError
from experiments.run import build, cli
from ldm.files.config_files import to_yaml
from ldm.files.writing import atomically, write_file, write_folder


def main(cfg: DictConfig) -> None:
    out = Path(cfg.out).expanduser()
    if cfg.format == "compvis" and out.suffix != ".safetensors":
        raise UserError(f"out={out}: must end in .safetensors for format=compvis")
    if cfg.max_shard_mb is not None and not cfg.max_shard_mb > 0:
        raise UserError(f"max_shard_mb={cfg.max_shard_mb}: must be above 0")
    settings = out.with_suffix(".yaml")
    for path in (out, settings) if cfg.format == "compvis" else (out,):
        if path.exists():
            raise UserError(f"{path}: exists already and is not overwritten")

    model, dtype = build.model(cfg.model, torch.device("cpu"), cfg.dtype), build.DTYPES[cfg.dtype]
    if cfg.format == "diffusers":
        shard_bytes = None if cfg.max_shard_mb is None else int(cfg.max_shard_mb * 1e6)
        write_folder(model, out, shard_bytes, dtype)
        print(f"{out}: use it with model=file model.path={out}")
    else:
        write_file(model, out, dtype)
        with atomically(settings) as temporary:
            temporary.write_text(to_yaml(model.config))
        print(f"{out}: use it with model=file model.path={out} model.config={settings}")


if __name__ == "__main__":
    cli.run(main, "convert")
