"""The whole way against diffusers: tiny folders that diffusers writes, sampled by both from prompts to pixels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from PIL import Image
from safetensors.torch import load_file
from tiny import Outcome
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.text import Tokenizer

STEPS, SIZE = 10, 32
SEEDS = [7, 8]
PROMPTS = ["a dragon in the sky", "two cats and a dog"]


class Reference(NamedTuple):
    folder: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    scheduler: DDIMScheduler
    pad_id: int


def randomise(network: torch.nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        p.data.copy_((1.0 if norm else 0.0) + (0.1 if p.ndim < 2 else 0.05) * torch.randn(p.shape, generator=g))
    network.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    sd2 = request.param == "sd2"
    folder = tmp_path_factory.mktemp("diffusers") / request.param
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=[2, 4] if sd2 else 4,
        use_linear_projection=sd2,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=SIZE,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act="gelu" if sd2 else "quick_gelu",
            eos_token_id=49407,
        )
    )
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    # SD 1.5 is published with the settings of another sampler
    if sd2:
        published = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")
    else:
        published = PNDMScheduler(**schedule, skip_prk_steps=True, set_alpha_to_one=False)
    for seed, (part, module) in enumerate({"unet": unet, "vae": vae, "text_encoder": text_encoder}.items()):
        randomise(module, seed)
        module.save_pretrained(folder / part)
    published.save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir()
    pad = "!" if sd2 else "<|endoftext|>"
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    scheduler = DDIMScheduler.from_config(published.config, clip_sample=False)
    return Reference(folder, unet, vae, text_encoder, scheduler, 0 if sd2 else 49407)


class PushOut:
    """Attention of the second half of the rows as the segmentation-free paper's algorithm 1 has it, for diffusers."""

    def __init__(self, a: float):
        self.a = a

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)))
        weights = attn.get_attention_scores(q, k)
        if encoder_hidden_states is not None:
            rest = weights[len(weights) // 2 :]
            strongest = rest[..., 1:] == rest[..., 1:].amax(dim=-1, keepdim=True)
            rest[..., 1:] = torch.where(strongest, -self.a * rest[..., 1:], rest[..., 1:])
        return attn.to_out[0](attn.batch_to_head_dim(weights @ v))


@torch.no_grad()
def sample(
    r: Reference,
    cond_at: Callable[[int], list[str]],
    negatives: list[str],
    scale: float,
    cfg_steps: int = STEPS,
    w_bar: float = 0.0,
    a: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Latents and images by diffusers' networks and scheduler, the guidance written out."""
    tokenizer = Tokenizer(r.pad_id)

    def encode(prompts: list[str]) -> Tensor:
        return r.text_encoder(tokenizer(prompts).ids).last_hidden_state

    x = torch.cat(
        [torch.randn((1, 4, SIZE // 2, SIZE // 2), generator=torch.Generator().manual_seed(s)) for s in SEEDS]
    )
    r.scheduler.set_timesteps(STEPS)
    plain = r.unet.attn_processors
    for i, t in enumerate(r.scheduler.timesteps):
        cond = encode(cond_at(i))
        if i < cfg_steps:
            negative, c = r.unet(torch.cat([x, x]), t, torch.cat([encode(negatives), cond])).sample.chunk(2)
            out = negative + scale * (c - negative)
        else:
            r.unet.set_attn_processor(PushOut(a))
            c, rest = r.unet(torch.cat([x, x]), t, torch.cat([cond, cond])).sample.chunk(2)
            r.unet.set_attn_processor(dict(plain))
            out = c + w_bar * (c - rest)
        x = r.scheduler.step(out, t, x).prev_sample
    return x, (r.vae.decode(x / 0.18215).sample / 2 + 0.5).clamp(0, 1)


DRAGON_TO_FISH = {"cond_at": lambda i: ["a dragon" if i < 4 else "a fish"] * 2}
STAGES = "guidance.stages=[{prompt: a dragon, steps: 4}, {prompt: a fish, steps: 6}]"
SEGMENTATION_FREE = ["cfg_steps=3", "sf_strength=1.5", "sf_scale=6", "scale=5"]
CASES: dict[str, tuple[list[str], dict]] = {
    "cfg": (["guidance.scale=7.5"], {"scale": 7.5}),
    "negative": (["guidance.scale=4", "negative_prompt='a fish'"], {"scale": 4, "negatives": ["a fish"] * 2}),
    "multistage": (
        ["guidance=multistage", STAGES],
        {"scale": 7.5, **DRAGON_TO_FISH},
    ),
    "segmentation_free": (
        ["guidance=segmentation_free", *(f"guidance.{s}" for s in SEGMENTATION_FREE), "negative_prompt=dark"],
        {"scale": 5, "cfg_steps": 3, "w_bar": 1.5, "a": 6, "negatives": ["dark"] * 2},
    ),
    "multistage of segmentation_free": (
        ["guidance=multistage", STAGES, "guidance@guidance.inner=segmentation_free"]
        + [f"guidance.inner.{s}" for s in SEGMENTATION_FREE],
        {"scale": 5, "cfg_steps": 3, "w_bar": 1.5, "a": 6, **DRAGON_TO_FISH},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_same_pictures_as_diffusers(
    cli: Callable[..., Outcome], reference: Reference, tmp_path: Path, case: str
) -> None:
    overrides, settings = CASES[case]
    given = {"cond_at": lambda i: PROMPTS, "negatives": ["", ""], **settings}
    latents, images = sample(reference, **given)

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    out = tmp_path / "run"
    asked = ["model=file", f"model.path={reference.folder}", f"sampler.steps={STEPS}", "save_latents=true"]
    source = ["prompts=file", f"prompts.path={prompts}", f"seeds={SEEDS}", f"hydra.run.dir={out}", "batch_size=3"]
    outcome = cli("sample", *asked, *source, *overrides)
    assert outcome.status == 0, outcome.err

    rows = [0, 3]  # prompt 0 with the first seed, prompt 1 with the second
    ours = load_file(out / "latents.safetensors")["x_0"][rows]
    assert ((ours - latents).norm() / latents.norm()).item() < 1e-4
    for image, name in zip(images, ("00000_7.png", "00001_8.png"), strict=True):
        pixels = torch.from_numpy(np.array(Image.open(out / "images" / name))).permute(2, 0, 1)
        assert (pixels - image * 255).abs().max() < 1
