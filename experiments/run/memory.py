"""Whether pictures of a size can fit in memory at all."""

import os
from pathlib import Path

import torch

from experiments.files import UserError
from ldm import LatentDiffusion
from ldm.config import ModelConfig


def check_memory(model: LatentDiffusion, size: tuple[int, int], together: int) -> None:
    """Raises UserError for pictures that cannot fit in memory: their largest feature maps alone exceed it."""
    need = largest_maps(model.config, size, together) * model.dtype.itemsize
    have = memory(model.device)
    if need > have:
        raise UserError(
            f"height={size[0]} width={size[1]}: drawing {together} at once would take about {need / 1e9:,.0f} GB of "
            f"memory, and there are {have / 1e9:.0f} GB: choose a smaller size or batch_size"
        )


def largest_maps(config: ModelConfig, size: tuple[int, int], together: int) -> int:
    """Returns how many numbers the largest feature maps have: the denoiser's, or a block's four when decoding.

    Those of a U-Net are its skips, those of a transformer the hidden units of an MLP.
    """
    pixels = size[0] * size[1]
    rows = 2 * together  # of classifier-free guidance
    decoded = 4 if config.latents == "drawings" else 4 * max(config.autoencoder.channels[:2])  # one picture at a time
    if config.denoiser == "dit":
        patches = config.dit.tokens or pixels / (config.downscale * config.dit.patch_size) ** 2
        return int(max(rows * patches * config.dit.width * config.dit.mlp_ratio, decoded * pixels))
    channels = config.unet.channels
    skips = sum(width / 4**level for level, width in enumerate(channels)) * (config.unet.blocks_per_level + 1)
    return int(max(rows * skips * pixels / config.downscale**2, decoded * pixels))


def memory(device: torch.device) -> int:
    """Returns the bytes of a device's memory, or of what the machine's is limited to."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limit = Path("/sys/fs/cgroup/memory.max")
    limits = [int(text) for text in ([limit.read_text().strip()] if limit.is_file() else []) if text.isdecimal()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])
