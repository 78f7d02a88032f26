from collections.abc import Sequence

import torch
from torch import Tensor


class ImageNoise:
    """Standard normal noise [B, *shape], one random stream per image: row b is the next draw of seed b's generator.

    The first call gives x_T, later ones what a stochastic sampler adds. So an image's noise does not depend on its
    batch, neighbours or device, and equals what diffusers draws for a list of per-image CPU generators.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu"):
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.shape = shape
        self.device = device

    def __call__(self) -> Tensor:
        draws = [torch.randn(self.shape, generator=g, dtype=torch.float32) for g in self.generators]
        return torch.stack(draws).to(self.device)
