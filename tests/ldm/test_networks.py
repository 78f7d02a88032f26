"""Each network against diffusers, transformers and open_clip on the same random weights; and what edits may change."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reference import (
    TINY_SD1,
    TINY_SD2,
    adopt,
    diffusers_unet,
    diffusers_vae,
    randomize,
    relative,
    settings,
    tiny_model,
    transformers_text,
)
from torch import Tensor, nn

from guidance.edits import scale_strongest
from ldm import attention, autoencoder, cpu, layers
from ldm.attention import AttentionEdit, FeatureEdit, Site, attend
from ldm.autoencoder import Autoencoder
from ldm.condition import Condition, stack
from ldm.config import SD1, SD1_INPAINTING, SD2, ModelConfig, TextEncoderConfig
from ldm.files import names
from ldm.text import TextEncoder
from ldm.unet import NoAttention, UNet

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
    return relative(ours(x_t, t, Condition(text)), theirs(x_t, t, text).sample)


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
        assert relative(ours(x, Condition(text), ()) - x, theirs(x, text).sample - x) < 1e-5


def test_layer_norm_epsilon() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    theirs = randomize(BasicTransformerBlock(64, 4, 16, cross_attention_dim=32))
    ours = adopt(attention.TransformerBlock(64, 4, 32), theirs, names.DIFFUSERS)
    x, text = 1e-3 * noise(2, 24, 64), noise(2, 77, 32, seed=1)
    theirs.attn2.to_out[0].bias.zero_()  # so that what each part of the block gets stays small
    theirs.attn1.to_out[0].bias.zero_()
    assert relative(ours(x, Condition(text), (6, 4), ()) - x, theirs(x, encoder_hidden_states=text) - x) < 1e-5


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


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_in_16_bits_learns_as_in_32(is_causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients, as two products and fused, are those of torch in float32, to 16 bits' rounding."""
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, 20, 8).bfloat16().float().requires_grad_() for _ in range(3)]
    above = torch.randn(2, 3, 20, 8).bfloat16()
    out = F.scaled_dot_product_attention(*exact, is_causal=is_causal)
    wanted = [out, *torch.autograd.grad(out, exact, above.float())]
    fused = []

    def watched(*arguments: Tensor, is_causal: bool) -> Tensor:
        fused.append(arguments)
        return fused_attention(*arguments, is_causal=is_causal)

    fused_attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    for most, calls in ((2**25, 0), (2 * 3 * 20 * 20 - 1, 1)):
        monkeypatch.setattr(cpu, "MANY_WEIGHTS", most)
        x = [value.detach().bfloat16().requires_grad_() for value in exact]
        out = cpu.attention(*x, is_causal=is_causal)
        found = [out, *torch.autograd.grad(out, x, above)]
        assert len(fused) == calls
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.dtype == torch.bfloat16
            assert relative(ours.float(), theirs) < 0.02
    with torch.no_grad():
        cpu.attention(*x)
    assert len(fused) == 2, "of few weights the fused kernel runs"


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("length", [20, 32])  # a softmax in float32, and one in 16 bits
def test_attention_in_16_bits_is_that_of_32_in_any_slices(
    length: int, is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "FEW_WEIGHTS", 0)
    x = [noise(3, 2, length, 16, seed=seed).bfloat16() for seed in range(3)]
    whole = cpu.attention(*x, is_causal=is_causal)
    wanted = F.scaled_dot_product_attention(*(value.float() for value in x), is_causal=is_causal)
    assert relative(whole.float(), wanted) < 0.01
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    for heads in (1, 4):
        monkeypatch.setattr(cpu, "WEIGHTS_SLICE", heads * length**2)
        assert torch.equal(cpu.attention(*x, is_causal=is_causal), whole)


def test_a_norm_in_16_bits_is_the_same_in_any_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, x = randomize(layers.GroupNorm(4, 8)).bfloat16().requires_grad_(False), noise(5, 8, 4, 3).bfloat16()
    whole = norm(x)
    for rows in (1, 2):
        monkeypatch.setattr(cpu, "NORM_SLICE", rows * x[0].numel())
        assert torch.equal(norm(x), whole)


