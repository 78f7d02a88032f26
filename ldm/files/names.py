"""The names of parameters in files, as tables.

A table is a list of pairs (name in our networks, name in the file); each is replaced wherever it stands in "." + name.
Our networks use the names of diffusers but for the few in DIFFUSERS, so that table is short; the tables of the original
single files follow from the shapes of the networks.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor, nn

from ldm.config import (
    AutoencoderConfig,
    BoxesConfig,
    ClassesConfig,
    DiTConfig,
    ModelConfig,
    UNetConfig,
    VectorAutoencoderConfig,
)
from ldm.model import LatentDiffusion
from ldm.text import TextEncoderPair

Table = list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """Where a parameter's values are: the tensor `key` of a file, or the `part`-th of `parts` equal ranges of rows.

    transposed  the file has rows where the network has columns
    """

    key: str
    part: int = 0
    parts: int = 1
    transposed: bool = False

    def shape(self, parameter: Tensor) -> tuple[int, ...]:
        """Returns the shape of the whole tensor in the file."""
        rows, *rest = reversed(parameter.shape) if self.transposed else parameter.shape
        return (self.parts * rows, *rest)

    def values(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Returns the parameter's values in the file's tensor, in the parameter's shape."""
        mine = tensor.chunk(self.parts)[self.part]
        return (mine.mT if self.transposed else mine).reshape(shape)


Sources = dict[str, Source]  # of the parameters of one network, by their names in it


def rename(name: str, table: Table) -> str:
    name = "." + name
    for in_network, in_file in table:
        name = name.replace(in_network, in_file)
    return name[1:]


# --- diffusers folders ------------------------------------------------------------------------------------------------

STEMS = {  # of the files, by folder
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "classes": "model",
    "boxes": "model",
    "dit": "model",
    "drawings": "model",
}
OWN = {  # folders with fields of ours
    "classes": ClassesConfig,
    "boxes": BoxesConfig,
    "dit": DiTConfig,
    "drawings": VectorAutoencoderConfig,
}
TEXT_2 = "text_encoder_2"  # SDXL's second
# the folder of what makes a condition; for "nothing" there is none
TOLD_BY = {"text": "text_encoder", "classes": "classes", "boxes": "boxes"}
TEXT_PREFIX = "text_model."  # precedes the names of CLIPTextModel in most files
PROJECTION = "text_projection.weight"
CLIP_STEM = "open_clip_model"  # of a CLIP's files in open_clip's layout, whose text tower may serve as text encoder
CLIP_POSITIONS = "positional_embedding"  # a tensor of these files

DIFFUSERS: Table = [  # U-Net and autoencoder of a diffusers folder
    (".to_out.", ".to_out.0."),
    (".ff.proj_in.", ".ff.net.0.proj."),
    (".ff.proj_out.", ".ff.net.2."),
    (".downsample.", ".downsamplers.0.conv."),
    (".upsample.", ".upsamplers.0.conv."),
]
DIFFUSERS_CLASS_VECTOR: Table = [(".add_embedding.", ".class_embedding."), *DIFFUSERS]  # of a U-Net told a class so
DIFFUSERS_OLD_VAE: Table = [  # the autoencoder's attention, as folders from before 2023 call it
    (".to_q.", ".query."),
    (".to_k.", ".key."),
    (".to_v.", ".value."),
    (".to_out.", ".proj_attn."),
    *DIFFUSERS,
]
TRANSFORMERS: Table = [  # CLIPTextModel
    (".token_embedding.", ".embeddings.token_embedding."),
    (".position_embedding.", ".embeddings.position_embedding."),
    (".layers.", ".encoder.layers."),
    *((f".{proj}.", f".self_attn.{proj}.") for proj in ("q_proj", "k_proj", "v_proj", "out_proj")),
    (".fc1.", ".mlp.fc1."),
    (".fc2.", ".mlp.fc2."),
]


def parts(model: LatentDiffusion) -> dict[str, nn.Module]:
    """Returns the networks by the names of their folders."""
    networks = dict[str, nn.Module](zip(networks_of(model.config), (model.unet, model.autoencoder), strict=True))
    if isinstance(model.text_encoder, TextEncoderPair):
        networks |= {"text_encoder": model.text_encoder.first, TEXT_2: model.text_encoder.second}
    elif model.text_encoder is not None:
        networks[TOLD_BY[model.config.condition]] = model.text_encoder
    return networks


