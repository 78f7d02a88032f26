"""ModelConfig and the files that hold one: the JSONs of a diffusers folder, a CompVis YAML, a YAML of our own fields.

A setting that our networks cannot follow is refused by its name and value, and so is a value outside its rule.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from ldm.config import (
    SD1,
    SD1_INPAINTING,
    SD2,
    SDXL,
    AutoencoderConfig,
    ModelConfig,
    ScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
)
from ldm.files.messages import one_line, quoted
from ldm.files.names import (
    AUTOENCODER,
    CLIP,
    CLIP_XL,
    OPENCLIP,
    OPENCLIP_XL,
    OWN,
    TEXT_2,
    TOLD_BY,
    UNET,
    V_PRED,
    ZERO_SNR,
    networks_of,
)
from ldm.files.rules import FLAG, LEVELS, RULES, SIZE, Rule, check, from_fields, one_of, several, whole

Json = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]  # of the tensors in a file


def refuse_unsupported(data: Json, always: Json, known: Collection[str], where: str) -> None:
    """Raises ValueError for the first setting that is not known, not off, and not what our networks always do."""
    for key, value in data.items():
        supported = value == always[key] if key in always else value in (None, False) or str(key).startswith("_")
        if key not in known and not supported:
            raise ValueError(f"{where}: {one_line(key)}={quoted(value)} is not supported")


# --- diffusers folder -------------------------------------------------------------------------------------------------

UNET_FIELDS = {  # field of our config: setting of diffusers
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
# fmt: off
# What our networks always do, as diffusers' settings; and settings that are read, or that change nothing here.
UNET_ALWAYS = {
    "act_fn": "silu", "addition_embed_type_num_heads": 64, "attention_type": "default", "conv_in_kernel": 3,
    "conv_out_kernel": 3, "downsample_padding": 1, "dropout": 0.0, "flip_sin_to_cos": True, "freq_shift": 0,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5,
    "resnet_out_scale_factor": 1.0, "resnet_time_scale_shift": "default", "time_embedding_type": "positional",
}
UNET_KNOWN = {
    *UNET_FIELDS.values(), "down_block_types", "up_block_types", "sample_size", "upcast_attention",
    "transformer_layers_per_block",
}
VECTOR_WIDTH = "projection_class_embeddings_input_dim"  # of what goes through two layers and is added to the time
CLASS_VECTOR = {"class_embed_type": "projection"}  # says that this is a class
TOLD_SIZES = {"addition_embed_type": "text_time"}  # or SDXL's pooled text and six sizes
SIZE_WIDTH = "addition_time_embed_dim"
VAE_ALWAYS = {"act_fn": "silu", "mid_block_add_attention": True, "use_post_quant_conv": True, "use_quant_conv": True}
VAE_KNOWN = {*VAE_FIELDS.values(), "out_channels", "down_block_types", "up_block_types", "sample_size", "force_upcast"}
ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
# Defaults where folders leave a setting out: it is younger than they are, or the library's own default.
DIFFUSERS_DEFAULTS = {"use_linear_projection": False, "norm_num_groups": 32, "scaling_factor": 0.18215}
SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
    "prediction_type": "epsilon", "steps_offset": 1,  # 1 is what Stable Diffusion's pipeline assumes
    "rescale_betas_zero_snr": False,
}
FLOW = "FlowMatchEulerDiscreteScheduler"
FLOW_DEFAULTS = {"num_train_timesteps": 1000, "shift": 1.0, "prediction_type": "flow_prediction"}
FLOW_NEVER = ("use_dynamic_shifting", "invert_sigmas", "shift_terminal")
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


def from_json_fields(config: type, data: Json, table: Mapping[str, str], defaults: Json, where: str) -> dict[str, Any]:
    """Returns fields of one of our configs from a JSON. Raises ValueError, in the JSON's words, for a wrong value."""
    found = {}
    for name, setting in table.items():
        value = defaults.get(setting) if data.get(setting) is None else data[setting]
        if value is None and not (setting in data and RULES[config][name].admits(None)):
            raise ValueError(f"{where}: no {setting}")
        if name in WORDS:
            words = [word for word, in_json in WORDS[name].items() if in_json == value]
            if not words:
                raise ValueError(f"{where}: {setting}={quoted(value)} is not supported")
            value = words[0]
        check(setting, value, RULES[config][name], where)
        found[name] = value
    return found


