"""Training on a world of two coloured shapes: exact resume, checkpoints that stay whole, and what is learnt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from experiments import sheet
from experiments import train as verb
from experiments.cli import CONF
from experiments.data.emoji import EmojiScenes, World, batch, load_atlas
from ldm import load_model
from ldm.text import Tokenizer
from tests.test_data import write_package

TINY_WORLD = [
    "world.image_size=16",
    "~world.concepts",
    "+world.concepts={square: square, disc: disc}",
    "~world.styles",
    "+world.styles={warm: warm-set, icy: icy-set}",
    "world.sizes_one=[10,14]",
    "world.sizes_two=[6,8]",
    "world.share_held_out=0.3",
]
TINY = {
    "autoencoder": ["part.autoencoder.channels=[8,8]", "part.steps=6", "part.batch=4", "part.warmup=2"],
    "unet": [
        *("part.unet.channels=[8,16]", "part.unet.attention=[false,true]", "part.unet.heads=[1,2]"),
        *("part.unet.text_width=16", "part.unet.norm_groups=4", "part.text.width=16", "part.text.mlp_width=32"),
        *("part.text.layers=1", "part.text.heads=2", "part.steps=6", "part.batch=4", "part.warmup=2"),
    ],
}

TINY["decoder"] = TINY["autoencoder"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with icon packages and a tiny trained autoencoder."""
    folder = tmp_path_factory.mktemp("training")
    write_package(folder / "icons", "warm-set", "#ff4000", packed=True)
    write_package(folder / "icons", "icy-set", "#00a0ff", packed=False)
    verb.train(config(folder, "autoencoder", f"out={folder / 'autoencoder'}"))
    return folder


def overrides(folder, part, *more):
    places = [f"icons={folder / 'icons'}", f"cache={folder / 'cache'}", f"out={folder / 'out'}"]
    places += [f"autoencoder={folder / 'autoencoder' / 'checkpoint.pt'}", "log_every=2", "save_seconds=1000"]
    return [f"part={part}", *places, *TINY_WORLD, *TINY[part], *more]


def config(folder, part, *more):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides(folder, part, *more))


