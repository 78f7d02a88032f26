"""From what a network predicts to the clean estimate: the one place where the two meet."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.schedule import Level, Step

PREDICTIONS = ("eps", "v", "x0", "flow")

Network = Callable[..., Tensor]  # (x_t, t, condition, edits) -> prediction, in any dtype
Predict = Callable[..., Tensor]  # (x_t, level, condition, edits=(), t=None) -> x_0, in float32


class Denoised(NamedTuple):
    """The clean estimate x_0 [B, ...], and the noise eps with which a sampler goes on."""

    x_0: Tensor
    eps: Tensor


Denoise = Callable[[Tensor, Step], Denoised]  # (x_t, step), evaluated at step.now


def as_x_0(network: Network, prediction: str) -> Predict:
    """Wraps a network so that it returns x_0, whatever it was trained to predict.

    prediction  "eps"; "v" = signal eps - noise x_0 (Salimans & Ho 2022); "x0"; "flow" = eps - x_0
    The network may work in any dtype: the rest is float32 (float64 for a float64 x_t), and no number of the schedule
    takes the network's dtype. The result takes (x_t, level, condition, edits=(), t=None); t [B] or a number is what the
    network is told in the place of level.t.
    Raises ValueError for an unknown prediction, and for eps at a level without signal.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction '{prediction}' is none of {', '.join(PREDICTIONS)}")

    def predict(
        x_t: Tensor, level: Level, condition: Any, edits: Sequence[Any] = (), t: float | Tensor | None = None
    ) -> Tensor:
        out = network(x_t, level.t if t is None else t, condition, edits).to(
            torch.promote_types(x_t.dtype, torch.float32)
        )
        if prediction == "v":
            return (level.signal * x_t - level.noise * out) / (level.signal**2 + level.noise**2)
        if prediction == "flow":
            return (x_t - level.noise * out) / (level.signal + level.noise)
        return out if prediction == "x0" else level.x_0(x_t, out)

    return predict


def target(prediction: str, x_0: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """What a network of this prediction learns: the inverse of `as_x_0`. signal and noise [B] broadcast to [B, ...]."""
    rows = (len(x_0), *[1] * (x_0.ndim - 1))
    if prediction == "v":
        return signal.to(x_0.dtype).reshape(rows) * eps - noise.to(x_0.dtype).reshape(rows) * x_0
    return {"eps": eps, "x0": x_0, "flow": eps - x_0}[prediction]