def to_json_fields(config: Any, table: Mapping[str, str]) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in table}
    return {table[name]: WORDS[name][value] if name in WORDS else value for name, value in values.items()}


def from_diffusers(jsons: Mapping[str, Json], pad_ids: Mapping[str, int | None], where: str) -> ModelConfig:
    """Returns the config in a folder's JSON files, which are given by their paths in it: diffusers', or ours.

    pad_ids  of the padding token that the tokenizer's files name, by text encoder; None if they name none

    Raises ValueError for what is missing, beyond our networks, or outside its rule.
    """
    parts = {name.removesuffix("/config.json"): data for name, data in jsons.items() if name.endswith("/config.json")}
    texts = {part: text_from_diffusers(parts[part], pad_id, f"{where}/{part}") for part, pad_id in pad_ids.items()}
    settings: dict[str, Any] = own_settings(jsons.get("model_index.json", {}), where)
    for part, default in OWN.items():
        if part in parts:
            data = {key: value for key, value in parts[part].items() if not key.startswith("_")}
            settings[part] = from_fields(default(), data, f"{where}/{part}")
    if "vae" in parts:
        settings["autoencoder"] = autoencoder_from_diffusers(parts["vae"], f"{where}/vae")
    if "unet" in parts:
        settings["unet"] = unet_from_diffusers(parts["unet"], TEXT_2 in texts, f"{where}/unet")
        sample_size = 64 if parts["unet"].get("sample_size") is None else parts["unet"]["sample_size"]
        check("sample_size", sample_size, whole(1, 512), f"{where}/unet")
        autoencoder = settings.get("autoencoder", AutoencoderConfig())  # there is none of drawings, see `checked`
        settings["image_size"] = sample_size * 2 ** (len(autoencoder.channels) - 1)
    config = ModelConfig(
        condition=next((told for told, part in TOLD_BY.items() if part in parts), "nothing"),
        text=texts.get("text_encoder", TextEncoderConfig()),
        schedule=schedule_from_diffusers(jsons["scheduler/scheduler_config.json"], f"{where}/scheduler"),
    )
    config = replace(config, **settings)
    return with_two_texts(config, texts[TEXT_2], jsons, where) if TEXT_2 in texts else config


OWN_MODEL = "LatentDiffusion"
SHARED = "shared_weights"  # in a folder's index: where, seen from it, the weights lie that it does not have itself
INDEXED = ("denoiser", "latents", "image_size", "stroke")  # fields of ours in the index of a folder


def own_settings(index: Json, where: str) -> dict[str, Any]:
    """Returns the fields of a model that diffusers has no pipeline for; none of one that it has one for."""
    if index.get("_class_name") != OWN_MODEL:
        return {}
    found = {name: index[name] for name in INDEXED if name in index}
    for name, value in found.items():
        check(name, value, RULES[ModelConfig][name], f"{where}/model_index.json")
    return found


def with_two_texts(
    config: ModelConfig, second: TextEncoderConfig, jsons: Mapping[str, Json], where: str
) -> ModelConfig:
    """Returns the config of a folder with a second text encoder, and what else is SDXL's alone."""

    def setting(file: str, name: str, default: Any, rule: Rule) -> Any:
        value = jsons.get(file, {}).get(name, default)
        check(name, value, rule, f"{where}/{file.removesuffix('/config.json')}")
        return value

    overflows = setting("vae/config.json", "force_upcast", True, FLAG)
    projection = setting(f"{TEXT_2}/config.json", "projection_dim", 512, SIZE)
    return replace(
        config,
        autoencoder=replace(config.autoencoder, overflows=overflows),
        text=replace(config.text, penultimate=True),
        text_2=replace(second, penultimate=True, projection=projection),
        zeros_for_empty=setting("model_index.json", "force_zeros_for_empty_prompt", True, FLAG),
    )


def block_types(data: Json, known: Collection[str], where: str) -> list[list[str]]:
    """Returns the types of the blocks, down and up. Raises ValueError for one that is not known."""
    settings = {name: data.get(name) or [] for name in ("down_block_types", "up_block_types")}
    for name, blocks in settings.items():
        check(name, blocks, several(one_of(*known), 0, LEVELS), where)
    return list(settings.values())


