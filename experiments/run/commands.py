"""The sampling verb in a process of its own, and the pictures of its run folders."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

from experiments.files import UserError, read_lines

SCALE = 3  # 92 % right on the captions that chose the embedded model's best, 4, which has 93: see its card
SEGMENTATION_FREE = ["guidance=segmentation_free", "guidance.sf_strength=0.6"]  # w_bar : w as in the paper, 2 : 6.5
STEPS = 20  # of the pictures whose stages are told in steps


def stages(*parts: tuple[str, int]) -> str:
    """Returns the text of multistage guidance's stages, prompts with their steps."""
    return "[" + ", ".join(f"{{prompt: {prompt}, steps: {steps}}}" for prompt, steps in parts) + "]"


def sample(*overrides: str) -> list[str]:
    """Runs the sampling verb; returns its command, less the path of Python. Raises UserError if it failed."""
    command = ["-m", "experiments.sample", *overrides]
    if subprocess.run([sys.executable, *command]).returncode:
        raise UserError(f"python {' '.join(command)} failed, for the reason above")
    return command


def pictures(run: Path) -> list[Image.Image]:
    """Returns a run folder's pictures, in the order of its records."""
    return [Image.open(run / record["file"]) for record in read_lines(run / "samples.jsonl")]
