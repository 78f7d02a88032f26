import hashlib
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


class KeyedNoise:
    """Standard normal noise for guidances that draw: noise(key, shape) -> [B, *shape], a pure function of seed and key.

    The same key gives the same bits, whatever was drawn before, and no key gives x_T's: a key holds the guidance's name
    and step.i, as in f"cads {step.i}".
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.seeds = tuple(seeds)
        self.device = device

    def __call__(self, key: str, shape: tuple[int, ...]) -> Tensor:
        # a CPU generator keeps 32 bits of its seed
        digests = [hashlib.blake2b(f"{seed} {key}".encode(), digest_size=4).digest() for seed in self.seeds]
        generators = [torch.Generator("cpu").manual_seed(int.from_bytes(digest)) for digest in digests]
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)
