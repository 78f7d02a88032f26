"""Training on a world of two shapes: exact resume, checkpoints that stay whole, and what is learnt."""

import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path
from statistics import fmean

import pytest
import torch
from diffusers import AutoencoderKL
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from packages import write_package
from safetensors.torch import load_file
from torch import nn

from experiments.emoji.judge import JudgeOutput, load_judge
from experiments.emoji.world import EmojiScenes, World, batch_of, load_atlas, settings_of
from experiments.files import CONF, UserError
from experiments.training import loop as verb
from experiments.training import parts
from experiments.training.loop import joined
from experiments.training.tokens import WorldTable, tokens_of
from guidance import ClassifierFree, guided
from ldm import load_model
from ldm.files.classifiers import load_classifier
from ldm.text import TextEncoder, Tokenizer
from samplers import Flow, Schedule, add_noise, as_x_0, euler
from samplers.predict import target

TINY_WORLD = [
    "world.image_size=16",
    "~world.concepts",
    "+world.concepts={square: square, disc: disc}",
    "~world.styles",
    "+world.styles={warm: warm-set, icy: icy-set}",
    "world.sizes_one={small: [8], large: [10,14]}",
    "world.sizes_more={small: [6], large: [8]}",
    "world.share_held_out=0.3",
]
TINY = {
    "autoencoder": ["part.autoencoder.channels=[8,8]"],
    "clip": ["part.vision={layers: 1, width: 16, head_width: 8, patch_size: 8}"]
    + ["part.text={layers: 1, width: 16, heads: 2}", "part.embed_dim=8"],
    "judge": ["part.channels=[8,16]"],
    "unet": ["part.unet.channels=[8,16]", "part.unet.attention=[false,true]", "part.unet.heads=[1,2]"]
    + ["part.unet.text_width=16", "part.unet.norm_groups=4"],
}
TINY_FLOW = [*TINY["unet"], "part.schedule.shift=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with icon packages, and a tiny autoencoder and CLIP, trained for a moment."""
    return earlier_parts(tmp_path_factory.mktemp("training"))


def earlier_parts(folder):
    write_package(folder / "icons", "warm-set", "#ff4000", packed=True)
    write_package(folder / "icons", "icy-set", "#00a0ff", packed=False)
    for part in ("autoencoder", "clip"):
        verb.train(config(folder, part, f"out={folder / part}"))
    return folder


def overrides(folder, part, *more):
    places = ["device=cpu", f"icons={folder / 'icons'}", f"cache={folder / 'cache'}", f"out={folder / 'out'}"]
    places += [f"{earlier}={folder / earlier / 'checkpoint.pt'}" for earlier in ("autoencoder", "clip")]
    short = ["part.steps=6", "part.batch=4", "part.micro=2", "part.warmup=2", "log_every=2", "save_seconds=1000"]
    chosen = part if "/" in part else f"small/{part}"
    return [
        f"part={chosen}",
        *places,
        *TINY_WORLD,
        *(TINY_FLOW if part == "unet_flow" else TINY.get(part, [])),
        *short,
        *more,
    ]


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


@pytest.mark.parametrize("part", TINY)
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


def test_chance_depends_on_seed_step_and_micro_batch(folder, tmp_path, monkeypatch):
    drawn = []
    loss = parts.AutoencoderPart.forward

    def forward(self, scenes, g):
        drawn.append(torch.rand(1, generator=g).item())
        return loss(self, scenes, g)

    monkeypatch.setattr(parts.AutoencoderPart, "forward", forward)
    runs = {}
    for name, seed in (("zero", 0), ("one", 1), ("again", 0)):
        verb.train(config(folder, "autoencoder", f"out={tmp_path / name}", f"seed={seed}", "stop_after=2"))
        runs[name], drawn = drawn, []
    assert runs["zero"] == runs["again"]
    assert len({*runs["zero"], *runs["one"]}) == 8, "two seeds, two steps, two micro-batches"


@pytest.mark.parametrize("other", [(1, 5, 0), (0, 65541, 0), (0, 5, 1), (5, 0, 0), (2**40, 5, 0)])
def test_every_bit_of_seed_step_and_micro_batch_counts(other):
    one, two = (torch.randn(8, generator=verb.generator_of(*key)) for key in ((0, 5, 0), other))
    assert not torch.equal(one, two)
    assert torch.equal(one, torch.randn(8, generator=verb.generator_of(0, 5, 0)))


def test_a_long_training_lists_no_indices_beforehand(folder):
    cfg = config(folder, "autoencoder", "part.steps=500000")
    scenes = EmojiScenes(*world_of(folder, cfg), length=2_000_000)
    with joined("cpu") as team:
        tracemalloc.start()
        batches = verb.micro_batches(cfg, scenes, range(100, 500_000), team)
        taken = [next(batches).captions for _ in range(3)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken == [[scenes.caption(i)[0] for i in (first, first + 1)] for first in (400, 402, 404)]
    assert peak < 4e6, "two million numbers take 16 MB"


def test_the_networks_own_weights_are_back_whatever_happens_under_the_average():
    network = nn.Linear(2, 2)
    state = verb.State.begin(network)
    own = network.weight.detach().clone()
    state.ema["weight"] += 1
    with pytest.raises(OSError, match="disk"), state.averaged():
        assert torch.equal(network.weight, own + 1)
        raise OSError("disk full")
    assert torch.equal(network.weight, own)
    assert network.training


def test_a_device_is_the_one_that_is_named(monkeypatch):
    monkeypatch.setattr(verb.build, "device", lambda name: torch.device("cuda" if name == "auto" else name))
    with joined("cuda:1") as team:
        assert team.device == torch.device("cuda:1")
    with joined("auto") as team:
        assert team.device.type == "cuda"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ValueError, match="each of 2 processes takes a GPU of its own: use device=cuda"),
        joined("cuda:1"),
    ):
        pass


