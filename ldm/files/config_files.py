"""ModelConfig and the files that hold one: the JSONs of a diffusers folder, a CompVis YAML, a YAML of our own fields.

What our networks cannot do is refused by its name and value, never passed over.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ldm.config import (
    SD1,
    SD1_INPAINTING,
    SD2,
    AutoencoderConfig,
    ModelConfig,
    ScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
)
from ldm.files.names import CLIP, OPENCLIP, UNET

Json = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]  # of the tensors in a file
T = TypeVar("T")


def refuse_unknown(data: Json, fixed: Json, read: Collection[str], where: str) -> None:
    """Settings outside `read` must have their value in `fixed`, or be off. Raises ValueError naming the first other."""
    for key, value in data.items():
        fine = value == fixed[key] if key in fixed else value in (None, False) or key.startswith("_")
        if key not in read and not fine:
            raise ValueError(f"{where}: {key}={value!r} is not supported")


# --- diffusers folder -------------------------------------------------------------------------------------------------

UNET_FIELDS = {  # ours: theirs
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "channels": "block_out_channels",
    "blocks_per_level": "layers_per_block",
    "heads": "attention_head_dim",  # there, too, it is their number
    "text_width": "cross_attention_dim",
    "linear_projection": "use_linear_projection",
    "norm_groups": "norm_num_groups",
}
VAE_FIELDS = {
    "image_channels": "in_channels",
    "latent_channels": "latent_channels",
    "channels": "block_out_channels",
    "blocks_per_level": "layers_per_block",
    "norm_groups": "norm_num_groups",
    "scale": "scaling_factor",
}
TEXT_FIELDS = {
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "vocab": "vocab_size",
    "context": "max_position_embeddings",
    "activation": "hidden_act",
}
SCHEDULE_FIELDS = {
    "num_timesteps": "num_train_timesteps",
    "kind": "beta_schedule",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "prediction": "prediction_type",
    "spacing": "timestep_spacing",
    "steps_offset": "steps_offset",
    "ends_clean": "set_alpha_to_one",
    "zero_terminal_snr": "rescale_betas_zero_snr",
}
FLOW_FIELDS = {"num_timesteps": "num_train_timesteps", "shift": "shift", "prediction": "prediction_type"}
WORDS = {  # values with other names
    "kind": {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"},
    "prediction": {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"},
    "activation": {"quick_gelu": "quick_gelu", "gelu": "gelu"},
    "spacing": {name: name for name in ("leading", "trailing", "linspace")},
}
PREDICTIONS = tuple(WORDS["prediction"])
# fmt: off
# What our networks always do, as the value of diffusers' setting; and settings that do not concern us.
UNET_FIXED = {
    "act_fn": "silu", "addition_embed_type_num_heads": 64, "attention_type": "default", "conv_in_kernel": 3,
    "conv_out_kernel": 3, "downsample_padding": 1, "dropout": 0.0, "flip_sin_to_cos": True, "freq_shift": 0,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5,
    "resnet_out_scale_factor": 1.0, "resnet_time_scale_shift": "default", "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
}
UNET_READ = {*UNET_FIELDS.values(), "down_block_types", "up_block_types", "sample_size", "upcast_attention"}
VAE_FIXED = {"act_fn": "silu", "mid_block_add_attention": True, "use_post_quant_conv": True, "use_quant_conv": True}
VAE_READ = {*VAE_FIELDS.values(), "out_channels", "down_block_types", "up_block_types", "sample_size", "force_upcast"}
BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
# Defaults where folders leave a setting out: it is younger than they are, or the library's own default.
DIFFUSERS_DEFAULTS = {"use_linear_projection": False, "norm_num_groups": 32, "scaling_factor": 0.18215}
SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
    "prediction_type": "epsilon", "steps_offset": 1,  # 1 is what Stable Diffusion's pipeline assumes
    "rescale_betas_zero_snr": False,
}
FLOW = "FlowMatchEulerDiscreteScheduler"
FLOW_DEFAULTS = {"num_train_timesteps": 1000, "shift": 1.0, "prediction_type": "flow_prediction"}
FLOW_FIXED = {"use_dynamic_shifting": False, "invert_sigmas": False, "shift_terminal": None}
# Schedulers of variance-preserving schedules by their spacing where a file names none, and, of those that read
# set_alpha_to_one, its default. All others ignore it and end clean, unless final_sigmas_type says otherwise.
SPACINGS = {
    "leading": {"DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "LCM", "TCD"},
    "linspace": {
        "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete",
        "KDPM2AncestralDiscrete", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE",
        "UniPCMultistep", "SASolver",
    },
}
SET_ALPHA_TO_ONE = {"DDIM": True, "DDIMParallel": True, "PNDM": False, "LCM": True, "TCD": True}
# fmt: on


def ours(data: Json, table: Mapping[str, str], defaults: Json, where: str) -> dict[str, Any]:
    """Fields of one of our dataclasses, out of a JSON. Raises ValueError for what is missing or has no counterpart."""
    found = {}
    for name, theirs in table.items():
        value = defaults.get(theirs) if data.get(theirs) is None else data[theirs]
        if value is None:
            raise ValueError(f"{where}: no {theirs}")
        if name in WORDS:
            words = {word: mine for mine, word in WORDS[name].items()}
            if value not in words:
                raise ValueError(f"{where}: {theirs}={value!r} is not supported")
            value = words[value]
        found[name] = value
    return found


def theirs(config: Any, table: Mapping[str, str]) -> dict[str, Any]:
    values = {theirs: (name, getattr(config, name)) for name, theirs in table.items()}
    return {key: WORDS[name][value] if name in WORDS else value for key, (name, value) in values.items()}


def from_diffusers(jsons: Mapping[str, Json], pad_id: int | None, where: str) -> ModelConfig:
    """The model of a diffusers folder's JSON files, given by their paths in it.

    pad_id: that of the padding token which the tokenizer's files name; None if they name none.
    """
    autoencoder = autoencoder_from_diffusers(jsons["vae/config.json"], f"{where}/vae")
    sample_size = jsons["unet/config.json"].get("sample_size") or 64
    if not isinstance(sample_size, int):
        raise ValueError(f"{where}/unet: sample_size={sample_size!r} is not supported")
    config = ModelConfig(
        unet=unet_from_diffusers(jsons["unet/config.json"], f"{where}/unet"),
        autoencoder=autoencoder,
        text=text_from_diffusers(jsons["text_encoder/config.json"], pad_id, f"{where}/text_encoder"),
        schedule=schedule_from_diffusers(jsons["scheduler/scheduler_config.json"], f"{where}/scheduler"),
        image_size=sample_size * 2 ** (len(autoencoder.channels) - 1),
    )
    return config


def unet_from_diffusers(data: Json, where: str) -> UNetConfig:
    refuse_unknown(data, UNET_FIXED, UNET_READ, where)
    found = ours(data, UNET_FIELDS, DIFFUSERS_DEFAULTS, where)
    down, up = data.get("down_block_types", []), data.get("up_block_types", [])
    for block in (*down, *up):
        if block not in BLOCKS:
            raise ValueError(f"{where}: block type {block!r} is not supported")
    attention = [BLOCKS[block] for block in down]
    if attention != [BLOCKS[block] for block in reversed(up)]:
        raise ValueError(f"{where}: down_block_types and up_block_types do not mirror each other")
    if isinstance(found["heads"], int):
        found["heads"] = [found["heads"]] * len(down)
    return from_fields(UNetConfig(), {**found, "attention": attention}, where)


def autoencoder_from_diffusers(data: Json, where: str) -> AutoencoderConfig:
    refuse_unknown(data, VAE_FIXED, VAE_READ, where)
    for block in (*data.get("down_block_types", []), *data.get("up_block_types", [])):
        if block not in ("DownEncoderBlock2D", "UpDecoderBlock2D"):
            raise ValueError(f"{where}: block type {block!r} is not supported")
    return from_fields(AutoencoderConfig(), ours(data, VAE_FIELDS, DIFFUSERS_DEFAULTS, where), where)


def text_from_diffusers(data: Json, pad_id: int | None, where: str) -> TextEncoderConfig:
    for key, values in {"model_type": ("clip_text_model", "clip"), "layer_norm_eps": (1e-5,)}.items():
        if data.get(key, values[0]) not in values:
            raise ValueError(f"{where}: {key}={data[key]!r} is not supported")
    found = ours(data, TEXT_FIELDS, {}, where)
    if pad_id is None:
        pad_id = 49407 if found["activation"] == "quick_gelu" else 0
    return from_fields(TextEncoderConfig(), {**found, "pad_id": pad_id}, where)


def schedule_from_diffusers(data: Json, where: str) -> ScheduleConfig:
    if data.get("trained_betas"):
        raise ValueError(f"{where}: trained_betas is not supported")
    name = data.get("_class_name", "DDIMScheduler")
    if name == FLOW:
        refuse_unknown({key: data.get(key) for key in FLOW_FIXED}, {}, set(), where)
        numbers = ours(data, FLOW_FIELDS, FLOW_DEFAULTS, where)
        return from_fields(ScheduleConfig(), {**numbers, "kind": "flow", "ends_clean": True}, where)
    family = str(name).removesuffix("Scheduler")
    spacing = next((spacing for spacing, families in SPACINGS.items() if family in families), None)
    if spacing is None:
        raise ValueError(f"{where}: _class_name={name!r} is not supported")
    defaults = SCHEDULER_DEFAULTS | {"timestep_spacing": spacing, "set_alpha_to_one": SET_ALPHA_TO_ONE.get(family)}
    if family not in SET_ALPHA_TO_ONE:
        data = {**data, "set_alpha_to_one": data.get("final_sigmas_type") != "sigma_min"}
    return from_fields(ScheduleConfig(), ours(data, SCHEDULE_FIELDS, defaults, where), where)


def schedule_to_diffusers(config: ScheduleConfig) -> dict[str, Any]:
    if config.kind == "flow":
        settings = {"_class_name": FLOW, **theirs(config, FLOW_FIELDS)}
        return {key: value for key, value in settings.items() if value != FLOW_DEFAULTS["prediction_type"]}
    return {"_class_name": "DDIMScheduler", **theirs(config, SCHEDULE_FIELDS), "clip_sample": False}


def to_diffusers(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """The JSON files of a diffusers folder, by their paths in it."""
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.unet.attention]
    levels = len(config.autoencoder.channels)
    schedule = schedule_to_diffusers(config.schedule)
    # fmt: off
    return {
        "model_index.json": {
            "_class_name": f"StableDiffusion{'Inpaint' if config.unet.in_channels == 9 else ''}Pipeline",
            "scheduler": ["diffusers", schedule["_class_name"]], "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [None, None],
            "feature_extractor": [None, None], "requires_safety_checker": False,
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel", **theirs(config.unet, UNET_FIELDS),
            "sample_size": config.image_size // config.downscale, "down_block_types": down,
            "up_block_types": [block.replace("Down", "Up") for block in reversed(down)],
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL", **theirs(config.autoencoder, VAE_FIELDS),
            "out_channels": config.autoencoder.image_channels, "sample_size": config.image_size,
            "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **theirs(config.text, TEXT_FIELDS),
            "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": config.text.pad_id,
        },
        "scheduler/scheduler_config.json": schedule,
    }
    # fmt: on


# --- single files -----------------------------------------------------------------------------------------------------

FAMILIES = {(320, 4, 768): SD1, (320, 9, 768): SD1_INPAINTING, (320, 4, 1024): SD2}
STRANGERS = {2048: "an SDXL model", 1280: "an SDXL refiner"}


def family(shapes: Shapes, prediction: str | None, where: str) -> ModelConfig:
    """The published family of a single file, told by the shapes in it. Raises ValueError for any other.

    prediction: what the user says; SD 2 has one size for each, and its files do not tell them apart.
    """
    conv_in = shapes.get(UNET + "input_blocks.0.0.weight")
    to_k = shapes.get(UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    if conv_in is None:
        raise ValueError(
            f"{where}: no Stable Diffusion checkpoint: it has no {UNET}input_blocks.0.0.weight, "
            f"but {', '.join(list(shapes)[:3]) or 'nothing'}"
        )
    signature = (conv_in[0], conv_in[1], to_k[1] if to_k else 0)
    if signature not in FAMILIES:
        guess = STRANGERS.get(signature[2], "not of a family known here")
        raise ValueError(
            f"{where}: {guess} ({signature[0]} channels, {signature[1]} input channels, text width {signature[2]}); "
            "give its YAML as model.config"
        )
    config = FAMILIES[signature]
    return replace(config, image_size=768) if config is SD2 and prediction == "v" else config


def text_from_shapes(shapes: Shapes, penultimate: bool, where: str) -> TextEncoderConfig:
    """The text encoder of a single file. The number of heads is not in its shapes: CLIP's are 64 wide."""
    open_clip = any(key.startswith(OPENCLIP) for key in shapes)

    def find(*endings: str) -> tuple[int, ...]:
        keys = [key for key in shapes if key.startswith((CLIP, OPENCLIP)) and key.endswith(endings)]
        if not keys:
            raise ValueError(f"{where}: no CLIP text encoder in it: no {CLIP}... nor {OPENCLIP}... {endings[0]}")
        return shapes[keys[0]]

    vocab, width = find("token_embedding.weight")
    context, _ = find("position_embedding.weight", "positional_embedding")
    mlp_width, _ = find("mlp.fc1.weight", "mlp.c_fc.weight")
    layers = sum(key.startswith((CLIP, OPENCLIP)) and key.endswith((".fc1.bias", ".c_fc.bias")) for key in shapes)
    return TextEncoderConfig(
        width=width,
        mlp_width=mlp_width,
        layers=layers - penultimate,
        heads=max(1, width // 64),
        vocab=vocab,
        context=context,
        activation="gelu" if open_clip else "quick_gelu",
        pad_id=0 if open_clip else 49407,
    )


def from_yaml(path: Path, shapes: Shapes) -> ModelConfig:
    """A CompVis YAML, as published beside a single file with these shapes, or a YAML of ModelConfig's own fields."""
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (model.config)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no readable YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: neither a CompVis YAML nor one of ours")
    if "model" not in data:
        return from_fields(ModelConfig(), data, str(path))
    try:
        return from_compvis(data["model"]["params"], shapes, str(path))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not laid out like v1-inference.yaml: {error} is missing or odd") from error


def from_fields(default: T, data: Json, where: str) -> T:
    """`default` with the fields that `data` names changed; data nests as the dataclasses do."""
    assert is_dataclass(default)
    known = {field.name: getattr(default, field.name) for field in fields(default)}
    changes: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            raise ValueError(f"{where}: unknown field {name!r}; there are {', '.join(known)}")
        old = known[name]
        if is_dataclass(old) and isinstance(value, dict):
            changes[name] = from_fields(old, value, f"{where}: {name}")
        elif isinstance(old, tuple) and isinstance(value, list) and all(type(v) is type(old[0]) for v in value):
            changes[name] = tuple(value)
        elif type(value) is type(old) or (type(old) is float and type(value) is int):
            changes[name] = value
        else:
            raise ValueError(f"{where}: {name}={value!r} should be like {old!r}")
    return replace(default, **changes)  # type: ignore[type-var]


def to_yaml(config: ModelConfig) -> str:
    plain = json.loads(json.dumps(asdict(config)))  # tuples become lists
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)


