"""The shape of a model: frozen dataclasses of plain numbers, and the published Stable Diffusion families as values."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class UNetConfig:
    """Latent U-Net with spatial transformers (Rombach et al. 2022). Tuples hold one entry per resolution level."""

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks_per_level: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (8, 8, 8, 8)  # the number of heads: not their width, and not to be read off the weights
    text_width: int | None = 768  # None: no text, the transformers attend to their own patches twice
    vector_width: int = 0  # of a vector added to the time embedding; 0: none
    linear_projection: bool = False  # projections around a transformer: linear (SD 2) or 1x1 convolutions (SD 1)
    norm_groups: int = 32
    depth: tuple[int, ...] = ()  # blocks of each transformer, level by level; (): one


@dataclass(frozen=True)
class DiTConfig:
    """Diffusion transformer (Peebles & Xie 2023), on grids [B, C, h, w] by patches, or on vectors [B, d] by slices."""

    in_channels: int = 4  # C; or d
    width: int = 1152
    layers: int = 28
    heads: int = 16  # 0: no attention
    mlp_ratio: int = 4  # hidden units of an MLP, per unit of width
    patch_size: int = 2  # cells along a side of a patch
    size: int = 32  # cells along a side of the grids it was trained on
    tokens: int = 0  # slices of a vector; 0: its latents are grids
    learn_sigma: bool = False  # it also predicts a diagonal covariance, which samplers do not use


@dataclass(frozen=True)
class AutoencoderConfig:
    """KL autoencoder; one resolution level per entry of `channels`, so its factor is 2 ** (levels - 1)."""

    image_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks_per_level: int = 2
    norm_groups: int = 32
    scale: float = 0.18215  # latents are multiplied by it, so that they have about unit variance
    overflows: bool = False  # its activations overflow float16: it works in float32 there (force_upcast)


@dataclass(frozen=True)
class VectorAutoencoderConfig:
    """Autoencoder of drawings: linear maps and residual MLPs from a sequence of commands to one latent, and back."""

    commands: int = 40  # of a drawing, at most
    latent_width: int = 256
    width: int = 256
    blocks: int = 3  # of the encoder, and of the decoder
    octaves: int = 2  # of the sines in which the encoder sees an argument, beside the argument itself
    scale: float = 1.0  # latents are multiplied by it, so that they have about unit variance


@dataclass(frozen=True)
class TextEncoderConfig:
    """CLIP text transformer. `layers` counts those that are there: 23 of OpenCLIP-H's 24 in SD 2."""

    width: int = 768
    mlp_width: int = 3072
    layers: int = 12
    heads: int = 12
    vocab: int = 49408
    context: int = 77
    activation: str = "quick_gelu"  # or "gelu", the exact one
    pad_id: int = 49407
    penultimate: bool = False  # tokens are taken before the last layer and the final norm (SDXL)
    projection: int = 0  # width of the pooled text, the projected last layer at the end token; 0: none


@dataclass(frozen=True)
class ClassesConfig:
    """A table of classes, which the network is told of in the place of a text; beside them there is a null class."""

    names: tuple[str, ...] = ()
    width: int = 512
    as_vector: bool = False  # added to the time embedding; otherwise one token of cross-attention


@dataclass(frozen=True)
class BoxesConfig:
    """An encoder of labelled boxes, a token each, which the network is told of in the place of a text."""

    names: tuple[str, ...] = ()  # labels
    width: int = 512
    most: int = 30  # boxes


@dataclass(frozen=True)
class ScheduleConfig:
    """The numbers of the noise schedule the network was trained with; samplers.Schedule turns them into tensors."""

    num_timesteps: int = 1000
    kind: str = "scaled_linear"  # or "linear", "cosine"; or "flow", a rectified flow, which has a shift and no betas
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False  # betas rescaled so that alpha_bar is 0 at the last timestep
    shift: float = 1.0  # of a flow: s becomes shift s / (1 + (shift - 1) s)
    times: str = "logit_normal"  # or "uniform": of a flow in training; no file of weights tells it
    prediction: str = "eps"  # or "v", "x0", "flow"; "" where a file does not say
    spacing: str = "leading"  # or "trailing", "linspace"
    steps_offset: int = 1  # added to leading timesteps
    ends_clean: bool = False  # the last DDIM step ends at alpha_bar 1 and not at alpha_bar[0] (set_alpha_to_one)


@dataclass(frozen=True)
class ModelConfig:
    unet: UNetConfig = UNetConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: TextEncoderConfig = TextEncoderConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    image_size: int = 512  # pixels; the size it was trained at
    # what it is made of; the configs of the others are of no use
    condition: str = "text"  # what the denoiser is told: or "classes", "boxes", "nothing"
    denoiser: str = "unet"  # or "dit"
    latents: str = "images"  # of what: or "drawings", which are vectors [B, d]
    classes: ClassesConfig = ClassesConfig()
    boxes: BoxesConfig = BoxesConfig()
    dit: DiTConfig = DiTConfig()
    drawings: VectorAutoencoderConfig = VectorAutoencoderConfig()
    stroke: float | None = None  # of drawings: the width of all lines, in units of their box; None: filled shapes
    text_2: TextEncoderConfig | None = None  # a second encoder, whose tokens stand beside the first's (SDXL)
    zeros_for_empty: bool = False  # of an empty prompt, tokens and pooled text are zeros

    @property
    def downscale(self) -> int:
        """Image pixels per latent cell, along one side; 1 where a latent is a whole drawing, of any size."""
        return 1 if self.latents == "drawings" else 2 ** (len(self.autoencoder.channels) - 1)

    @property
    def size_multiple(self) -> int:
        """Height and width of an image must be multiples of this many pixels."""
        if self.latents == "drawings":
            return 1
        cells = self.dit.patch_size if self.denoiser == "dit" else 2 ** (len(self.unet.channels) - 1)
        return self.downscale * cells

    @property
    def latent_channels(self) -> int:
        """Channels of a latent grid, or numbers of a latent vector."""
        return self.drawings.latent_width if self.latents == "drawings" else self.autoencoder.latent_channels

    @property
    def in_channels(self) -> int:
        """Channels that the denoiser is shown: those of a latent, and what a condition adds to them."""
        return self.dit.in_channels if self.denoiser == "dit" else self.unet.in_channels


SD1 = ModelConfig()
SD1_INPAINTING = replace(SD1, unet=UNetConfig(in_channels=9))
SD2 = ModelConfig(  # 2.0 and 2.1: "-base" at 512 px predicts eps, the others at 768 px v; their files do not say which
    unet=UNetConfig(heads=(5, 10, 20, 20), text_width=1024, linear_projection=True),
    text=TextEncoderConfig(width=1024, mlp_width=4096, layers=23, heads=16, activation="gelu", pad_id=0),
    schedule=ScheduleConfig(prediction=""),
)
SDXL = ModelConfig(
    unet=UNetConfig(
        channels=(320, 640, 1280),
        attention=(False, True, True),
        heads=(5, 10, 20),
        depth=(1, 2, 10),
        text_width=2048,
        vector_width=2816,
        linear_projection=True,
    ),
    autoencoder=AutoencoderConfig(scale=0.13025, overflows=True),
    text=TextEncoderConfig(penultimate=True),
    text_2=TextEncoderConfig(1280, 5120, 32, 20, activation="gelu", pad_id=0, penultimate=True, projection=1280),
    zeros_for_empty=True,
    schedule=ScheduleConfig(ends_clean=True),
    image_size=1024,
)
