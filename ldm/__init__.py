"""Latent diffusion: the networks of Stable Diffusion, and the reading and writing of their checkpoints."""

from ldm.model import LatentDiffusion, load_model

__all__ = ["LatentDiffusion", "load_model"]
