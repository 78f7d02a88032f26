"""Each network against diffusers, transformers and open_clip on the same random weights; and what edits may change."""

import shutil
from dataclasses import replace

import pytest
import torch
from reference import (
    TINY_SD1,
    TINY_SD2,
    adopt,
    diffusers_unet,
    diffusers_vae,
    randomize,
    relative,
    tiny_model,
    transformers_text,
)
from torch import Tensor, nn

from guidance.edits import scale_strongest
from ldm import attention, autoencoder, layers
from ldm.attention import AttentionEdit, Site
from ldm.autoencoder import Autoencoder
from ldm.config import SD1, SD1_INPAINTING, SD2, ModelConfig, TextEncoderConfig
from ldm.files import names
from ldm.text import TextEncoder
from ldm.unet import UNet

COMPILER = shutil.which("g++") or shutil.which("clang++")
TINY = {
    "sd1": TINY_SD1,
    "sd2": TINY_SD2,
    "inpainting": replace(TINY_SD1, unet=replace(TINY_SD1.unet, in_channels=9)),
    "no attention on top": replace(TINY_SD1, unet=replace(TINY_SD1.unet, attention=(False, True, True))),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet_error(config: ModelConfig, size: tuple[int, int]) -> float:
    theirs = diffusers_unet(config)
    ours = adopt(UNet(config.unet), theirs, names.DIFFUSERS)
    x_t, text = noise(2, config.unet.in_channels, *size), noise(2, 77, config.unet.text_width, seed=1)
    t = torch.tensor([999, 20])
    return relative(ours(x_t, t, text), theirs(x_t, t, text).sample)


def autoencoder_error(config: ModelConfig, size: tuple[int, int]) -> float:
    theirs = diffusers_vae(config)
    ours = adopt(Autoencoder(config.autoencoder), theirs, names.DIFFUSERS)
    scale, down = config.autoencoder.scale, config.downscale
    image = noise(1, 3, size[0] * down, size[1] * down).clamp(-1, 1)
    mean, logvar = ours.encode(image)
    posterior = theirs.encode(image).latent_dist
    latent = noise(1, config.autoencoder.latent_channels, *size, seed=1)
    return max(
        relative(mean, posterior.mean * scale),
        relative((logvar / 2).exp(), posterior.std * scale),
        relative(ours.decode(latent), theirs.decode(latent / scale).sample),
    )


def text_error(config: ModelConfig) -> float:
    theirs = transformers_text(config)
    ours = adopt(TextEncoder(config.text), theirs, names.TRANSFORMERS)
    ids = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))
    ids[:, 40:] = config.text.pad_id
    return relative(ours(ids), theirs(ids).last_hidden_state)


def open_clip_error(config: TextEncoderConfig) -> float:
    """Against open_clip's own text tower, run as Stable Diffusion 2 runs it: without the last block."""
    import open_clip.model

    tower = open_clip.model._build_text_tower(
        config.width,
        open_clip.model.CLIPTextCfg(heads=config.heads, width=config.width, layers=config.layers + 1),
    )
    randomize(tower)
    state = {names.OPENCLIP + key: value for key, value in tower.state_dict().items()}
    ours = TextEncoder(config)
    sources = {name: names.open_clip_source(name) for name in ours.state_dict()}
    ours.load_state_dict({name: state[s.key].chunk(s.parts)[s.part] for name, s in sources.items()}, assign=True)
    left = state.keys() - {s.key for s in sources.values()}
    assert all(names.is_extra(key, config.layers, ema=False) for key in left)

    ids = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))
    ids[:, 40:] = config.pad_id
    x = tower.token_embedding(ids) + tower.positional_embedding
    for block in tower.transformer.resblocks[:-1]:
        x = block(x, attn_mask=tower.attn_mask)
    return relative(ours(ids), tower.ln_final(x))


@pytest.mark.parametrize("config", TINY.values(), ids=TINY)
def test_unet(config: ModelConfig) -> None:
    assert unet_error(config, (8, 12)) < 1e-5


def test_autoencoder() -> None:
    assert autoencoder_error(TINY_SD1, (8, 12)) < 1e-5


@pytest.mark.parametrize("config", [TINY_SD1, TINY_SD2], ids=["quick_gelu", "gelu"])
def test_text_encoder(config: ModelConfig) -> None:
    assert text_error(config) < 1e-5


def test_open_clip_text_encoder() -> None:
    assert open_clip_error(replace(TINY_SD2.text, width=64, mlp_width=256, heads=1)) < 1e-5


# Inputs this small show the epsilon of a norm, which whole networks hide.


def test_transformer_norm_epsilon() -> None:
    from diffusers.models import Transformer2DModel

    for linear in (False, True):
        theirs = randomize(
            Transformer2DModel(4, 16, 64, cross_attention_dim=32, use_linear_projection=linear, norm_num_groups=32)
        )
        ours = adopt(attention.SpatialTransformer(64, 4, 32, linear, 32), theirs, names.DIFFUSERS)
        x, text = 1e-3 * noise(2, 64, 6, 4), noise(2, 77, 32, seed=1)
        assert relative(ours(x, text, ()) - x, theirs(x, text).sample - x) < 1e-5