def test_a_device_that_is_not_there_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="device=cuda:9 is not available"):
        verb.train(config(folder, "autoencoder", f"out={tmp_path}", "device=cuda:9"))


def test_a_checkpoint_of_another_config_is_refused_by_the_difference(folder, tmp_path):
    verb.train(config(folder, "autoencoder", f"out={tmp_path}", "stop_after=1"))
    with pytest.raises(ValueError, match=r"another config \(part\.batch was 4, now is 6\)"):
        verb.train(config(folder, "autoencoder", f"out={tmp_path}", "part.batch=6"))


def test_a_checkpoint_made_with_another_autoencoder_is_refused(folder, tmp_path):
    verb.train(config(folder, "unet", f"out={tmp_path}", "stop_after=1"))
    state = torch.load(folder / "autoencoder" / "checkpoint.pt", weights_only=True)
    for value in state["ema"].values():
        value.mul_(1.01)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"another config \(what is given was "):
        verb.train(config(folder, "unet", f"out={tmp_path}", f"autoencoder={tmp_path / 'other.pt'}"))


def test_a_checkpoint_that_does_not_tell_what_it_was_given_goes_on(folder, tmp_path):
    checkpoint = checkpoint_of(config(folder, "unet", f"out={tmp_path}", "stop_after=1"))
    state = torch.load(checkpoint, weights_only=True)
    del state["recipe"]["what is given"]
    torch.save(state, checkpoint)
    verb.train(config(folder, "unet", f"out={tmp_path}", "stop_after=2"))
    assert torch.load(checkpoint, weights_only=True)["step"] == 2


def test_a_model_of_another_training_is_no_place_to_begin(folder, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"model is another training's: choose another out=FOLDER"):
        verb.train(config(folder, "unet", f"out={tmp_path}"))
    assert not (tmp_path / "checkpoint.pt").exists()


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


def world_of(folder, cfg):
    world = World(**settings_of(cfg.world))
    return world, load_atlas(world, folder / "icons", folder / "cache")


