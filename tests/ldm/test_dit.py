"""The diffusion transformer: equal to diffusers', on grids and on vectors, told a class or nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CLASSES, DRAWN, TINY, tiny_model
from torch import Tensor

from guidance import ClassifierFree, PerturbedAttention, guided
from ldm import load_model
from ldm.attention import AttentionEdit, FeatureEdit
from ldm.condition import Condition, Unfit
from ldm.config import DiTConfig, ModelConfig
from ldm.dit import DiT
from ldm.files.rules import checked
from ldm.files.writing import write_file, write_folder
from samplers import ImageNoise, Schedule, as_x_0, ddim

GRID = DiTConfig(in_channels=3, width=32, layers=2, heads=4, patch_size=2, size=8)
VECTOR = replace(GRID, in_channels=12, tokens=1)
NULL = 5  # of the classes


def randomised(config: DiTConfig) -> DiT:
    network, g = DiT(config), torch.Generator().manual_seed(0)
    for value in network.parameters():
        value.data = 0.1 * torch.randn(value.shape, generator=g)
    return network.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def to_diffusers(state: dict[str, Tensor], table: Tensor, config: DiTConfig) -> dict[str, Tensor]:
    """The weights under diffusers' names: an embedding of time and class in each block, here the same one."""
    out = {}
    for name, value in state.items():
        name = name.replace("proj_in.", "pos_embed.proj.").replace("blocks.", "transformer_blocks.")
        name = name.replace(".modulation.", ".norm1.linear.").replace("to_out.", "to_out.0.")
        name = name.replace("linear_1.", "ff.net.0.proj.").replace("linear_2.", "ff.net.2.")
        name = name.replace("modulation_out.", "proj_out_1.").replace("proj_out.", "proj_out_2.")
        if not name.startswith("time_embedding."):
            out[name] = value
    for i in range(config.layers):
        emb = f"transformer_blocks.{i}.norm1.emb"
        out[f"{emb}.class_embedder.embedding_table.weight"] = table
        for part in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"):
            out[f"{emb}.timestep_embedder.{part}"] = state[f"time_embedding.{part}"]
    proj, p = "pos_embed.proj.weight", config.patch_size
    out[proj] = out[proj].unflatten(1, (config.in_channels, p, p))
    return out


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_equals_diffusers(learn_sigma: bool) -> None:
    from diffusers import DiTTransformer2DModel

    config = replace(GRID, learn_sigma=learn_sigma)
    ours, table = randomised(config), 0.1 * normal(NULL + 1, config.width)
    theirs = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=3, out_channels=3 * (1 + learn_sigma), num_layers=2,
        sample_size=8, num_embeds_ada_norm=NULL,
    ).eval()  # fmt: skip
    theirs.load_state_dict(to_diffusers(ours.state_dict(), table, config))
    x_t, classes = normal(3, 3, 8, 8), torch.tensor([0, 4, NULL])
    for t in (torch.tensor([7, 500, 999]), torch.tensor([0, 0, 0])):
        with torch.no_grad():
            out = theirs(x_t, t, classes).sample
        mean, variance = ours.moments(x_t, t, Condition(vector=table[classes]))
        found = torch.cat([mean, variance], dim=1) if learn_sigma else mean
        assert (found - out).norm() < 1e-5 * out.norm()
        assert torch.equal(ours(x_t, t, Condition(vector=table[classes])), mean)


def test_a_vector_is_a_grid_of_one_patch() -> None:
    """Slices of a vector go where patches of a grid go: one token is a 1 x 1 grid of d channels, but for its place."""
    vector, grid = randomised(VECTOR), randomised(replace(GRID, in_channels=12, patch_size=1, size=1))
    # sine and cosine of place 0 stand in other halves in the two
    place = vector.positions(1, 1) - grid.positions(1, 1)
    grid.proj_in.bias.data = grid.proj_in.bias + place[0]
    x_t, told = normal(3, 12), Condition(vector=normal(3, 32))
    torch.testing.assert_close(vector(x_t, 40.5, told), grid(x_t[:, :, None, None], 40.5, told)[:, :, 0, 0])


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("heads", [0, 4])
def test_vectors(tokens: int, heads: int) -> None:
    network = randomised(replace(VECTOR, tokens=tokens, heads=heads, learn_sigma=True))
    x_t, told = normal(3, 12), Condition(vector=normal(3, 32))
    mean, variance = network.moments(x_t, torch.tensor([1, 2, 3]), told)
    assert mean.shape == variance.shape == x_t.shape
    one = network(x_t[1:2], 2, told.rows(slice(1, 2)))
    torch.testing.assert_close(mean[1:2], one)
    # without attention a slice sees no other
    moved = network(torch.cat([x_t[:, :4], x_t[:, 4:] + 1], dim=1), torch.tensor([1, 2, 3]), told)
    assert torch.equal(moved[:, :4], mean[:, :4]) == (tokens == 3 and heads == 0)