def unet_from_diffusers(data: Json, two_texts: bool, where: str) -> UNetConfig:
    vector = TOLD_SIZES if two_texts else CLASS_VECTOR
    vector_width: Any = 0
    if all(data.get(key) == value for key, value in vector.items()):
        vector_width = data.get(VECTOR_WIDTH)
        check(VECTOR_WIDTH, vector_width, SIZE, where)
        data = {key: value for key, value in data.items() if key not in (*vector, VECTOR_WIDTH, SIZE_WIDTH)}
    refuse_unsupported(data, UNET_ALWAYS, UNET_KNOWN, where)
    down, up = block_types(data, ATTENTION, where)
    attention = [ATTENTION[block] for block in down]
    if attention != [ATTENTION[block] for block in reversed(up)]:
        raise ValueError(f"{where}: down_block_types and up_block_types do not mirror each other")
    if isinstance(heads := data.get("attention_head_dim"), int):
        data = {**data, "attention_head_dim": [heads] * len(down)}
    found = from_json_fields(UNetConfig, data, UNET_FIELDS, DIFFUSERS_DEFAULTS, where)
    depth = data.get("transformer_layers_per_block") or 1
    found |= {"attention": attention, "vector_width": vector_width}
    made = from_fields(UNetConfig(), {**found, "depth": [depth] * len(down) if type(depth) is int else depth}, where)
    return replace(made, depth=()) if set(made.depth) == {1} else made


def autoencoder_from_diffusers(data: Json, where: str) -> AutoencoderConfig:
    refuse_unsupported(data, VAE_ALWAYS, VAE_KNOWN, where)
    block_types(data, ("DownEncoderBlock2D", "UpDecoderBlock2D"), where)
    found = from_json_fields(AutoencoderConfig, data, VAE_FIELDS, DIFFUSERS_DEFAULTS, where)
    return from_fields(AutoencoderConfig(), found, where)


def text_from_diffusers(data: Json, pad_id: int | None, where: str) -> TextEncoderConfig:
    for key, values in {"model_type": ("clip_text_model", "clip"), "layer_norm_eps": (1e-5,)}.items():
        if data.get(key, values[0]) not in values:
            raise ValueError(f"{where}: {key}={quoted(data[key])} is not supported")
    found = from_json_fields(TextEncoderConfig, data, TEXT_FIELDS, {}, where)
    if pad_id is None:
        pad_id = 49407 if found["activation"] == "quick_gelu" else 0
    return from_fields(TextEncoderConfig(), {**found, "pad_id": pad_id}, where)


def schedule_from_diffusers(data: Json, where: str) -> ScheduleConfig:
    if data.get("trained_betas"):
        raise ValueError(f"{where}: trained_betas is not supported")
    name = data.get("_class_name", "DDIMScheduler")
    if data.get("use_flow_sigmas"):
        raise ValueError(f"{where}: use_flow_sigmas is not supported: give a flow's schedule as {FLOW}")
    if name == FLOW:
        refuse_unsupported({key: data.get(key) for key in FLOW_NEVER}, {}, (), where)
        numbers = from_json_fields(ScheduleConfig, data, FLOW_FIELDS, FLOW_DEFAULTS, where)
        return from_fields(ScheduleConfig(), {**numbers, "kind": "flow", "ends_clean": True}, where)
    family = str(name).removesuffix("Scheduler")
    spacing = next((spacing for spacing, families in SPACINGS.items() if family in families), None)
    if spacing is None:
        raise ValueError(f"{where}: _class_name={quoted(name)} is not supported")
    defaults = SCHEDULER_DEFAULTS | {"timestep_spacing": spacing, "set_alpha_to_one": SET_ALPHA_TO_ONE.get(family)}
    if family not in SET_ALPHA_TO_ONE:
        data = {**data, "set_alpha_to_one": data.get("final_sigmas_type") != "sigma_min"}
    return from_fields(
        ScheduleConfig(), from_json_fields(ScheduleConfig, data, SCHEDULE_FIELDS, defaults, where), where
    )


