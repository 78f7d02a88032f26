"""Reading model files: which tensors go where, which files are taken, and what is said of the others."""

import json
import pickle
import shutil
import struct
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from reference import TINY_SD1, TINY_SD2, manifests, relative, same_weights, tiny_model, write_diffusers_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm import LatentDiffusion, load_model
from ldm.condition import Condition
from ldm.config import SD1, SD1_INPAINTING, SD2, SDXL, ModelConfig, ScheduleConfig
from ldm.files import names, reading
from ldm.files.config_files import family, to_yaml
from ldm.files.reading import compare, on_meta
from ldm.files.writing import write_file

TINY = {"sd1": TINY_SD1, "sd2": TINY_SD2}


# --- every key of the published checkpoints ---------------------------------------------------------------------------


def tensors_of(shapes: dict[str, list[int]]) -> list[tuple[str, Tensor]]:
    return [(key, torch.empty(shape, device="meta")) for key, shape in shapes.items()]


def text_prefix(config: ModelConfig) -> str:
    return names.OPENCLIP if config is SD2 else names.CLIP + names.TEXT_PREFIX


def wanted(config: ModelConfig, ema: bool = False) -> dict[names.Source, Tensor]:
    model = on_meta(config)
    sources = names.in_single_file(model, text_prefix(config), ema)
    return {
        sources[part][name]: value
        for part, network in names.parts(model).items()
        for name, value in network.state_dict().items()
    }


FILES = {"sd_v1_ckpt": SD1, "sd_v1_inpainting_ckpt": SD1_INPAINTING, "sd_v2_1_ckpt": SD2, "sdxl_base_ckpt": SDXL}


@pytest.mark.parametrize("ema", [False, True], ids=["plain", "ema"])
@pytest.mark.parametrize("name", FILES)
def test_every_tensor_of_published_files_has_its_place(name: str, ema: bool) -> None:
    config = FILES[name]
    shapes = dict(manifests()[name])
    as_tuples = {key: tuple(shape) for key, shape in shapes.items()}
    assert family(as_tuples, None, name) == config
    assert family(as_tuples, "v", name).image_size == (768 if config is SD2 else config.image_size)
    for key in [key for key in shapes if key.startswith(names.UNET)]:
        copy = "model_ema." + key.removeprefix("model.").replace(".", "")
        shapes[copy] = shapes[key]
    shapes |= {"model_ema.decay": [], "model_ema.num_updates": [], "logvar": [1000], "denoiser.sigmas": [1000]}

    def extra(key: str) -> bool:
        return names.is_extra(key, config.text.layers, ema)

    needed = wanted(config, ema)
    compare(needed, tensors_of(shapes), extra, name)
    keys = {source.key for source in needed}
    assert ema or not any(extra(key) for key in keys)
    for lost in list(keys)[::97]:
        with pytest.raises(ValueError, match="1 missing"):
            compare(needed, [item for item in tensors_of(shapes) if item[0] != lost], extra, name)


@pytest.mark.parametrize(("folder", "config"), [("sd15_diffusers", SD1), ("sd21_diffusers", SD2)])
def test_every_tensor_of_published_folders_has_its_place(folder: str, config: ModelConfig) -> None:
    model = on_meta(config)
    sources = names.in_folder(model)
    for part, network in names.parts(model).items():
        shapes = {sources[part][name].key: list(value.shape) for name, value in network.state_dict().items()}
        assert shapes == manifests()[folder][part]
    old = names.in_folder(model, old_vae=True)["vae"]
    renamed = {old[name].key: sources["vae"][name].key for name in old}
    assert {k: v for k, v in renamed.items() if k != v} == manifests()[folder]["vae_legacy_names"]


@pytest.mark.parametrize(("keymap", "config"), [("keymap_sd15", SD1), ("keymap_sd21", SD2)])
def test_names_agree_with_the_converters_of_diffusers(keymap: str, config: ModelConfig) -> None:
    model = on_meta(config)
    single, folder = names.in_single_file(model, text_prefix(config)), names.in_folder(model)
    for part, network in names.parts(model).items():
        places = {}
        for name, value in network.state_dict().items():
            source, rows = single[part][name], len(value)
            place = [source.key, source.part * rows, (source.part + 1) * rows] if source.parts > 1 else source.key
            places[folder[part][name].key] = place
        assert places == manifests()[keymap][part]