ENCODER_LAYERS = {"FrozenCLIPEmbedder": ("last",), "FrozenOpenCLIPEmbedder": ("last", "penultimate")}
COMPVIS_UNET_FIXED = {"use_spatial_transformer": True, "transformer_depth": 1, "conv_resample": True, "dims": 2}
# fmt: off
COMPVIS_UNET_READ = {
    "in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks", "attention_resolutions",
    "num_heads", "num_head_channels", "context_dim", "use_linear_in_transformer", "image_size", "use_checkpoint",
    "use_fp16", "legacy",
}
# fmt: on
COMPVIS_VAE_FIXED = {"double_z": True, "dropout": 0.0, "attn_resolutions": []}
COMPVIS_VAE_READ = {"z_channels", "resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_type"}


def from_compvis(params: Json, shapes: Shapes, where: str) -> ModelConfig:
    unet, vae = params["unet_config"]["params"], params["first_stage_config"]["params"]
    dd, cond = vae["ddconfig"], params["cond_stage_config"]
    encoder = cond["target"].rsplit(".", 1)[-1]
    layer = (cond.get("params") or {}).get("layer", "last")
    if layer not in ENCODER_LAYERS.get(encoder, ()):
        raise ValueError(f"{where}: text encoder {encoder} with layer={layer!r} is not supported")
    refuse_unknown(unet, COMPVIS_UNET_FIXED, COMPVIS_UNET_READ, f"{where}: unet_config")
    refuse_unknown(dd, COMPVIS_VAE_FIXED, COMPVIS_VAE_READ, f"{where}: ddconfig")
    refuse_unknown({"scale_by_std": params.get("scale_by_std")}, {}, set(), where)
    if not unet.get("use_spatial_transformer") or vae.get("embed_dim", dd["z_channels"]) != dd["z_channels"]:
        raise ValueError(f"{where}: only spatial transformers, and an embed_dim equal to z_channels, are supported")

    channels = tuple(unet["model_channels"] * m for m in unet["channel_mult"])
    width = unet.get("num_head_channels", -1)
    return ModelConfig(
        unet=UNetConfig(
            in_channels=unet["in_channels"],
            out_channels=unet["out_channels"],
            channels=channels,
            blocks_per_level=unet["num_res_blocks"],
            attention=tuple(2**i in unet["attention_resolutions"] for i in range(len(channels))),
            heads=tuple(c // width if width > 0 else unet["num_heads"] for c in channels),
            text_width=unet["context_dim"],
            linear_projection=unet.get("use_linear_in_transformer", False),
        ),
        autoencoder=AutoencoderConfig(
            image_channels=dd["in_channels"],
            latent_channels=dd["z_channels"],
            channels=tuple(dd["ch"] * m for m in dd["ch_mult"]),
            blocks_per_level=dd["num_res_blocks"],
            scale=params.get("scale_factor", 1.0),
        ),
        text=text_from_shapes(shapes, layer == "penultimate", where),
        schedule=ScheduleConfig(
            num_timesteps=params.get("timesteps", 1000),
            kind=compvis_schedule(params.get("beta_schedule", "linear"), where),
            beta_start=params.get("linear_start", 1e-4),
            beta_end=params.get("linear_end", 2e-2),
            prediction=params.get("parameterization", "eps"),
        ),
        image_size=params["image_size"] * 2 ** (len(dd["ch_mult"]) - 1),
    )


def compvis_schedule(name: str, where: str) -> str:
    """What CompVis calls linear is linear in the square root."""
    if name not in ("linear", "sqrt_linear"):
        raise ValueError(f"{where}: beta_schedule={name!r} is not supported")
    return "scaled_linear" if name == "linear" else "linear"


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """The config itself. Raises ValueError where its numbers contradict each other."""
    unet, text = config.unet, config.text
    if not len(unet.channels) == len(unet.attention) == len(unet.heads):
        raise ValueError(f"{where}: the U-Net's channels, attention and heads must have one entry per level")
    for width, heads in [*zip(unet.channels, unet.heads, strict=True), (text.width, text.heads)]:
        if heads < 1 or width % heads:
            raise ValueError(f"{where}: {width} channels cannot be split over {heads} heads")
    for part in (unet, config.autoencoder):
        if any(c % part.norm_groups for c in part.channels):
            raise ValueError(f"{where}: channels {part.channels} cannot be normed in {part.norm_groups} groups")
    if unet.text_width != text.width:
        raise ValueError(f"{where}: the U-Net expects text of width {unet.text_width}, its encoder gives {text.width}")
    if config.schedule.prediction not in (*WORDS["prediction"], ""):
        raise ValueError(f"{where}: prediction {config.schedule.prediction!r} is none of eps, v, x0, flow")
    if config.schedule.zero_terminal_snr and config.schedule.prediction == "eps":
        raise ValueError(
            f"{where}: zero_terminal_snr (rescale_betas_zero_snr) with prediction eps: "
            "at the last timestep eps says nothing of the picture; it takes v, x0 or flow"
        )
    return config
