"""The Frechet distance between two sets of features, each taken for a Gaussian."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A mean [D], and a factor [R, D] of the covariance factor^T factor, float64."""

    mean: Tensor
    factor: Tensor


def gaussian(values: Tensor) -> Gaussian:
    """Returns mean and factor of N samples [N, D]."""
    values = values.double()
    centred = (values - values.mean(dim=0)) / (len(values) - 1) ** 0.5
    return Gaussian(
        values.mean(dim=0), torch.linalg.qr(centred, mode="r").R if len(values) > values.shape[1] else centred
    )


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), Dowson & Landau 1982; squared, as FID is (Heusel et al. 2017).

    With S_1 = A^T A and S_2 = B^T B the last trace is the sum of the singular values of A B^T, at most N x N.
    """
    cross = torch.linalg.svdvals(one.factor @ other.factor.T).sum()
    spread = one.factor.square().sum() + other.factor.square().sum() - 2 * cross
    return ((one.mean - other.mean).square().sum() + spread).item()
