"""Measurements of the network itself, on scenes of which the whole truth is known, rather than of a finished run.

A study is one file here and one yaml in conf/experiment, under the key `study`, with no other file touched.
"""

from pathlib import Path
from typing import Protocol

from experiments.metrics import Bench, Result
from ldm import LatentDiffusion


class Study(Protocol):
    def measure(self, model: LatentDiffusion, bench: Bench, folder: Path) -> Result:
        """What the study finds; one picture that shows it may go into folder/figure.png, about 1000 pixels wide.

        Details are estimates by name, and `about` is what they depend on. The networks run on the model's device, in
        its dtype. Raises UserError, in one line, for a setting that cannot be measured.
        """
        ...
