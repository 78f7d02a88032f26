from dataclasses import dataclass

from guidance.branch import Branch
from guidance.weak import Against
from ldm.condition import Conditions
from samplers.schedule import Step


@dataclass(frozen=True)
class Autoguidance(Against):
    """Autoguidance (Karras et al. 2024, arXiv 2406.02507): away from a worse network under the same prompt.

    p + g (c - p), p of the network named "weak", a smaller or less trained one; linear, so in any space; two passes.
    scale  the paper's w; the authors' code has 2.05 to 2.45 for ImageNet at 512 pixels, 1.7 to 2.2 at 64 (EDM2)
    """

    scale: float = 2.0

    def weak(self, conditions: Conditions, step: Step) -> Branch:
        return Branch(conditions.cond, network="weak")