def networks_of(config: ModelConfig) -> tuple[str, str]:
    """Returns the names of the folders of the denoiser and of the autoencoder."""
    return config.denoiser, "drawings" if config.latents == "drawings" else "vae"


def in_folder(
    model: LatentDiffusion, bare: Collection[str] = (), old_vae: bool = False, of_clip: Collection[str] = ()
) -> dict[str, Sources]:
    """Returns the place of each parameter in a diffusers folder, by part.

    bare     text encoders whose names have no TEXT_PREFIX
    of_clip  text encoders whose weights are those of a CLIP in open_clip's layout
    """
    tables: dict[str, Table] = {
        "unet": DIFFUSERS_CLASS_VECTOR if model.config.condition == "classes" else DIFFUSERS,
        "vae": DIFFUSERS_OLD_VAE if old_vae else DIFFUSERS,
        "text_encoder": TRANSFORMERS,
        TEXT_2: TRANSFORMERS,
        **{part: [] for part in OWN},
    }

    def place(part: str, name: str) -> Source:
        if part in of_clip:
            return open_clip_source(name, "")
        prefixed = tables[part] is TRANSFORMERS and part not in bare and name != PROJECTION
        return Source((TEXT_PREFIX if prefixed else "") + rename(name, tables[part]))

    return {part: {name: place(part, name) for name in network.state_dict()} for part, network in parts(model).items()}


# --- single files -----------------------------------------------------------------------------------------------------

UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."  # prefixes of names in a single file
COND_STAGE = "cond_stage_model."
CLIP, OPENCLIP = f"{COND_STAGE}transformer.", f"{COND_STAGE}model."
CLIP_XL, OPENCLIP_XL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
V_PRED, ZERO_SNR = "v_pred", "ztsnr"  # empty tensors that mark fine-tunes of SDXL
EMA = "model_ema.diffusion_model"

OPEN_CLIP: Table = [  # q, k and v are thirds of one tensor, see `open_clip_source`
    (".position_embedding.weight", ".positional_embedding"),
    (".layers.", ".transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    *((f".{proj}.", ".attn.in_proj_") for proj in ("q_proj", "k_proj", "v_proj")),
    (".out_proj.", ".attn.out_proj."),
    (".fc1.", ".mlp.c_fc."),
    (".fc2.", ".mlp.c_proj."),
    (".final_layer_norm.", ".ln_final."),
    (".text_projection.weight", ".text_projection"),
]
COMPVIS_RESNET: Table = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]


def compvis_unet(config: UNetConfig) -> Table:
    """Returns the table of a single file's U-Net.

    The file numbers all blocks of a way in one row: input_blocks.N, middle_block.N, output_blocks.N. In a block, .0 is
    the residual block and .1 the transformer. Downsampling is an input block of its own, upsampling the last of its
    output block.
    """
    last = len(config.channels) - 1
    resnets: Table = [("mid_block.resnets.0", "middle_block.0"), ("mid_block.resnets.1", "middle_block.2")]
    others: Table = [
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
    ]
    n = 1
    for i in range(last + 1):
        for j in range(config.blocks_per_level):
            resnets.append((f"down_blocks.{i}.resnets.{j}", f"input_blocks.{n}.0"))
            others.append((f"down_blocks.{i}.attentions.{j}", f"input_blocks.{n}.1"))
            n += 1
        if i < last:
            others.append((f"down_blocks.{i}.downsample", f"input_blocks.{n}.0.op"))
            n += 1
    n = 0
    for i in range(last + 1):
        for j in range(config.blocks_per_level + 1):
            resnets.append((f"up_blocks.{i}.resnets.{j}", f"output_blocks.{n}.0"))
            others.append((f"up_blocks.{i}.attentions.{j}", f"output_blocks.{n}.1"))
            n += 1
        position = 2 if config.attention[last - i] else 1
        others.append((f"up_blocks.{i}.upsample", f"output_blocks.{n - 1}.{position}.conv"))
    inner = [(f"{r}.{a}", f"{s}.{b}") for r, s in resnets for a, b in COMPVIS_RESNET]
    return [*((f".{a}.", f".{b}.") for a, b in [*inner, *others]), *DIFFUSERS]


