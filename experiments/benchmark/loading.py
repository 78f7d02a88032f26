"""python -m experiments.benchmark.loading [FOLDER]: the memory that loading Stable Diffusion 1.5 takes.

Writes a 16-bit single file of random weights in the shapes of SD 1.5, as .safetensors and as .ckpt (4.3 GB in FOLDER,
or in the system's folder for temporary files; removed afterwards), loads each in a fresh process, and prints how far
the peak of its memory rises above what it has after its imports, as a multiple of the weights' size in the dtype
loaded. Exits with 1 if a multiple of ours is above 1.3. Linux only: it reads /proc.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file

from experiments.benchmark import options
from ldm import load_model
from ldm.config import SD1
from ldm.files import names
from ldm.files.config_files import to_diffusers
from ldm.files.reading import on_meta
from ldm.files.writing import tokenizer_files, write_file, write_text

BAR = 1.3
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def main(folder: str | None) -> int:
    over = False
    with tempfile.TemporaryDirectory(dir=folder) as name:
        files = write_files(Path(name))
        print(f"{'file':<18}{'dtype':<10}{'weights':<10}" + "".join(f"{who:<28}" for who in loaders()))
        for path in files:
            for dtype in DTYPES:
                cells = [measure(who, path, dtype) for who in loaders()]
                over |= cells[0]["rise"] > BAR * cells[0]["size"]
                text = "".join(
                    f"+{c['rise'] / 1e9:.2f} GB = {c['rise'] / c['size']:.2f} x, {c['s']:4.1f} s   " for c in cells
                )
                print(f"{path.name:<18}{dtype:<10}{cells[0]['size'] / 1e9:>6.2f} GB  {text}", flush=True)
    return int(over)


def loaders() -> list[str]:
    return ["ours", "diffusers"] if find_spec("diffusers") and find_spec("transformers") else ["ours"]


def write_files(folder: Path) -> list[Path]:
    """sd15.safetensors and sd15.ckpt, and config/ with the settings that diffusers wants beside them."""
    model = on_meta(SD1)
    for network in names.parts(model).values():
        state = {
            name: torch.empty(value.shape, dtype=torch.float16).normal_(std=0.02)
            for name, value in network.state_dict().items()
        }
        network.load_state_dict(state, assign=True)
    write_file(model, folder / "sd15.safetensors")
    torch.save({"state_dict": load_file(folder / "sd15.safetensors"), "global_step": 1}, folder / "sd15.ckpt")
    for name, settings in to_diffusers(SD1).items():
        write_text(folder / "config" / name, json.dumps(settings))
    for name, content in tokenizer_files(SD1.text.pad_id, SD1.text.context).items():
        write_text(folder / "config" / "tokenizer" / name, content)
    return [folder / "sd15.safetensors", folder / "sd15.ckpt"]


def measure(who: str, path: Path, dtype: str) -> dict[str, float]:
    """Rise of the peak memory and size of the weights in bytes, and seconds, of one loading in a fresh process."""
    command = [sys.executable, "-m", "experiments.benchmark.loading", "--child", who, str(path), dtype]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def child(who: str, path: Path, dtype: str) -> None:
    load = with_diffusers() if who == "diffusers" else with_ours
    before, start = memory("VmRSS"), time.perf_counter()
    networks = load(path, DTYPES[dtype])
    seconds = time.perf_counter() - start
    size = sum(p.nbytes for network in networks for p in network.parameters())
    print(json.dumps({"rise": memory("VmHWM") - before, "size": size, "s": seconds}))


def with_ours(path: Path, dtype: torch.dtype) -> list[torch.nn.Module]:
    model = load_model(path, dtype=dtype)
    return list(names.parts(model).values())


def with_diffusers() -> Callable[[Path, torch.dtype], list[torch.nn.Module]]:
    from diffusers import StableDiffusionPipeline

    def load(path: Path, dtype: torch.dtype) -> list[torch.nn.Module]:
        config = str(path.parent / "config")
        pipe = StableDiffusionPipeline.from_single_file(path, config=config, torch_dtype=dtype, local_files_only=True)
        return [pipe.unet, pipe.vae, pipe.text_encoder]

    return load


def memory(field: str) -> int:
    """Bytes: VmRSS what this process has in memory now, VmHWM the most it ever had."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        sys.exit(main(options.loading().parse_args().folder))
