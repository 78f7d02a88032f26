"""What has to be measured in a process of its own: loading, peak memory, and how long a start takes.

python -m experiments.benchmark.fresh WHAT SIDE PATH SETTINGS runs one and prints its number.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PICTURE_STEPS = 20

Call = Callable[[], float]


def has_diffusers() -> bool:
    return find_spec("diffusers") is not None and find_spec("transformers") is not None


def who() -> list[str]:
    return ["ours", "diffusers"] if has_diffusers() else ["ours"]


def printed(command: list[str]) -> float:
    """The number in the last line that the command prints."""
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.splitlines()[-1])


def lasted(command: list[str]) -> float:
    """Seconds from the command's start to its end."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def measures(case: str, path: Path, settings: dict[str, Any], scratch: Path) -> dict[str, tuple[str, dict[str, Call]]]:
    """By name, the unit and each side's call. settings: dtype, device, batch, pixels, cells (of a latent), steps."""
    child = [sys.executable, "-m", "experiments.benchmark.fresh"]
    told = [str(path), json.dumps(settings)]
    if case in ("load", "memory"):
        calls = {side: call(printed, [*child, case, side, *told]) for side in who()}
        return {"peak memory" if case == "memory" else "load": ("B" if case == "memory" else "s", calls)}
    sample = [sys.executable, "-m", "experiments.sample"]
    picture = ["model=file", f"model.path={path}", f"sampler.steps={PICTURE_STEPS}", "prompt='a fish'"]
    picture += [f"{key}={settings[key]}" for key in ("dtype", "device")]
    picture += [f"{side}={settings['pixels']}" for side in ("height", "width")]
    first = {"ours": call(lasted, [*sample, *picture, f"hydra.run.dir={scratch}/${{now:%H%M%S%f}}"])}
    if has_diffusers():
        first["diffusers"] = call(lasted, [*child, "picture", "diffusers", *told])
    return {"start (--help)": ("s", {"ours": call(lasted, [*sample, "--help"])}), "start (first picture)": ("s", first)}


def call(measure: Callable[[list[str]], float], command: list[str]) -> Call:
    return lambda: measure(command)


def main(what: str, side: str, path: Path, settings: dict[str, Any]) -> float:
    """Seconds of loading, or the bytes of memory that loading and sampling took at most."""
    import torch

    from experiments.benchmark import sides
    from experiments.benchmark.loading import memory

    dtype, device = getattr(torch, settings["dtype"]), settings["device"]
    batch, cells = settings["batch"], settings["cells"]
    if side == "diffusers":  # ours is imported by now, and importing is no part of loading
        from diffusers import DDIMScheduler, StableDiffusionPipeline  # noqa: F401
    start = time.perf_counter()
    if side == "ours":
        made = sides.ours(sides.load(path, dtype, device), compile=False)
    else:
        made = sides.theirs(path, dtype, device, compile=False, tuned=False)
    if what == "load":
        return time.perf_counter() - start
    with torch.no_grad():
        x_T = torch.randn(batch, made.channels, cells, cells, device=device)
        made.sample(x_T, [sides.PROMPT] * batch, settings["steps"])
    return torch.cuda.max_memory_allocated() if device == "cuda" else memory("VmHWM")


def picture(path: Path, settings: dict[str, Any]) -> None:
    """What a user of diffusers writes to get one picture; ours is `python -m experiments.sample`."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    dtype, size = getattr(torch, settings["dtype"]), settings["pixels"]
    pipe = StableDiffusionPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    made = pipe.to(settings["device"])("a fish", num_inference_steps=PICTURE_STEPS, height=size, width=size)
    made.images[0].save(os.devnull, format="png")


if __name__ == "__main__":
    what, side, path, settings = sys.argv[1:]
    if what == "picture":
        picture(Path(path), json.loads(settings))
    else:
        print(main(what, side, Path(path), json.loads(settings)))