def schedule_to_diffusers(config: ScheduleConfig, two_texts: bool) -> dict[str, Any]:
    if config.kind == "flow":
        settings = {"_class_name": FLOW, **to_json_fields(config, FLOW_FIELDS)}
        return {key: value for key, value in settings.items() if value != FLOW_DEFAULTS["prediction_type"]}
    if two_texts and config.ends_clean:  # as SDXL is published: Euler's method, which always ends so
        settings = to_json_fields(config, SCHEDULE_FIELDS)
        del settings["set_alpha_to_one"]
        return {"_class_name": "EulerDiscreteScheduler", **settings}
    return {"_class_name": "DDIMScheduler", **to_json_fields(config, SCHEDULE_FIELDS), "clip_sample": False}


def to_diffusers(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Returns the JSON files of a folder, by their paths in it: diffusers', with ours for what it does not have."""
    schedule = schedule_to_diffusers(config.schedule, config.text_2 is not None)
    writers = {"unet": unet_to_diffusers, "vae": vae_to_diffusers}
    networks = {
        f"{part}/config.json": writers[part](config) if part in writers else own_to_json(getattr(config, part))
        for part in networks_of(config)
    }
    files = {
        "model_index.json": model_index(config, schedule["_class_name"]),
        **networks,
        **condition_to_diffusers(config),
        "scheduler/scheduler_config.json": schedule,
    }
    return files if config.text_2 is None else two_texts_to_diffusers(config, config.text_2, files)


def own_to_json(config: Any) -> dict[str, Any]:
    """Returns one of our configs as it is, for what diffusers does not have."""
    return {"_class_name": type(config).__name__.removesuffix("Config"), **asdict(config)}


def unet_to_diffusers(config: ModelConfig) -> dict[str, Any]:
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.unet.attention]
    vector: dict[str, Any] = {VECTOR_WIDTH: config.unet.vector_width} if config.unet.vector_width else {}
    if config.condition == "classes" and vector:
        vector |= CLASS_VECTOR
    # fmt: off
    return {
        "_class_name": "UNet2DConditionModel", **to_json_fields(config.unet, UNET_FIELDS), **vector,
        "sample_size": config.image_size // config.downscale, "down_block_types": down,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(down)],
        "transformer_layers_per_block": config.unet.depth or 1,
    }
    # fmt: on


