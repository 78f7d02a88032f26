"""Reflow on the mixture of Gaussians, whose first flow is exact."""

import pytest
import torch
from torch import Tensor

from experiments.studies.mixture import three
from experiments.studies.reflow import path, straightened, straightness
from samplers.predict import Denoise

MIXTURE = three()


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_straightness_of_known_ways() -> None:
    s = torch.linspace(1, 0, 201, dtype=torch.float64)[:, None, None]
    z, x_0 = noise(5, 0), noise(5, 1)
    assert straightness(s * z + (1 - s) * x_0) < 1e-20
    bent = s**2 * z  # at velocity 2 s z to x_0 = 0: the mean of (1 - 2 s)^2 |z|^2
    assert straightness(bent) == pytest.approx(z.square().sum(dim=1).mean().item() / 3, rel=1e-4)


def test_reflow_straightens_and_keeps_the_pairs() -> None:
    z = noise(2000, 2)
    second = straightened(z, path(MIXTURE.denoise, z, 50)[-1], torch.Generator())

    z = noise(300, 3)  # of their own
    first_way, second_way = path(MIXTURE.denoise, z, 50), path(second, z, 50)
    assert straightness(first_way) > 0.5 and straightness(second_way) < 0.05

    def distance(denoise: Denoise, n: int, way: Tensor) -> float:
        return (path(denoise, way[0], n)[-1] - way[-1]).square().sum(dim=1).mean().sqrt().item()

    for n in (1, 2, 4, 8):
        assert distance(second, n, second_way) < 0.25 * distance(MIXTURE.denoise, n, first_way)
    assert (second_way[-1] - first_way[-1]).square().sum(dim=1).mean().sqrt() < 0.25
