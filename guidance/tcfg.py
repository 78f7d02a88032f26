from dataclasses import dataclass

import torch
from torch import Tensor

from guidance.mix import check_space, dot
from samplers.schedule import Step


@dataclass(frozen=True)
class Tangential:
    """The rule of tangential damping, TCFG (Kwon et al. 2025, arXiv 2503.18137); two passes.

    Of the weak estimate only its part along v stays, the first right singular vector of both: u' = <u, v> v, then
    u' + g (c - u'). Reported for Stable Diffusion 1.5 at scale 7.5 (second-hand).
    space  "output", what the network predicts, as in diffusers: eps in Stable Diffusion 1.5
    """

    space: str = "output"

    def __post_init__(self) -> None:
        check_space("space", self.space)

    def push(self, cond: Tensor, weak: Tensor, scale: float, step: Step) -> Tensor:
        both = torch.stack([cond, weak], dim=1).flatten(2)  # [B, 2, C h w]
        v = torch.linalg.svd(both, full_matrices=False).Vh[:, 0].reshape(cond.shape)
        damped = dot(weak, v) * v
        return damped + scale * (cond - damped)
