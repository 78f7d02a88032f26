"""Damaged and hostile model files are refused in one line, by ValueError or OSError, and cost little."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import fuzz
import pytest
import torch
from safetensors.torch import load_file

from ldm import load_model
from ldm.config import ModelConfig
from ldm.files.config_files import from_yaml
from ldm.files.rules import RULES
from ldm.files.tensors import tensors_in


def test_a_few_hundred_damaged_files() -> None:
    """`python tests/ldm/fuzz.py` has the other ten thousand."""
    counts, bad = fuzz.run(first=0, cases=200, seed=1)
    assert not bad, "\n".join(bad)
    assert counts["refused"] > 100 and counts["loaded"] > 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fuzz.write_whole(folder)
    return folder


def test_what_is_damaged_was_whole(whole: Path) -> None:
    for name in ("single.safetensors", "single.ckpt", "legacy.ckpt"):
        assert load_model(whole / name, config=whole / "ours.yaml").config == fuzz.TINY
    for name in ("safetensors", "bin"):
        assert load_model(whole / name).config == fuzz.TINY
    with pytest.raises(ValueError, match="do not fit the networks"):  # it is laid out well, but is of another width
        load_model(whole / "single.ckpt", config=whole / "compvis.yaml")


# --- values -----------------------------------------------------------------------------------------------------------


def test_every_setting_has_a_rule_that_its_default_keeps() -> None:
    config = ModelConfig()
    for part in (config, config.unet, config.autoencoder, config.text, config.schedule):
        values = {field.name: getattr(part, field.name) for field in fields(part)}
        plain = {name: value for name, value in values.items() if not is_dataclass(value)}
        assert plain.keys() == RULES[type(part)].keys()
        assert all(RULES[type(part)][name].admits(value) for name, value in plain.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unet: {channels: []}", r"channels=\[\] should be a list of 1 to 8"),
        ("unet: {channels: [32, -32]}", "channels="),
        ("unet: {channels: [99999999999999999999]}", "channels="),
        ("unet: {blocks_per_level: 100000}", "blocks_per_level=100000 should be a whole number from 1 to 8"),
        ("unet: {norm_groups: 0}", "norm_groups=0"),
        ("unet: {in_channels: true}", "in_channels=True"),
        ("autoencoder: {scale: 0}", "scale=0 should be a number above 0"),
        ("autoencoder: {scale: .inf}", "scale=inf"),
        ("autoencoder: {scale: .nan}", "scale=nan"),
        ("text: {layers: -1}", "layers=-1"),
        ("text: {layers: 1000000000}", "layers=1000000000"),
        ("text: {activation: relu}", "activation='relu' should be one of quick_gelu, gelu"),
        ("text: {vocab: 100}", "vocab=100"),
        ("schedule: {kind: foo}", "kind='foo' should be one of linear"),
        ("schedule: {kind: [linear]}", "kind="),
        ("schedule: {num_timesteps: 0}", "num_timesteps=0"),
        ("schedule: {beta_end: 1}", "beta_end=1"),
        ("schedule: {steps_offset: -1}", "steps_offset=-1"),
        ("schedule: 3", "schedule=3 should be a mapping"),
        ("image_size: 0", "image_size=0"),
        ("1: 2", "unknown field 1"),
        (f"unet: {'[' * 2000}", "no readable YAML"),
        ("unet: !!int ''", "no readable YAML"),
        ("unet: {<<: {channels: [32]}}", "no readable YAML"),
        ("# " + "x" * 300_000, "no config: it has more than"),
    ],
)
def test_values_of_a_yaml(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        from_yaml(tmp_path / "c.yaml", {})
    assert str(caught.value).isprintable() and "c.yaml" in str(caught.value)


THREES = {"norm_num_groups": 3, "attention_head_dim": 3}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("unet/config.json", {"down_block_types": 3}, "down_block_types=3"),
        ("unet/config.json", {"down_block_types": [["a"]]}, "down_block_types="),
        ("unet/config.json", {"norm_num_groups": 0}, "norm_num_groups=0"),
        ("unet/config.json", {"attention_head_dim": -1}, "attention_head_dim="),
        ("unet/config.json", {"block_out_channels": [9, 9], **THREES}, "begin with an even number"),
        ("unet/config.json", {"sample_size": -8}, "sample_size=-8"),
        ("vae/config.json", {"scaling_factor": [1]}, r"scaling_factor=\[1\]"),
        ("vae/config.json", {"block_out_channels": 8}, "block_out_channels=8"),
        ("text_encoder/config.json", {"num_hidden_layers": 1_000_000_000}, "num_hidden_layers=1000000000"),
        ("text_encoder/config.json", {"hidden_act": ["gelu"]}, "hidden_act="),
        ("scheduler/scheduler_config.json", {"beta_schedule": {}}, "beta_schedule="),
        ("tokenizer/special_tokens_map.json", {"pad_token": [1]}, r"pad_token \[1\] is not in"),
        ("tokenizer/special_tokens_map.json", {"pad_token": {"lstrip": True}}, "pad_token None"),
        ("unet/config.json", [1, 2], "no JSON object"),
        ("unet/config.json", "[" * 100_000, "no readable JSON"),
    ],
)
def test_values_of_a_folder(file: str, content: object, message: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fuzz.link_tree(whole / "safetensors", folder)
    (folder / file).unlink()
    if isinstance(content, dict):
        content = json.loads((whole / "safetensors" / file).read_text()) | content
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert str(caught.value).isprintable() and str(folder) in str(caught.value)


def test_a_single_file_whose_telling_tensors_have_odd_shapes(tmp_path: Path) -> None:
    conv_in = "model.diffusion_model.input_blocks.0.0.weight"
    torch.save({conv_in: torch.zeros(320)}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="no Stable Diffusion checkpoint"):
        load_model(tmp_path / "a.ckpt")


# --- pickles that would grow ------------------------------------------------------------------------------------------


def zeros_of_one(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({key: torch.zeros(1).expand(2**20, 2**20) for key in tensors}, path)


def a_large_bytearray(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({**tensors, "x": fuzz.Call(bytearray, 10**11)}, path)


def compressed(tensors: dict[str, torch.Tensor], path: Path) -> None:
    whole = path.with_suffix(".whole")
    torch.save(tensors, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def two_pickles(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/data.pkl", b"N.")


@pytest.mark.parametrize("write", [zeros_of_one, a_large_bytearray, compressed, two_pickles])
def test_small_files_that_would_grow(
    write: Callable[[dict[str, torch.Tensor], Path], None], whole: Path, tmp_path: Path
) -> None:
    write(load_file(whole / "single.safetensors"), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="no tensors in it|refused|damaged"):
        tensors_in(tmp_path / "a.ckpt")
