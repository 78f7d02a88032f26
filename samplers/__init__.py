from samplers.ddim import ddim
from samplers.ddpm import ddpm
from samplers.dpmpp_2m import dpmpp_2m
from samplers.noise import ImageNoise
from samplers.schedule import Schedule, Step, add_noise, as_eps

__all__ = ["ImageNoise", "Schedule", "Step", "add_noise", "as_eps", "ddim", "ddpm", "dpmpp_2m"]