def test_it_begins_as_nothing() -> None:
    """adaLN-zero: every block is the identity, and the output is 0."""
    network = DiT(GRID).eval()
    x, told = normal(2, 16, 32), normal(2, 32)
    assert torch.equal(network.blocks[0](x, told, (4, 4), ()), x)
    assert not network(normal(2, 3, 8, 8), 3, Condition()).any()


def test_other_sizes_lie_on_the_same_places() -> None:
    network = randomised(GRID)
    assert network(normal(1, 3, 4, 12), 3, Condition()).shape == (1, 3, 4, 12)
    assert torch.equal(network.positions(8, 4).unflatten(0, (8, 4))[::2], network.positions(4, 4).unflatten(0, (4, 4)))


def test_edits_of_self_attention() -> None:
    network, x_t, steps = randomised(GRID), normal(2, 3, 8, 8), Schedule().steps(3)
    predict = as_x_0(network, "x0")
    model = tiny_model(DIT)
    conditions = replace(model.conditions(["A", "B"]), cond=Condition(vector=normal(2, 32)))
    edited = guided(predict, PerturbedAttention(ClassifierFree(1), layers=["blocks.1"]), conditions)(x_t, steps[0])
    plain = guided(predict, ClassifierFree(1), conditions)(x_t, steps[0])
    assert (edited.x_0 - plain.x_0).norm() > 1e-3 * plain.x_0.norm()
    for edit, message in [
        (AttentionEdit(lambda weights, site: weights), "there is self-attention in blocks.0.attn1, blocks.1.attn1"),
        (FeatureEdit(lambda h, site: h, lambda site: True), "skip joins of a U-Net"),
    ]:
        with pytest.raises(Unfit, match=message):
            network(x_t, 3, Condition(), [[edit]])
    with pytest.raises(Unfit, match="there is self-attention in none"):
        randomised(replace(GRID, heads=0))(x_t, 3, Condition(), [[AttentionEdit(lambda w, site: w)]])


# --- as part of a model -----------------------------------------------------------------------------------------------

DIT = replace(
    TINY,
    text=ModelConfig().text,
    unet=ModelConfig().unet,
    denoiser="dit",
    dit=replace(GRID, in_channels=4),
    condition="classes",
    classes=replace(CLASSES, width=32, as_vector=True),
)


@pytest.mark.parametrize("config", [DIT, DRAWN, replace(DRAWN, condition="nothing", classes=ModelConfig().classes)])
def test_folders_hold_such_models(config: ModelConfig, tmp_path: Path) -> None:
    model = tiny_model(config)
    write_folder(model, tmp_path / "folder")
    loaded = load_model(tmp_path / "folder")
    assert loaded.config == config
    x_T = ImageNoise([1, 2], model.latent_shape(16, 16))()
    prompts = ["", ""] if config.condition == "nothing" else ["A", "7"]

    def drawn(one: object) -> Tensor:
        denoise = guided(as_x_0(one.unet, "x0"), ClassifierFree(1), one.conditions(prompts))
        *_, (_, x_t, _) = ddim(denoise, x_T, Schedule().steps(3))
        return x_t

    torch.testing.assert_close(drawn(loaded), drawn(model))
    if config.latents == "drawings":
        assert loaded.draw(x_T) == model.draw(x_T)
    with pytest.raises(ValueError, match="CompVis's layout has no"):
        write_file(model, tmp_path / "file.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, "must be a multiple of 4"),
        ({"heads": 3}, "cannot be split over 3 heads"),
        ({"tokens": 1}, "dit.tokens=1, and latents are of images"),
        ({"in_channels": 3}, "dit.in_channels=3, and latents have 4"),
        ({"size": 7}, "cannot be cut into patches of 2"),
        ({"width": 64}, "a class is a vector of width 32, .* vector_width=64"),
    ],
)
def test_configs_that_contradict_themselves(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(replace(DIT, dit=replace(DIT.dit, **changes)), "here")


def test_drawings_take_a_transformer_on_vectors() -> None:
    for config, message in [
        (replace(DRAWN, denoiser="unet"), "they take denoiser=dit"),
        (replace(DRAWN, dit=replace(DRAWN.dit, tokens=0)), "dit.tokens=0, and latents are of drawings"),
        (replace(DRAWN, dit=replace(DRAWN.dit, tokens=5)), "12 numbers cannot be cut into 5 slices"),
    ]:
        with pytest.raises(ValueError, match=message):
            checked(config, "here")
