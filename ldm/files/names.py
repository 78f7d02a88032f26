"""The names of parameters in files, as tables.

A table is a list of pairs (name in our networks, name in the file); each is replaced wherever it stands in "." + name.
Our networks use the names of diffusers but for the few in DIFFUSERS, so that table is short; the tables of the original
single files follow from the shapes of the networks.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ldm.config import AutoencoderConfig, ClassesConfig, DiTConfig, ModelConfig, UNetConfig, VectorAutoencoderConfig
from ldm.model import LatentDiffusion

Table = list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """Where a parameter's values are: the tensor `key` of a file, or the `part`-th of `parts` equal ranges of rows."""

    key: str
    part: int = 0
    parts: int = 1


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
    "classes": "model",
    "dit": "model",
    "drawings": "model",
}
OWN = {"classes": ClassesConfig, "dit": DiTConfig, "drawings": VectorAutoencoderConfig}  # folders with fields of ours
TEXT_PREFIX = "text_model."  # precedes the names of CLIPTextModel in most files

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
    networks = (model.unet, model.autoencoder, model.text_encoder)
    folders = part_names(model.config)
    return {name: network for name, network in zip(folders, networks, strict=False) if network is not None}


def part_names(config: ModelConfig) -> list[str]:
    """Returns the names of a model's folders: of the denoiser, of the autoencoder, of what it is told by, if any."""
    told_by = {"text": ["text_encoder"], "classes": ["classes"], "nothing": []}
    vae = "drawings" if config.latents == "drawings" else "vae"
    return [config.denoiser, vae, *told_by[config.condition]]


def in_folder(model: LatentDiffusion, text_prefix: str = TEXT_PREFIX, old_vae: bool = False) -> dict[str, Sources]:
    """Returns the place of each parameter in a diffusers folder, by part."""
    tables: dict[str, tuple[str, Table]] = {
        "unet": ("", DIFFUSERS_CLASS_VECTOR if model.config.condition == "classes" else DIFFUSERS),
        "vae": ("", DIFFUSERS_OLD_VAE if old_vae else DIFFUSERS),
        "text_encoder": (text_prefix, TRANSFORMERS),
    }

    def sources(part: str, network: nn.Module) -> Sources:
        prefix, table = tables.get(part, ("", []))
        return {name: Source(prefix + rename(name, table)) for name in network.state_dict()}

    return {part: sources(part, network) for part, network in parts(model).items()}


# --- single files -----------------------------------------------------------------------------------------------------

UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."  # prefixes of names in a single file
COND_STAGE = "cond_stage_model."
CLIP, OPENCLIP = f"{COND_STAGE}transformer.", f"{COND_STAGE}model."
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


def open_clip_source(name: str) -> Source:
    """Returns the place of a text encoder's parameter in OpenCLIP's layout."""
    part = next((i for i, proj in enumerate(("q_proj", "k_proj", "v_proj")) if f".{proj}." in name), None)
    key = OPENCLIP + rename(name, OPEN_CLIP)
    return Source(key) if part is None else Source(key, part, 3)


def in_single_file(model: LatentDiffusion, text_prefix: str, ema: bool = False) -> dict[str, Sources]:
    """Returns the place of each parameter in a single file, by part.

    text_prefix  OPENCLIP, CLIP, or CLIP + TEXT_PREFIX
    ema          take the averaged copies of the U-Net's weights
    """
    unet_table, autoencoder_table = compvis_unet(model.config.unet), compvis_autoencoder(model.config.autoencoder)

    def unet_source(name: str) -> Source:
        key = UNET + rename(name, unet_table)
        return Source(ema_key(key) if ema else key)

    def text_source(name: str) -> Source:
        return open_clip_source(name) if text_prefix == OPENCLIP else Source(text_prefix + rename(name, TRANSFORMERS))

    source_of: dict[str, Callable[[str], Source]] = {
        "unet": unet_source,
        "vae": lambda name: Source(AUTOENCODER + rename(name, autoencoder_table)),
        "text_encoder": text_source,
        "classes": lambda name: Source(COND_STAGE + name),
    }
    return {
        part: {name: source_of[part](name) for name in network.state_dict()} for part, network in parts(model).items()
    }


# --- tensors that files carry and networks do not have ----------------------------------------------------------------

# fmt: off
SCHEDULE_BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    "logvar", "lvlb_weights",
}
# fmt: on
CONSTANTS = ("position_ids", "text_projection", "text_projection.weight", "logit_scale", "attn_mask")


def is_constant(key: str) -> bool:
    """Tells whether a text encoder's tensor is one that Stable Diffusion does not use."""
    return key.endswith(CONSTANTS)


def is_extra(key: str, text_layers: int, ema: bool) -> bool:
    """Tells whether a single file's tensor is one that sampling does not use.

    These are the schedule's buffers, EMA copies (with `ema` the plain weights), losses, constants of the text encoder,
    and the block of an OpenCLIP encoder that is never run.
    """
    return (
        key in SCHEDULE_BUFFERS
        or key.startswith(("model_ema.", "first_stage_model.loss."))
        or (key.startswith(COND_STAGE) and is_constant(key))
        or key.startswith(f"{OPENCLIP}transformer.resblocks.{text_layers}.")
        or (ema and key.startswith(UNET))
    )