def test_gated_units_are_the_same_of_few_rows_and_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (noise(*shape).bfloat16() for shape in ((2, 20, 8), (64, 8), (64,)))
    value, gate = F.linear(x.float(), weight.float(), bias.float()).chunk(2, dim=-1)
    for rows in (40, 41):
        monkeypatch.setattr(cpu, "MANY_ROWS", rows)
        assert relative(cpu.geglu(x, weight, bias).float(), value * F.gelu(gate)) < 0.01


LAYERS = {  # and how many cells a side
    "linear": (layers.Linear(64, 32), 0),
    "1x1": (layers.Conv2d(64, 32, 1), 8),
    "of patches": (layers.Conv2d(64, 256, 3, padding=1), 4),
    "3x3": (layers.Conv2d(64, 32, 3, padding=1), 8),
    "downsampling": (layers.Conv2d(64, 32, 3, stride=2, padding=1), 8),
}


@pytest.mark.skipif(not cpu.ONEDNN, reason="torch without oneDNN lays out nothing")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_weight_that_stays_laid_out_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    made, cells = LAYERS[name]
    layer = randomize(made).to(dtype)

    def inputs(rows: int) -> Tensor:
        x = noise(rows, 64, cells, cells) if cells else noise(rows, 20, 64)
        return x.to(dtype, memory_format=torch.channels_last if cells else torch.preserve_format)

    def fresh(x: Tensor) -> Tensor:
        return copy.deepcopy(layer)(x)  # whose weight is met for the first time

    if cells:
        layer.to(memory_format=torch.channels_last)
    x = inputs(3)
    first = layer(x)
    kept = cpu.layouts[layer.weight]
    assert torch.equal(layer(x), first) and cpu.layouts[layer.weight] is kept
    layer.weight.mul_(2)
    assert torch.equal(layer(x), fresh(x)), "written into"
    layer.weight.data.mul_(1.5)
    assert torch.equal(layer(x), fresh(x)), "written into, as torch does not count"
    optimizer = torch.optim.AdamW([layer.weight], lr=0.1, fused=True)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert torch.equal(layer(x), fresh(x)), "learnt"
    layer.weight.data = layer.weight.data.clone().mul_(3)
    assert torch.equal(layer(x), fresh(x)), "replaced"
    for rows in (2, 3, 2, 3):
        assert torch.equal(layer(inputs(rows)), fresh(inputs(rows))), "of another shape"


@torch.no_grad()
def test_the_layout_of_a_weight_goes_with_it_and_large_ones_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, before = layers.Linear(64, 32), len(cpu.layouts)
    layer(noise(3, 20, 64))
    assert len(cpu.layouts) == before + cpu.ONEDNN
    del layer
    assert len(cpu.layouts) == before
    large = layers.Linear(64, 32)
    for limit, size in (("KEPT_WEIGHT", 64 * 32), ("KEPT_INPUT", 3 * 20 * 64)):
        with monkeypatch.context() as patch:
            patch.setattr(cpu, limit, size - 1)
            large(noise(3, 20, 64))
    assert len(cpu.layouts) == before


def test_a_norm_in_16_bits_learns_as_in_32() -> None:
    torch.manual_seed(0)
    norm = layers.GroupNorm(4, 8)
    x = torch.randn(2, 8, 5, 6).bfloat16().to(memory_format=torch.channels_last)
    above = torch.randn(2, 8, 5, 6).bfloat16()
    exact = x.float().requires_grad_()
    out = F.group_norm(exact, 4, norm.weight, norm.bias)
    wanted = [out, *torch.autograd.grad(out, [exact, *norm.parameters()], above.float())]
    rounded = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = norm(rounded)
    found = [out, *torch.autograd.grad(out, [rounded, *norm.parameters()], above)]
    assert out.dtype == torch.bfloat16
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative(ours.float(), theirs) < 0.01


def test_settings_of_a_convolution_are_torch_s() -> None:
    """On a grid so small that ours would take its own way."""
    for given in (
        {"dilation": 2, "padding": 2},
        {"padding_mode": "circular", "padding": 1},
        {"groups": 2, "padding": 1},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"kernel_size": (3, 1), "padding": (1, 0), "stride": (1, 2)},
        {"padding": "same"},
    ):
        kernel = given.pop("kernel_size", 3)
        ours = randomize(layers.Conv2d(32, 64, kernel, **given))
        plain = nn.Conv2d(32, 64, kernel, **given)
        plain.load_state_dict(ours.state_dict())
        x = noise(1, 32, 2, 3)
        assert ours(x).shape == plain(x).shape and relative(ours(x), plain(x)) < 1e-6, given


