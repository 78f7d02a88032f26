"""A network in a formula, and diffusers' levels as steps of ours."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from samplers import Denoised, Level, Step, as_x_0
from samplers.predict import Denoise
from samplers.schedule import steps_through

SHAPE = (4, 8, 8)


def network(x_t: Tensor, t: float | Tensor, condition: object = None, edits: object = ()) -> Tensor:
    """A stand-in for the U-Net: smooth, bounded, and dependent on position, timestep and every channel."""
    t = torch.as_tensor(t).float()
    return torch.tanh(x_t.roll(1, 1) * 0.7 + x_t.roll(1, 3) * 0.5 + torch.sin(t / 100) * 0.3)


def denoiser(x_0_of: Callable[[Tensor, Level], Tensor]) -> Denoise:
    def denoise(x_t: Tensor, step: Step) -> Denoised:
        x_0 = x_0_of(x_t, step.now)
        return Denoised(x_0, step.now.eps(x_t, x_0))

    return denoise


def predicting(prediction: str) -> Denoise:
    predict = as_x_0(network, prediction)
    return denoiser(lambda x_t, level: predict(x_t, level, None))


def level_of(sigma: float, t: float) -> Level:
    """The variance-preserving level of a noise level."""
    return Level(float(t), 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma))


def steps_of(sigmas: Tensor, timesteps: Tensor) -> list[Step]:
    """The steps through a scheduler's own levels; the last of its sigmas has no timestep."""
    return steps_through([level_of(*pair) for pair in zip(sigmas.tolist(), [*timesteps.tolist(), 0.0], strict=True)])


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
