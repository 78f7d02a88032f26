from dataclasses import dataclass

import torch
from torch import Tensor

from guidance.branch import Wrapper, check_number, combined
from guidance.mix import shifted
from samplers.predict import Denoised
from samplers.schedule import Step


@dataclass(frozen=True)
class DynamicThreshold(Wrapper):
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3), of x_0; as many passes as `inner`.

    percentile  p: per image, s is the p-quantile of |x_0|; x_0 is clipped to -s .. s and brought down to the limit
    limit       1 for pixels, the paper's; what lies below it stays. None is for latents, which have no such bound:
    mimic       then the limit is the largest |x_0| of a weaker guidance, cond + mimic (guided - cond), each channel (a
                vector being one) measured from its mean: the "mimic scale" of Stable Diffusion's interfaces, where 7
                is usual for a scale of 15, which is 6/14
    signal x_0 + noise eps stays as `inner` leaves it.
    """

    percentile: float = 0.995
    mimic: float = 6 / 14
    limit: float | None = None

    def __post_init__(self) -> None:
        check_number("percentile", self.percentile, most=1)
        check_number("mimic", self.mimic, most=1)
        if self.limit is not None and not 0 < self.limit < float("inf"):
            raise ValueError(f"limit={self.limit}: must be a number above 0, or null")

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        out = combined(self.inner, x_0, x_t, step)
        if self.limit is not None:
            bounded = self.bounded(out.x_0.flatten(1), torch.tensor(self.limit).to(out.x_0))
            return shifted(out, bounded.reshape(out.x_0.shape) - out.x_0, step)
        flat, cond = channels(out.x_0), channels(x_0["cond"])
        mean = flat.mean(dim=-1, keepdim=True)
        weaker = torch.lerp(cond, flat, self.mimic)
        limit = (weaker - weaker.mean(dim=-1, keepdim=True)).abs().amax(dim=-1, keepdim=True)
        bounded = mean + self.bounded(flat - mean, limit)
        return shifted(out, bounded.reshape(out.x_0.shape) - out.x_0, step)

    def bounded(self, x: Tensor, limit: Tensor) -> Tensor:
        """x [..., N] clipped to its quantile, which is then brought down to the limit [..., 1]."""
        s = torch.quantile(x.abs(), self.percentile, dim=-1, keepdim=True).maximum(limit)
        return x.clamp(-s, s) * (limit / s.clamp_min(torch.finfo(s.dtype).tiny))


def channels(x: Tensor) -> Tensor:
    """Latents [B, C, N]: a grid's channels; a vector is one channel."""
    return x.flatten(2) if x.ndim > 2 else x[:, None]