# --- single files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> dict[str, LatentDiffusion]:
    return {name: tiny_model(config) for name, config in TINY.items()}


@pytest.fixture(scope="module")
def files(models: dict[str, LatentDiffusion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME.safetensors as CompVis lays it out, and NAME.yaml of our own fields."""
    folder = tmp_path_factory.mktemp("files")
    for name, model in models.items():
        write_file(model, folder / f"{name}.safetensors")
        (folder / f"{name}.yaml").write_text(to_yaml(model.config))
    return folder


def extras(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What published files carry besides; the EMA copies of the U-Net are the plain weights plus one."""
    ema = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value + 1
        for key, value in state.items()
        if key.startswith(names.UNET)
    }
    return {
        **{name: torch.rand(1000) for name in manifests()["sd_v1_ckpt"] if "." not in name},
        **ema,
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(1, dtype=torch.int32),
        "logvar": torch.zeros(1000),
        "lvlb_weights": torch.zeros(1000),
        "first_stage_model.loss.logvar": torch.tensor(0.0),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }


@pytest.mark.parametrize("name", TINY)
def test_single_file(name: str, files: Path, models: dict[str, LatentDiffusion]) -> None:
    loaded = load_model(files / f"{name}.safetensors", config=files / f"{name}.yaml")
    assert loaded.config == TINY[name]
    assert same_weights(loaded, models[name])
    networks = (loaded.unet, loaded.autoencoder, loaded.text_encoder)
    assert not any(network.training for network in networks)
    assert not any(p.requires_grad for network in networks for p in network.parameters())


def as_ckpt(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("kind", ["ckpt", "old ckpt", "bare ckpt", "safetensors", "misnamed"])
def test_extras_and_wrappers(
    kind: str, tmp_path: Path, files: Path, models: dict[str, LatentDiffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK", 500_000)  # so that files are mapped anew a few times
    state = load_file(files / "sd1.safetensors")
    state |= extras(state)
    path = tmp_path / "model.ckpt"
    if kind in ("safetensors", "misnamed"):
        path = path.with_suffix(".safetensors") if kind == "safetensors" else path
        save_file(state, path)
    else:
        wrapped = {"state_dict": state, "global_step": 470000, "epoch": 1, "optimizer_states": []}
        as_ckpt(path, state if kind == "bare ckpt" else wrapped, legacy=kind == "old ckpt")
    assert same_weights(load_model(path, config=files / "sd1.yaml"), models["sd1"])

    averaged = load_model(path, config=files / "sd1.yaml", ema=True)
    plain = models["sd1"].unet.state_dict()
    assert all(torch.equal(value, plain[key] + 1) for key, value in averaged.unet.state_dict().items())


def test_16_bit_and_dtypes(tmp_path: Path, files: Path, models: dict[str, LatentDiffusion]) -> None:
    write_file(models["sd1"], tmp_path / "half.safetensors", torch.float16)
    full = load_model(tmp_path / "half.safetensors", config=files / "sd1.yaml")
    half = load_model(tmp_path / "half.safetensors", config=files / "sd1.yaml", dtype=torch.float16)
    exact = models["sd1"].unet.state_dict()
    for key, value in full.unet.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, exact[key].half().float())
        assert torch.equal(half.unet.state_dict()[key], exact[key].half())


def test_no_ema_copies(files: Path) -> None:
    with pytest.raises(ValueError, match=r"sd1.safetensors: no EMA copies in it .*leave out model.ema"):
        load_model(files / "sd1.safetensors", config=files / "sd1.yaml", ema=True)


def test_text_encoder_without_prefix(tmp_path: Path, files: Path, models: dict[str, LatentDiffusion]) -> None:
    state = {key.replace("text_model.", ""): value for key, value in load_file(files / "sd1.safetensors").items()}
    save_file(state, tmp_path / "a.safetensors")
    assert same_weights(load_model(tmp_path / "a.safetensors", config=files / "sd1.yaml"), models["sd1"])


# --- pickles ----------------------------------------------------------------------------------------------------------


def test_lightning_checkpoint(
    tmp_path: Path, files: Path, models: dict[str, LatentDiffusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sd-v1-4.ckpt: a class of Lightning as a key, numpy scalars and arrays in its state."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = callback
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    content = {
        "pytorch-lightning_version": "1.4.2",
        "global_step": 470000,
        "callbacks": {callback: {"best_model_score": np.float32(0.1), "scores": np.arange(3.0), "self": callback()}},
        "state_dict": load_file(files / "sd1.safetensors"),
    }
    for legacy in (False, True):
        path = as_ckpt(tmp_path / f"{legacy}.ckpt", content, legacy)
        for part in (name, "pytorch_lightning.callbacks", "pytorch_lightning"):
            monkeypatch.delitem(sys.modules, part, raising=False)
        assert same_weights(load_model(path, config=files / "sd1.yaml"), models["sd1"])
        monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        monkeypatch.setitem(sys.modules, "pytorch_lightning.callbacks", types.ModuleType("callbacks"))
        monkeypatch.setitem(sys.modules, name, module)
    assert "Inert" not in str(torch.serialization.get_safe_globals())


class Trap:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> object:
        return (exec, (f"open({str(self.mark)!r}, 'w')",))


class NumpyTrap(Trap):
    """Hides behind a name that stand-ins are made for."""

    def __reduce__(self) -> object:
        return (np.fromfile, (str(self.mark),))


@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused(form: str, tmp_path: Path, files: Path) -> None:
    content = {"state_dict": load_file(files / "sd1.safetensors"), "x": Trap(tmp_path / "ran")}
    path = tmp_path / "evil.ckpt"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps({"x": Trap(tmp_path / "ran")}, protocol=2))
    elif form == "protocol 4":
        torch.save(content, path, pickle_protocol=4)
    else:
        as_ckpt(path, content, legacy=form == "legacy")
    with pytest.raises(ValueError, match="evil.ckpt: ") as caught:
        load_model(path, config=files / "sd1.yaml")
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    if form in ("zip", "legacy"):
        assert "refused: it would run" in str(caught.value) and "exec" in str(caught.value)


def test_stand_ins_do_nothing(tmp_path: Path, files: Path, models: dict[str, LatentDiffusion]) -> None:
    content = {"state_dict": load_file(files / "sd1.safetensors"), "x": NumpyTrap(tmp_path / "not there")}
    path = as_ckpt(tmp_path / "odd.ckpt", content)
    assert same_weights(load_model(path, config=files / "sd1.yaml"), models["sd1"])


# --- files that do not fit --------------------------------------------------------------------------------------------


def changed(files: Path, path: Path, **changes: Tensor | None) -> Path:
    """sd1.safetensors with tensors replaced, added, or (None) taken out; "__" stands for a dot."""
    state = load_file(files / "sd1.safetensors")
    for key, value in changes.items():
        state.pop(key.replace("__", "."), None)
        if value is not None:
            state[key.replace("__", ".")] = value
    save_file(state, path)
    return path


def test_misfits_are_listed_in_one_line(tmp_path: Path, files: Path) -> None:
    path = changed(
        files,
        tmp_path / "odd.safetensors",
        model__diffusion_model__out__2__bias=None,
        first_stage_model__quant_conv__weight=None,
        model__diffusion_model__out__0__bias=torch.zeros(7),
        model__diffusion_model__new=torch.zeros(1),
        embedding_manager__a=torch.zeros(1),
        embedding_manager__b=torch.zeros(1),
        embedding_manager__c=torch.zeros(1),
    )
    with pytest.raises(ValueError) as caught:
        load_model(path, config=files / "sd1.yaml")
    line = str(caught.value)
    assert "\n" not in line and "odd.safetensors" in line
    assert "2 missing (model.diffusion_model.out.2.bias, first_stage_model.quant_conv.weight)" in line
    assert "4 left over (embedding_manager.a, embedding_manager.b, embedding_manager.c, ...)" in line
    assert "1 of the wrong shape or type (model.diffusion_model.out.0.bias [7] and not [32])" in line


def test_integers_are_no_weights(tmp_path: Path, files: Path) -> None:
    bias = torch.zeros(4, dtype=torch.int8)
    path = changed(files, tmp_path / "odd.safetensors", model__diffusion_model__out__2__bias=bias)
    with pytest.raises(ValueError, match=r"1 of the wrong shape or type \(model.diffusion_model.out.2.bias torch.int8"):
        load_model(path, config=files / "sd1.yaml")


def test_truncated_files(tmp_path: Path, files: Path) -> None:
    whole = (files / "sd1.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (0, 5, 100, header + 1000, len(whole) - 1):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.safetensors: not a complete safetensors file") as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
    for legacy in (False, True):
        whole = as_ckpt(tmp_path / "whole.ckpt", {"state_dict": {"a": torch.zeros(10_000)}}, legacy).read_bytes()
        for length in (0, 100, 10_000, len(whole) - 100):
            path = tmp_path / "cut.ckpt"
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="cut.ckpt: no checkpoint, or a damaged one") as caught:
                load_model(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["notes.safetensors", "notes.ckpt", "notes.txt", "picture.png"])
def test_files_that_are_no_checkpoints(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("These are my notes, which are no checkpoint at all.\n" * 20)
    with pytest.raises(ValueError, match=name) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_other_models_are_told_apart(tmp_path: Path) -> None:
    to_k = names.UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    conv_in = names.UNET + "input_blocks.0.0.weight"
    path = tmp_path / "m.safetensors"
    for channels, inputs, width, message in [
        (320, 4, 2048, r"m.safetensors: no autoencoder in it \(first_stage_model.\*\): SDXL draws with all"),
        (320, 9, 2048, "m.safetensors: an SDXL inpainting model, which is not supported"),
        (384, 4, 1280, "m.safetensors: an SDXL refiner, which is not supported"),
    ]:
        sdxl = {conv_in: torch.zeros(channels, inputs, 3, 3), to_k.replace(".1.1.", ".4.1."): torch.zeros(1, width)}
        save_file(sdxl, path)
        with pytest.raises(ValueError, match=message):
            load_model(path)
    save_file({conv_in: torch.zeros(32, 4, 3, 3), to_k: torch.zeros(1, 32)}, path)
    with pytest.raises(ValueError, match="not of a family known here.*model.config"):
        load_model(path)
    save_file({"lora_unet_down.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="no Stable Diffusion checkpoint.*lora_unet_down.weight"):
        load_model(path)


def test_sd2_file_needs_its_prediction(tmp_path: Path) -> None:
    """Told before any weight is read, so a file of just the telling shapes does."""
    to_k = names.UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    path = tmp_path / "sd2.safetensors"
    save_file({names.UNET + "input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3), to_k: torch.zeros(1, 1024)}, path)
    with pytest.raises(ValueError, match=r"model.prediction=eps \(the 512-base models\) or model.prediction=v"):
        load_model(path)
    with pytest.raises(ValueError, match="missing"):
        load_model(path, prediction="v")
    with pytest.raises(ValueError, match="model.prediction=epsilon: must be eps, v, x0 or flow"):
        load_model(path, prediction="epsilon")


def test_paths_that_are_not_there() -> None:
    for source in ("/no/such/file.ckpt", "models/sd-v1-4.ckpt", "nothing", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"{source}: no such file or folder"):
            load_model(source)
    with pytest.raises(ValueError, match="owner/name: no such file or folder here, and the hub cannot be reached"):
        load_model("owner/name")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that were looked up on the hub."""
    asked: list[str] = []

    def look(hub_id: str) -> Path:
        asked.append(hub_id)
        raise ValueError("looked up")

    monkeypatch.setattr(reading, "from_hub", look)
    return asked


def test_mistyped_paths_are_not_looked_up_on_the_hub(
    tmp_path: Path, no_hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for source in ("mine/model", "outputs/model"):  # commands write to outputs/, be it there yet or not
        with pytest.raises(FileNotFoundError, match=f"{source}: no such file or folder in .*hf://{source}"):
            load_model(source)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_model("~nobody-of-this-name/model")
    assert no_hub == []
    for source in ("owner/name", "hf://mine/model", "hf://outputs/model"):
        with pytest.raises(ValueError, match="looked up"):
            load_model(source)
    assert no_hub == ["owner/name", "mine/model", "outputs/model"]


# --- YAML -------------------------------------------------------------------------------------------------------------


def compvis_yaml(config: ModelConfig) -> dict:
    """Laid out like v1-inference.yaml and v2-inference-v.yaml."""
    v2 = config is TINY_SD2
    heads = {"num_head_channels": 16, "use_linear_in_transformer": True} if v2 else {"num_heads": 4}
    encoder = "FrozenOpenCLIPEmbedder" if v2 else "FrozenCLIPEmbedder"
    return {
        "model": {
            "base_learning_rate": 1.0e-4,
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                **({"parameterization": "v"} if v2 else {}),
                **{"linear_start": 0.00085, "linear_end": 0.0120, "num_timesteps_cond": 1, "log_every_t": 200},
                **{"timesteps": 1000, "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 16},
                **{"channels": 4, "cond_stage_trainable": False, "conditioning_key": "crossattn"},
                **{"monitor": "val/loss_simple_ema", "scale_factor": 0.18215, "use_ema": False},
                "unet_config": {
                    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                    "params": {
                        **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32},
                        **{"attention_resolutions": [2, 1], "channel_mult": [1, 2, 2], **heads},
                        **{"num_res_blocks": config.unet.blocks_per_level, "use_spatial_transformer": True},
                        **{"transformer_depth": 1, "context_dim": 32, "use_checkpoint": True, "legacy": False},
                    },
                },
                "first_stage_config": {
                    "target": "ldm.models.autoencoder.AutoencoderKL",
                    "params": {
                        "embed_dim": 4,
                        "monitor": "val/rec_loss",
                        "ddconfig": {
                            **{"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3},
                            **{
                                "ch": 32,
                                "ch_mult": [1, 2],
                                "num_res_blocks": 1,
                                "attn_resolutions": [],
                                "dropout": 0.0,
                            },
                        },
                        "lossconfig": {"target": "torch.nn.Identity"},
                    },
                },
                "cond_stage_config": {
                    "target": f"ldm.modules.encoders.modules.{encoder}",
                    **({"params": {"freeze": True, "layer": "penultimate"}} if v2 else {}),
                },
            },
        }
    }


@pytest.mark.parametrize("name", TINY)
def test_compvis_yaml(name: str, tmp_path: Path, files: Path, models: dict[str, LatentDiffusion]) -> None:
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(compvis_yaml(TINY[name])))
    loaded = load_model(files / f"{name}.safetensors", config=tmp_path / "v.yaml")
    text = replace(TINY[name].text, heads=1)  # 64 wide each, as CLIP's always are
    assert loaded.config == replace(TINY[name], text=text)
    assert same_weights(loaded, models[name])
    assert load_model(files / f"{name}.safetensors", config=tmp_path / "v.yaml", prediction="x0").config.schedule == (
        replace(TINY[name].schedule, prediction="x0")
    )


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("model.params.unet_config.params.use_scale_shift_norm", True, "use_scale_shift_norm=True is not supported"),
        ("model.params.unet_config.params.transformer_depth", 2, "transformer_depth=2 is not supported"),
        ("model.params.unet_config.params.model_channels", None, "model_channels=None should be a whole number"),
        ("model.params.first_stage_config.params.ddconfig.attn_resolutions", [16], "attn_resolutions"),
        ("model.params.cond_stage_config.target", "x.BERTEmbedder", "text encoder BERTEmbedder"),
        ("model.params.unet_config.params", None, "not laid out like v1-inference.yaml: no mapping"),
        ("model.params.beta_schedule", "cosine", "beta_schedule='cosine' should be one of linear, sqrt_linear"),
        ("model.params.scale_by_std", True, "scale_by_std=True is not supported"),
    ],
)
def test_compvis_yaml_beyond_us(where: str, value: object, message: str, tmp_path: Path, files: Path) -> None:
    data = compvis_yaml(TINY_SD1)
    *parents, last = where.split(".")
    inner = data
    for key in parents:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(files / "sd1.safetensors", config=tmp_path / "v.yaml")
    assert "v.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unet: {chanels: [32]}", "unknown field 'chanels'"),
        ("unet: {channels: 32}", "channels=32 should be a list of 1 to 8"),
        ("unet: {heads: [8]}", "one entry per level"),
        ("unet: {heads: [7, 7, 7, 7]}", "cannot be split over 7 heads"),
        ("unet: {text_width: 32}", "expects text of width 32"),
        ("schedule: {prediction: epsilon}", "prediction='epsilon' should be one of eps, v, x0, flow"),
        ("[1, 2]", "neither a CompVis YAML nor one of ours"),
        ("a: [", "no readable YAML"),
    ],
)
def test_our_yaml_beyond_us(text: str, message: str, tmp_path: Path, files: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_model(files / "sd1.safetensors", config=tmp_path / "c.yaml")


def test_yaml_that_is_not_there(files: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nope.yaml: no such file"):
        load_model(files / "sd1.safetensors", config="nope.yaml")


# --- diffusers folders ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd1 and sd2 as diffusers and transformers write them."""
    folder = tmp_path_factory.mktemp("folders")
    for name, config in TINY.items():
        write_diffusers_folder(folder / name, config)
    return folder


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", TINY)
def test_folder(name: str, folders: Path) -> None:
    from diffusers import UNet2DConditionModel

    loaded = load_model(folders / name)
    assert loaded.config == TINY[name]
    theirs = UNet2DConditionModel.from_pretrained(folders / name / "unet")
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    assert relative(loaded.unet(x, 300, Condition(text)), theirs(x, 300, text).sample) < 1e-5


def test_variants_of_a_folder(folders: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    reference = load_model(folders / "sd1")
    weights = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

    folder = copy(folders / "sd1", tmp_path / "bin")
    for part, stem in weights.items():
        state = load_file(folder / part / f"{stem}.safetensors")
        (folder / part / f"{stem}.safetensors").unlink()
        torch.save(state, folder / part / f"{'pytorch_model' if part == 'text_encoder' else stem}.bin")
    assert same_weights(load_model(folder), reference)

    folder = copy(folders / "sd1", tmp_path / "fp16")
    for part, stem in weights.items():
        path = folder / part / f"{stem}.safetensors"
        save_file({k: v.half() for k, v in load_file(path).items()}, folder / part / f"{stem}.fp16.safetensors")
    assert same_weights(load_model(folder), reference)  # the plain ones are preferred
    for part, stem in weights.items():
        (folder / part / f"{stem}.safetensors").unlink()
    half = load_model(folder, dtype=torch.float16)
    for key, value in half.unet.state_dict().items():
        assert torch.equal(value, reference.unet.state_dict()[key].half())

    folder = copy(folders / "sd1", tmp_path / "sharded")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    theirs = UNet2DConditionModel.from_pretrained(folders / "sd1" / "unet")
    theirs.save_pretrained(folder / "unet", max_shard_size="1MB")
    shards = sorted((folder / "unet").glob("*-of-*"))
    assert len(shards) > 1
    assert same_weights(load_model(folder), reference)
    shards[0].unlink()
    with pytest.raises(ValueError, match=rf"unet/: {len(shards) - 1} of the {len(shards)} shards"):
        load_model(folder)

    folder = copy(folders / "sd1", tmp_path / "sharded fp16")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    theirs.half().save_pretrained(folder / "unet", max_shard_size="500kB", variant="fp16")
    assert len(list((folder / "unet").glob("*-of-*"))) > 1
    assert torch.equal(load_model(folder).unet.conv_in.weight, reference.unet.conv_in.weight.half().float())


def test_older_names(folders: Path, tmp_path: Path) -> None:
    folder = copy(folders / "sd1", tmp_path / "old")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    save_file(state, path)
    path = folder / "text_encoder" / "model.safetensors"
    state = {"text_model." + key: value for key, value in load_file(path).items()}
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    assert same_weights(load_model(folder), load_model(folders / "sd1"))


def test_settings_of_a_folder(folders: Path, tmp_path: Path) -> None:
    folder = copy(folders / "sd1", tmp_path / "a")
    edit_json(
        folder / "scheduler" / "scheduler_config.json",
        **{"_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear", "prediction_type": "sample"},
        **{"timestep_spacing": None, "steps_offset": 3, "set_alpha_to_one": True},
    )
    edit_json(folder / "unet" / "config.json", attention_head_dim=[2, 4, 4], sample_size=24)
    config = load_model(folder).config
    schedule = config.schedule
    assert (schedule.kind, schedule.prediction, schedule.spacing) == ("linear", "x0", "linspace")
    assert (schedule.steps_offset, schedule.ends_clean) == (3, True)
    assert (config.unet.heads, config.image_size) == ((2, 4, 4), 48)
    assert load_model(folder, prediction="v").config.schedule == replace(schedule, prediction="v")


ENDS = [  # scheduler, its settings, whether the last step ends clean
    ("DDIMScheduler", {}, True),
    ("DDIMScheduler", {"set_alpha_to_one": False}, False),
    ("PNDMScheduler", {"skip_prk_steps": True}, False),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, True),
    ("EulerDiscreteScheduler", {}, True),
    ("HeunDiscreteScheduler", {}, True),
    ("DPMSolverMultistepScheduler", {}, True),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, False),
]


@pytest.mark.parametrize(("name", "settings", "clean"), ENDS)
def test_the_end_and_the_spacing_are_those_of_the_scheduler(
    name: str, settings: dict, clean: bool, folders: Path, tmp_path: Path
) -> None:
    """SDXL's file says set_alpha_to_one: false to an Euler scheduler, which never looks at it."""
    import diffusers

    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(10)
    theirs = scheduler.sigmas[-1] == 0 if hasattr(scheduler, "sigmas") else scheduler.final_alpha_cumprod == 1
    assert bool(theirs) == clean
    folder = copy(folders / "sd1", tmp_path / "a")
    scheduler.save_pretrained(folder / "scheduler")
    if "set_alpha_to_one" not in scheduler.config:
        edit_json(folder / "scheduler" / "scheduler_config.json", set_alpha_to_one=not clean)
    schedule = load_model(folder).config.schedule
    assert (schedule.ends_clean, schedule.spacing) == (clean, scheduler.config.timestep_spacing)


def test_zero_terminal_snr(folders: Path, tmp_path: Path) -> None:
    folder = copy(folders / "sd2", tmp_path / "a")
    edit_json(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    schedule = load_model(folder).config.schedule
    assert schedule == replace(TINY_SD2.schedule, zero_terminal_snr=True, spacing="trailing")
    with pytest.raises(ValueError, match="zero_terminal_snr .* with prediction eps"):
        load_model(folder, prediction="eps")


def test_flow(folders: Path, tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    folder = copy(folders / "sd1", tmp_path / "a")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    schedule = load_model(folder).config.schedule
    assert schedule == ScheduleConfig(kind="flow", shift=3.0, prediction="flow", ends_clean=True)
    edit_json(folder / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="use_dynamic_shifting=True is not supported"):
        load_model(folder)


@pytest.mark.parametrize(
    ("files", "pad_id"),
    [
        ({"special_tokens_map.json": {"pad_token": "!"}}, 0),
        ({"special_tokens_map.json": {"pad_token": {"content": "<|endoftext|>", "lstrip": False}}}, 49407),
        ({"special_tokens_map.json": {}, "tokenizer_config.json": {"pad_token": "!"}}, 0),
        ({"tokenizer_config.json": {"pad_token": "dragon</w>"}}, 5471),
        ({}, 49407),
    ],
)
def test_padding_token(files: dict, pad_id: int, folders: Path, tmp_path: Path) -> None:
    folder = copy(folders / "sd1", tmp_path / "a")
    (folder / "tokenizer" / "special_tokens_map.json").unlink()
    for name, content in files.items():
        (folder / "tokenizer" / name).write_text(json.dumps(content))
    assert load_model(folder).config.text.pad_id == pad_id


def test_padding_token_beyond_us(folders: Path, tmp_path: Path) -> None:
    folder = copy(folders / "sd1", tmp_path / "a")
    (folder / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
    with pytest.raises(ValueError, match=r"pad_token '\[PAD\]' is not in CLIP's vocabulary"):
        load_model(folder)


@pytest.mark.parametrize(
    "part", ["unet", "vae", "text_encoder", "scheduler", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"]
)
def test_folder_without_a_part(part: str, folders: Path, tmp_path: Path) -> None:
    folder = copy(folders / "sd1", tmp_path / "a")
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    with pytest.raises(ValueError, match=part.split("/")[0]) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unet/config.json: missing: not a complete diffusers folder"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim=256"),
        ("unet/config.json", {"flip_sin_to_cos": False}, "flip_sin_to_cos=False"),
        ("unet/config.json", {"some_new_setting": 1}, "some_new_setting=1"),
        ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 3}, r"down_block_types=\['AttnDownBlock2D'"),
        ("unet/config.json", {"up_block_types": ["UpBlock2D"] * 3}, "do not mirror each other"),
        ("unet/config.json", {"layers_per_block": [1, 1, 1]}, r"layers_per_block=\[1, 1, 1\] should be a whole"),
        ("unet/config.json", {"block_out_channels": None}, "no block_out_channels"),
        ("unet/config.json", {"sample_size": [32, 32]}, "sample_size"),
        ("vae/config.json", {"use_quant_conv": False}, "use_quant_conv=False"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor=0.1"),
        ("vae/config.json", {"up_block_types": ["AttnUpDecoderBlock2D"]}, r"up_block_types=\['AttnUpDecoderBlock2D'"),
        ("text_encoder/config.json", {"model_type": "bert"}, "model_type='bert'"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type='flow'"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "_class_name='EDMEulerScheduler'"),
    ],
)
def test_folder_beyond_us(file: str, changes: dict, message: str, folders: Path, tmp_path: Path) -> None:
    folder = copy(folders / "sd1", tmp_path / "a")
    edit_json(folder / file, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_folder_with_damaged_files(folders: Path, tmp_path: Path) -> None:
    folder = copy(folders / "sd1", tmp_path / "a")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["conv_in.bias"] = torch.zeros(3)
    del state["conv_out.bias"]
    save_file(state | {"extra": torch.zeros(1)}, path)
    with pytest.raises(
        ValueError, match=r"a/unet: .*1 missing \(conv_out.bias\); 1 left over \(extra\); 1 of the wrong shape"
    ):
        load_model(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="unet/config.json: no readable JSON"):
        load_model(folder)


def test_settings_that_a_folder_cannot_use(folders: Path, files: Path) -> None:
    with pytest.raises(ValueError, match="leave out model.ema"):
        load_model(folders / "sd1", ema=True)
    with pytest.raises(ValueError, match="leave out model.config"):
        load_model(folders / "sd1", config=files / "sd1.yaml")


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_hub_download_takes_only_what_is_read(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    class Info:
        siblings = [
            types.SimpleNamespace(rfilename=name)
            for name in (
                "v1-5-pruned.ckpt",
                "unet/diffusion_pytorch_model.bin",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "unet/diffusion_pytorch_model.safetensors",
                "unet/diffusion_pytorch_model.non_ema.safetensors",
                "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
                "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
                "text_encoder/pytorch_model.fp16.bin",
                "safety_checker/model.safetensors",
            )
        ]

    def download(repo: str, allow_patterns: list[str]) -> str:
        asked.extend([repo, *allow_patterns])
        return str(folders / "sd1")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repo, timeout: Info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same_weights(load_model("owner/name"), load_model(folders / "sd1"))
    assert asked == [
        "owner/name",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
        "text_encoder/pytorch_model.fp16.bin",
    ]


def test_hub_cache_serves_without_network(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--owner--name"
    copy(folders / "sd2", repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    assert same_weights(load_model("owner/name"), load_model(folders / "sd2"))
