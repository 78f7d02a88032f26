"""A latent diffusion model as one value."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ldm.autoencoder import Autoencoder
from ldm.config import ModelConfig
from ldm.text import Text, TextEncoder, Texts, Tokenizer
from ldm.unet import UNet

DECODED_CELLS = 4 * 64 * 64  # of latents decoded at once: four pictures of 512 px


@dataclass(frozen=True)
class LatentDiffusion:
    """The three networks, in one dtype and on one device, and the numbers they were made with."""

    unet: UNet
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    config: ModelConfig

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.config.text.pad_id, self.config.text.context)

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @torch.inference_mode()
    def encode_text(self, prompts: list[str]) -> Text:
        """The U-Net's condition for each prompt, cut to 77 tokens."""
        tokens = self.tokenizer(prompts)
        return Text(self.text_encoder(tokens.ids.to(self.device)), tokens.spans)

    def texts(self, prompts: list[str], negative: list[str] | None = None) -> Texts:
        """What a guidance draws on, for a batch of images with these prompts; negative prompts are empty by default."""

        @lru_cache
        def for_all(prompt: str) -> Text:
            return self.encode_text([prompt] * len(prompts))

        return Texts(self.encode_text(prompts), self.encode_text(negative or [""] * len(prompts)), for_all)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of an image; its sides must be multiples of `config.size_multiple` pixels.

        Raises ValueError for a size that the networks cannot take.
        """
        multiple = self.config.size_multiple
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ValueError(f"height={height} width={width}: both must be multiples of {multiple} pixels")
        down = self.config.downscale
        return self.config.autoencoder.latent_channels, height // down, width // down

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of latents [B, C, h, w]; in slices, for a large batch takes much memory."""
        slices, dtype = latents.split(max(DECODED_CELLS // latents[0, 0].numel(), 1)), self.unet.conv_in.weight.dtype
        image = torch.cat([self.autoencoder.decode(part.to(dtype)).float() for part in slices])
        return (image / 2 + 0.5).clamp(0, 1)