def test_a_bias_alone_can_learn() -> None:
    """As in BitFit: its weight is frozen, its input wants no gradient."""
    for layer, x, dtype in [
        (layers.Linear(32, 64), noise(2, 40, 32), torch.float32),
        (layers.Conv2d(32, 64, 3, padding=1), noise(1, 32, 2, 2), torch.float32),
        (layers.Conv2d(32, 64, 1), noise(1, 32, 4, 4), torch.float32),
        (layers.GroupNorm(8, 32), noise(2, 32, 4, 4), torch.bfloat16),
    ]:
        randomize(layer).to(dtype).bias.requires_grad_(True)
        layer(x.to(dtype)).float().sum().backward()
        assert layer.bias.grad is not None and layer.bias.grad.abs().max() > 0


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
CONDITION = Condition(TEXT)


def test_one_timestep_per_row_equals_one_for_all(net: UNet) -> None:
    assert relative(net(X, torch.full((6,), 500), CONDITION), net(X, 500, CONDITION)) < 1e-5


def test_rows_do_not_mix(net: UNet) -> None:
    apart = torch.cat([net(x[None], 500, Condition(text[None])) for x, text in zip(X, TEXT, strict=True)])
    assert relative(net(X, 500, CONDITION), apart) < 1e-5


def test_times_between_timesteps_are_told_exactly(net: UNet) -> None:
    """In 16 bits too: only the network's own numbers are rounded, so 801.3 and 800 differ as in 32 bits."""
    half = tiny_model().unet.bfloat16()
    embedding = [module.time_embedding(torch.tensor([801.3])) for module in (net, half)]
    assert relative(embedding[1].float(), embedding[0]) < 0.02
    assert relative(net.time_embedding(torch.tensor([800.0])), embedding[0]) > 0.1
    theirs = diffusers_unet(TINY_SD1)
    ours = adopt(UNet(TINY_SD1.unet), theirs, names.DIFFUSERS)
    assert relative(ours(X, 801.3, CONDITION), theirs(X, 801.3, TEXT).sample) < 1e-5


