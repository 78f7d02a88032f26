from samplers.ddim import ddim
from samplers.ddpm import ddpm
from samplers.dpmpp_2m import dpmpp_2m
from samplers.noise import ImageNoise, KeyedNoise
from samplers.predict import Denoised, as_x_0
from samplers.schedule import Flow, Level, Schedule, Step, add_noise

__all__ = [
    "Denoised",
    "Flow",
    "ImageNoise",
    "KeyedNoise",
    "Level",
    "Schedule",
    "Step",
    "add_noise",
    "as_x_0",
    "ddim",
    "ddpm",
    "dpmpp_2m",
]
