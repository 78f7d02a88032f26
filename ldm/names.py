"""What our parameters are called in checkpoints: rename tables as data.

A table is a list of pairs (ours, theirs); each is replaced wherever it stands in "." + name. Our own names are those of
diffusers but for the few in DIFFUSERS, so that table is short, and the tables of the original single files are spelled
out of the shape of the network.
"""

from dataclasses import dataclass

from ldm.config import AutoencoderConfig, UNetConfig

Table = list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """Where a parameter's values are: the tensor `key` of a file, or the `part`-th of `parts` equal ranges of rows."""

    key: str
    part: int = 0
    parts: int = 1


def rename(name: str, table: Table) -> str:
    name = "." + name
    for ours, theirs in table:
        name = name.replace(ours, theirs)
    return name[1:]


DIFFUSERS: Table = [  # U-Net and autoencoder of a diffusers folder
    (".to_out.", ".to_out.0."),
    (".ff.proj_in.", ".ff.net.0.proj."),
    (".ff.proj_out.", ".ff.net.2."),
    (".downsample.", ".downsamplers.0.conv."),
    (".upsample.", ".upsamplers.0.conv."),
]
DIFFUSERS_OLD_VAE: Table = [  # the autoencoder's attention, as folders from before 2023 call it
    (".to_q.", ".query."),
    (".to_k.", ".key."),
    (".to_v.", ".value."),
    (".to_out.", ".proj_attn."),
    *DIFFUSERS,
]
TRANSFORMERS: Table = [  # CLIPTextModel; released files have "text_model." before it
    (".token_embedding.", ".embeddings.token_embedding."),
    (".position_embedding.", ".embeddings.position_embedding."),
    (".layers.", ".encoder.layers."),
    *((f".{proj}.", f".self_attn.{proj}.") for proj in ("q_proj", "k_proj", "v_proj", "out_proj")),
    (".fc1.", ".mlp.fc1."),
    (".fc2.", ".mlp.fc2."),
]
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
    """Single files number the blocks through: input_blocks.N, middle_block.N, output_blocks.N; below, .0 is the
    residual block, .1 the transformer, and what resizes comes last (an input block of its own on the way down)."""
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


UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."  # what stands before the names in a single file
CLIP, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
EMA = "model_ema.diffusion_model"


def averaged(key: str) -> str:
    """The key of a U-Net parameter's EMA copy: the dots of its name are taken out."""
    return EMA + key.removeprefix(UNET).replace(".", "")


def open_clip_source(name: str) -> Source:
    part = next((i for i, proj in enumerate(("q_proj", "k_proj", "v_proj")) if f".{proj}." in name), None)
    key = OPENCLIP + rename(name, OPEN_CLIP)
    return Source(key) if part is None else Source(key, part, 3)


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
    """True for what text encoders carry and Stable Diffusion has no use for."""
    return key.endswith(CONSTANTS)


def is_extra(key: str, text_layers: int, ema: bool) -> bool:
    """True for what single files carry and sampling has no use for: schedule buffers, EMA copies (under `ema`: the
    plain weights), losses, constants of the text encoder, and the block of an OpenCLIP encoder that is never run."""
    return (
        key in SCHEDULE_BUFFERS
        or key.startswith(("model_ema.", "first_stage_model.loss."))
        or (key.startswith("cond_stage_model.") and is_constant(key))
        or key.startswith(f"{OPENCLIP}transformer.resblocks.{text_layers}.")
        or (ema and key.startswith(UNET))
    )
