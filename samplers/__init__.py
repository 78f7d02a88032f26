from samplers.ddim import ddim
from samplers.ddim_inverse import ddim_inverse
from samplers.ddpm import ddpm
from samplers.dpmpp_2m import dpmpp_2m
from samplers.dpmpp_2m_sde import dpmpp_2m_sde
from samplers.euler import euler
from samplers.euler_ancestral import euler_ancestral
from samplers.euler_maruyama import euler_maruyama
from samplers.heun import heun
from samplers.langevin import langevin
from samplers.lms import lms
from samplers.noise import ImageNoise, KeyedNoise
from samplers.plms import plms
from samplers.predict import Denoised, as_x_0
from samplers.schedule import Flow, Level, Schedule, Step, add_noise
from samplers.unipc import unipc

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
    "ddim_inverse",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "heun",
    "langevin",
    "lms",
    "plms",
    "unipc",
]
