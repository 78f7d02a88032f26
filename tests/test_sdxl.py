"""SDXL: a tiny one of random weights against diffusers' pipeline, from prompts to pixels; and what its files may be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from reference import TINY_SDXL, manifests, relative, same_weights, settings, tiny_model, write_diffusers_folder
from safetensors.torch import load_file, save_file
from test_end_to_end import PushOut
from tiny import Outcome
from torch import Tensor

import ldm.model
from guidance import ClassifierFree, guided
from ldm import LatentDiffusion, load_model
from ldm.condition import Condition, Sizes
from ldm.config import SDXL, ModelConfig
from ldm.files import names
from ldm.files.config_files import family, to_yaml
from ldm.files.reading import on_meta
from ldm.files.writing import tokenizer_files, write_file, write_folder
from ldm.text import TextEncoder, TextEncoderPair, ends
from ldm.unet import sinusoids
from samplers import Schedule, as_x_0, ddim

HEIGHT, WIDTH, STEPS = 32, 64, 4
SEEDS = [7, 8]
PROMPTS = ["a dragon in the sky", "two cats and a dog"]
NOISE = torch.cat([torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
SIZES = Sizes((HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diffusers") / "sdxl"
    write_diffusers_folder(path, TINY_SDXL)
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    whole = tmp_path_factory.mktemp("pipe") / "sdxl"
    shutil.copytree(folder, whole)
    for part, text in (("tokenizer", TINY_SDXL.text), ("tokenizer_2", TINY_SDXL.text_2)):
        assert text is not None
        for name, content in tokenizer_files(text.pad_id, 77).items():
            (whole / part / name).write_text(content)
    pipe = StableDiffusionXLPipeline.from_pretrained(whole, add_watermarker=False, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(folder: Path) -> LatentDiffusion:
    return load_model(folder)


def theirs(pipe: StableDiffusionXLPipeline, **asked: Any) -> tuple[Tensor, Tensor]:
    """Latents and images [2, 3, H, W] in [0, 1] of diffusers' pipeline."""
    given = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "height": HEIGHT, "width": WIDTH, **asked}
    latents = pipe(PROMPTS, latents=NOISE, output_type="latent", **given).images
    return latents, (pipe.vae.decode(latents / 0.13025).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def written_out(
    pipe: StableDiffusionXLPipeline, cond_at: Callable[[int], list[str]], cfg_steps: int = STEPS, a: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Multistage and segmentation-free guidance (w_bar 1.5) by diffusers' networks and scheduler."""
    sizes = torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]] * 4)
    pipe.scheduler.set_timesteps(STEPS)
    x, plain = NOISE * pipe.scheduler.init_noise_sigma, pipe.unet.attn_processors
    for i, t in enumerate(pipe.scheduler.timesteps):
        cond, none, pooled, no_pooled = pipe.encode_prompt(cond_at(i), do_classifier_free_guidance=True)
        inputs, segmented = pipe.scheduler.scale_model_input(torch.cat([x, x]), t), i >= cfg_steps
        texts, vectors = ([cond, cond], [pooled, pooled]) if segmented else ([none, cond], [no_pooled, pooled])
        if segmented:
            pipe.unet.set_attn_processor(PushOut(a))
        told = {"text_embeds": torch.cat(vectors), "time_ids": sizes}
        first, second = pipe.unet(inputs, t, torch.cat(texts), added_cond_kwargs=told).sample.chunk(2)
        pipe.unet.set_attn_processor(dict(plain))
        out = first + 1.5 * (first - second) if segmented else first + 5 * (second - first)
        x = pipe.scheduler.step(out, t, x).prev_sample
    return x, (pipe.vae.decode(x / 0.13025).sample / 2 + 0.5).clamp(0, 1)


def stages(i: int) -> list[str]:
    return ["a dragon" if i < 1 else "a fish"] * 2


