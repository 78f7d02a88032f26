"""python -m experiments.benchmark: ours and diffusers side by side, on the same weights, in one run and in turns.

By default the embedded model's cases and one U-Net forward of Stable Diffusion 1.5's shape at 256 px, a few minutes on
two cores. Writes benchmark.json and benchmark.md to --out and prints the table. Ratios are theirs / ours.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from os import getloadavg
from pathlib import Path

import torch

from experiments.benchmark import fresh, options
from experiments.benchmark.cases import Plan, Row, measure
from experiments.benchmark.options import CASES

QUICK = {"emoji": list(CASES), "sd15_256": ["unet"]}


def rows(args: argparse.Namespace, weights: Path) -> Iterator[Row]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for size, dtype, batch, mode in product(args.sizes, args.dtype, args.batch, args.modes):
        plan = Plan(size, batch, dtype, mode, args.steps, args.repeats, args.device, args.tuned, weights)
        yield from measure(plan, args.cases or QUICK.get(size, list(CASES)))


def conditions(args: argparse.Namespace) -> str:
    """What the numbers were measured on, in one line."""
    chip = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "diffusers") if has(name))
    load = ", ".join(f"{x:.1f}" for x in getloadavg())
    return f"{chip}, {torch.get_num_threads()} threads, load {load} at the end, {packages}, {args.repeats} repeats"


def has(package: str) -> bool:
    return package != "diffusers" or fresh.has_diffusers()


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def table(rows: list[Row]) -> str:
    head = ["case", "size", "batch", "dtype", "mode", "against", "ours (least - most)", "theirs", "ratio", ""]
    lines = [head, ["---"] * len(head)]
    for r in rows:
        spans = [
            "" if t is None else f"{shown(t.median, r.unit)} ({shown(t.least, r.unit)} - {shown(t.most, r.unit)})"
            for t in (r.ours, r.theirs)
        ]
        ratio = "" if r.ratio is None else f"{r.ratio:.2f}"
        lines.append([r.case, r.size, str(r.batch), r.dtype, r.mode, r.against, *spans, ratio, r.note])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def main() -> None:
    args = options.side_by_side().parse_args()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = args.dtype or ["bfloat16" if args.device == "cuda" else "float32"]
    if not fresh.has_diffusers():
        print("diffusers is not installed here: ours alone (pip install -e '.[test]' brings it)")
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(args, args.weights or Path(folder)):
            found.append(row)
            print(table([row]).splitlines()[-1], flush=True)
    said = conditions(args)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"conditions": said, "rows": [asdict(row) for row in found]}
    (args.out / "benchmark.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "benchmark.md").write_text(f"{said}\n\n{table(found)}\n")
    print(f"\n{said}\n\n{table(found)}\n\n{args.out}/benchmark.md and .json")


if __name__ == "__main__":
    main()
