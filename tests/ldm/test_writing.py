"""What is written: whole or not at all, the same when read back, and loaded by diffusers with the same outputs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from reference import TINY_SD1, TINY_SD2, relative, same_weights, tiny_model

from ldm import LatentDiffusion, load_model
from ldm.condition import Condition
from ldm.config import ScheduleConfig
from ldm.files import config_files, names, writing
from ldm.files.writing import write_file, write_folder
from ldm.text import open_clip_tokenizer

TINY = {"sd1": TINY_SD1, "sd2": TINY_SD2}
PROMPTS = ["a dragon, ink (1920s), café's 42nd", "", "word " * 90]


@pytest.fixture(scope="module", params=TINY)
def model(request: pytest.FixtureRequest) -> LatentDiffusion:
    return tiny_model(TINY[request.param])


@pytest.fixture(scope="module")
def folder(model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "folder"
    write_folder(model, path, max_shard_bytes=300_000)
    return path


def test_folder_round_trip(model: LatentDiffusion, folder: Path) -> None:
    loaded = load_model(folder)
    assert loaded.config == model.config
    assert same_weights(loaded, model)


def test_shards_and_index(model: LatentDiffusion, folder: Path) -> None:
    for part, stem in ((part, names.STEMS[part]) for part in names.parts(model)):
        index = json.loads((folder / part / f"{stem}.safetensors.index.json").read_text())
        shards = sorted(set(index["weight_map"].values()))
        assert shards == sorted(path.name for path in (folder / part).glob("*.safetensors")) and len(shards) > 1
        total = 0
        for shard in shards:
            tensors = safetensors.torch.load_file(folder / part / shard)
            assert tensors.keys() == {key for key, file in index["weight_map"].items() if file == shard}
            sizes = [value.nbytes for value in tensors.values()]
            assert sum(sizes) <= 300_000 or len(sizes) == 1
            total += sum(sizes)
        assert total == index["metadata"]["total_size"]


def test_same_bytes_every_time(model: LatentDiffusion, folder: Path, tmp_path: Path) -> None:
    write_folder(model, tmp_path / "again", max_shard_bytes=300_000)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_pipeline_of_diffusers_loads_the_folder(model: LatentDiffusion, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert (pipe.scheduler.config.prediction_type == "v_prediction") == (model.config.schedule.prediction == "v")
    assert_equal_networks(model, pipe)
    theirs = pipe.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(theirs, model.tokenizer(PROMPTS).ids)
    image = pipe("a cat", num_inference_steps=2, height=32, width=32, output_type="np").images
    assert image.shape == (1, 32, 32, 3)


def test_inpainting_models_are_written_as_such(tmp_path: Path) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    config = replace(TINY_SD1, unet=replace(TINY_SD1.unet, in_channels=9))
    write_folder(tiny_model(config), tmp_path / "a")
    index = json.loads((tmp_path / "a" / "model_index.json").read_text())
    assert index["_class_name"] == StableDiffusionInpaintPipeline.__name__
    assert load_model(tmp_path / "a").config == config


@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(zero_terminal_snr=True, prediction="v", spacing="trailing"),
        ScheduleConfig(kind="flow", shift=3.0, prediction="flow", ends_clean=True),
        ScheduleConfig(kind="flow", prediction="x0", ends_clean=True),
    ],
)
def test_schedules_of_every_kind(schedule: ScheduleConfig) -> None:
    config = replace(TINY_SD1, schedule=schedule)
    assert config_files.from_diffusers(config_files.to_diffusers(config), {"text_encoder": None}, "a") == config


def test_a_flow_is_read_by_the_scheduler_of_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    flow = ScheduleConfig(num_timesteps=500, kind="flow", shift=3.0, prediction="flow", ends_clean=True)
    settings = config_files.to_diffusers(replace(TINY_SD1, schedule=flow))["scheduler/scheduler_config.json"]
    scheduler, ignored = FlowMatchEulerDiscreteScheduler.from_config(settings, return_unused_kwargs=True)
    assert (scheduler.config.num_train_timesteps, scheduler.config.shift, set(ignored)) == (
        500,
        3.0,
        {"_class_name"},
    )


def test_weights_that_lie_in_other_folders_are_not_written_again(tmp_path: Path) -> None:
    """An autoencoder of a model beside it, and the text tower of a CLIP in open_clip's layout."""
    model = tiny_model(TINY_SD2)
    write_folder(model, tmp_path / "whole")
    tower: dict[str, list[torch.Tensor]] = {}
    for name, value in model.text_encoder.state_dict().items():
        tower.setdefault(names.open_clip_source(name, "").key, []).append(value)
    tensors = {key: torch.cat(values) for key, values in tower.items()}
    tensors |= {"visual.conv1.weight": torch.ones(1), "text_projection": torch.ones(1), "logit_scale": torch.ones(1)}
    (tmp_path / "clip").mkdir()
    safetensors.torch.save_file(tensors, tmp_path / "clip" / "open_clip_model.safetensors")
    write_folder(model, tmp_path / "part", shared={"vae": "../whole/vae", "text_encoder": "../clip"})
    written = {path.relative_to(tmp_path / "part").as_posix() for path in (tmp_path / "part").rglob("*.*")}
    assert {name for name in written if not name.endswith(".json")} == {"unet/diffusion_pytorch_model.safetensors"}
    assert "tokenizer/special_tokens_map.json" in written and "tokenizer/vocab.json" not in written
    loaded = load_model(tmp_path / "part")
    assert loaded.config == model.config and same_weights(loaded, model)

    with torch.no_grad():  # one that learnt on: what differs is written, and is what is read
        model.text_encoder.final_layer_norm.weight += 1
        next(iter(model.autoencoder.parameters())).mul_(2)
    write_folder(model, tmp_path / "more", shared={"vae": "../whole/vae", "text_encoder": "../clip"})
    own = safetensors.torch.load_file(tmp_path / "more" / "text_encoder" / "model.safetensors")
    assert [*own] == ["text_model.final_layer_norm.weight"]
    assert same_weights(load_model(tmp_path / "more"), model)
    own["text_model.nothing.weight"] = torch.ones(1)
    safetensors.torch.save_file(own, tmp_path / "more" / "text_encoder" / "model.safetensors")
    with pytest.raises(ValueError, match="1 left over .text_model.nothing.weight"):
        load_model(tmp_path / "more")

    index = tmp_path / "part" / "model_index.json"
    told = json.loads(index.read_text())
    for wrong, message in [
        ({"vae": "../nowhere"}, "shared_weights: vae: no folder '../nowhere'"),
        ({"vae": 3}, "shared_weights: vae: no folder 3"),
        ([1], r"shared_weights=\[1\] must name folders by part"),
        ({"vae": "../clip", "text_encoder": "../clip"}, "its tensors do not fit the networks"),
    ]:
        index.write_text(json.dumps(told | {"shared_weights": wrong}))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "part")


