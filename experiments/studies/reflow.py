"""Reflow (Liu et al. 2022, arXiv 2209.03003) of a rectified flow on points: straightened by its own pairs.

B points, d dimensions, n steps. Time runs as in `samplers`: s = 1 is noise, the velocity u = eps - x_0.
"""

import math

import torch
from torch import Tensor

from samplers import Denoised, Flow, Step, as_x_0, ddim
from samplers.predict import Denoise


def path(denoise: Denoise, z: Tensor, n: int) -> Tensor:
    """The flow's way [n + 1, B, d] from noise z [B, d] at s = 1 down to x_0, in n even steps of Euler's method."""
    return torch.stack([z, *(x_t for _, x_t, _ in ddim(denoise, z, Flow().steps(n)))])


def straightness(way: Tensor) -> float:
    """S = mean over s and points of |(z - x_0) - u(x_t, s)|^2 along a `path`; 0 where all ways are straight lines."""
    n = len(way) - 1
    return ((way[0] - way[-1]) - (way[:-1] - way[1:]) * n).square().sum(dim=-1).mean().item()


def straightened(
    z: Tensor, x_0: Tensor, g: torch.Generator, features: int = 300, examples: int = 12_000, width: float = 0.7
) -> Denoise:
    """The next flow: of all velocities that are linear in random cosine features of (x_t, s), the one that goes most
    nearly straight from each z [N, d] to its own x_0 [N, d], at uniform times (eq. 1 of the paper, by least squares).

    width  how far a feature reaches in x_t
    """
    reach = torch.tensor([*[width] * z.shape[1], 1.0], dtype=z.dtype)
    frequencies = torch.randn(len(reach), features, generator=g, dtype=z.dtype) / reach[:, None]
    phases = 2 * math.pi * torch.rand(features, generator=g, dtype=z.dtype)

    def seen(x_t: Tensor, s: Tensor) -> Tensor:
        return torch.cos(torch.cat([x_t, s], dim=1) @ frequencies + phases)

    rows = torch.randint(len(z), (examples,), generator=g)
    s = torch.rand(examples, 1, generator=g, dtype=z.dtype)
    phi = seen((1 - s) * x_0[rows] + s * z[rows], s)
    ridge = 0.1 * torch.eye(features, dtype=z.dtype)
    weights = torch.linalg.solve(phi.T @ phi + ridge, phi.T @ (z[rows] - x_0[rows]))

    def velocity(x_t: Tensor, t: float, condition: object, edits: object) -> Tensor:
        return seen(x_t, x_t.new_full((len(x_t), 1), t / 1000)) @ weights

    predict = as_x_0(velocity, "flow")

    def denoise(x_t: Tensor, step: Step) -> Denoised:
        x_0 = predict(x_t, step.now, None)
        return Denoised(x_0, step.now.eps(x_t, x_0))

    return denoise
