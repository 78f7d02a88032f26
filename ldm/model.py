"""A latent diffusion model as one value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ldm.autoencoder import Autoencoder
from ldm.boxes import BoxEncoder
from ldm.classes import ClassTable
from ldm.condition import Condition, Conditions, Sizes, Unfit, no_noise
from ldm.config import ModelConfig
from ldm.dit import DiT
from ldm.svg.autoencoder import VectorAutoencoder
from ldm.svg.drawing import Drawing
from ldm.text import TextEncoder, TextEncoderPair, Tokenizer
from ldm.unet import UNet, sinusoids

DECODED_CELLS = 4 * 64 * 64  # of latents decoded at once: four pictures of 512 px


def denoiser_of(config: ModelConfig) -> UNet | DiT:
    """Returns the network that denoises, with its initial weights."""
    return DiT(config.dit) if config.denoiser == "dit" else UNet(config.unet)


def autoencoder_of(config: ModelConfig) -> Autoencoder | VectorAutoencoder:
    """Returns the autoencoder, with its initial weights."""
    return VectorAutoencoder(config.drawings) if config.latents == "drawings" else Autoencoder(config.autoencoder)


def encoder_of(config: ModelConfig) -> TextEncoder | TextEncoderPair | ClassTable | BoxEncoder | None:
    """Returns what turns prompts into conditions, with its initial weights."""
    if config.condition == "nothing":
        return None
    if config.condition == "classes":
        return ClassTable(config.classes)
    if config.condition == "boxes":
        return BoxEncoder(config.boxes)
    return TextEncoderPair(config.text, config.text_2) if config.text_2 else TextEncoder(config.text)


@dataclass(frozen=True)
class LatentDiffusion:
    """The networks, on one device and in one dtype, and the numbers they were made with.

    unet          the network that denoises: a U-Net, or a diffusion transformer
    autoencoder   of images, or of vector drawings
    text_encoder  what turns a prompt into a condition: of a text, a table of classes whose names are the prompts, an
                  encoder of layouts that the prompts tell, or nothing, where the only prompt is ""
    An autoencoder whose activations overflow float16 is in float32 beside networks in float16.
    """

    unet: UNet | DiT
    autoencoder: Autoencoder | VectorAutoencoder
    text_encoder: TextEncoder | TextEncoderPair | ClassTable | BoxEncoder | None
    config: ModelConfig

    @property
    def tokenizer(self) -> Tokenizer:
        """Of a model that is told a text."""
        return Tokenizer(self.config.text.pad_id, self.config.text.context)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the U-Net's weights."""
        return next(self.unet.parameters()).dtype

    def condition(self, prompts: Sequence[str], sizes: Sizes | None = None) -> Condition:
        """The U-Net's condition of each prompt: a text, cut to 77 tokens, or a class. Raises what `check_prompts` does.

        sizes  of the picture, for networks that are told them; by default those of `config.image_size`
        """
        self.check_prompts(prompts)
        if self.text_encoder is None:
            return Condition(spans=((),) * len(prompts))
        if isinstance(self.text_encoder, ClassTable):
            condition: Condition = self.text_encoder(self.text_encoder.ids(prompts).to(self.device))
            return condition
        if isinstance(self.text_encoder, BoxEncoder):
            return self.text_encoder.condition(prompts)
        read = self.tokenizer(list(prompts))
        tokens, pooled = self.text_encoder.tokens_and_pooled(read.ids.to(self.device))
        empty = torch.tensor([not prompt.strip() for prompt in prompts], device=self.device)[:, None]
        if self.config.zeros_for_empty:
            tokens = tokens.masked_fill(empty[:, :, None], 0)
            pooled = None if pooled is None else pooled.masked_fill(empty, 0)
        if pooled is None:
            return Condition(tokens, spans=read.spans)
        sized = self.size_embedding(sizes).expand(len(pooled), -1)
        return Condition(tokens, torch.cat([pooled, sized], dim=1), spans=read.spans, sizes=sized.shape[1])

    def size_embedding(self, sizes: Sizes | None) -> Tensor:
        """What the U-Net's vector says of sizes: sinusoids [1, 6 x width] of its six numbers."""
        assert self.config.text_2 is not None
        numbers = (sizes or Sizes((self.config.image_size,) * 2)).numbers
        width = (self.config.unet.vector_width - self.config.text_2.projection) // len(numbers)
        return sinusoids(torch.tensor(numbers, device=self.device), width).reshape(1, -1)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises Unfit for a prompt that the model cannot be told: a class that it does not know, or any at all.

        Raises ValueError for a text in the place of a list of them.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts={prompts!r}: must be a list, with a prompt for each image")
        if isinstance(self.text_encoder, ClassTable):
            self.text_encoder.ids(prompts)
        elif isinstance(self.text_encoder, BoxEncoder):
            for prompt in prompts:
                self.text_encoder.boxes(prompt)
        elif self.text_encoder is None and any(prompts):
            raise Unfit(f"this model is told nothing: leave out {next(filter(None, prompts))!r}")

    def conditions(
        self,
        prompts: Sequence[str],
        negative: Sequence[str] | None = None,
        noise: Callable[[str, tuple[int, ...]], Tensor] = no_noise,
        sizes: Sizes | None = None,
        channels: Tensor | None = None,
    ) -> Conditions:
        """What a guidance draws on, for a batch of images with these prompts.

        negative  negative prompts, one per image; empty by default
        noise     the images' own streams, for guidances that draw: samplers.KeyedNoise(seeds)
        sizes     see `condition`
        channels  [B, C, h, w], concatenated to x_t under every prompt, the negative one too: a mask, a picture
        """

        @lru_cache
        def encoded(texts: tuple[str, ...]) -> Condition:
            return replace(self.condition(texts, sizes), channels=channels)

        def encode(texts: str | Sequence[str]) -> Condition:
            return encoded((texts,) * len(prompts) if isinstance(texts, str) else tuple(texts))

        self.check_prompts(prompts)
        unlike = encode(negative or [""] * len(prompts))
        return Conditions(encode(prompts), unlike, encode, noise, self.autoencoder.decode)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """(C, h, w) of the latent of an image, whose sides must be multiples of `config.size_multiple` pixels.

        (d,) of a drawing's latent, which has no size. Raises ValueError for a size that the networks cannot take.
        """
        multiple = self.config.size_multiple
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ValueError(f"height={height} width={width}: both must be multiples of {multiple} pixels")
        if self.config.latents == "drawings":
            return (self.config.latent_channels,)
        down = self.config.downscale
        return self.config.latent_channels, height // down, width // down

    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, C, h, w], in float32, of images [B, 3, H, W] in [0, 1]: the means of the posterior."""
        assert isinstance(self.autoencoder, Autoencoder), "drawings are sequences, and no images"
        return self.autoencoder.encode((2 * images - 1).to(self.device))[0].float()

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of latents [B, C, h, w]; in slices, for a large batch takes much memory."""
        assert isinstance(self.autoencoder, Autoencoder), "drawings are drawn by `draw`"
        slices = latents.split(max(DECODED_CELLS // latents[0, 0].numel(), 1))
        image = torch.cat([self.autoencoder.decode(part).float() for part in slices])
        return (image / 2 + 0.5).clamp(0, 1)

    def draw(self, latents: Tensor) -> list[Drawing]:
        """Vector drawings of latents [B, d], in a box of `ldm.svg.drawing.BOX` units."""
        assert isinstance(self.autoencoder, VectorAutoencoder), "images are made by `decode`"
        return self.autoencoder.draw(latents.to(self.dtype), self.config.stroke)
