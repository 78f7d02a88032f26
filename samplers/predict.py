"""From what a network predicts to the clean estimate, and back: the one place where the two meet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.schedule import Level, Step

PREDICTIONS = ("eps", "v", "x0", "flow")
SPACES = ("x_0", "eps", "output")  # in which a formula of guidance is computed

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
    return Predictor(network, prediction)


@dataclass(frozen=True)
class Predictor:
    """A network that returns x_0, and what it was trained to predict."""

    network: Network
    prediction: str

    def __call__(
        self, x_t: Tensor, level: Level, condition: Any, edits: Sequence[Any] = (), t: float | Tensor | None = None
    ) -> Tensor:
        out = self.network(x_t, level.t if t is None else t, condition, edits)
        return x_0_of(out.to(torch.promote_types(x_t.dtype, torch.float32)), self.prediction, x_t, level)


def prediction_of(predict: Predict) -> str:
    """What the network behind a `Predict` was trained to predict; eps where it does not say."""
    return getattr(predict, "prediction", "eps")


def x_0_of(out: Tensor, prediction: str, x_t: Tensor, level: Level) -> Tensor:
    """The clean estimate of a network's output. Raises ValueError for eps at a level without signal."""
    if prediction == "v":
        return (level.signal * x_t - level.noise * out) / (level.signal**2 + level.noise**2)
    if prediction == "flow":
        return (x_t - level.noise * out) / (level.signal + level.noise)
    return out if prediction == "x0" else level.x_0(x_t, out)


def output_of(x_0: Tensor, prediction: str, x_t: Tensor, level: Level) -> Tensor:
    """The output of a network whose clean estimate is x_0: the inverse of `x_0_of`."""
    return x_0 if prediction == "x0" else predicted(prediction, x_0, level.eps(x_t, x_0), level.signal, level.noise)


def prediction_in(space: str, step: Step) -> str:
    """The prediction whose values a formula in this space reads: for "output", that of the network itself."""
    assert space in SPACES, f"space '{space}': must be {', '.join(SPACES)}"
    return {"x_0": "x0", "eps": "eps", "output": step.prediction}[space]


def target(prediction: str, x_0: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """What a network of this prediction learns: `output_of` at a level for each row, signal and noise [B]."""
    rows = (len(x_0), *[1] * (x_0.ndim - 1))
    return predicted(prediction, x_0, eps, signal.to(x_0.dtype).reshape(rows), noise.to(x_0.dtype).reshape(rows))


def predicted(prediction: str, x_0: Tensor, eps: Tensor, signal: Any, noise: Any) -> Tensor:
    """What stands for x_0 and eps under a prediction; signal and noise are numbers, or tensors that broadcast."""
    if prediction == "v":
        return signal * eps - noise * x_0
    return {"eps": eps, "x0": x_0, "flow": eps - x_0}[prediction]
