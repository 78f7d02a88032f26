"""Exact ground: a mixture of Gaussians, whose score, denoiser and velocity are known at every level.

K  components, d dimensions, B points; all in float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers import Denoised, Level, Step


@dataclass(frozen=True)
class Mixture:
    """The distribution sum_k weight_k N(mean_k, covariance_k) of clean points x_0."""

    weights: Tensor  # [K], of sum 1
    means: Tensor  # [K, d]
    covariances: Tensor  # [K, d, d]

    def at(self, level: Level) -> "Mixture":
        """The distribution of x_t = signal x_0 + noise eps: a mixture again."""
        eye = torch.eye(self.means.shape[1], dtype=torch.float64)
        covariances = level.signal**2 * self.covariances + level.noise**2 * eye
        return Mixture(self.weights, level.signal * self.means, covariances)

    def sample(self, count: int, g: torch.Generator) -> Tensor:
        """Points [count, d]."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=g)
        z = torch.randn(count, self.means.shape[1], generator=g, dtype=torch.float64)
        return self.means[k] + torch.einsum("bij,bj->bi", torch.linalg.cholesky(self.covariances)[k], z)

    def log_joint(self, x: Tensor) -> Tensor:
        """log(weight_k N(x; mean_k, covariance_k)) [B, K] at points [B, d]."""
        off = x[:, None] - self.means
        squares = torch.einsum("bki,kij,bkj->bk", off, self.covariances.inverse(), off)
        return self.weights.log() - (squares + self.covariances.logdet() + x.shape[1] * math.log(2 * math.pi)) / 2

    def log_density(self, x: Tensor) -> Tensor:
        """[B] at points [B, d]."""
        return self.log_joint(x).logsumexp(dim=1)

    def shares(self, x: Tensor) -> Tensor:
        """p(k given x) [B, K] at points [B, d]."""
        return self.log_joint(x).softmax(dim=1)

    def x_0(self, x_t: Tensor, level: Level) -> Tensor:
        """E[x_0 given x_t] [B, d]: no network can denoise better."""
        noisy = self.at(level)
        regression = level.signal * self.covariances @ noisy.covariances.inverse()
        of_each = self.means + torch.einsum("kij,bkj->bki", regression, x_t[:, None] - noisy.means)
        return torch.einsum("bk,bki->bi", noisy.shares(x_t), of_each)

    def denoise(self, x_t: Tensor, step: Step) -> Denoised:
        """What a sampler asks for."""
        x_0 = self.x_0(x_t, step.now)
        return Denoised(x_0, step.now.eps(x_t, x_0))


def three() -> Mixture:
    """Three Gaussians in the plane, of unlike weights and shapes."""
    weights, means = [0.2, 0.3, 0.5], [[-1.4, 0.8], [1.2, 1.0], [0.2, -1.1]]
    covariances = [[[0.10, 0.06], [0.06, 0.10]], [[0.20, 0.00], [0.00, 0.05]], [[0.15, -0.08], [-0.08, 0.12]]]
    return Mixture(*(torch.tensor(numbers, dtype=torch.float64) for numbers in (weights, means, covariances)))
