"""Reflow (Liu et al. 2022, arXiv 2209.03003) of a rectified flow on points: straightened by its own pairs.

B points, d dimensions, n steps. Time runs as in `samplers`: s = 1 is noise, velocity u = eps - x_0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samplers import Denoised, Flow, Step, as_x_0, ddim
from samplers.predict import Denoise


class Velocity(nn.Module):
    """A velocity u(x_t, t) [B, d], t in 0 .. 1000: the network of a flow on points."""

    def __init__(self, d: int = 2, width: int = 96):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, d)
        )

    def forward(self, x_t: Tensor, t: float | Tensor, condition: object = None, edits: Sequence[object] = ()) -> Tensor:
        s = torch.as_tensor(t, dtype=x_t.dtype).reshape(-1, 1).expand(len(x_t), 1) / 1000
        return self.layers(torch.cat([x_t, s], dim=1))


def denoiser(network: Velocity) -> Denoise:
    """What a sampler asks for, from a velocity."""
    predict = as_x_0(network, "flow")

    def denoise(x_t: Tensor, step: Step) -> Denoised:
        x_0 = predict(x_t, step.now, None)
        return Denoised(x_0, step.now.eps(x_t, x_0))

    return denoise


@torch.no_grad()
def path(denoise: Denoise, z: Tensor, n: int) -> Tensor:
    """The flow's way [n + 1, B, d] from noise z [B, d] at s = 1 down to x_0, in n even steps of Euler's method."""
    return torch.stack([z, *(x_t for _, x_t, _ in ddim(denoise, z, Flow().steps(n)))])


def straightness(way: Tensor) -> float:
    """S = mean over t and points of |(z - x_0) - u(x_t, t)|^2 along a `path`; 0 where all ways are straight lines."""
    n = len(way) - 1
    return ((way[0] - way[-1]) - (way[:-1] - way[1:]) * n).square().sum(dim=-1).mean().item()


def straightened(z: Tensor, x_0: Tensor, steps: int, g: torch.Generator, batch: int = 512) -> Velocity:
    """The next flow: trained to go straight from each z [N, d] to its own x_0 [N, d], at uniform times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.randint(2**31, (), generator=g).item())
        network = Velocity(z.shape[1]).to(z.dtype)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(z), (batch,), generator=g)
        s = torch.rand(batch, 1, generator=g, dtype=z.dtype)
        x_t = (1 - s) * x_0[rows] + s * z[rows]
        loss = (network(x_t, 1000 * s) - (z[rows] - x_0[rows])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)