def test_a_vector_is_added_to_the_time_embedding() -> None:
    """As in SDXL: a pooled text and six numbers, each told by sines, through two layers."""
    from diffusers import UNet2DConditionModel

    sdxl = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    }
    theirs = randomize(UNet2DConditionModel(**settings(TINY_SD1, "unet") | sdxl), 10)
    ours = adopt(UNet(replace(TINY_SD1.unet, vector_width=64)), theirs, names.DIFFUSERS)
    pooled, sizes = noise(6, 16, seed=2), torch.tensor([[64.0, 64, 0, 8, 32, 48]] * 6)
    vector = torch.cat([pooled, theirs.add_time_proj(sizes.flatten()).reshape(6, 48)], dim=1)
    expected = theirs(X, 500, TEXT, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
    assert relative(ours(X, 500, Condition(TEXT, vector)), expected) < 1e-5
    assert relative(ours(X, 500, Condition(TEXT, vector.flip(1))), expected) > 1e-3
    assert relative(ours(X, torch.full((6,), 500), Condition(TEXT, vector)), expected) < 1e-5


def test_channels_are_concatenated_to_the_latent() -> None:
    config = TINY["inpainting"].unet
    net, channels = randomize(UNet(config)), noise(6, 5, 8, 12, seed=3)
    by_hand = net(torch.cat([X, channels], dim=1), 500, CONDITION)
    assert torch.equal(net(X, 500, Condition(TEXT, channels=channels)), by_hand)
    assert relative(net(X, 500, Condition(TEXT, channels=-channels)), by_hand) > 1e-3


def test_without_text_the_transformers_look_at_themselves_twice() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    theirs = randomize(BasicTransformerBlock(64, 4, 16, double_self_attention=True))
    ours = adopt(attention.TransformerBlock(64, 4, None), theirs, names.DIFFUSERS)
    x = noise(2, 24, 64)
    assert relative(ours(x, Condition(), (6, 4), ()), theirs(x)) < 1e-5
    net = randomize(UNet(replace(TINY_SD1.unet, text_width=None)))
    sites = list[Site]()
    look = AttentionEdit(lambda weights, site: sites.append(site), lambda site: True, observes=True)
    assert torch.equal(net(X, 500, Condition(), [[look]]), net(X, 500, CONDITION))
    assert {site.kind for site in sites} == {"self"}


def test_a_stacked_condition_keeps_keys_and_values_of_its_own() -> None:
    net = tiny_model().unet
    cross = [module for module in net.modules() if isinstance(module, attention.Attention) and module.kind == "cross"]
    kept, other = stack([CONDITION]), stack([Condition(TEXT.flip(0))])
    with torch.no_grad():
        for t in (500, 100):
            assert torch.equal(net(X, t, kept), net(X, t, CONDITION))
            assert torch.equal(net(X, t, other), net(X, t, Condition(TEXT.flip(0))))
    assert kept.kept.keys() == other.kept.keys() == set(cross)
    for tokens in (-TEXT, TEXT):  # what a wrapper of the network replaces is not taken for what was there
        assert torch.equal(net(X, 500, replace(kept, tokens=tokens)), net(X, 500, Condition(tokens)))
    assert CONDITION.kept is None and kept.rows(slice(0, 2)).kept is None
    with torch.no_grad():
        cross[0].to_k.weight.mul_(0)
        assert torch.equal(net(X, 500, other), net(X, 500, Condition(TEXT.flip(0))))


def test_gradients_pass_what_a_condition_keeps() -> None:
    """Frozen weights, as gradient guidance and learnt prompts have them; and one that learns."""
    net, x, text = tiny_model().unet, X.clone().requires_grad_(), TEXT.clone()
    kept = stack([Condition(text)])
    with torch.no_grad():
        net(X, 500, kept)
    for _ in range(2):
        net(x, 500, kept).square().sum().backward()
    learnt = Condition(text.requires_grad_(), kept={})
    weight = net.up_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k.weight
    for leaf, condition in ((text, learnt), (weight.requires_grad_(), kept)):
        for _ in range(2):
            net(X, 500, condition).square().sum().backward()
        leaf.requires_grad_(False)
    for tensor in (x, text, weight):
        assert tensor.grad is not None and tensor.grad.abs().max() > 0


def test_conditions_of_a_model() -> None:
    model = tiny_model()

    def encoded(*prompts: str) -> Tensor:
        return model.text_encoder(model.tokenizer(list(prompts)).ids)

    conditions = model.conditions(["a red fish", "cats"])
    assert torch.equal(conditions.cond.tokens, encoded("a red fish", "cats"))
    assert [[span.word for span in row] for row in conditions.cond.spans] == [["a", "red", "fish"], ["cats"]]
    assert torch.equal(conditions.negative.tokens, encoded("", "")) and conditions.negative.spans == ((), ())
    assert torch.equal(model.conditions(["a", "b"], ["", "blurry"]).negative.tokens, encoded("", "blurry"))
    for reads in (model.condition, model.conditions):
        with pytest.raises(ValueError, match="prompts='a cat': must be a list"):
            reads("a cat")
    dog = conditions.encode("a dog")  # shown to every image, and read once
    assert torch.equal(dog.tokens, encoded("a dog", "a dog")) and conditions.encode("a dog") is dog
    assert torch.equal(conditions.encode(["a dog", "a cat"]).tokens, encoded("a dog", "a cat"))
    assert dog.vector is dog.channels is dog.kept is None
    with pytest.raises(ValueError, match="draws noise"):
        conditions.noise("x 0", (4, 8, 8))


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
        for edits in ((), "push out"):
            for i, t in enumerate((900.0, 500.0, 1.5)):
                of_branches = [(), (scale_strongest(-10.0),)] if edits else ()
                with torch.compiler.set_stance("default" if i == 0 else "fail_on_recompile"):
                    got = compiled(X, torch.full((6,), t), CONDITION, of_branches)
                assert relative(got, net(X, t, CONDITION, of_branches)) < 1e-5


# --- edits ------------------------------------------------------------------------------------------------------------

Q, K, V = (noise(6, 2, rows, 8, seed=seed) for seed, rows in enumerate((5, 7, 7)))
SITE = Site("x", "cross", 1, 5)


def test_attention_is_its_formula_and_fused_where_nothing_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit is told by `observes`, never by what it returns: the same tensor may be the same or another."""
    weights = torch.einsum("bhpc,bhlc->bhpl", Q, K).div(8**0.5).softmax(-1)
    explicit = torch.einsum("bhpl,bhlc->bhpc", weights, V)
    fused, fused_rows, seen = torch.nn.functional.scaled_dot_product_attention, list[int](), list[Tensor]()

    def counted(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        fused_rows.append(len(q))
        return fused(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    look = AttentionEdit(lambda weights, site: seen.append(weights), observes=True)
    same = AttentionEdit(lambda weights, site: weights)
    in_place = AttentionEdit(lambda weights, site: weights.mul_(2))
    elsewhere = AttentionEdit(lambda weights, site: 0 * weights, where=lambda site: site.kind == "self")
    for edits, factor, rows in [
        ((), 1, [6]),
        ([(), (elsewhere,)], 1, [6]),
        ([(look,), (elsewhere,)], 1, [6]),
        ([(), (same,)], 1, [3]),
        ([(same,), (look, same)], 1, []),
        ([(in_place,)], 2, []),
        ([(in_place, elsewhere, in_place, look)], 4, []),
        ([(look, in_place)], 2, []),
        ([(look,), (), (look, elsewhere)], 1, [6]),
        ([(look,), (same,), ()], 1, [2, 2]),
    ]:
        fused_rows.clear()
        seen.clear()
        out = attend(Q, K, V, SITE, edits)
        assert relative(out, factor * explicit) < 1e-6
        assert fused_rows == rows
        if factor == 1 and rows and sum(rows) == 6:
            assert torch.equal(out, fused(Q, K, V))
        for found in seen:  # what the edits before it left, and nothing of what those after it wrote
            expected = weights if len(edits) > 1 or factor == 2 else 4 * weights
            assert any(relative(found, part) < 1e-6 for part in expected.chunk(len(edits)))


def test_edits_of_a_site_are_told_where_they_are(net: UNet) -> None:
    sites = []

    def look(weights: Tensor, site: Site) -> Tensor:
        sites.append(site)
        keys = 77 if site.kind == "cross" else site.height * site.width
        assert weights.shape == (3, 4, site.height * site.width, keys) and weights.dtype == torch.float32
        assert relative(weights.sum(-1), torch.ones(weights.shape[:-1])) < 1e-6
        return weights

    edited = net(X, 500, CONDITION, [(AttentionEdit(look, where=lambda site: True),), ()])
    assert relative(edited, net(X, 500, CONDITION)) < 1e-5
    layers = {name for name, module in net.named_modules() if isinstance(module, attention.Attention)}
    assert {site.name for site in sites} == layers
    assert {(s.height, s.width) for s in sites} == {(8, 12), (4, 6), (2, 3)}


def test_an_observer_keeps_the_picture_to_the_bit(net: UNet) -> None:
    look = AttentionEdit(lambda weights, site: weights.zero_(), where=lambda site: True, observes=True)
    assert torch.equal(net(X, 500, CONDITION, [(), (look,), (look, look)]), net(X, 500, CONDITION))


def test_edit_changes_its_own_branch_only(net: UNet) -> None:
    double = AttentionEdit(lambda weights, site: 2 * weights)
    plain = net(X, 500, CONDITION)
    edited = net(X, 500, CONDITION, [(), (double,), ()])
    assert relative(edited[:2], plain[:2]) < 1e-6 and relative(edited[4:], plain[4:]) < 1e-6
    assert relative(edited[2:4], plain[2:4]) > 1e-3
    alone = net(X[2:4], 500, Condition(TEXT[2:4]), [(double,)])
    assert relative(edited[2:4], alone) < 1e-5


def test_edit_acts_where_it_says(net: UNet) -> None:
    nowhere = AttentionEdit(lambda weights, site: 0 * weights, where=lambda site: False)
    no_block = FeatureEdit(lambda features, site: 0 * features, where=lambda site: False)
    assert torch.equal(net(X, 500, CONDITION, [(nowhere, no_block)]), net(X, 500, CONDITION))


def test_sites_of_features(net: UNet) -> None:
    sites = dict[tuple[str, str], tuple[int, ...]]()

    def look(features: Tensor, site: Site) -> Tensor:
        assert (site.height, site.width) == features.shape[2:]
        sites[site.name, site.kind] = tuple(features.shape)
        return features

    net(X, 500, CONDITION, [(), (FeatureEdit(look, lambda site: True),)])
    found = {kind: {name for name, k in sites if k == kind} for kind in ("resnet", "transformer", "stream", "skip")}
    modules = dict(net.named_modules())
    assert found["resnet"] == {name for name, m in modules.items() if isinstance(m, layers.ResBlock)}
    assert found["transformer"] == {name for name, m in modules.items() if isinstance(m, attention.SpatialTransformer)}
    assert found["stream"] == found["skip"] == {name for name in found["resnet"] if name.startswith("up_blocks")}
    for name in found["skip"]:  # what a block on the way up joins are its input channels
        joined = sites[name, "stream"][1] + sites[name, "skip"][1]
        assert joined == modules[name].conv1.in_channels and sites[name, "skip"][0] == 3


def test_a_layer_is_skipped_by_remembering_what_came_before_it(net: UNet) -> None:
    """Skip-layer guidance's edit, in the second of two branches, against a U-Net without that transformer."""
    name, left = "up_blocks.1.attentions.0", dict[str, Tensor]()

    def skip(features: Tensor, site: Site) -> Tensor:
        if site.kind == "resnet":
            left["of the resnet"] = features
            return features
        return left["of the resnet"]

    places = {(name, "transformer"), (name.replace("attentions", "resnets"), "resnet")}
    edit = FeatureEdit(skip, lambda site: (site.name, site.kind) in places)
    edited = net(X, 500, CONDITION, [(), (edit,)])
    without = tiny_model().unet
    without.up_blocks[1].attentions[0] = NoAttention()
    assert relative(edited[3:], without(X[3:], 500, Condition(TEXT[3:]))) < 1e-5
    assert relative(edited[:3], net(X[:3], 500, Condition(TEXT[:3]))) < 1e-6
    assert relative(edited[3:], net(X[3:], 500, Condition(TEXT[3:]))) > 1e-3


def test_freeu_equals_diffusers() -> None:
    """Si et al. 2023: half of the stream's channels is strengthened, the skips' low frequencies are weakened."""
    from diffusers.utils.torch_utils import fourier_filter

    theirs = diffusers_unet(TINY_SD1)
    ours = adopt(UNet(TINY_SD1.unet), theirs, names.DIFFUSERS)
    backbone, skip = {"up_blocks.0": 1.5, "up_blocks.1": 1.6}, {"up_blocks.0": 0.6, "up_blocks.1": 0.4}

    def scaled(features: Tensor, site: Site) -> Tensor:
        block = site.name[:11]
        if site.kind == "skip":
            return fourier_filter(features, threshold=1, scale=skip[block])
        half = features.shape[1] // 2
        return torch.cat([backbone[block] * features[:, :half], features[:, half:]], dim=1)

    edit = FeatureEdit(scaled, lambda site: site.kind in ("stream", "skip") and site.name[:11] in backbone)
    plain = theirs(X, 500, TEXT).sample
    theirs.enable_freeu(s1=0.6, s2=0.4, b1=1.5, b2=1.6)
    freed = theirs(X, 500, TEXT).sample
    assert relative(freed, plain) > 1e-3
    assert relative(ours(X, 500, CONDITION, [(edit,)]), freed) < 1e-5


def test_both_kinds_of_edits_act_in_one_branch(net: UNet) -> None:
    attention_edit = AttentionEdit(lambda weights, site: 2 * weights)
    feature_edit = FeatureEdit(lambda features, site: features.mul_(1.5), lambda site: site.kind == "stream")
    alone = [net(X, 500, CONDITION, [(edit,)]) for edit in (attention_edit, feature_edit)]
    both = net(X, 500, CONDITION, [(attention_edit, feature_edit)])
    assert all(relative(both, one) > 1e-3 for one in alone)
    assert torch.equal(net(X, 500, CONDITION, [(feature_edit, attention_edit)]), both)


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
