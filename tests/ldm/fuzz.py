"""python tests/ldm/fuzz.py [--cases 10000] [--seed 0] [--first 0]: loads damaged model files.

Every case damages the files of a tiny model in one of the ways of WAYS and loads it in a child process. A case is well
if the model loads, or if ValueError or OSError is raised with one line; it may take 5 s of CPU and 2 GB of memory.
Every other case is printed with its number, and `--first NUMBER --cases 1` repeats it. Exits with 1 if there is any.
"""

import argparse
import faulthandler
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from ldm import load_model
from ldm.config import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from ldm.files import names
from ldm.files.config_files import to_yaml
from ldm.files.reading import on_meta
from ldm.files.writing import write_file, write_folder

SECONDS = 5.0
HANGS = 120  # seconds after which a case is given up; other processes may have the CPU
MEMORY = 2 * 2**30
ADDRESSES = 16 * 2**30  # what a child may ask for beyond what it has, so that no case harms the machine
TINY = ModelConfig(
    unet=UNetConfig(
        channels=(8, 8), blocks_per_level=1, attention=(True, False), heads=(2, 2), text_width=4, norm_groups=4
    ),
    autoencoder=AutoencoderConfig(channels=(8, 8), blocks_per_level=1, norm_groups=4),
    text=TextEncoderConfig(width=4, mlp_width=8, layers=1, heads=1),
    image_size=16,
)
COMPVIS = yaml.safe_dump(
    {
        "model": {
            "params": {
                **{"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "image_size": 8},
                **{"scale_factor": 0.18215, "parameterization": "eps", "beta_schedule": "linear"},
                "unet_config": {
                    "params": {
                        **{"in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1},
                        **{"attention_resolutions": [1], "channel_mult": [1, 1], "num_heads": 2, "context_dim": 4},
                        **{"use_spatial_transformer": True, "transformer_depth": 1},
                    }
                },
                "first_stage_config": {
                    "params": {
                        "embed_dim": 4,
                        "ddconfig": {
                            **{"double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3},
                            **{"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": []},
                        },
                    }
                },
                "cond_stage_config": {"target": "a.FrozenCLIPEmbedder", "params": {"layer": "last"}},
            }
        }
    }
)


# --- a whole model ----------------------------------------------------------------------------------------------------


def write_whole(folder: Path) -> None:
    """Writes the tiny model in every form: single.* with single.yaml, and the folders safetensors/ and bin/."""
    model = on_meta(TINY)
    for network in names.parts(model).values():
        state = {key: torch.zeros(value.shape, dtype=torch.float16) for key, value in network.state_dict().items()}
        network.load_state_dict(state, assign=True)
    write_file(model, folder / "single.safetensors")
    tensors = load_file(folder / "single.safetensors")
    torch.save({"state_dict": tensors, "step": 1, "x": np.float32(1)}, folder / "single.ckpt")
    torch.save({"state_dict": tensors}, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    (folder / "ours.yaml").write_text(to_yaml(TINY))
    (folder / "compvis.yaml").write_text(COMPVIS)
    write_folder(model, folder / "safetensors")
    for part, stem in ((part, names.STEMS[part]) for part in names.parts(model)):
        target = folder / "bin" / part
        target.mkdir(parents=True)
        shutil.copy(folder / "safetensors" / part / "config.json", target)
        bin_stem = "pytorch_model" if part == "text_encoder" else stem
        torch.save(load_file(folder / "safetensors" / part / f"{stem}.safetensors"), target / f"{bin_stem}.bin")
    for part in ("scheduler", "tokenizer"):
        shutil.copytree(folder / "safetensors" / part, folder / "bin" / part)


# --- damage -----------------------------------------------------------------------------------------------------------

Draw = random.Random
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 64, 1000, 10**9, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 0.5, 1.0),
    *(1e308, float("nan"), float("inf"), "", "1", "relu", "flow", "é" * 300, "a\nb", "\ud800", "x" * 100_000),
    *([], [0], [-1], [None], [[]], [1, 1], [2, 2, 2], [1] * 1000, ["a"], [True, False], {}, {"a": 1}, {"": {}}),
]


def damaged_bytes(draw: Draw, data: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """Returns data with a few bytes of a range changed, taken out, repeated, or with its end cut off."""
    stop = len(data) if stop is None else stop
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        i = draw.randrange(start, stop)
        length = draw.choice((1, 1, 2, 8, 100))
        match draw.randrange(6):
            case 0 | 1:
                content[i : i + 1] = bytes([draw.randrange(256)])
            case 2:
                content[i : i + length] = draw.randbytes(length)
            case 3:
                del content[i : i + length]
            case 4:
                content[i:i] = content[max(start, i - length) : i]
            case 5 if draw.random() < 0.3:
                del content[i:]
    return bytes(content)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Returns every container in a tree of dicts and lists, with each of its keys."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    return [place for key in keys for place in ((tree, key), *places(tree[key]))]


def damage_values(draw: Draw, tree: Any) -> None:
    """Changes, removes, moves or adds a few values of a tree, in place."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        found = places(tree)
        if not found:
            return
        container, key = draw.choice(found)
        match draw.randrange(8):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[draw.choice(("unknown", "_hidden", "a\nb", str(key).upper()))] = draw.choice(ODD)
            case 2:
                other, name = draw.choice(found)
                if name in other if isinstance(other, dict) else name < len(other):
                    container[key] = json.loads(json.dumps(other[name]))
            case 3 if isinstance(container[key], int | float):
                container[key] = draw.choice((-1, 2, 10, 1000, 0.1)) * container[key]
            case _:
                container[key] = json.loads(json.dumps(draw.choice(ODD)))


def damaged_json(draw: Draw, text: str) -> bytes:
    tree = json.loads(text)
    if draw.random() < 0.02:
        return (b"[" * 100_000) if draw.random() < 0.5 else json.dumps(draw.choice(ODD)).encode()
    damage_values(draw, tree)
    return json.dumps(tree).encode()


def damaged_yaml(draw: Draw, text: str) -> bytes:
    match draw.randrange(10):
        case 0:
            return damaged_bytes(draw, text.encode())
        case 1:
            tag = draw.choice(("!!int", "!!float", "!!bool", "!!timestamp", "!!binary", "!!set", "!!python/name:os.x"))
            return text.replace(": ", f": {tag} ", draw.randrange(1, 4)).encode()
        case 2:
            laughs = "a0: &a0 {x: 1, y: 2}\n"
            merge = draw.choice(("<<: [{0}]", "k: [{0}]"))
            for i in range(30):
                laughs += f"a{i + 1}: &a{i + 1} {{{merge.format(', '.join([f'*a{i}'] * 9))}}}\n"
            return (laughs + f"unet: *a30\n{draw.choice(('', text))}").encode()
    tree = yaml.safe_load(text)
    damage_values(draw, tree)
    return yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass")


def damaged_header(draw: Draw, data: bytes) -> bytes:
    """Returns a safetensors file with damaged values in its header."""
    length = int.from_bytes(data[:8], "little")
    tree = json.loads(data[8 : 8 + length])
    damage_values(draw, tree)
    header = json.dumps(tree).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def damaged_zip(draw: Draw, path: Path, target: Path) -> None:
    """Writes an archive of torch.save with a damaged pickle, or with other entries than it had."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        deflated = draw.random() < 0.05
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = damaged_bytes(draw, content)
            elif draw.random() < 0.01:
                content = draw.choice((b"", content[:-1], content * 2))
            method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
            for _ in range(draw.choices((0, 1, 2), (1, 400, 1))[0]):
                with warnings.catch_warnings(action="ignore"):
                    new.writestr(name, content, method)


class Call:
    """A pickle of it calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def odd_tensor(draw: Draw, value: Tensor) -> Any:
    """Returns something that is no plain tensor of that shape."""
    storage = torch.TypedStorage(wrap_storage=value.untyped_storage(), dtype=value.dtype, _internal=True)
    shape = draw.choice(((2**30, 2**30), (-1, 4), (2**62, 4), tuple(value.shape)))
    made: list[Callable[[], Any]] = [
        lambda: value.to(draw.choice((torch.int8, torch.bool, torch.complex64, torch.float64, torch.float8_e4m3fn))),
        lambda: value.to_sparse(),
        lambda: value.to("meta"),
        lambda: torch.zeros(1).expand(value.shape),
        lambda: torch.zeros(1).expand(2**20, 2**20),
        lambda: value[..., :1],
        lambda: torch.nn.Parameter(value.float()),
        lambda: value.tolist() if value.ndim == 1 else 1,
        lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.quint8),
        lambda: Call(torch._utils._rebuild_tensor_v2, storage, 0, shape, (1, 1), False, {}),
        lambda: Call(bytearray, draw.choice((10, 10**10))),
        lambda: Call(np.zeros, 10**10),
        lambda: draw.choice(ODD[:-20]),
    ]
    return draw.choice(made)()


def odd_pickle(draw: Draw, tensors: dict[str, Tensor], target: Path) -> None:
    """Writes what torch.save makes of odd tensors, or of other things than a dict of tensors."""
    content: Any = dict(tensors)
    for key in draw.sample(list(content), draw.choice((1, 1, 3))):
        content[draw.choice((key, key, key, 1, "a\nb", "x" * 1000))] = odd_tensor(draw, content[key])
    nested = content
    for _ in range(draw.choice((1, 1, 2, 100))):
        nested = {"state_dict": nested}
    content = draw.choice((content, content, nested, [content], draw.choice(ODD)))
    if draw.random() < 0.1:
        target.write_bytes(pickle.dumps(draw.choice((content, Call(exec, "raise SystemExit"))), protocol=2))
    else:
        legacy, protocol = draw.random() < 0.5, draw.choice((2, 2, 2, 3, 4, 5))
        torch.save(content, target, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)


# --- cases ------------------------------------------------------------------------------------------------------------

Load = Callable[[], object]


def single(path: Path, whole: Path) -> Load:
    return partial(load_model, path, config=whole / "ours.yaml")


def of_bytes(draw: Draw, whole: Path, case: Path) -> Load:
    name = draw.choice(("single.safetensors", "single.ckpt", "legacy.ckpt"))
    data = (whole / name).read_bytes()
    head = draw.random() < 0.8  # where the structure is
    end = min(len(data), 20_000)
    ranges = {"single.safetensors": (0, end), "legacy.ckpt": (0, end), "single.ckpt": (len(data) - end, len(data))}
    (case / name).write_bytes(damaged_bytes(draw, data, *(ranges[name] if head else (0, len(data)))))
    return single(case / name, whole)


def of_header(draw: Draw, whole: Path, case: Path) -> Load:
    path = case / "single.safetensors"
    path.write_bytes(damaged_header(draw, (whole / path.name).read_bytes()))
    return partial(load_model, path, config=draw.choice((None, whole / "ours.yaml", whole / "compvis.yaml")))


def of_archive(draw: Draw, whole: Path, case: Path) -> Load:
    damaged_zip(draw, whole / "single.ckpt", case / "single.ckpt")
    return single(case / "single.ckpt", whole)


def of_pickle(draw: Draw, whole: Path, case: Path) -> Load:
    odd_pickle(draw, load_file(whole / "single.safetensors"), case / "odd.ckpt")
    return single(case / "odd.ckpt", whole)


def of_yaml(draw: Draw, whole: Path, case: Path) -> Load:
    name = draw.choice(("ours.yaml", "compvis.yaml"))
    (case / name).write_bytes(damaged_yaml(draw, (whole / name).read_text()))
    return partial(load_model, whole / draw.choice(("single.safetensors", "legacy.ckpt")), config=case / name)


def link_tree(source: Path, target: Path) -> None:
    """Makes a folder like another one, its files being links."""
    shutil.copytree(source, target, copy_function=lambda a, b: Path(b).symlink_to(Path(a).absolute()))


def of_folder(draw: Draw, whole: Path, case: Path, kind: str) -> Load:
    """One file of a diffusers folder is damaged: a JSON's values, any file's bytes, or its being there."""
    source = whole / draw.choice(("safetensors", "bin"))
    link_tree(source, case / "model")
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    read = [path for path in files if path.name not in ("vocab.json", "merges.txt", "model_index.json")]
    if kind == "values":
        read = [path for path in read if path.suffix == ".json"]
    name = draw.choice(read)
    target, data = case / "model" / name, (source / name).read_bytes()
    target.unlink()
    match kind, draw.randrange(4):
        case "values", _:
            target.write_bytes(damaged_json(draw, data.decode()))
        case _, 0:
            target.mkdir()
        case _, 1:
            target.write_bytes((source / draw.choice(files)).read_bytes())
        case _, _:
            target.write_bytes(damaged_bytes(draw, data, 0, min(len(data), 20_000)))
    return partial(load_model, case / "model")


WAYS: list[Callable[[Draw, Path, Path], Load]] = [
    of_bytes,
    of_header,
    of_archive,
    of_pickle,
    of_yaml,
    partial(of_folder, kind="files"),
    partial(of_folder, kind="values"),
    partial(of_folder, kind="values"),
]


def outcome(number: int, seed: int, whole: Path) -> tuple[str, str]:
    """Loads a case. Returns "loaded", "refused" or what is wrong with it, and the message."""
    draw = Draw(f"{seed} {number}")
    with tempfile.TemporaryDirectory() as name:
        load = WAYS[number % len(WAYS)](draw, whole, Path(name))
        before, start, kind, message = peak(), time.process_time(), "loaded", ""
        try:
            load()
        except (ValueError, OSError) as error:
            kind, message = "refused", str(error)
            if len(message.splitlines()) != 1 or not message.isprintable() or len(message) > 3000:
                kind = "not one readable line"
        except Exception as error:
            kind, message = type(error).__name__, str(error)
        seconds, memory = time.process_time() - start, peak() - before
    if seconds > SECONDS:
        kind = f"{seconds:.1f} s"
    if memory > MEMORY:
        kind = f"{memory / 2**30:.1f} GB"
    return kind, message


def peak() -> int:
    """Returns the most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(first: int, stop: int, seed: int, whole: Path) -> None:
    """Prints a line of JSON before and after each case."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, size + ADDRESSES))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for number in range(first, stop):
        print(json.dumps([number]), flush=True)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        print(json.dumps([number, *outcome(number, seed, whole)]), flush=True)


def run(first: int, cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Returns how often each outcome was, and a line for each case that is not well."""
    counts, bad, stop = Counter[str](), [], first + cases
    with tempfile.TemporaryDirectory() as name:
        write_whole(Path(name))
        while first < stop:
            command = [sys.executable, __file__, "--child", str(first), str(stop), str(seed), name]
            env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
            with Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=env) as process:
                assert process.stdout is not None and process.stderr is not None
                for line in process.stdout:
                    number, *result = json.loads(line)
                    first = number + bool(result)
                    if result:
                        counts[result[0]] += 1
                        if result[0] not in ("loaded", "refused"):
                            bad.append(f"{number}: {result[0]}: {result[1]}")
                errors = process.stderr.read()
            if first < stop:
                counts["crashed"] += 1
                bad.append(f"{first}: crashed with {process.returncode}: {errors[-2000:]}")
                first += 1
    return counts, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("cases", 10_000), ("seed", 0), ("first", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    counts, bad = run(given.first, given.cases, given.seed)
    print(*bad, *(f"{count} {kind}" for kind, count in counts.most_common()), sep="\n")
    return int(bool(bad))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*map(int, sys.argv[2:5]), Path(sys.argv[5]))
    else:
        sys.exit(main())