def test_layer_norm_epsilon() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    theirs = randomize(BasicTransformerBlock(64, 4, 16, cross_attention_dim=32))
    ours = adopt(attention.TransformerBlock(64, 4, 32), theirs, names.DIFFUSERS)
    x, text = 1e-3 * noise(2, 24, 64), noise(2, 77, 32, seed=1)
    theirs.attn2.to_out[0].bias.zero_()  # so that what each part of the block gets stays small
    theirs.attn1.to_out[0].bias.zero_()
    assert relative(ours(x, text, (6, 4), ()) - x, theirs(x, encoder_hidden_states=text) - x) < 1e-5


def test_resblock_norm_epsilon() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    for ours, eps in (
        (layers.ResBlock(32, 64, 32, 1e-5, 48), 1e-5),
        (layers.ResBlock(32, 64, 32, 1e-6), 1e-6),
    ):
        width = 48 if eps == 1e-5 else None
        theirs = randomize(ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=width, eps=eps, groups=32))
        adopt(ours, theirs, [])
        x, time = 1e-3 * noise(2, 32, 6, 4), noise(2, 48, seed=1)
        mine = ours(x, nn.functional.silu(time)) if width else ours(x)
        assert relative(mine, theirs(x, time if width else None)) < 1e-5


def test_autoencoder_attention_norm_epsilon() -> None:
    theirs = diffusers_vae(TINY_SD1).decoder.mid_block.attentions[0]
    ours = adopt(autoencoder.AttentionBlock(64, 32), theirs, names.DIFFUSERS)
    x = 1e-3 * noise(2, 64, 6, 4)
    assert relative(ours(x) - x, theirs(x) - x) < 1e-5


def test_output_norm_epsilon() -> None:
    norms = {
        name: module.eps
        for network in (UNet(TINY_SD1.unet), Autoencoder(TINY_SD1.autoencoder))
        for name, module in network.named_modules()
        if name.endswith("conv_norm_out") and isinstance(module, nn.GroupNorm)
    }
    assert norms == {"conv_norm_out": 1e-5, "encoder.conv_norm_out": 1e-6, "decoder.conv_norm_out": 1e-6}


def test_fast_layers_are_torch_s() -> None:
    """On both sides of the size where a convolution becomes one product, and with gradients."""
    for kernel, stride, padding, size in [(3, 1, 1, 2), (3, 1, 1, 9), (3, 2, 1, 4), (3, 2, 0, 5), (1, 1, 0, 6)]:
        fast = randomize(layers.Conv2d(32, 64, kernel, stride=stride, padding=padding))
        plain = nn.Conv2d(32, 64, kernel, stride=stride, padding=padding)
        plain.load_state_dict(fast.state_dict())
        for layout in (torch.contiguous_format, torch.channels_last):
            x = noise(2, 32, size, size + 1).to(memory_format=layout)
            fast.to(memory_format=layout)
            assert relative(fast.requires_grad_(False)(x), plain(x)) < 1e-6
            assert relative(fast.requires_grad_(True)(x), plain(x)) < 1e-6
    fast = randomize(layers.Linear(32, 64))
    assert relative(fast(noise(2, 5, 32)), nn.functional.linear(noise(2, 5, 32), fast.weight, fast.bias)) < 1e-6
    fast.requires_grad_(True)(noise(2, 5, 32)).sum().backward()
    assert fast.weight.grad is not None
    norm, x = randomize(layers.GroupNorm(8, 32)).bfloat16(), noise(2, 32, 5, 6).bfloat16()
    wide = nn.functional.group_norm(x.float(), 8, norm.weight.float(), norm.bias.float())
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(norm(x.to(memory_format=layout)), wide.bfloat16())


def test_numbers_of_parameters() -> None:
    def count(network: type[nn.Module], config: object) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in network(config).parameters())

    assert count(UNet, SD1.unet) == 859_520_964
    assert count(UNet, SD1_INPAINTING.unet) == 859_535_364
    assert count(UNet, SD2.unet) == 865_910_724
    assert count(Autoencoder, SD1.autoencoder) == 83_653_863
    assert count(TextEncoder, SD1.text) == 123_060_480
    assert count(TextEncoder, SD2.text) == 340_387_840


# --- rows and edits ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> UNet:
    return tiny_model().unet


X, TEXT = noise(6, 4, 8, 12), noise(6, 77, 32, seed=1)


def test_one_timestep_per_row_equals_one_for_all(net: UNet) -> None:
    assert relative(net(X, torch.full((6,), 500), TEXT), net(X, 500, TEXT)) < 1e-5