def compvis_autoencoder(config: AutoencoderConfig) -> Table:
    """Returns the table of a single file's autoencoder."""
    levels = range(len(config.channels))
    return [
        *((f".down_blocks.{i}.", f".down.{i}.") for i in levels),
        *((f".up_blocks.{i}.", f".up.{levels[-1] - i}.") for i in levels),  # numbered by resolution, not by order
        (".mid_block.resnets.0.", ".mid.block_1."),
        (".mid_block.resnets.1.", ".mid.block_2."),
        (".mid_block.attentions.0.", ".mid.attn_1."),
        (".resnets.", ".block."),
        (".conv_shortcut.", ".nin_shortcut."),
        (".conv_norm_out.", ".norm_out."),
        (".downsample.", ".downsample.conv."),
        (".upsample.", ".upsample.conv."),
        (".group_norm.", ".norm."),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        (".to_out.", ".proj_out."),
    ]


def ema_key(key: str) -> str:
    """Returns the key of a U-Net parameter's EMA copy, which has no dots in its name."""
    return EMA + key.removeprefix(UNET).replace(".", "")


def open_clip_source(name: str, prefix: str = OPENCLIP) -> Source:
    """Returns the place of a text encoder's parameter in OpenCLIP's layout."""
    part = next((i for i, proj in enumerate(("q_proj", "k_proj", "v_proj")) if f".{proj}." in name), None)
    key = prefix + rename(name, OPEN_CLIP)
    return Source(key, transposed=name == PROJECTION) if part is None else Source(key, part, 3)


def in_single_file(model: LatentDiffusion, text_prefix: str, ema: bool = False) -> dict[str, Sources]:
    """Returns the place of each parameter in a single file, by part.

    text_prefix  OPENCLIP, CLIP, or CLIP + TEXT_PREFIX; where there are two encoders, the file has a layout of its own
    ema          take the averaged copies of the U-Net's weights
    """
    unet_table, autoencoder_table = compvis_unet(model.config.unet), compvis_autoencoder(model.config.autoencoder)

    def unet_source(name: str) -> Source:
        key = UNET + rename(name, unet_table)
        return Source(ema_key(key) if ema else key)

    def text_source(name: str, prefix: str) -> Source:
        if prefix in (OPENCLIP, OPENCLIP_XL):
            return open_clip_source(name, prefix)
        return Source(prefix + rename(name, TRANSFORMERS))

    networks = parts(model)
    first = CLIP_XL + TEXT_PREFIX if TEXT_2 in networks else text_prefix
    source_of: dict[str, Callable[[str], Source]] = {
        "unet": unet_source,
        "vae": lambda name: Source(AUTOENCODER + rename(name, autoencoder_table)),
        "text_encoder": lambda name: text_source(name, first),
        TEXT_2: lambda name: text_source(name, OPENCLIP_XL),
        "classes": lambda name: Source(COND_STAGE + name),
        "boxes": lambda name: Source(COND_STAGE + name),
    }
    return {part: {name: source_of[part](name) for name in network.state_dict()} for part, network in networks.items()}


# --- tensors that files carry and networks do not have ----------------------------------------------------------------

# fmt: off
SCHEDULE_BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    "logvar", "lvlb_weights", "denoiser.sigmas", V_PRED, ZERO_SNR,
}
# fmt: on
CONSTANTS = ("position_ids", "text_projection", "text_projection.weight", "logit_scale", "attn_mask")


def is_constant(key: str) -> bool:
    """Tells whether a text encoder's tensor is one that Stable Diffusion does not use."""
    return key.endswith(CONSTANTS)


def is_beside_text(key: str) -> bool:
    """Tells whether a whole CLIP's tensor is not one of its text tower's, or one that Stable Diffusion does not use."""
    return key.startswith("visual.") or is_constant(key)


def is_extra(key: str, text_layers: int, ema: bool) -> bool:
    """Tells whether a single file's tensor is one that sampling does not use.

    These are the schedule's buffers, EMA copies (with `ema` the plain weights), losses, constants of the text encoder,
    and the block of an OpenCLIP encoder that is never run.
    """
    return (
        key in SCHEDULE_BUFFERS
        or key.startswith(("model_ema.", "first_stage_model.loss."))
        or (key.startswith(COND_STAGE) and is_constant(key))
        or (key.startswith((CLIP_XL, OPENCLIP_XL)) and is_constant(key) and key != f"{OPENCLIP_XL}text_projection")
        or key.startswith(f"{OPENCLIP}transformer.resblocks.{text_layers}.")
        or (ema and key.startswith(UNET))
    )