SEGMENTATION_FREE = ["scale=5", "cfg_steps=2", "sf_strength=1.5", "sf_scale=6"]
STAGES = "guidance.stages=[{prompt: a dragon, steps: 1}, {prompt: a fish, steps: 3}]"
CASES: dict[str, tuple[list[str], Callable[[StableDiffusionXLPipeline], tuple[Tensor, Tensor]]]] = {
    "cfg": (["guidance.scale=5", "sampler=euler"], theirs),
    "negative and sizes": (
        ["guidance.scale=5", "negative_prompt=dark", "task.original_size=[48,96]", "task.crop=[3,5]"],
        lambda pipe: theirs(
            pipe,
            negative_prompt=["dark"] * 2,
            original_size=(48, 96),
            crops_coords_top_left=(3, 5),
            negative_original_size=(48, 96),
            negative_crops_coords_top_left=(3, 5),
            negative_target_size=(HEIGHT, WIDTH),
        ),
    ),
    "multistage": (
        ["guidance=multistage", STAGES, "guidance.inner.scale=5"],
        lambda pipe: written_out(pipe, stages),
    ),
    "segmentation_free": (
        ["guidance=segmentation_free", *(f"guidance.{s}" for s in SEGMENTATION_FREE)],
        lambda pipe: written_out(pipe, lambda i: PROMPTS, cfg_steps=2, a=6),
    ),
    "multistage of segmentation_free": (
        ["guidance=multistage", STAGES, "guidance@guidance.inner=segmentation_free"]
        + [f"guidance.inner.{s}" for s in SEGMENTATION_FREE],
        lambda pipe: written_out(pipe, stages, cfg_steps=2, a=6),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_same_pictures_as_diffusers(
    cli: Callable[..., Outcome], pipe: StableDiffusionXLPipeline, folder: Path, tmp_path: Path, case: str
) -> None:
    overrides, reference = CASES[case]
    latents, images = reference(pipe)
    prompts, out = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("\n".join(PROMPTS))
    asked = ["model=sdxl", f"model.path={folder}", f"sampler.steps={STEPS}", f"height={HEIGHT}", f"width={WIDTH}"]
    source = ["prompts=file", f"prompts.path={prompts}", f"seeds={SEEDS}", "save_latents=true", "batch_size=3"]
    outcome = cli("sample", *asked, *source, f"hydra.run.dir={out}", *overrides)
    assert outcome.status == 0, outcome.err

    ours = load_file(out / "latents.safetensors")["x_0"][[0, 3]]  # prompt 0 with the first seed, 1 with the second
    assert relative(ours, latents) < 1e-4
    for image, name in zip(images, ("00000_7.png", "00001_8.png"), strict=True):
        pixels = torch.from_numpy(np.array(Image.open(out / "images" / name))).permute(2, 0, 1)
        assert (pixels - image * 255).abs().max() < 1


# --- what the comparison would catch ----------------------------------------------------------------------------------


@torch.no_grad()
def drawn(model: LatentDiffusion, sizes: Sizes = SIZES) -> Tensor:
    conditions = model.conditions(PROMPTS, sizes=sizes)
    denoise = guided(as_x_0(model.unet, "eps"), ClassifierFree(5), conditions)
    *_, (_, x, _) = ddim(denoise, NOISE, Schedule.of(model.config.schedule).steps(STEPS))
    return x


@pytest.fixture(scope="module")
def right(pipe: StableDiffusionXLPipeline, model: LatentDiffusion) -> Tensor:
    latents, _ = theirs(pipe)
    assert relative(drawn(model), latents) < 1e-5
    return latents


def encoders(change: Callable[[TextEncoder, Tensor, Tensor], tuple[Tensor, Tensor | None]]) -> Callable[..., Any]:
    """A method for TextEncoder: change(encoder, penultimate hidden states, ids) -> tokens and pooled text."""
    right = TextEncoder.tokens_and_pooled
    return lambda self, ids: change(self, right(self, ids)[0], ids)


def pooled(encoder: TextEncoder, x: Tensor, ids: Tensor) -> Tensor | None:
    last = encoder.final_layer_norm(encoder.layers[-1](x))
    return encoder.text_projection and encoder.text_projection(last[torch.arange(len(ids)), ends(ids)])


MISTAKES: dict[str, Callable[[TextEncoder, Tensor, Tensor], tuple[Tensor, Tensor | None]]] = {
    "last layer": lambda e, x, ids: (e.layers[-1](x), pooled(e, x, ids)),
    "final norm": lambda e, x, ids: (e.final_layer_norm(x), pooled(e, x, ids)),
    "no projection": lambda e, x, ids: (x, e.final_layer_norm(e.layers[-1](x))[torch.arange(2), ends(ids), :24]),
    "pooled at the last position": lambda e, x, ids: (
        x,
        e.text_projection and e.text_projection(e.final_layer_norm(e.layers[-1](x))[:, -1]),
    ),
    "pooled before the last layer": lambda e, x, ids: (
        x,
        e.text_projection and e.text_projection(e.final_layer_norm(x)[torch.arange(2), ends(ids)]),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_an_encoder_would_show(
    mistake: str, model: LatentDiffusion, right: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextEncoder, "tokens_and_pooled", encoders(MISTAKES[mistake]))
    assert relative(drawn(model), right) > 1e-3


def test_other_mistakes_would_show(model: LatentDiffusion, right: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, config = model.text_encoder, model.config
    assert isinstance(pair, TextEncoderPair)
    assert relative(drawn(replace(model, config=replace(config, zeros_for_empty=False))), right) > 1e-3
    clean_end = replace(config, schedule=replace(config.schedule, ends_clean=False))
    assert relative(drawn(replace(model, config=clean_end)), right) > 1e-3
    for sizes in (Sizes((0, 0)), Sizes((WIDTH, HEIGHT)), Sizes((HEIGHT, WIDTH), (32, 32))):
        assert relative(drawn(model, sizes), right) > 1e-3, sizes
    with monkeypatch.context() as patch:
        patch.setattr(pair, "pad_id", 49407)
        assert relative(drawn(model), right) > 1e-3
    with monkeypatch.context() as patch:
        both = TextEncoderPair.tokens_and_pooled

        def swapped(self: TextEncoderPair, ids: Tensor) -> tuple[Tensor, Tensor | None]:
            tokens, pooled = both(self, ids)
            return torch.cat([tokens[..., 32:], tokens[..., :32]], dim=-1), pooled

        patch.setattr(TextEncoderPair, "tokens_and_pooled", swapped)
        assert relative(drawn(model), right) > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(ldm.model, "sinusoids", lambda t, width: sinusoids(t, width).roll(width // 2, 1))
        assert relative(drawn(model), right) > 1e-3
    with monkeypatch.context() as patch:
        right_condition = LatentDiffusion.condition

        def zero_tokens_alone(self: LatentDiffusion, prompts: list[str], sizes: Sizes) -> Condition:
            plain = right_condition(replace(self, config=replace(config, zeros_for_empty=False)), prompts, sizes)
            return replace(right_condition(self, prompts, sizes), vector=plain.vector)

        patch.setattr(LatentDiffusion, "condition", zero_tokens_alone)
        assert relative(drawn(model), right) > 1e-3


# --- files ------------------------------------------------------------------------------------------------------------


def test_folder_and_single_file_are_one_model(folder: Path, model: LatentDiffusion, tmp_path: Path) -> None:
    assert model.config == TINY_SDXL
    write_file(model, tmp_path / "a.safetensors")
    (tmp_path / "a.yaml").write_text(to_yaml(model.config))
    state = load_file(tmp_path / "a.safetensors")
    extras = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "conditioner.embedders.1.model.logit_scale": torch.tensor(1.0),
        "denoiser.sigmas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
    }
    save_file(state | extras, tmp_path / "b.safetensors")
    for name in ("a", "b"):
        loaded = load_model(tmp_path / f"{name}.safetensors", config=tmp_path / "a.yaml")
        assert loaded.config == model.config and same_weights(loaded, model)
    assert state["conditioner.embedders.1.model.text_projection"].shape == (48, 24)
    write_folder(model, tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert again.config == model.config and same_weights(again, model)


def test_diffusers_reads_what_is_written(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    other = tiny_model(TINY_SDXL, seed=5)
    write_folder(other, tmp_path / "folder")
    write_file(other, tmp_path / "file.safetensors")
    read = [
        StableDiffusionXLPipeline.from_pretrained(tmp_path / "folder", add_watermarker=False, local_files_only=True),
        StableDiffusionXLPipeline.from_single_file(
            tmp_path / "file.safetensors", config=str(tmp_path / "folder"), add_watermarker=False, local_files_only=True
        ),
    ]
    ours = drawn(other)
    for one in read:
        one.set_progress_bar_config(disable=True)
        assert relative(theirs(one)[0], ours) < 1e-4


def test_every_tensor_of_diffusers_networks_has_its_place() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    ours = on_meta(SDXL)
    sources = names.in_folder(ours)
    for part, network in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        with torch.device("meta"):
            wanted = {k: v.shape for k, v in network(**settings(SDXL, part)).state_dict().items()}
        mine = names.parts(ours)[part].state_dict()
        assert {sources[part][name].key: value.shape for name, value in mine.items()} == wanted


def test_numbers_of_parameters() -> None:
    counts = {
        part: sum(p.numel() for p in network.parameters()) for part, network in names.parts(on_meta(SDXL)).items()
    }
    assert counts == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }


# --- 16 bits ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_autoencoder_works_in_float32_beside_float16(tmp_path: Path) -> None:
    """One whose activations overflow float16, as SDXL's do: NaN there, and right here."""
    big = tiny_model(TINY_SDXL)
    big.autoencoder.decoder.conv_in.weight.mul_(1e6)
    big.autoencoder.encoder.conv_in.weight.mul_(1e6)
    write_folder(big, tmp_path / "big")
    half = load_model(tmp_path / "big", dtype=torch.float16)
    assert (half.dtype, half.autoencoder.quant_conv.weight.dtype) == (torch.float16, torch.float32)
    assert not half.autoencoder.half().decode(NOISE).isfinite().all()
    half = load_model(tmp_path / "big", dtype=torch.float16)
    image = torch.rand(1, 3, 32, 64).half() * 2 - 1
    assert relative(half.decode(NOISE), big.decode(NOISE)) < 1e-5
    assert relative(half.autoencoder.encode(image)[0], big.autoencoder.encode(image.float())[0]) < 1e-5
    assert load_model(tmp_path / "big", dtype=torch.bfloat16).autoencoder.quant_conv.weight.dtype == torch.bfloat16


def test_float32_is_said_once(cli: Callable[..., Outcome], folder: Path, tmp_path: Path) -> None:
    asked = ["model=sdxl", f"model.path={folder}", "prompt=x", "seeds=[1,2]", "sampler.steps=1", "batch_size=1"]
    outcome = cli("sample", *asked, f"hydra.run.dir={tmp_path / 'a'}", "dtype=float16")
    assert outcome.status == 0, outcome.err
    said = outcome.out + outcome.err
    assert said.count("overflows float16: it works in float32") == 1
    assert said.count("32 x 32 px") == 0, "its own size is no small one"
    plain = cli("sample", *asked, f"hydra.run.dir={tmp_path / 'b'}", "height=16", "width=32")
    assert "overflows" not in plain.out + plain.err
    assert (plain.out + plain.err).count("warning: pictures of 16 x 32 px: SDXL draws poorly far below 32 px") == 1


def test_convert_to_16_bits_holds_for_every_network(cli: Callable[..., Outcome], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.safetensors"
    asked = [f"model.path={folder}", f"out={out}", "format=compvis", "dtype=float16"]
    assert cli("convert", *asked).status == 0
    assert {value.dtype for value in load_file(out).values()} == {torch.float16}
    full = load_model(folder)
    again = load_model(out, config=tmp_path / "half.yaml")
    assert torch.equal(again.autoencoder.quant_conv.weight, full.autoencoder.quant_conv.weight.half().float())


# --- fine-tunes, and what is no SDXL base -----------------------------------------------------------------------------


def published(**marks: list[int]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in (manifests()["sdxl_base_ckpt"] | marks).items()}


def test_fine_tunes_say_what_they_predict() -> None:
    def schedule(**marks: list[int]) -> tuple[str, bool, str]:
        found = family(published(**marks), None, "a").schedule
        return found.prediction, found.zero_terminal_snr, found.spacing

    assert schedule() == ("eps", False, "leading")
    assert schedule(v_pred=[0]) == ("v", False, "leading")
    assert schedule(v_pred=[0], ztsnr=[0]) == ("v", True, "trailing")
    assert family(published(), None, "a") == SDXL
    with pytest.raises(ValueError, match="a: edm_mean marks an SDXL of the EDM process, which is not supported"):
        family(published(edm_mean=[4], edm_std=[4]), None, "a")
    for prefix, what in (("first_stage_model.", "autoencoder"), ("conditioner.embedders.1.", "text encoder")):
        shapes = {key: shape for key, shape in published().items() if not key.startswith(prefix)}
        with pytest.raises(ValueError, match=f"a: no {what} in it .{prefix}.*SDXL draws with all of its networks"):
            family(shapes, None, "a")


def test_marks_of_fine_tunes_survive(tmp_path: Path) -> None:
    schedule = replace(TINY_SDXL.schedule, prediction="v", zero_terminal_snr=True, spacing="trailing")
    tuned: ModelConfig = replace(TINY_SDXL, schedule=schedule)
    model = tiny_model(tuned)
    write_file(model, tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    assert {"v_pred", "ztsnr"} <= state.keys()
    (tmp_path / "a.yaml").write_text(to_yaml(tuned))
    assert same_weights(load_model(tmp_path / "a.safetensors", config=tmp_path / "a.yaml"), model)
    write_folder(model, tmp_path / "folder")
    assert load_model(tmp_path / "folder").config == tuned


def test_folders_that_are_no_sdxl_base(folder: Path, tmp_path: Path) -> None:
    refiner = tmp_path / "refiner"
    shutil.copytree(folder, refiner)
    shutil.rmtree(refiner / "text_encoder")
    with pytest.raises(ValueError, match="refiner: an SDXL refiner, which has text_encoder_2 alone"):
        load_model(refiner)
    one_text = tmp_path / "one"
    shutil.copytree(folder, one_text)
    shutil.rmtree(one_text / "text_encoder_2")
    with pytest.raises(ValueError, match="one/unet: addition_embed_type='text_time' is not supported"):
        load_model(one_text)
    for file, change, message in [
        ("unet/config.json", {"projection_class_embeddings_input_dim": 71}, "vector of 71 does not hold"),
        ("unet/config.json", {"transformer_layers_per_block": [1, 2]}, "depth must have one entry per level"),
        ("unet/config.json", {"addition_embed_type": "text"}, "addition_embed_type='text'"),
        ("vae/config.json", {"force_upcast": 3}, "vae: force_upcast=3 should be true or false"),
        ("text_encoder_2/config.json", {"projection_dim": "x"}, "text_encoder_2: projection_dim='x' should be"),
        ("model_index.json", {"force_zeros_for_empty_prompt": 1}, "model_index.json: force_zeros_for_empty_prompt=1"),
        ("vae/config.json", {"latents_mean": [0, 0, 0, 0]}, "latents_mean="),
    ]:
        odd = tmp_path / "odd"
        shutil.copytree(folder, odd)
        path = odd / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ValueError, match=message) as caught:
            load_model(odd)
        assert "\n" not in str(caught.value)
        shutil.rmtree(odd)


def test_settings_of_the_config_are_read(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for file, change in (
        ("vae/config.json", {"force_upcast": False}),  # as of sdxl-vae-fp16-fix
        ("model_index.json", {"force_zeros_for_empty_prompt": False}),
    ):
        path = other / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    config = load_model(other).config
    assert (config.autoencoder.overflows, config.zeros_for_empty) == (False, False)
    (other / "model_index.json").unlink()
    assert load_model(other).config.zeros_for_empty, "diffusers' default"
    assert load_model(other, dtype=torch.float16).autoencoder.quant_conv.weight.dtype == torch.float16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.original_size=[64]"], "task.original_size=[64]: must be two numbers [a, b]"),
        (["task.crop=[-1,0]"], "task.crop=[-1, 0]: must be two numbers [a, b]"),
        (["task.crop=null"], "task.crop=null: must be two numbers"),
        (["task.original_size=[64,64]"], "task.original_size and task.crop are told to SDXL alone"),
    ],
)
def test_wrong_sizes(overrides: list[str], message: str, cli: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = cli("sample", "prompt=x", f"hydra.run.dir={tmp_path / 'run'}", *overrides)
    assert outcome.status == 1 and message in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