def test_rows_do_not_mix(net: UNet) -> None:
    apart = torch.cat([net(x[None], 500, text[None]) for x, text in zip(X, TEXT, strict=True)])
    assert relative(net(X, 500, TEXT), apart) < 1e-5


def test_a_text_is_read_once_while_it_lives() -> None:
    net = tiny_model().unet
    layers = [module for module in net.modules() if isinstance(module, attention.Attention) and module.kind == "cross"]
    text, other = TEXT.clone(), TEXT.flip(0)
    first, of_other = net(X, 500, text), net(X, 500, other)
    assert relative(first, of_other) > 1e-3
    assert torch.equal(net(X, 500, text), first)
    kept = [layer.read[text] for layer in layers]
    net(X, 100, text)
    assert all(layer.read[text] is before and len(layer.read) == 2 for layer, before in zip(layers, kept, strict=True))
    text.copy_(other)  # written into: read again
    assert torch.equal(net(X, 500, text), of_other)
    with torch.no_grad():
        layers[0].to_v.weight.mul_(2)
    assert relative(net(X, 500, text), of_other) > 1e-3
    del text, other, kept
    assert not any(layer.read for layer in layers)
    layers[0].to_k.weight.requires_grad_(True)
    net(X, 500, TEXT)
    assert not layers[0].read
    layers[0].to_k.weight.requires_grad_(False)


def test_gradients_reach_latents_and_text() -> None:
    """Frozen weights, as gradient guidance and learnt prompts have them; and the text was read without gradients."""
    net, x, text = tiny_model().unet, X.clone().requires_grad_(), TEXT.clone()
    with torch.inference_mode():
        net(X, 500, text)
    for _ in range(2):
        net(x, 500, text).square().sum().backward()
    text.requires_grad_()
    for _ in range(2):
        net(X, 500, text).square().sum().backward()
    for tensor in (x, text):
        assert tensor.grad is not None and tensor.grad.abs().max() > 0


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.skipif(not COMPILER, reason="no g++")]),
    ],
)
def test_compiled_whole_and_once(net: UNet, backend: str) -> None:
    """No graph break, edits included; and neither another timestep nor another edit of a kind compiles anew."""
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    with torch.inference_mode():
        for edits in ([None, None], [None, "push out"]):
            for i, t in enumerate((900, 500, 1)):
                push_out = scale_strongest(-10.0) if edits[1] else None
                with torch.compiler.set_stance("default" if i == 0 else "fail_on_recompile"):
                    got = compiled(X, torch.full((6,), t), TEXT, [None, push_out])
                assert relative(got, net(X, t, TEXT, [None, push_out])) < 1e-5


def test_identity_edit_equals_none(net: UNet) -> None:
    sites = []

    def look(weights: Tensor, site: Site) -> Tensor:
        sites.append(site)
        keys = 77 if site.kind == "cross" else site.height * site.width
        assert weights.shape == (3, 4, site.height * site.width, keys) and weights.dtype == torch.float32
        assert relative(weights.sum(-1), torch.ones(weights.shape[:-1])) < 1e-6
        return weights

    edited = net(X, 500, TEXT, [AttentionEdit(look, where=lambda site: True), None])
    assert relative(edited, net(X, 500, TEXT)) < 1e-5
    layers = {name for name, module in net.named_modules() if isinstance(module, attention.Attention)}
    assert {site.name for site in sites} == layers
    assert {(s.height, s.width) for s in sites} == {(8, 12), (4, 6), (2, 3)}


def test_edit_changes_its_own_branch_only(net: UNet) -> None:
    plain = net(X, 500, TEXT)
    edited = net(X, 500, TEXT, [None, AttentionEdit(lambda weights, site: 2 * weights), None])
    assert relative(edited[:2], plain[:2]) < 1e-6 and relative(edited[4:], plain[4:]) < 1e-6
    assert relative(edited[2:4], plain[2:4]) > 1e-3
    alone = net(X[2:4], 500, TEXT[2:4], [AttentionEdit(lambda weights, site: 2 * weights)])
    assert relative(edited[2:4], alone) < 1e-5


def test_edit_acts_where_it_says(net: UNet) -> None:
    nowhere = AttentionEdit(lambda weights, site: 0 * weights, where=lambda site: False)
    torch.testing.assert_close(net(X, 500, TEXT, [nowhere]), net(X, 500, TEXT), rtol=0, atol=0)


# --- the published shapes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("config", [SD1, SD2], ids=["sd15", "sd21"])
def test_full_unet(config: ModelConfig) -> None:
    assert unet_error(config, (16, 16)) < 1e-4


@pytest.mark.slow
def test_full_autoencoder() -> None:
    assert autoencoder_error(SD1, (16, 16)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("config", [SD1, SD2], ids=["sd15", "sd21"])
def test_full_text_encoder(config: ModelConfig) -> None:
    assert text_error(config) < 1e-4


@pytest.mark.slow
def test_full_open_clip_text_encoder() -> None:
    assert open_clip_error(SD2.text) < 1e-4
