"""The verb convert: there and back, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from reference import TINY_SD1, TINY_SD2, TINY_SDXL, same_weights, tiny_model, write_diffusers_folder
from tiny import Outcome

from ldm import load_model
from ldm.files.writing import write_folder

TINY = {"sd1": TINY_SD1, "sd2": TINY_SD2, "sdxl": TINY_SDXL}


@pytest.fixture
def convert(cli: Callable[..., Outcome]) -> Callable[..., tuple[int, str]]:
    """convert(overrides...) -> exit status and standard error: the verb, in this process."""

    def run(*overrides: str) -> tuple[int, str]:
        outcome = cli("convert", *overrides)
        return outcome.status, outcome.err

    return run


Convert = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("name", TINY)
def test_convert_there_and_back(name: str, convert: Convert, tmp_path: Path) -> None:
    """A folder by diffusers, to a single file, and back to a folder: bit for bit the same."""
    theirs, single, back = tmp_path / "theirs", tmp_path / "single.safetensors", tmp_path / "back"
    write_diffusers_folder(theirs, TINY[name])
    status, err = convert(f"model.path={theirs}", f"out={single}", "format=compvis")
    assert status == 0, err
    status, err = convert(f"model.path={single}", f"model.config={tmp_path / 'single.yaml'}", f"out={back}")
    assert status == 0, err
    first, last = load_model(theirs), load_model(back)
    assert last.config == first.config == TINY[name]
    assert same_weights(first, last)
    for stem in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        before, after = (safetensors.torch.load_file(folder / f"{stem}.safetensors") for folder in (theirs, back))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in after)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "single.safetensors", "single.yaml", "theirs"]


def test_convert_to_16_bit_shards(convert: Convert, tmp_path: Path) -> None:
    write_folder(tiny_model(), tmp_path / "full")
    status, err = convert(
        f"model.path={tmp_path / 'full'}", f"out={tmp_path / 'half'}", "dtype=float16", "max_shard_mb=1"
    )
    assert status == 0, err
    shards = list((tmp_path / "half" / "unet").glob("*.safetensors"))
    assert len(shards) > 1 and all(path.stat().st_size < 1.1e6 for path in shards)
    assert {value.dtype for path in shards for value in safetensors.torch.load_file(path).values()} == {torch.float16}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["format=onnx", "out={tmp}/a"], "format=onnx: must be diffusers or compvis"),
        (["max_shard_mb=0", "out={tmp}/a"], "max_shard_mb=0: must be above 0"),
        (["out={tmp}"], "exists already and is not overwritten"),
        (["format=compvis", "out={tmp}/a.ckpt"], "must end in .safetensors"),
        (["model.path=/no/such", "out={tmp}/a"], "/no/such: no such file or folder"),
        (["dtype=float8", "out={tmp}/a"], "dtype=float8"),
    ],
)
def test_convert_refuses(overrides: list[str], message: str, convert: Convert, tmp_path: Path) -> None:
    status, err = convert("model.path=emoji", *(override.format(tmp=tmp_path) for override in overrides))
    assert status == 1
    assert len(err.strip().splitlines()) == 1 and message in err
    assert not list(tmp_path.iterdir())