def test_two_processes_learn_what_one_does(folder, tmp_path):
    settings = ["bf16=false", "part.batch=8"]
    verb.train(config(folder, "unet", f"out={tmp_path / 'one'}", *settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "experiments.train", *overrides(folder, "unet", f"out={tmp_path / 'two'}", *settings)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    one, two = (torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("one", "two"))
    assert two["step"] == 6
    for name, value in one["ema"].items():
        assert torch.allclose(value, two["ema"][name], rtol=0, atol=1e-5), name
    assert [row["loss"] for row in one["history"]] == pytest.approx([row["loss"] for row in two["history"]], rel=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="part.batch=4: must be a multiple of part.micro"):
        verb.train(config(folder, "autoencoder", f"out={tmp_path}", "part.micro=3"))


def test_the_autoencoder_learns_and_its_latents_get_unit_variance(folder, tmp_path):
    fast = ["part.steps=100", "part.lr=0.005", "part.batch=8", "part.micro=8"]
    cfg = config(folder, "autoencoder", f"out={tmp_path}", *fast)
    checkpoint = checkpoint_of(cfg)
    scenes = EmojiScenes(*world_of(folder, cfg))
    trained, config_of_it = parts.load_autoencoder(checkpoint, scenes)
    latents = trained.encode(batch_of(scenes, range(512)).pixels())[0]
    assert abs(latents.std().item() - 1) < 1e-3
    assert config_of_it.scale == trained.scale != 1
    untrained, _ = parts.load_autoencoder(folder / "autoencoder" / "checkpoint.pt", scenes)
    gain = fmean(parts.psnr(trained, scenes, 40)) - fmean(parts.psnr(untrained, scenes, 40))
    assert gain > 3, f"{gain} dB"


def test_the_trained_autoencoder_is_written_as_diffusers_reads_it(folder):
    cfg = config(folder, "autoencoder")
    scenes = EmojiScenes(*world_of(folder, cfg))
    trained, settings = parts.load_autoencoder(folder / "autoencoder" / "checkpoint.pt", scenes)
    written = AutoencoderKL.from_pretrained(folder / "autoencoder" / "model")
    images = batch_of(scenes, range(8)).pixels()
    with torch.no_grad():
        latents = written.encode(images).latent_dist.mean * written.config.scaling_factor
        assert written.config.scaling_factor == pytest.approx(settings.scale)
        assert torch.allclose(latents, trained.encode(images)[0], atol=1e-2)


def test_the_text_tower_becomes_the_text_encoder(folder):
    """Our text encoder, given the tower's weights, says what open_clip's says."""
    network = parts.ClipPart(
        config(folder, "clip").part, EmojiScenes(*world_of(folder, config(folder, "clip")))
    ).network
    state = torch.load(folder / "clip" / "checkpoint.pt", weights_only=True)
    network.load_state_dict(state["ema"])
    text, weights = parts.load_text_tower(folder / "clip" / "checkpoint.pt")
    encoder = TextEncoder(text)
    encoder.load_state_dict(weights)
    ids = Tokenizer(0)(["a warm disc next to an icy square", "a disc"]).ids
    ours = encoder(ids)[torch.arange(2), ids.argmax(dim=1)] @ network.text_projection
    assert torch.allclose(ours, network.encode_text(ids), atol=1e-5)
    written = parts.ClipPart(
        config(folder, "clip").part, EmojiScenes(*world_of(folder, config(folder, "clip")))
    ).network
    written.load_state_dict(load_file(folder / "clip" / "model" / "open_clip_model.safetensors"))
    assert torch.allclose(written.encode_text(ids), network.encode_text(ids), atol=1e-2)


def test_the_folders_that_were_written_serve_as_well_as_the_checkpoints(folder):
    cfg = config(folder, "unet")
    scenes = EmojiScenes(*world_of(folder, cfg))
    of_checkpoints = parts.UNetPart(cfg.part, scenes, *(folder / p / "checkpoint.pt" for p in ("autoencoder", "clip")))
    of_folders = parts.UNetPart(cfg.part, scenes, *(folder / p / "model" for p in ("autoencoder", "clip")))
    assert of_folders.config == of_checkpoints.config
    for network in ("autoencoder", "text_encoder"):
        one, two = (getattr(part, network).state_dict() for part in (of_checkpoints, of_folders))
        for name, value in one.items():
            assert torch.equal(value.half(), two[name].half()), name  # the folders are in 16 bits


def test_a_folder_that_is_no_part_is_one_line(folder, tmp_path):
    for setting in ("autoencoder", "clip"):
        with pytest.raises(UserError, match=str(tmp_path)):
            verb.train(config(folder, "unet", f"{setting}={tmp_path}", f"out={tmp_path / 'out'}"))


def test_clip_finds_captions(folder, tmp_path):
    fast = ["part.steps=100", "part.batch=32", "part.micro=32", "part.lr=0.01", "part.warmup=10", "bf16=false"]
    cfg = config(folder, "clip", f"out={tmp_path}", *fast)
    checkpoint = checkpoint_of(cfg)
    scenes = EmojiScenes(*world_of(folder, cfg), "held_out")
    part = parts.ClipPart(cfg.part, scenes)
    part.network.load_state_dict(torch.load(checkpoint, weights_only=True)["ema"])
    assert part.accuracy(scenes, 100) > 0.08, "chance is 0.02"


def test_the_judge_learns_to_see(folder, tmp_path):
    fast = ["part.steps=300", "part.batch=32", "part.micro=32", "part.lr=0.005", "part.warmup=10", "bf16=false"]
    fast += ["part.noise=0", "part.blurred=0", "~world.layouts", "+world.layouts={one: 1.0}"]
    cfg = config(folder, "judge", f"out={tmp_path}", *fast)
    verb.train(cfg)
    scores = parts.judge_scores(load_judge(tmp_path / "model"), EmojiScenes(*world_of(folder, cfg), "held_out"), 100)
    assert fmean(scores["labels"]) > 0.8
    assert fmean(scores["masks"]) > 0.3
    assert fmean(scores["colours"]) > 0.4, "chance is 0.125"


def test_judge_scores_are_one_for_the_truth_and_low_for_its_opposite(folder):
    """Against a stand-in that reads the truth off the scenes it is shown."""
    cfg = config(folder, "judge")
    world, atlas = world_of(folder, cfg)
    scenes = EmojiScenes(world, atlas)

    class Truth(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign, self.place, self.parameter = sign, 0, nn.Parameter(torch.zeros(1))

        def forward(self, images):
            some = batch_of(scenes, range(self.place, self.place + len(images)))
            self.place += len(images)
            labels = torch.nn.functional.one_hot(some.labels.long(), 3).permute(0, 3, 1, 2).float() * self.sign
            colours = torch.nn.functional.one_hot(some.colours.long(), 9).permute(0, 3, 1, 2)[:, 1:].float() * self.sign
            presence = 2 * labels[:, 1:].amax(dim=(2, 3)) - 1 if self.sign > 0 else 1 + labels[:, 1:].amin(dim=(2, 3))
            return JudgeOutput(presence, 9 * labels, 9 * colours, torch.zeros(len(images), 1))

    right = parts.judge_scores(Truth(1.0), scenes, 60)
    assert all(set(values) == {1.0} for values in right.values())
    wrong = parts.judge_scores(Truth(-1.0), scenes, 60)
    assert fmean(wrong["masks"]) < 0.5
    assert fmean(wrong["colours"]) < 0.5


def test_the_fresh_unet_predicts_nothing_so_its_loss_is_the_variance_of_the_noise(folder, tmp_path):
    more = ["part.noise_offset=0", "stop_after=1", "log_every=1", "part.batch=64", "part.micro=64"]
    history = torch.load(checkpoint_of(config(folder, "unet", f"out={tmp_path}", *more)), weights_only=True)["history"]
    assert history[0]["loss"] == pytest.approx(1, abs=0.05)


class Nothing(nn.Module):
    """A network that predicts 0, so that the loss is the target's square, and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def forward(self, x_t, t, condition):
        self.seen.update(x_t=x_t, t=t)
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_target_is_what_the_sampler_takes_it_for(folder, prediction):
    """A network that returned its training target would give as_x_0 the very x_0."""
    cfg = config(folder, "unet", f"part.schedule.prediction={prediction}", "part.caption_dropout=0", "bf16=false")
    scenes = EmojiScenes(*world_of(folder, cfg))
    part = parts.UNetPart(cfg.part, scenes, *(folder / p / "checkpoint.pt" for p in ("autoencoder", "clip")))
    part.unet = Nothing()
    seen = part.unet.seen
    some = batch_of(scenes, range(64))
    loss = part.forward(some, torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)  # the draws again: posterior, dropout, t, eps, its offset
    mean, logvar = part.autoencoder.encode(some.pixels())
    x_0 = parts.sample_posterior(mean, logvar, g)
    torch.rand(64, generator=g)
    t = torch.randint(1000, (64,), generator=g)
    eps = torch.randn(x_0.shape, generator=g)
    eps += cfg.part.noise_offset * torch.randn((*x_0.shape[:2], 1, 1), generator=g)
    a = part.schedule.alpha_bar[t].float()[:, None, None, None]
    assert torch.equal(seen["t"], t)
    assert torch.allclose(seen["x_t"], a.sqrt() * x_0 + (1 - a).sqrt() * eps, atol=1e-5)
    target = {"eps": eps, "x0": x_0, "v": (a.sqrt() * seen["x_t"] - x_0) / (1 - a).sqrt()}[prediction]
    assert loss.item() == pytest.approx(target.square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("times", ["logit_normal", "uniform"])
def test_a_flow_learns_its_velocity_at_its_own_times(folder, times):
    """Of (1 - s) x_0 + s eps the velocity eps - x_0, at t = 1000 s; s is drawn as the recipe says, then shifted."""
    cfg = config(folder, "unet_flow", f"part.schedule.times={times}", "part.caption_dropout=0", "bf16=false")
    scenes = EmojiScenes(*world_of(folder, cfg))
    part = parts.UNetPart(cfg.part, scenes, *(folder / p / "checkpoint.pt" for p in ("autoencoder", "clip")))
    part.unet = Nothing()
    seen = part.unet.seen
    some = batch_of(scenes, range(64))
    loss = part.forward(some, torch.Generator().manual_seed(5))
    g = torch.Generator().manual_seed(5)  # the draws again: posterior, dropout, t, eps
    mean, logvar = part.autoencoder.encode(some.pixels())
    x_0 = parts.sample_posterior(mean, logvar, g)
    torch.rand(64, generator=g)
    s = torch.randn(64, generator=g).sigmoid() if times == "logit_normal" else torch.rand(64, generator=g)
    s = 2 * s / (1 + s)
    eps = torch.randn(x_0.shape, generator=g)
    assert torch.allclose(seen["t"], 1000 * s)
    row = s[:, None, None, None]
    assert torch.allclose(seen["x_t"], (1 - row) * x_0 + row * eps, atol=1e-5)
    assert loss.item() == pytest.approx((eps - x_0).square().mean().item(), rel=1e-4)


def test_a_flow_is_trained_on_any_latents_and_sampled_as_one(folder, tmp_path):
    """The recipe names no channels of the latents: the autoencoder's are taken."""
    wide = [f"out={tmp_path / 'autoencoder'}", "+part.autoencoder.latent_channels=6", "part.steps=1"]
    verb.train(config(folder, "autoencoder", *wide))
    latents = f"autoencoder={tmp_path / 'autoencoder' / 'checkpoint.pt'}"
    verb.train(config(folder, "unet_flow", f"out={tmp_path / 'flow'}", latents))
    model = load_model(tmp_path / "flow" / "model")
    assert (model.config.unet.in_channels, model.config.unet.out_channels) == (6, 6)
    assert (model.config.schedule.kind, model.config.schedule.prediction) == ("flow", "flow")
    assert Schedule.of(model.config.schedule) == Flow(2.0)
    x_T = torch.randn(1, 6, 8, 8)
    denoise = guided(as_x_0(model.unet, "flow"), ClassifierFree(2.0), model.conditions(["a disc"]))
    with torch.no_grad():
        *_, (_, x_0, _) = euler(denoise, x_T, Flow(2.0).steps(3))
    assert x_0.isfinite().all() and not torch.equal(x_0, x_T)


def test_training_times_that_are_none_are_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"part\.schedule: times=early: must be logit_normal or uniform"):
        verb.train(config(folder, "unet_flow", f"out={tmp_path}", "part.schedule.times=early"))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_min_snr_weighs_the_error_of_x_0_by_the_snr_up_to_gamma(prediction):
    g = torch.Generator().manual_seed(0)
    x_0, eps, guess = (torch.randn(6, 4, generator=g, dtype=torch.float64) for _ in range(3))
    process = Flow() if prediction == "flow" else Schedule()
    signal, noise = process.at(torch.tensor([3, 100, 300, 500, 800, 999]))
    x_t = add_noise(x_0, eps, signal, noise)
    eps_of_guess = (x_t - signal[:, None] * guess) / noise[:, None]
    wanted, given = target(prediction, x_0, eps, signal, noise), target(prediction, guess, eps_of_guess, signal, noise)
    snr = signal**2 / noise**2
    weighted = parts.min_snr_weights(prediction, signal, noise, 5.0) * (given - wanted).square().mean(dim=1)
    assert torch.allclose(weighted, snr.clamp(max=5.0) * (guess - x_0).square().mean(dim=1))
    assert snr.min() < 5 < snr.max()


def test_min_snr_changes_what_is_learnt(folder, tmp_path):
    losses = []
    for value in ("null", "5.0"):
        settings = ["stop_after=1", "log_every=1", f"part.min_snr={value}", f"out={tmp_path / value}"]
        checkpoint = torch.load(checkpoint_of(config(folder, "unet", *settings)), weights_only=True)
        losses.append(checkpoint["history"][0]["loss"])
    assert 0 < losses[1] < losses[0]


@pytest.mark.parametrize("train_text", [True, False])
def test_only_the_tokens_of_captions_move_or_none(folder, tmp_path, train_text):
    settings = [f"out={tmp_path}", f"part.train_text={train_text}"]
    first = torch.load(checkpoint_of(config(folder, "unet", *settings, "stop_after=1")), weights_only=True)
    cfg = config(folder, "unet", *settings)
    last = torch.load(checkpoint_of(cfg), weights_only=True)
    name = "text_encoder.token_embedding.weight"
    scenes = EmojiScenes(*world_of(folder, cfg))
    tokens = tokens_of(scenes.world, Tokenizer(0))
    moved = set(tokens[(first["network"][name] != last["network"][name]).any(dim=1)].tolist())
    told = set(Tokenizer(0)([scenes[i].caption for i in range(24)]).ids.flatten().tolist())
    assert moved <= told
    assert (len(moved) > 5) == train_text


def test_a_worlds_table_learns_what_the_whole_table_does(folder):
    world = World(**settings_of(config(folder, "unet").world))
    tokenizer = Tokenizer(0)
    tokens, scenes = tokens_of(world, tokenizer), EmojiScenes(world, {})
    ids = tokenizer(["", *(scenes.caption(i)[0] for i in range(500))]).ids
    assert torch.equal(ids.unique(), tokens), "of all words, and of no others"
    whole = torch.nn.Embedding(49408, 4)
    table = WorldTable(whole.weight.detach().clone(), tokens)
    target = torch.randn(*ids.shape, 4)
    for embedding in (whole, table):
        optimizer = torch.optim.AdamW(embedding.parameters(), lr=0.1, weight_decay=0.0)
        for rows in (ids[:9], ids[9:]):
            optimizer.zero_grad()
            (embedding(rows) * target[: len(rows)]).sum().backward()
            optimizer.step()
    assert torch.equal(table(ids), whole(ids))
    assert torch.equal(table.whole(), whole.weight)
    with pytest.raises(IndexError):
        table(torch.tensor([[40000]]))


def test_pictures_of_progress_are_drawn_with_the_average_and_change_nothing(folder, tmp_path):
    for part in TINY:
        verb.train(config(folder, part, f"out={tmp_path / part}", "picture_every=3"))
        verb.train(config(folder, part, f"out={tmp_path / f'{part}_without'}"))
        a, b = (torch.load(tmp_path / f / "checkpoint.pt", weights_only=True) for f in (part, f"{part}_without"))
        assert equal(a["network"], b["network"])
        measured = [row for row in a["history"] if "x_0 error at 500" in row]
        assert [row["step"] for row in measured] == ([3, 6] if part == "unet" else [])
        assert (tmp_path / part / "picture.png").exists() == (part != "clip")


def test_curves_and_pictures_go_to_wandb(folder, tmp_path):
    settings = ["logger=wandb", "logger.mode=offline", "picture_every=3", f"out={tmp_path}"]
    verb.train(config(folder, "unet", *settings))
    stored = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(stored) == 1
    assert list(stored[0].glob("run-*.wandb"))
    assert len(list(stored[0].rglob("pictures_*.table.json"))) == 2


def test_the_trained_model_is_written_as_a_folder_that_loads(folder, tmp_path):
    cfg = config(folder, "unet", f"out={tmp_path}")
    checkpoint = checkpoint_of(cfg)
    tokens = tokens_of(World(**settings_of(cfg.world)), Tokenizer(0))
    model = load_model(tmp_path / "model")
    ema = torch.load(checkpoint, weights_only=True)["ema"]
    for name, network in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        for key, value in network.state_dict().items():
            rows = tokens if key == "token_embedding.weight" else slice(None)
            assert torch.equal(value[rows], ema[f"{name}.{key}"].half().float()), key
    _, tower = parts.load_text_tower(folder / "clip" / "checkpoint.pt")
    others = torch.ones(len(model.text_encoder.token_embedding.weight), dtype=torch.bool).index_fill(0, tokens, False)
    table = tower["token_embedding.weight"][others]
    assert torch.equal(model.text_encoder.token_embedding.weight[others], table.half().float())
    assert model.config.image_size == 16
    assert model.config.autoencoder.scale == model.autoencoder.scale != 1
    shards = list((tmp_path / "model").rglob("*.safetensors"))
    assert len(shards) >= 3
    assert all(shard.stat().st_size < 15e6 for shard in shards)


def test_the_classifier_learns_what_stands_in_noisy_latents(folder, tmp_path):
    """Of the embedded model. Shown the same scenes and noise again and again, it comes near the entropy of the labels;
    and what a training writes is read back."""
    out = tmp_path / "classifier"

    def cfg(*more):
        recipe = [text for text in overrides(folder, "judge", f"out={out}", *more) if text not in TINY["judge"]]
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", ["part=tasks/classifier", "part.channels=[16,32]", *recipe[1:]])

    verb.train(cfg())
    verb.train(cfg(f"out={tmp_path / 'parts'}", "stop_after=3"))
    verb.train(cfg(f"out={tmp_path / 'parts'}"))
    whole, resumed = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (out, tmp_path / "parts"))
    assert all(equal(whole[key], resumed[key]) for key in ("network", "ema", "optimizer", "history"))
    classifier = load_classifier(out / "model")
    assert classifier.classes == ("square", "disc")
    assert classifier.config.scale == load_model().config.autoencoder.scale
    with pytest.raises(FileNotFoundError, match="/nowhere: no such file or folder"):
        verb.train(cfg("part.model=/nowhere", f"out={tmp_path / 'b'}"))

    settings = cfg()
    world = World(**settings_of(settings.world))
    scenes = EmojiScenes(world, load_atlas(world, Path(settings.icons), Path(settings.cache)), "train", 0, length=512)
    torch.manual_seed(0)
    part, batch = verb.build_part(settings, scenes), batch_of(scenes, range(8))
    shares = part.shares(batch)
    assert torch.equal(shares.sum(dim=1), torch.ones(8)) and set(shares.flatten().tolist()) == {0, 0.5, 1}
    entropy = -(shares * shares.clamp(min=1e-9).log()).sum(dim=1).mean().item()
    optimizer = torch.optim.Adam(part.network.parameters(), lr=1e-2)
    for _ in range(40):
        loss = part(batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() - entropy < 0.1 * (math.log(2) - entropy)


def test_learning_rate_rises_then_follows_a_cosine_to_zero():
    rates = [verb.learning_rate(step, 100, 10, 2.0, None) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2 * 0.5 * (1 + torch.cos(torch.tensor(0.09 * torch.pi)).item()))
    assert rates[50] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)


def test_with_a_cooldown_the_rate_stays_until_the_last_steps():
    rates = [verb.learning_rate(step, 100, 10, 2.0, 25) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:76] == [2.0] * 67
    assert rates[76] == pytest.approx(2.0 * (1 - 0.2))
    assert rates[75:] == sorted(rates[75:], reverse=True)
    assert rates[100] == 0.0
    assert [verb.learning_rate(step, 100, 0, 2.0, 0) for step in range(100)] == [2.0] * 100


def test_a_training_is_made_longer_or_shorter_before_its_cooldown_alone(folder, tmp_path):
    """And is then that of so many steps from the start."""

    def run(name, steps, *more):
        asked = [f"part.steps={steps}", "+part.cooldown=2", f"out={tmp_path / name}", *more]
        verb.train(config(folder, "autoencoder", *asked))
        return torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)

    whole = run("whole", 5)
    for first in (4, 8):
        run(f"from_{first}", first, "stop_after=2")
        changed = run(f"from_{first}", 5)
        for key in ("network", "ema", "optimizer", "recipe"):
            assert equal(whole[key], changed[key]), (first, key)
    with pytest.raises(ValueError, match="another config .*steps"):
        run("whole", 9)
    run("late", 4, "stop_after=3")
    with pytest.raises(ValueError, match="another config .*steps"):
        run("late", 9)


def test_what_is_missing_is_one_line_and_a_failing_status(folder, tmp_path):
    command = [sys.executable, "-m", "experiments.train", *overrides(folder, "unet", f"out={tmp_path / 'out'}")]
    result = subprocess.run([*command, f"icons={tmp_path}"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the icon package warm-set is missing: run `npm pack")
    with pytest.raises(ValueError, match="no autoencoder at .*part=SIZE/autoencoder"):
        verb.train(config(folder, "unet", f"autoencoder={tmp_path / 'nowhere.pt'}"))