def assert_equal_networks(model: LatentDiffusion, pipe: object) -> None:
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    ids = model.tokenizer(PROMPTS).ids
    with torch.no_grad():
        assert relative(model.unet(x, 321, Condition(text)), pipe.unet(x, 321, text).sample) < 1e-5
        assert relative(model.text_encoder(ids), pipe.text_encoder(ids)[0]) < 1e-5
        theirs = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
        assert relative(model.autoencoder.decode(x), theirs) < 1e-5


def test_single_file_of_diffusers(model: LatentDiffusion, folder: Path, tmp_path: Path) -> None:
    """from_single_file takes configs from a folder; the weights must come from the file alone."""
    from diffusers import StableDiffusionPipeline

    other = tiny_model(model.config, seed=5)
    write_file(other, tmp_path / "other.safetensors")
    pipe = StableDiffusionPipeline.from_single_file(
        tmp_path / "other.safetensors", config=str(folder), local_files_only=True
    )
    assert_equal_networks(other, pipe)


def test_every_tensor_survives_the_single_file(model: LatentDiffusion, tmp_path: Path) -> None:
    write_file(model, tmp_path / "a.safetensors")
    state = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert state["first_stage_model.decoder.mid.attn_1.q.weight"].ndim == 4
    blocks = {key.split(".resblocks.")[1].split(".")[0] for key in state if ".resblocks." in key}
    assert len(blocks) == (model.config.text.layers + 1 if model.config.text.activation == "gelu" else 0)


def test_tokenizer_files_hold_the_whole_vocabulary(folder: Path) -> None:
    bpe = open_clip_tokenizer()._tokenizer
    vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    assert sorted(vocab.values()) == list(range(49408))
    assert {**vocab} | {"<start_of_text>": 49406, "<end_of_text>": 49407} == {
        **bpe.encoder,
        "<|startoftext|>": 49406,
        "<|endoftext|>": 49407,
    }


# --- all or nothing ---------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(model: LatentDiffusion, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match="a: exists already and is not overwritten"):
        write_folder(model, tmp_path / "a")
    with pytest.raises(FileExistsError, match="a.safetensors: exists already and is not overwritten"):
        write_file(model, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_text() == "mine" and not list((tmp_path / "a").iterdir())


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with writing.atomically(tmp_path / "a") as first, writing.atomically(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() in ("first", "second") and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_failing_leaves_nothing(
    kind: str, model: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = safetensors.torch.save_file

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        real(tensors, path, metadata)
        raise OSError(28, "No space left on device")

    for module in (writing, safetensors.torch):
        monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        (write_folder if kind == "folder" else write_file)(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


WRITE_LIMITED = """
import resource, sys
from pathlib import Path
from ldm import load_model
from ldm.files.writing import write_file
model = load_model(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_file(model, Path(sys.argv[2]))
except OSError as error:
    print("one line:", str(error).count(chr(10)) == 0, error)
"""


def test_full_disk(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A limit on the size of files stands for a full disk."""
    folder = tmp_path_factory.mktemp("full") / "folder"
    write_folder(tiny_model(), folder)
    done = subprocess.run(
        [sys.executable, "-c", WRITE_LIMITED, str(folder), str(tmp_path / "out.safetensors")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "one line: True" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())
