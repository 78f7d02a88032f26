"""Latent diffusion: the networks of Stable Diffusion, and the reading and writing of their files."""

from ldm.files.reading import load_model
from ldm.model import LatentDiffusion

__all__ = ["LatentDiffusion", "load_model"]