def checkpoint_of(cfg):
    """The path of a training's checkpoint."""
    verb.train(cfg)
    return Path(cfg.out) / "checkpoint.pt"


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("part", ["autoencoder", "unet"])
def test_a_run_stopped_and_resumed_equals_an_undisturbed_one_bit_for_bit(folder, tmp_path, part):
    verb.train(config(folder, part, f"out={tmp_path / 'whole'}"))
    verb.train(config(folder, part, f"out={tmp_path / 'parts'}", "stop_after=3"))
    stopped = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    verb.train(config(folder, part, f"out={tmp_path / 'parts'}"))
    whole, parts = (torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts"))
    assert stopped["step"] == 3
    assert whole["step"] == parts["step"] == 6
    for key in ("network", "ema", "optimizer", "history", "recipe"):
        assert equal(whole[key], parts[key]), key
    assert not equal(stopped["network"], parts["network"])
    assert not equal(parts["ema"], {name: parts["network"][name] for name in parts["ema"]})
    rows = [json.loads(line) for line in (tmp_path / "parts" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]


def test_a_checkpoint_of_another_config_is_refused_by_the_difference(folder, tmp_path):
    verb.train(config(folder, "autoencoder", f"out={tmp_path}", "stop_after=1"))
    with pytest.raises(ValueError, match=r"another config \(part\.batch was 4, now is 5\)"):
        verb.train(config(folder, "autoencoder", f"out={tmp_path}", "part.batch=5"))


def test_a_full_disk_leaves_the_last_checkpoint_whole(folder, tmp_path, monkeypatch):
    checkpoint = checkpoint_of(config(folder, "autoencoder", f"out={tmp_path}", "stop_after=2"))
    before = checkpoint.read_bytes()

    def half(state, path):
        path.write_bytes(b"PK half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        verb.train(config(folder, "autoencoder", f"out={tmp_path}"))
    assert checkpoint.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_the_autoencoder_learns_and_its_latents_get_unit_variance(folder, tmp_path):
    cfg = config(folder, "autoencoder", f"out={tmp_path}", "part.steps=100", "part.lr=0.005", "part.batch=8")
    checkpoint = checkpoint_of(cfg)
    world = World(**verb.numbers(cfg.world))
    scenes = EmojiScenes(world, load_atlas(world, folder / "icons", folder / "cache"))
    trained, config_of_it = verb.load_autoencoder(checkpoint, scenes, "cpu")
    latents = trained.encode(batch(scenes, range(512))[0])[0]
    assert abs(latents.std().item() - 1) < 1e-3
    assert config_of_it.scale == trained.scale != 1
    untrained, _ = verb.load_autoencoder(folder / "autoencoder" / "checkpoint.pt", scenes, "cpu")
    gain = verb.psnr(trained, scenes, 40) - verb.psnr(untrained, scenes, 40)
    assert gain > 3, f"{gain} dB"


def test_more_training_of_the_decoder_leaves_the_latents_alone(folder, tmp_path):
    before = torch.load(folder / "autoencoder" / "checkpoint.pt", weights_only=True)["ema"]
    after = torch.load(checkpoint_of(config(folder, "decoder", f"out={tmp_path}")), weights_only=True)["ema"]
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith(("encoder.", "quant_conv."))}


def test_the_fresh_unet_predicts_nothing_so_its_loss_is_the_variance_of_the_noise(folder, tmp_path):
    history = torch.load(
        checkpoint_of(config(folder, "unet", f"out={tmp_path}", "stop_after=1", "part.batch=64", "log_every=1")),
        weights_only=True,
    )["history"]
    assert history[0]["loss"] == pytest.approx(1, abs=0.03)


def test_only_the_tokens_of_captions_move(folder, tmp_path):
    cfg = config(folder, "unet", f"out={tmp_path}")
    first = torch.load(checkpoint_of(config(folder, "unet", f"out={tmp_path}", "stop_after=1")), weights_only=True)
    last = torch.load(checkpoint_of(cfg), weights_only=True)
    name = "text_encoder.token_embedding.weight"
    moved = set((first["network"][name] != last["network"][name]).any(dim=1).nonzero().flatten().tolist())
    world = World(**verb.numbers(cfg.world))
    scenes = EmojiScenes(world, load_atlas(world, folder / "icons", folder / "cache"))
    told = set(Tokenizer(49407)([scenes[i].caption for i in range(24)]).ids.flatten().tolist())
    assert moved <= told
    assert len(moved) > 5


def test_the_trained_model_is_written_as_a_folder_that_loads(folder, tmp_path):
    checkpoint = checkpoint_of(config(folder, "unet", f"out={tmp_path}"))
    model = load_model(tmp_path / "model")
    ema = torch.load(checkpoint, weights_only=True)["ema"]
    for name, network in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        for key, value in network.state_dict().items():
            assert torch.equal(value, ema[f"{name}.{key}"].half().float()), key
    assert model.config.image_size == 16
    assert model.config.autoencoder.scale == model.autoencoder.scale != 1
    shards = list((tmp_path / "model").rglob("*.safetensors"))
    assert len(shards) >= 3
    assert all(shard.stat().st_size < 15e6 for shard in shards)


def test_learning_rate_rises_then_follows_a_cosine_to_zero():
    rates = [verb.learning_rate(step, 100, 10, 2.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2 * 0.5 * (1 + torch.cos(torch.tensor(0.09 * torch.pi)).item()))
    assert rates[50] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)


def test_what_is_missing_is_one_line_and_a_failing_status(folder, tmp_path):
    command = [sys.executable, "-m", "experiments.train", *overrides(folder, "unet", f"out={tmp_path / 'out'}")]
    result = subprocess.run([*command, f"icons={tmp_path}"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the icon package warm-set is missing: run `npm pack")
    with pytest.raises(ValueError, match="no autoencoder at .*part=autoencoder"):
        verb.train(config(folder, "unet", f"autoencoder={tmp_path / 'nowhere.pt'}"))


def test_the_sheet_shows_held_out_captions(folder, tmp_path):
    verb.train(config(folder, "unet", f"out={tmp_path}"))
    GlobalHydra.instance().clear()
    places = [f"icons={folder / 'icons'}", f"cache={folder / 'cache'}", f"out={tmp_path / 'sheet'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        more = ["count=3", "columns=2", "steps=2", "batch_size=2", "model=file", f"model.path={tmp_path / 'model'}"]
        sheet.sheet(compose("sheet", [*places, *TINY_WORLD, *more]))
    captions = (tmp_path / "sheet" / "captions.txt").read_text().splitlines()
    assert len(set(captions)) == 3
    assert all("background" in caption for caption in captions)
    with Image.open(tmp_path / "sheet" / "sheet.png") as picture:
        assert picture.width > 2 * 128
        assert picture.height > 2 * 128