def vae_to_diffusers(config: ModelConfig) -> dict[str, Any]:
    levels = len(config.autoencoder.channels)
    # fmt: off
    return {
        "_class_name": "AutoencoderKL", **to_json_fields(config.autoencoder, VAE_FIELDS),
        "out_channels": config.autoencoder.image_channels, "sample_size": config.image_size,
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    # fmt: on


def text_to_diffusers(config: TextEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **to_json_fields(config, TEXT_FIELDS),
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": config.pad_id,
    }


def two_texts_to_diffusers(
    config: ModelConfig, second: TextEncoderConfig, files: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Returns the JSON files of SDXL, given what they have in common with those of other models."""
    model, sizes = (
        "CLIPTextModelWithProjection",
        {
            **TOLD_SIZES,
            SIZE_WIDTH: (config.unet.vector_width - second.projection) // 6,
        },
    )
    index = {key: value for key, value in files["model_index.json"].items() if "safety" not in key} | {
        "_class_name": "StableDiffusionXLPipeline",
        TEXT_2: ["transformers", model],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": config.zeros_for_empty,
        "image_encoder": [None, None],
    }
    return files | {
        "model_index.json": index,
        "unet/config.json": files["unet/config.json"] | sizes,
        "vae/config.json": files["vae/config.json"] | {"force_upcast": config.autoencoder.overflows},
        f"{TEXT_2}/config.json": text_to_diffusers(second)
        | {"architectures": [model], "projection_dim": second.projection},
    }


def model_index(config: ModelConfig, scheduler: str) -> dict[str, Any]:
    """Returns what names the pipeline: diffusers' Stable Diffusion, or our own with the fields that make it another."""
    if config.condition != "text" or set(networks_of(config)) & OWN.keys():
        own = {"_class_name": OWN_MODEL, **{name: getattr(config, name) for name in INDEXED}}
        return own | ({"text_encoder": [None, None]} if config.condition == "nothing" else {})
    # fmt: off
    return {
        "_class_name": f"StableDiffusion{'Inpaint' if config.unet.in_channels == 9 else ''}Pipeline",
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False,
        "scheduler": ["diffusers", scheduler], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    # fmt: on


def condition_to_diffusers(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Returns the JSON file, by its path, of what turns prompts into conditions; none for a model told nothing."""
    if config.condition == "nothing":
        return {}
    if config.condition in OWN:
        return {f"{config.condition}/config.json": own_to_json(getattr(config, config.condition))}
    return {"text_encoder/config.json": text_to_diffusers(config.text)}


# --- single files -----------------------------------------------------------------------------------------------------

FAMILIES = {(320, 4, 768): SD1, (320, 9, 768): SD1_INPAINTING, (320, 4, 1024): SD2, (320, 4, 2048): SDXL}
STRANGERS = {
    (320, 9, 2048): "an SDXL inpainting model, which is not supported",
    (384, 4, 1280): "an SDXL refiner, which is not supported: use the base model alone",
}
TO_K = "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
EDM_MARKERS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


def family(shapes: Shapes, prediction: str | None, where: str) -> ModelConfig:
    """Returns the published family that a single file's shapes are of. Raises ValueError for any other.

    prediction: the user's; SD 2 has one size for each, and its files do not tell them apart.
    """
    conv_in = shapes.get(UNET + "input_blocks.0.0.weight", ())
    if len(conv_in) != 4:
        raise ValueError(
            f"{where}: no Stable Diffusion checkpoint: it has no {UNET}input_blocks.0.0.weight of a convolution, "
            f"but {one_line(', '.join(list(shapes)[:3]))}"
        )
    first = [shape for i in (1, 4) if len(shape := shapes.get(UNET + TO_K.format(i), ())) == 2]  # SDXL's top has none
    signature = (conv_in[0], conv_in[1], first[0][1] if first else 0)
    if signature in STRANGERS:
        raise ValueError(f"{where}: {STRANGERS[signature]}")
    if signature not in FAMILIES:
        raise ValueError(
            f"{where}: not of a family known here ({signature[0]} channels, {signature[1]} input channels, "
            f"text width {signature[2]}); give its YAML as model.config"
        )
    config = FAMILIES[signature]
    if config is SDXL:
        return fine_tune(shapes, where)
    return replace(config, image_size=768) if config is SD2 and prediction == "v" else config


def fine_tune(shapes: Shapes, where: str) -> ModelConfig:
    """Returns SDXL's config, or that of a fine-tune which says in empty tensors how it differs.

    Raises ValueError for one of another process, and for a file of the U-Net alone.
    """
    edm = next((key for key in EDM_MARKERS if key in shapes), None)
    if edm:
        raise ValueError(f"{where}: {edm} marks an SDXL of the EDM process, which is not supported")
    for what, prefix in (("autoencoder", AUTOENCODER), ("text encoder", CLIP_XL), ("text encoder", OPENCLIP_XL)):
        if not any(key.startswith(prefix) for key in shapes):
            raise ValueError(
                f"{where}: no {what} in it ({prefix}*): SDXL draws with all of its networks; take a whole file"
            )
    prediction = "v" if V_PRED in shapes else "eps"
    zero_snr = ZERO_SNR in shapes
    spacing = "trailing" if zero_snr else SDXL.schedule.spacing  # no other begins where no signal is left
    schedule = replace(SDXL.schedule, prediction=prediction, zero_terminal_snr=zero_snr, spacing=spacing)
    return replace(SDXL, schedule=schedule)


def text_from_shapes(shapes: Shapes, penultimate: bool, where: str) -> TextEncoderConfig:
    """Returns the text encoder of a single file. Its heads are not in the shapes: CLIP's are 64 wide."""
    of_text = {key: shape for key, shape in shapes.items() if key.startswith((CLIP, OPENCLIP))}
    open_clip = any(key.startswith(OPENCLIP) for key in of_text)

    def shape_of(*endings: str) -> tuple[int, ...]:
        found = [shape for key, shape in of_text.items() if key.endswith(endings)]
        if not found or len(found[0]) != 2:
            raise ValueError(f"{where}: no CLIP text encoder in it: no {CLIP}... nor {OPENCLIP}... {endings[0]}")
        return found[0]

    vocab, width = shape_of("token_embedding.weight")
    layers = sum(key.endswith((".fc1.bias", ".c_fc.bias")) for key in of_text)
    settings = {
        "width": width,
        "mlp_width": shape_of("mlp.fc1.weight", "mlp.c_fc.weight")[0],
        "layers": layers - penultimate,
        "heads": max(1, width // 64),
        "vocab": vocab,
        "context": shape_of("position_embedding.weight", "positional_embedding")[0],
        "activation": "gelu" if open_clip else "quick_gelu",
        "pad_id": 0 if open_clip else 49407,
    }
    return from_fields(TextEncoderConfig(), settings, f"{where}: text encoder")


LONGEST_YAML = 2**18  # bytes; published ones have 4,000


class Loader(yaml.SafeLoader):
    """Reads YAML without merge keys, by which a small file could grow without bounds."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass


def from_yaml(path: Path, shapes: Shapes) -> ModelConfig:
    """Returns the config in a CompVis YAML, as published beside a single file with these shapes, or in one of ours.

    Raises OSError or ValueError for a file that is not there, damaged, or beyond our networks.
    """
    where = str(path)
    try:
        if path.stat().st_size > LONGEST_YAML:
            raise ValueError(f"{where}: no config: it has more than {LONGEST_YAML} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: no such file (model.config)") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: no readable YAML: {error}") from error
    try:
        data = yaml.load(text, Loader)
    except Exception as error:  # PyYAML lets more through than its own errors
        raise ValueError(f"{where}: no readable YAML: {one_line(str(error).partition(chr(10))[0])}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{where}: neither a CompVis YAML nor one of ours")
    return from_compvis(data, shapes, where) if "model" in data else from_fields(ModelConfig(), data, where)


def to_yaml(config: ModelConfig) -> str:
    plain = json.loads(json.dumps(asdict(config)))  # tuples become lists
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)


ENCODER_LAYERS = {"FrozenCLIPEmbedder": ("last",), "FrozenOpenCLIPEmbedder": ("last", "penultimate")}
# fmt: off
COMPVIS_UNET_FIELDS = {
    "in_channels": "in_channels", "out_channels": "out_channels", "blocks_per_level": "num_res_blocks",
    "text_width": "context_dim", "linear_projection": "use_linear_in_transformer",
}
COMPVIS_VAE_FIELDS = {
    "image_channels": "in_channels", "latent_channels": "z_channels", "blocks_per_level": "num_res_blocks",
}
COMPVIS_SCHEDULE_FIELDS = {
    "num_timesteps": "timesteps", "beta_start": "linear_start", "beta_end": "linear_end",
    "prediction": "parameterization",
}
COMPVIS_DEFAULTS = {
    "use_linear_in_transformer": False, "num_heads": -1, "num_head_channels": -1, "scale_factor": 1.0,
    "timesteps": 1000, "linear_start": 1e-4, "linear_end": 2e-2, "parameterization": "eps",
}
COMPVIS_KINDS = {"linear": "scaled_linear", "sqrt_linear": "linear"}  # linear in the square root is called linear
# Settings that are computed with.
COMPVIS_RULES = {
    "model_channels": SIZE, "channel_mult": several(SIZE, 1, LEVELS), "attention_resolutions": several(SIZE, 0, LEVELS),
    "num_heads": whole(-1, 65536), "num_head_channels": whole(-1, 65536), "ch": SIZE,
    "ch_mult": several(SIZE, 1, LEVELS), "image_size": whole(1, 512),
}
COMPVIS_UNET_ALWAYS = {"use_spatial_transformer": True, "transformer_depth": 1, "conv_resample": True, "dims": 2}
COMPVIS_UNET_KNOWN = {
    *COMPVIS_UNET_FIELDS.values(), "model_channels", "channel_mult", "attention_resolutions", "num_heads",
    "num_head_channels", "image_size", "use_checkpoint", "use_fp16", "legacy",
}
COMPVIS_VAE_ALWAYS = {"double_z": True, "dropout": 0.0, "attn_resolutions": []}
COMPVIS_VAE_KNOWN = {*COMPVIS_VAE_FIELDS.values(), "resolution", "out_ch", "ch", "ch_mult", "attn_type"}
# fmt: on


def section(data: Json, *path: str, where: str) -> Json:
    """Returns the mapping at a path of keys. Raises ValueError if there is none."""
    for i, key in enumerate(path):
        data = data.get(key)  # type: ignore[assignment]
        if not isinstance(data, dict):
            raise ValueError(f"{where}: not laid out like v1-inference.yaml: no mapping {'.'.join(path[: i + 1])}")
    return data


def numbers(data: Json, names: Collection[str], where: str) -> list[Any]:
    """Returns settings that are computed with. Raises ValueError for a missing one, or one outside its rule."""
    values = [data.get(name, COMPVIS_DEFAULTS.get(name)) for name in names]
    for name, value in zip(names, values, strict=True):
        check(name, value, COMPVIS_RULES[name], where)
    return values


def from_compvis(data: Json, shapes: Shapes, where: str) -> ModelConfig:
    params = section(data, "model", "params", where=where)
    refuse_unsupported({"scale_by_std": params.get("scale_by_std")}, {}, (), where)
    autoencoder = autoencoder_from_compvis(params, where)
    (image_size,) = numbers(params, ["image_size"], where)
    return ModelConfig(
        unet=unet_from_compvis(params, where),
        autoencoder=autoencoder,
        text=text_from_compvis(params, shapes, where),
        schedule=schedule_from_compvis(params, where),
        image_size=image_size * 2 ** (len(autoencoder.channels) - 1),
    )


def unet_from_compvis(params: Json, where: str) -> UNetConfig:
    data, where = section(params, "unet_config", "params", where=where), f"{where}: unet_config"
    refuse_unsupported(data, COMPVIS_UNET_ALWAYS, COMPVIS_UNET_KNOWN, where)
    if not data.get("use_spatial_transformer"):
        raise ValueError(f"{where}: only U-Nets with spatial transformers are supported")
    names = ["model_channels", "channel_mult", "attention_resolutions", "num_heads", "num_head_channels"]
    base, multiples, resolutions, heads, head_width = numbers(data, names, where)
    channels = [base * multiple for multiple in multiples]
    settings = {
        **from_json_fields(UNetConfig, data, COMPVIS_UNET_FIELDS, COMPVIS_DEFAULTS, where),
        "channels": channels,
        "attention": [2**i in resolutions for i in range(len(channels))],
        "heads": [c // head_width if head_width > 0 else heads for c in channels],
    }
    return from_fields(UNetConfig(), settings, where)


def autoencoder_from_compvis(params: Json, where: str) -> AutoencoderConfig:
    vae = section(params, "first_stage_config", "params", where=where)
    data, where = section(vae, "ddconfig", where=where), f"{where}: ddconfig"
    refuse_unsupported(data, COMPVIS_VAE_ALWAYS, COMPVIS_VAE_KNOWN, where)
    base, multiples = numbers(data, ["ch", "ch_mult"], where)
    settings = {
        **from_json_fields(AutoencoderConfig, data, COMPVIS_VAE_FIELDS, COMPVIS_DEFAULTS, where),
        "channels": [base * multiple for multiple in multiples],
        "scale": params.get("scale_factor", COMPVIS_DEFAULTS["scale_factor"]),
    }
    if vae.get("embed_dim", settings["latent_channels"]) != settings["latent_channels"]:
        raise ValueError(f"{where}: only an embed_dim equal to z_channels is supported")
    return from_fields(AutoencoderConfig(), settings, where)


def text_from_compvis(params: Json, shapes: Shapes, where: str) -> TextEncoderConfig:
    data = section(params, "cond_stage_config", where=where)
    encoder = str(data.get("target")).rsplit(".", 1)[-1]
    layer = section(data, "params", where=where).get("layer", "last") if data.get("params") else "last"
    if layer not in ENCODER_LAYERS.get(encoder, ()):
        raise ValueError(f"{where}: text encoder {one_line(encoder)} with layer={quoted(layer)} is not supported")
    return text_from_shapes(shapes, layer == "penultimate", where)


def schedule_from_compvis(params: Json, where: str) -> ScheduleConfig:
    kind = params.get("beta_schedule", "linear")
    check("beta_schedule", kind, one_of(*COMPVIS_KINDS), where)
    settings = {
        name: params.get(setting, COMPVIS_DEFAULTS[setting]) for name, setting in COMPVIS_SCHEDULE_FIELDS.items()
    }
    return from_fields(ScheduleConfig(), {**settings, "kind": COMPVIS_KINDS[kind]}, where)
