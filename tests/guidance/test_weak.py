"""The weak passes, and the guidances around others: each beside a reference written apart."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
    pipeline_stable_diffusion_attend_and_excite as attend_and_excite,
)
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import StableDiffusionSAGPipeline
from diffusers.utils.torch_utils import apply_freeu
from reference import SCHEDULER, TINY_SD1, TINY_SDXL, adopt, diffusers_unet, tiny_model
from small import (
    CONDITIONS,
    FOUR,
    NOISE,
    PROMPTS,
    SEEDS,
    SHAPE,
    STEPS,
    condition,
    denoised,
    networks,
    relative,
    run,
    small_unet,
)
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from guidance import (
    AdaptiveProjected,
    AttendAndExcite,
    AttentionTemperature,
    Autoguidance,
    Beta,
    Branch,
    CFGPlusPlus,
    ClassifierFree,
    Composable,
    ConditionAnnealed,
    Cosine,
    DegradedCondition,
    DynamicThreshold,
    FreeU,
    FrequencyDecoupled,
    IndependentCondition,
    Interval,
    Momentum,
    Multistage,
    PerpNeg,
    PerturbedAttention,
    Ramp,
    Scheduled,
    SegmentationFree,
    SelfAttentionGuidance,
    SemanticAware,
    SlidingMode,
    SmoothedEnergy,
    SparseCross,
    Stage,
    Table,
    Tangential,
)
from guidance.branch import Guidance, begun_anew, guided
from guidance.edits import only_at, scale_strongest_score, with_zero_token, without_zero_token
from guidance.everywhere import entmax
from ldm.attention import AttentionEdit, Site
from ldm.condition import Condition, Conditions, Sizes, Span
from ldm.files import names
from ldm.unet import UNet
from samplers import KeyedNoise, Schedule, Step, dpmpp_2m, euler, euler_ancestral

PIPELINE = attend_and_excite.StableDiffusionAttendAndExcitePipeline
EMPTY = CONDITIONS.negative
NEGATIVES = ({"prompt": "a dragon", "weight": 1.5}, {"prompt": "a fish", "weight": 0.5})
TOLD = replace(CONDITIONS, encode=lambda prompt: EMPTY if prompt == "" else PROMPTS[prompt])


@pytest.fixture(autouse=True)
def without_gradients():
    """As every verb runs."""
    with torch.no_grad():
        yield


def eps_of(unet: UNet, condition: Condition, step: Step, *edits: AttentionEdit, x_t: Tensor = NOISE) -> Tensor:
    return unet(x_t, step.now.t, condition, [edits] if edits else ())


# --- perturbed self-attention -----------------------------------------------------------------------------------------


def test_perturbed_attention_is_diffusers_processor() -> None:
    theirs = diffusers_unet(TINY_SD1)
    ours = adopt(UNet(TINY_SD1.unet), theirs, names.DIFFUSERS)
    x, tokens = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 32)
    for name, module in theirs.named_modules():
        if name == "mid_block.attentions.0.transformer_blocks.0.attn1":
            module.processor = PAGIdentitySelfAttnProcessor2_0()
    both = theirs(torch.cat([x, x]), 500, torch.cat([tokens, tokens])).sample
    conditions = Conditions(Condition(tokens), Condition(torch.zeros_like(tokens)), None)
    branches = PerturbedAttention(ClassifierFree(4)).branches(conditions, STEPS[0])
    for name, eps in zip(("cond", "PerturbedAttention"), both.chunk(2), strict=True):
        assert relative(ours(x, 500, conditions.cond, [branches[name].edits]), eps) < 1e-5
    assert relative(*both.chunk(2)) > 1e-3
    assert {branch.condition for branch in branches.values()} == {conditions.cond, conditions.negative}


@pytest.mark.parametrize("kind", [PerturbedAttention, SmoothedEnergy])
def test_perturbed_is_its_formula(unet: UNet, kind: type) -> None:
    """u + w (c - u) + s (c - p); alone c + s (c - p)."""
    step, layers = STEPS[4], ("mid_block", "up_blocks.0")
    edit = only_at(layers, AttentionEdit(kind(None).edit, lambda site: site.kind == "self", logs=kind.logs))
    c, u = (eps_of(unet, part, step) for part in (CONDITIONS.cond, CONDITIONS.negative))
    p = eps_of(unet, CONDITIONS.cond, step, edit)
    assert relative(p, c) > 1e-4
    both, alone = (kind(ClassifierFree(w), 3, layers) for w in (4, 1))
    assert relative(denoised(unet, both, step).eps, u + 4 * (c - u) + 3 * (c - p)) < 1e-4
    assert relative(denoised(unet, alone, step).eps, c + 3 * (c - p)) < 1e-4
    assert [len(g.branches(CONDITIONS, step)) for g in (both, alone, kind(ClassifierFree(4), 0))] == [3, 2, 2]
    off, plain = denoised(unet, kind(ClassifierFree(4), 0), step), denoised(unet, ClassifierFree(4), step)
    assert torch.equal(off.x_0, plain.x_0)


@pytest.mark.parametrize(("sigma", "height", "width"), [(0.4, 8, 8), (1.0, 8, 6), (30.0, 5, 7)])
def test_smoothed_energy_blurs_queries(sigma: float, height: int, width: int) -> None:
    q, k = torch.randn(2, 2, 3, height * width, 8).unbind()
    size = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2  # as the author clips it to the grid
    sizes = [min(size, side - (side % 2 - 1)) for side in (width, height)]
    grid = q.mT.unflatten(3, (height, width)).flatten(0, 1)
    blurred = gaussian_blur(grid, sizes, [sigma, sigma]).reshape(q.mT.shape).mT
    for factor in (1, 300):  # scores that differ by more than float32's weights can tell
        scores, expected = ((factor * queries @ k.mT * 8**-0.5) for queries in (q, blurred))
        got = SmoothedEnergy(None, sigma=sigma).edit(scores.log_softmax(-1), Site("x", "self", height, width))
        assert relative(got, expected.softmax(-1)) < 1e-5


def test_smoothed_energy_at_its_ends() -> None:
    q, k = torch.randn(2, 2, 3, 24, 8).unbind()
    logs, site = (q @ k.mT * 8**-0.5).log_softmax(-1), Site("x", "self", 4, 6)
    for nothing in (0, 1e-3):
        assert relative(SmoothedEnergy(None, sigma=nothing).edit(logs, site), logs.exp()) < 1e-5
    whole = SmoothedEnergy(None).edit(logs, site)
    expected = (q.mean(2, keepdim=True) @ k.mT * 8**-0.5).softmax(-1).expand_as(whole)
    assert relative(whole, expected) < 1e-5


# --- self-attention guidance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_self_attention_is_diffusers_pipeline(unet: UNet, scale: float) -> None:
    step, maps = STEPS[6], list[Tensor]()
    look = AttentionEdit(
        lambda weights, site: maps.append(weights),
        lambda site: site.kind == "self" and site.name.startswith("mid_block"),
        observes=True,
    )
    c = eps_of(unet, CONDITIONS.cond, step)
    base = CONDITIONS.negative if scale != 1 else CONDITIONS.cond
    u = eps_of(unet, base, step, look)
    heads = maps[0].shape[1]
    pipeline = SimpleNamespace(
        unet=SimpleNamespace(config=SimpleNamespace(attention_head_dim=heads)), scheduler=DDIMScheduler(**SCHEDULER)
    )
    degraded = StableDiffusionSAGPipeline.sag_masking(
        pipeline, step.now.x_0(NOISE, u), maps[0].flatten(0, 1), (4, 6), torch.tensor(int(step.now.t)), u
    )
    assert relative(degraded, NOISE) > 1e-3
    p = eps_of(unet, base, step, x_t=degraded)
    out = denoised(unet, SelfAttentionGuidance(ClassifierFree(scale), 0.75), step)
    assert relative(out.eps, u + scale * (c - u) + 0.75 * (u - p)) < 1e-4
    assert relative(step.now.x_t(*out), NOISE) < 1e-5


# --- edits in every pass ----------------------------------------------------------------------------------------------


def test_entmax_is_the_root_of_its_condition() -> None:
    scores = 4 * torch.randn(2, 3, 5, 77, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = scores.amax(-1, keepdim=True) / 2 - 1, scores.amax(-1, keepdim=True) / 2
    for _ in range(60):  # by bisection
        tau = (low + high) / 2
        above = (scores / 2 - tau).clamp(min=0).square().sum(-1, keepdim=True) > 1
        low, high = torch.where(above, tau, low), torch.where(above, high, tau)
    expected = (scores / 2 - tau).clamp(min=0).square()
    assert relative(entmax(scores.softmax(-1)), expected) < 1e-7
    assert (expected == 0).any() and relative(entmax(scores.float().softmax(-1)), expected) < 1e-5


def test_sparse_cross_attention_and_temperature_edit_every_pass(unet: UNet) -> None:
    step, down_and_up = STEPS[3], ("down_blocks", "up_blocks")

    def sparse(weights: Tensor, site: Site) -> Tensor:
        return 2 * entmax(weights) - weights if site.name.startswith(down_and_up) else weights

    def hot(weights: Tensor, site: Site) -> Tensor:
        sharper = weights**2
        return sharper / sharper.sum(-1, keepdim=True)

    for guidance, edit in [
        (SparseCross(ClassifierFree(3)), AttentionEdit(sparse)),
        (AttentionTemperature(ClassifierFree(3), 0.5), AttentionEdit(hot)),
        (AttentionTemperature(ClassifierFree(3), 0.5, "self"), AttentionEdit(hot, lambda site: site.kind == "self")),
    ]:
        c, u = (eps_of(unet, part, step, edit) for part in (CONDITIONS.cond, CONDITIONS.negative))
        assert relative(denoised(unet, guidance, step).eps, u + 3 * (c - u)) < 1e-4
        assert relative(c, eps_of(unet, CONDITIONS.cond, step)) > 1e-3
    for nothing in (SparseCross(ClassifierFree(3), 0), AttentionTemperature(ClassifierFree(3), 1)):
        assert relative(denoised(unet, nothing, step).eps, denoised(unet, ClassifierFree(3), step).eps) < 1e-5


def test_freeu_is_diffusers_function() -> None:
    h, skip = torch.randn(2, 6, 8, 12), torch.randn(2, 4, 8, 12)
    edits = FreeU(None).edits()
    for level, b, s in [(0, 1.5, 0.9), (1, 1.6, 0.2), (2, 1, 1)]:
        ours = []
        for x, kind in [(h, "stream"), (skip, "skip")]:
            site = Site(f"up_blocks.{level}.resnets.1", kind, 8, 12)
            for edit in edits:
                x = edit.function(x, site) if edit.where(site) else x
            ours.append(x)
        theirs = apply_freeu(level, h.clone(), skip.clone(), b1=1.5, b2=1.6, s1=0.9, s2=0.2)
        assert all(relative(a, b) < 1e-6 for a, b in zip(ours, theirs, strict=True)), (level, b, s)


def test_freeu_changes_the_picture(unet: UNet) -> None:
    plain = denoised(unet, ClassifierFree(3)).x_0
    assert relative(denoised(unet, FreeU(ClassifierFree(3), 1, 1, 1, 1)).x_0, plain) < 1e-5
    assert relative(denoised(unet, FreeU(ClassifierFree(3))).x_0, plain) > 1e-2


# --- another condition ------------------------------------------------------------------------------------------------


def test_degraded_keeps_all_but_the_words_and_the_first_eos(unet: UNet) -> None:
    cond, step = CONDITIONS.cond, STEPS[5]
    weak = DegradedCondition().branches(TOLD, step)["weak"].condition.tokens
    assert torch.equal(weak[:, 1:5], EMPTY.tokens[:, 1:5])  # "a", "fish" of two tokens, EOS
    assert torch.equal(weak[:, 0], cond.tokens[:, 0]) and torch.equal(weak[:, 5:], cond.tokens[:, 5:])
    p, c = eps_of(unet, Condition(weak), step), eps_of(unet, cond, step)
    assert relative(denoised(unet, DegradedCondition(), step, TOLD).eps, p + 7 * (c - p)) < 1e-5


def test_degraded_replaces_every_box_and_nothing_without_words() -> None:
    tokens = torch.randn(2, 4, 16)
    boxes = Condition(tokens, spans=((Span("cat", 0, 1), Span("dog", 1, 2)), ()))
    conditions = Conditions(boxes, EMPTY, lambda prompt: Condition(torch.zeros(2, 4, 16)))
    weak = DegradedCondition().branches(conditions, STEPS[0])["weak"].condition.tokens
    assert not weak[0, :2].any() and torch.equal(weak[0, 3], tokens[0, 3]) and torch.equal(weak[1], tokens[1])


def test_independent_has_the_embedding_s_moments() -> None:
    conditions = replace(CONDITIONS, cond=replace(CONDITIONS.cond, vector=3 * torch.randn(2, 500) + 2))
    weak = IndependentCondition().branches(conditions, STEPS[5])["weak"].condition
    for ours, own in [(weak.tokens, conditions.cond.tokens), (weak.vector, conditions.cond.vector)]:
        assert (ours.flatten(1).mean(1) - own.flatten(1).mean(1)).abs().max() < 0.15 * own.std()
        assert (ours.flatten(1).std(1) / own.flatten(1).std(1) - 1).abs().max() < 0.1
        assert relative(ours, own) > 0.5
    assert not torch.equal(weak.tokens, IndependentCondition().branches(conditions, STEPS[6])["weak"].condition.tokens)


def test_independent_tells_the_true_sizes() -> None:
    model = tiny_model(TINY_SDXL)
    conditions = model.conditions(["a fish", "a dog"], noise=KeyedNoise(SEEDS), sizes=Sizes((8, 16)))
    own, weak = conditions.cond, IndependentCondition().branches(conditions, STEPS[5])["weak"].condition
    assert weak.vector.shape == own.vector.shape and own.sizes == own.vector.shape[1] - TINY_SDXL.text_2.projection
    assert torch.equal(weak.vector[:, -own.sizes :], own.vector[:, -own.sizes :])
    assert not torch.isclose(weak.vector[:, : -own.sizes], own.vector[:, : -own.sizes]).any()


def test_autoguidance_is_its_formula(unet: UNet) -> None:
    weak, step = small_unet(), STEPS[5]
    weak.conv_out.weight.mul_(0.5)
    c, p = (eps_of(network, CONDITIONS.cond, step) for network in (unet, weak))
    out = denoised({"main": unet, "weak": weak}, Autoguidance(2.4), step)
    assert relative(out.eps, p + 2.4 * (c - p)) < 1e-5
    with pytest.raises(ValueError, match="needs a network 'weak'"):
        denoised(unet, Autoguidance(), step)


def annealed(y: Tensor, n: Tensor, gamma: float, s: float, psi: float) -> Tensor:
    """One image's, as the public implementation writes it."""
    mean, std = y.mean(), y.std()
    y = gamma**0.5 * y + s * (1 - gamma) ** 0.5 * n
    scaled = (y - y.mean()) / y.std() * std + mean
    return psi * scaled + (1 - psi) * y


def test_condition_annealing_is_its_formula(unet: UNet) -> None:
    guidance = ConditionAnnealed(ClassifierFree(3), psi=0.7)
    for i, gamma in [(0, 0.0), (2, 1 / 3), (3, 2 / 3), (4, 1.0), (9, 1.0)]:
        branches = guidance.branches(CONDITIONS, STEPS[i])
        for name, own in [("cond", CONDITIONS.cond), ("negative", CONDITIONS.negative)]:
            got = branches[name].condition
            if gamma == 1:
                assert got is own
                continue
            noise = CONDITIONS.noise(f"cads {i}.0 {name} tokens", (77, 16))
            for b in range(2):
                assert relative(got.tokens[b], annealed(own.tokens[b], noise[b], gamma, 0.25, 0.7)) < 1e-5


def test_an_image_is_annealed_by_its_own_prompt() -> None:
    conditions = replace(CONDITIONS, encode=lambda prompts: condition(3 if isinstance(prompts, str) else 4))
    told = ConditionAnnealed(ClassifierFree(3)).annealed(conditions, STEPS[2])
    among = [told.encode(prompts).tokens for prompts in (["a", "b"], ["a", "c"], ["b", "c"])]
    assert torch.equal(among[0][0], among[1][0]) and torch.equal(among[1][1], among[2][1])
    assert not torch.equal(among[0][1], among[1][1]) and not torch.equal(among[0][0], among[2][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_annealing_leaves_a_prompt_of_zeros(dtype: torch.dtype) -> None:
    zeros = replace(CONDITIONS.negative, tokens=torch.zeros(2, 77, 16, dtype=dtype))
    told = ConditionAnnealed(ClassifierFree(3), strength=0.0).annealed(replace(CONDITIONS, negative=zeros), STEPS[2])
    assert torch.equal(told.negative.tokens, zeros.tokens)


# --- several prompts --------------------------------------------------------------------------------------------------


def test_composable_and_perp_neg_are_their_formulas(unet: UNet) -> None:
    step = STEPS[5]
    c, u, dragon, fish = (
        eps_of(unet, part, step) for part in (CONDITIONS.cond, EMPTY, PROMPTS["a dragon"], PROMPTS["a fish"])
    )
    both = Composable(({"prompt": "a dragon", "weight": 5}, {"prompt": "a fish", "weight": -2}), scale=7)
    expected = u + 7 * (c - u) + 5 * (dragon - u) - 2 * (fish - u)
    assert relative(denoised(unet, both, step, TOLD).eps, expected) < 1e-4
    assert len(both.branches(TOLD, step)) == 4

    out = denoised(unet, PerpNeg(NEGATIVES), step, TOLD).eps
    for b in range(2):  # the authors' x - (x y).sum() / |y|^2 y, on one image, where it is not mixed with others
        d = c[b] - u[b]
        pushed = d
        for n, weight in [(dragon[b] - u[b], 1.5), (fish[b] - u[b], 0.5)]:
            pushed = pushed - weight * (n - (n * d).sum() / torch.norm(d) ** 2 * d)
        assert relative(out[b], u[b] + 7.5 * pushed) < 1e-4


# --- CFG++ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", ["first", "clean"])
def test_cfg_plus_plus_is_classifier_free_whose_scale_depends_on_the_step(final: str) -> None:
    """And the authors' DDIM loop, in float64."""
    double, x_T, steps = small_unet().double(), NOISE.double(), Schedule().steps(4, final=final)
    conditions = Conditions(*(Condition(part.tokens.double()) for part in (CONDITIONS.cond, CONDITIONS.negative)), None)
    ours = run(double, CFGPlusPlus(0.6), conditions, x_T, steps)
    theirs = growing = x_T
    for step in steps:
        c, u = (eps_of(double, part, step, x_t=theirs) for part in (conditions.cond, conditions.negative))
        x_0 = (theirs - step.now.noise * (u + 0.6 * (c - u))) / step.now.signal
        theirs = step.to.signal * x_0 + step.to.noise * u
        scale = 0.6 * step.now.sigma / (step.now.sigma - step.to.sigma)
        growing = run(double, ClassifierFree(scale), conditions, growing, [step])
    assert relative(ours, theirs) < 1e-12 and relative(ours, growing) < 1e-12


def test_cfg_plus_plus_under_other_samplers_is_the_authors_loop() -> None:
    """Their euler_cfg++, euler_a_cfg++ and dpm++_2m_cfg++, in y = x_t / signal; the last but for what it remembers."""
    double, steps, shape = small_unet().double(), Schedule().steps(5), tuple(NOISE.shape)
    conditions = Conditions(*(Condition(part.tokens.double()) for part in (CONDITIONS.cond, CONDITIONS.negative)), None)
    draws = [torch.randn(shape, dtype=torch.float64) for _ in steps]
    denoise = guided(networks(double), CFGPlusPlus(0.6), conditions)

    def ours(sampler: Callable[..., Any]) -> Tensor:
        left = iter(draws)
        *_, (step, x_t, _) = sampler(denoise, NOISE.double(), steps, noise=lambda: next(left))
        return x_t / step.to.signal

    def theirs(kind: str, remembers: str = "u") -> Tensor:
        y, old, left = NOISE.double() / steps[0].now.signal, None, iter(draws)
        for i, step in enumerate(steps):
            sigma, to = step.now.sigma, step.to.sigma
            c, u = (
                y - sigma * eps_of(double, part, step, x_t=y * step.now.signal)
                for part in (conditions.cond, conditions.negative)
            )
            denoised = u + 0.6 * (c - u)
            d, h = (y - u) / sigma, math.log(sigma / to)
            if kind == "euler_a":
                up = min(to, (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5)
                y = denoised + d * (to**2 - up**2) ** 0.5 + next(left) * up
            elif kind == "euler" or old is None or i == len(steps) - 1:
                y = denoised + d * to
            else:
                r = math.log(steps[i - 1].now.sigma / sigma) / h
                push = -math.exp(-h) * u - math.expm1(-h) * (denoised - old) / (2 * r)
                y = denoised + push + math.exp(-h) * y
            old = {"u": u, "guided": denoised}[remembers]
        return y

    assert relative(ours(euler), theirs("euler")) < 1e-12
    assert relative(ours(euler_ancestral), theirs("euler_a")) < 1e-12
    assert relative(ours(dpmpp_2m), theirs("2m", "guided")) < 1e-12
    assert relative(ours(dpmpp_2m), theirs("2m")) > 1e-4


# --- over the steps ---------------------------------------------------------------------------------------------------


def test_curves() -> None:
    i = torch.arange(10.0)
    shares = i.double() / 9
    for curve, expected in [
        (Ramp(), 2 * i / 10),
        (Ramp(3, least=0.5), (3 * i / 10).clamp(min=0.5)),
        (Cosine(), 1 - torch.cos(math.pi * i / 10)),
        (Beta(2, 3), torch.distributions.Beta(2.0, 3.0).log_prob(shares.clamp(1e-12, 1 - 1e-12)).exp()),
        (Table([-1.0, 2.0]), -1 + 3 * i / 9),
        (Table(list(range(10))), i),
        (Table([2.0]), torch.full((10,), 2.0)),
    ]:
        assert torch.allclose(torch.tensor([curve(step) for step in STEPS]), expected.float(), atol=1e-5), curve


def test_a_schedule_is_a_scale_for_each_step(unet: UNet) -> None:
    w = [6.5 * Ramp()(step) for step in STEPS]
    for i in (0, 3, 9):
        out = denoised(unet, Scheduled(ClassifierFree(7.5)), STEPS[i])
        expected = denoised(unet, ClassifierFree(1 + w[i]), STEPS[i])
        assert relative(out.x_0, expected.x_0) < 1e-5 and relative(out.eps, expected.eps) < 1e-5
    assert [len(Scheduled(ClassifierFree()).branches(CONDITIONS, step)) for step in STEPS] == [1] + 9 * [2]


@pytest.mark.parametrize("g", [0.5, 0.0, -1.5])
def test_a_schedule_may_go_below_the_conditional(unet: UNet, g: float) -> None:
    out = denoised(unet, Scheduled(ClassifierFree(2), Table([g - 1])), STEPS[3])
    cond, negative = (denoised(unet, ClassifierFree(scale), STEPS[3]) for scale in (1, 0))
    for found, c, u in zip(out, cond, negative, strict=True):
        assert relative(found, u + g * (c - u)) < 1e-5


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_momentum_is_its_loop(unet: UNet, alpha: float) -> None:
    guidance, x, mean = Momentum(ClassifierFree(3), alpha), NOISE, None
    for step in FOUR:
        D = denoised(unet, ClassifierFree(3), step, x_t=x).x_0
        mean = D if mean is None else mean
        x_0 = D + alpha * (D - mean)
        mean = 0.4 * D + 0.6 * mean
        x = step.to.signal * x_0 + step.to.noise * step.now.eps(x, x_0)
    assert relative(run(unet, guidance, steps=FOUR), x) < 1e-4
    plain = run(unet, ClassifierFree(3), steps=FOUR)
    assert torch.equal(x, plain) or alpha > 0
    assert torch.equal(run(unet, guidance, steps=FOUR), plain) is (alpha == 0)


def test_dynamic_threshold_is_diffusers_function(unet: UNet) -> None:
    scheduler = DDIMScheduler(**SCHEDULER, thresholding=True, sample_max_value=1e9)
    plain = denoised(unet, ClassifierFree(7.5), STEPS[2]).x_0
    out = denoised(unet, DynamicThreshold(ClassifierFree(7.5), limit=1.0), STEPS[2])
    assert relative(out.x_0, scheduler._threshold_sample(plain)) < 1e-5
    assert relative(STEPS[2].now.x_t(*out), NOISE) < 1e-5


def test_mimic_scale_is_its_formula(unet: UNet) -> None:
    step = STEPS[2]
    x_0, weaker = (denoised(unet, ClassifierFree(scale), step).x_0 for scale in (15, 7))
    out = denoised(unet, DynamicThreshold(ClassifierFree(15), percentile=0.9), step).x_0
    for b in range(2):
        for channel in range(4):
            x, mimic = x_0[b, channel], weaker[b, channel]
            limit = (mimic - mimic.mean()).abs().max()
            most = torch.maximum(limit, torch.quantile((x - x.mean()).abs(), 0.9))
            expected = (x - x.mean()).clamp(-most, most) / most * limit + x.mean()
            assert relative(out[b, channel], expected) < 1e-4
    for percentile, mimic in [(1.0, 1.0), (0.9, 1.0)]:  # a limit that is the guidance's own changes nothing
        same = denoised(unet, DynamicThreshold(ClassifierFree(15), percentile, mimic), step).x_0
        assert relative(same, x_0) < 1e-5


# --- regions ----------------------------------------------------------------------------------------------------------


def smoothed(maps: Tensor) -> Tensor:
    """[C, h, w], by the smoothing that the authors of both methods use."""
    return attend_and_excite.GaussianSmoothing()(F.pad(maps[:, None], (1, 1, 1, 1), mode="reflect"))[:, 0]


def test_semantic_aware_is_the_authors_code(unet: UNet) -> None:
    step, seen = STEPS[5], dict[str, dict[str, Tensor]]()
    predictions = {}
    for name, part in [("cond", CONDITIONS.cond), ("negative", CONDITIONS.negative)]:
        seen[name] = maps = {}

        def keep(weights: Tensor, site: Site, maps: dict[str, Tensor] = maps) -> None:
            if (site.height, site.width) == (4, 6):
                maps[site.name] = weights.mean(1)

        predictions[name] = eps_of(unet, part, step, AttentionEdit(keep, lambda site: True, observes=True))
    out = denoised(unet, SemanticAware(7.5, 2, 8), step).eps
    for b in range(2):
        d = predictions["cond"][b] - predictions["negative"][b]
        size = d.norm(dim=0)
        all_tokens = {"cond": 0, "negative": 0}
        for name, maps in seen.items():
            for layer in [layer for layer in maps if layer.endswith("attn1")]:
                A, cross = maps[layer][b], maps[layer.replace("attn1", "attn2")][b]
                spread = smoothed(((A + 3 * A @ A) / 4 @ cross).T.reshape(77, 4, 6))
                if name == "negative":
                    spread = torch.stack([spread[0], spread[1:].sum(0)])
                all_tokens[name] = all_tokens[name] + spread / spread.mean(dim=(1, 2), keepdim=True)
        owner = all_tokens["cond"].argmax(0).repeat_interleave(2, 0).repeat_interleave(2, 1)
        foreground = all_tokens["negative"].argmax(0).repeat_interleave(2, 0).repeat_interleave(2, 1) == 1
        rate = torch.zeros(8, 12)
        for token in owner.unique():
            rate[owner == token] = size[foreground].mean() / size[owner == token].mean()
        assert len(owner.unique()) > 1 and foreground.any()
        rate = smoothed(rate.clamp(0.8, 3.0).clamp(max=15 / 7.5)[None])[0]
        assert relative(out[b], predictions["negative"][b] + 7.5 * rate * d) < 1e-4


def test_semantic_aware_at_scale_0_is_the_negative_pass(unet: UNet) -> None:
    guidance = SemanticAware(0, finest=2)
    assert relative(denoised(unet, guidance, STEPS[5]).x_0, denoised(unet, ClassifierFree(0), STEPS[5]).x_0) < 1e-6


def test_semantic_aware_says_where_it_finds_no_maps(unet: UNet) -> None:
    with pytest.raises(ValueError, match="finest=4, coarsest=8: the network has no attention so coarse"):
        denoised(unet, SemanticAware(), STEPS[5])


# --- attend and excite ------------------------------------------------------------------------------------------------

EXCITE = AttendAndExcite(ClassifierFree(3), step_size=500.0, downscale=2, rounds=2)


def lack(unet: UNet, x: Tensor, b: int, step: Step) -> Tensor:
    """The loss of one image by diffusers' functions; "a" does not count, so the tokens of "fish" do."""
    maps = list[Tensor]()
    look = AttentionEdit(
        lambda weights, site: maps.append(weights),
        lambda site: site.kind == "cross" and (site.height, site.width) == (4, 6),
        observes=True,
    )
    unet(x, step.now.t, CONDITIONS.cond.rows(slice(b, b + 1)), [[look]])
    average = torch.cat([m[0] for m in maps]).mean(0).reshape(4, 6, 77)
    most = PIPELINE._compute_max_attention_per_index(average.clone(), [2, 3])
    return PIPELINE._compute_loss(most)


@pytest.mark.parametrize(("i", "threshold"), [(2, 0.0), (0, 0.0), (0, 0.9)])
def test_attend_and_excite_is_its_algorithm(unet: UNet, i: int, threshold: float) -> None:
    step = STEPS[i]
    guidance = replace(EXCITE, refine=((0.0, threshold),))
    size, moved = 500 * math.sqrt(1 - 0.5 * i / 9), list[Tensor]()
    for b in range(2):
        x = NOISE[b : b + 1]
        for _ in range(1 + (guidance.rounds if threshold and i == 0 else 0)):
            with torch.enable_grad():
                x = x.clone().requires_grad_()
                loss = lack(unet, x, b, step)
                (gradient,) = torch.autograd.grad(loss, x)
            assert loss > 1 - threshold or not threshold
            x = x.detach() - size * gradient
        moved.append(x)
    x_t = torch.cat(moved)
    assert relative(x_t, NOISE) > 1e-3
    expected, out = denoised(unet, ClassifierFree(3), step, x_t=x_t), denoised(unet, guidance, step)
    assert relative(out.x_0, expected.x_0) < 1e-4 and relative(out.eps, expected.eps) < 1e-4
    assert relative(step.now.x_t(*out), x_t) < 1e-5


def test_attend_and_excite_leaves_images_that_are_seen(unet: UNet) -> None:
    """One of them is at the threshold: it waits, while the other is refined; and so is it alone."""
    losses = [float(lack(unet, NOISE[b : b + 1], b, STEPS[0])) for b in range(2)]
    between = 1 - sum(losses) / 2
    guidance = replace(EXCITE, refine=((0.0, between),))
    both = denoised(unet, guidance, STEPS[0])
    for b in range(2):
        one = slice(b, b + 1)
        conditions = Conditions(CONDITIONS.cond.rows(one), CONDITIONS.negative.rows(one), None)
        alone = denoised(unet, guidance, STEPS[0], conditions, NOISE[one])
        assert relative(both.x_0[one], alone.x_0) < 1e-4


def test_attend_and_excite_ends_and_needs_words(unet: UNet) -> None:
    late = STEPS[5]
    assert torch.equal(denoised(unet, EXCITE, late).x_0, denoised(unet, ClassifierFree(3), late).x_0)
    for without in (replace(EXCITE, words=["dragon"]), replace(EXCITE, refine=(), words=[])):
        out = denoised(unet, without, STEPS[0])
        assert relative(out.x_0, denoised(unet, ClassifierFree(3)).x_0) < 1e-5
    with pytest.raises(ValueError, match="downscale=4: the network has no cross-attention 2 patches high"):
        denoised(unet, replace(EXCITE, downscale=4))


# --- segmentation-free guidance in scores -----------------------------------------------------------------------------


def test_scores_are_told_by_a_token_of_zeros() -> None:
    q, k = torch.randn(2, 2, 3, 24, 8).unbind()
    k = k[:, :, :20]
    scores, longer = q @ k.mT * 8**-0.5, F.pad(k, (0, 0, 0, 1))
    logs, site = (q @ longer.mT * 8**-0.5).log_softmax(-1), Site("x", "cross", 4, 6)
    for argmax in ("head", "mean"):
        ranked = scores if argmax == "head" else scores.mean(1, keepdim=True).expand_as(scores)
        expected = scores.clone()
        for b in range(2):
            for h in range(3):
                for p in range(24):
                    strongest = 1 + int(ranked[b, h, p, 1:].argmax())
                    expected[b, h, p, strongest] *= -10
        got = scale_strongest_score(-10.0, argmax).function(logs, site)
        assert relative(got[..., :-1], expected.softmax(-1)) < 1e-5 and not got[..., -1].any()
    got = without_zero_token().function(logs.exp(), site)
    assert relative(got[..., :-1], scores.softmax(-1)) < 1e-5 and not got[..., -1].any()


def test_segmentation_free_in_scores(unet: UNet) -> None:
    step = STEPS[9]
    weights, scores = (SegmentationFree(cfg_steps=0, apply=apply) for apply in ("weights", "scores"))
    cond = denoised(unet, ClassifierFree(1), step).x_0
    assert relative(denoised(unet, replace(scores, sf_strength=0.0), step).x_0, cond) < 1e-5
    push_out = scale_strongest_score(-10.0)
    n = eps_of(unet, with_zero_token(CONDITIONS.cond), step, push_out)
    c = eps_of(unet, CONDITIONS.cond, step)
    got = denoised(unet, scores, step)
    assert relative(got.eps, c + 2 * (c - n)) < 1e-4
    assert relative(got.x_0, denoised(unet, weights, step).x_0) > 1e-3
    early = SegmentationFree(cfg_steps=1, apply="scores").branches(CONDITIONS, STEPS[0])
    assert early["cond"].condition is CONDITIONS.cond


# --- what is asked of all ---------------------------------------------------------------------------------------------

METHODS: dict[str, Guidance] = {
    "pag": PerturbedAttention(ClassifierFree(3)),
    "seg": SmoothedEnergy(ClassifierFree(3), sigma=1.0),
    "sag": SelfAttentionGuidance(ClassifierFree(3)),
    "scfg": SemanticAware(3, 2, 8),
    "cfg_pp": CFGPlusPlus(),
    "autoguidance": Autoguidance(),
    "icg": IndependentCondition(3),
    "cads": ConditionAnnealed(ClassifierFree(3)),
    "cdg": DegradedCondition(3),
    "dynamic_threshold": DynamicThreshold(ClassifierFree(7.5), percentile=0.9),
    "perp_neg": PerpNeg(NEGATIVES, 3),
    "composable": Composable(NEGATIVES, 3),
    "scheduled": Scheduled(ClassifierFree(3), Cosine()),
    "momentum": Momentum(ClassifierFree(3)),
    "pladis": SparseCross(ClassifierFree(3)),
    "temperature": AttentionTemperature(ClassifierFree(3)),
    "freeu": FreeU(ClassifierFree(3)),
    "attend_and_excite": EXCITE,
    "scores": SegmentationFree(3, 1, apply="scores"),
}
FIRST = Conditions(
    CONDITIONS.cond.rows(slice(0, 1)),
    CONDITIONS.negative.rows(slice(0, 1)),
    lambda prompt: TOLD.encode(prompt).rows(slice(0, 1)),
    KeyedNoise(SEEDS[:1]),
)


@pytest.mark.parametrize("guidance", METHODS.values(), ids=METHODS)
def test_two_samplings_agree_and_an_image_is_its_own(unet: UNet, guidance: Guidance) -> None:
    nets = {"main": unet, "weak": small_unet()} if isinstance(guidance, Autoguidance) else unet
    if isinstance(nets, dict):
        nets["weak"].conv_out.weight.mul_(0.5)
    two = FOUR[:2]
    both = run(nets, guidance, TOLD, steps=two)
    assert torch.equal(run(nets, guidance, TOLD, steps=two), both)
    assert relative(run(nets, guidance, FIRST, NOISE[:1], two), both[:1]) < 1e-4
    assert relative(both, run(nets, ClassifierFree(3), TOLD, steps=two)) > 1e-4
    for name in ("memory", "maps", "moved"):
        assert not getattr(guidance, name, None)


@pytest.mark.parametrize("kind", [IndependentCondition, DegradedCondition, Autoguidance])
def test_scale_1_is_the_conditional_in_one_pass(kind: type) -> None:
    guidance = kind(1)
    assert set(guidance.branches(TOLD, STEPS[0])) == {"cond"}
    x_0 = {"cond": torch.randn(2, *SHAPE)}
    assert guidance.combine(x_0, NOISE, STEPS[0]) is x_0["cond"]
    assert set(SemanticAware(1).branches(TOLD, STEPS[0])) == {"cond"}


@pytest.mark.parametrize("kind", [IndependentCondition, DegradedCondition])
def test_a_weak_pass_that_is_the_empty_prompt_s_is_classifier_free(unet: UNet, kind: type) -> None:
    class Empty(kind):
        def weak(self, conditions: Conditions, step: Step) -> Branch:
            return Branch(conditions.negative)

    assert torch.equal(denoised(unet, Empty(3), conditions=TOLD).x_0, denoised(unet, ClassifierFree(3)).x_0)


def test_an_edit_that_changes_nothing_leaves_the_inner_guidance(unet: UNet) -> None:
    """p = c."""

    class Same(PerturbedAttention):
        def edit(self, weights: Tensor, site: Site) -> Tensor:
            return weights

    assert relative(denoised(unet, Same(ClassifierFree(3))).x_0, denoised(unet, ClassifierFree(3)).x_0) < 1e-5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DegradedCondition(-1), "scale=-1"),
        (lambda: CFGPlusPlus(1.5), "scale=1.5"),
        (lambda: PerturbedAttention(ClassifierFree(), -1), "scale=-1"),
        (lambda: SmoothedEnergy(ClassifierFree(), sigma=-1), "sigma=-1"),
        (lambda: SelfAttentionGuidance(ClassifierFree(), -1), "scale=-1"),
        (lambda: ConditionAnnealed(ClassifierFree(), 0.9, 0.6), "tau_1=0.9, tau_2=0.6"),
        (lambda: DynamicThreshold(ClassifierFree(), 1.5), "percentile=1.5"),
        (lambda: Composable(()), "others is empty"),
        (lambda: PerpNeg(()), "negatives is empty"),
        (lambda: PerpNeg(({"prompt": "x", "weight": -1},)), "weight=-1"),
        (lambda: Table(()), "values is empty"),
        (lambda: Table([1.0, math.inf]), "values=inf"),
        (lambda: Beta(0.5), "a=0.5"),
        (lambda: AttentionTemperature(ClassifierFree(), 0), "temperature=0"),
        (lambda: AttentionTemperature(ClassifierFree(), 1, "both"), "kind='both'"),
        (lambda: SegmentationFree(apply="logits"), "apply='logits'"),
        (lambda: SegmentationFree(apply="scores", candidates="words"), "apply='scores'"),
        (lambda: SegmentationFree(apply="scores", layers=("up_blocks",)), "apply='scores'"),
        (lambda: AttendAndExcite(ClassifierFree(), stop=2), "stop=2"),
        (lambda: AttendAndExcite(ClassifierFree(), downscale=0), "downscale=0"),
        (lambda: AttendAndExcite(ClassifierFree(), refine=[[0.1]]), "refine="),
        (lambda: AttendAndExcite(ClassifierFree(), refine=[[2, 0.5]]), "refine="),
        (lambda: AttendAndExcite(ClassifierFree(), rounds=-3), "rounds=-3"),
        (lambda: SemanticAware(least=5.0), "least=5.0, most=3.0"),
        (lambda: SemanticAware(ceiling=-3), "ceiling=-3"),
        (lambda: FreeU(ClassifierFree(), b1=-2), "b1=-2"),
        (lambda: Composable(({"prompt": "x", "weight": math.nan},)), "weight=nan"),
        (lambda: Composable(({"prompt": "x", "wieght": 1},)), "others: each has a prompt and a weight"),
        (lambda: SlidingMode(gain=-1.0), "gain=-1.0"),
        (lambda: AdaptiveProjected(momentum=2.0), "momentum=2.0"),
        (lambda: AdaptiveProjected(eta=math.nan), "eta=nan"),
        (lambda: FrequencyDecoupled(shares=[1.0, math.nan]), "shares=nan"),
        (lambda: Tangential(space="v"), "space=v: must be x_0, eps or output"),
        (lambda: Ramp(end=math.nan), "end=nan"),
        (lambda: Cosine(least=-1), "least=-1"),
        (lambda: Beta(math.inf), "a=inf"),
        (lambda: Scheduled(ClassifierFree(), Interval(ClassifierFree())), "must be a curve"),
        (lambda: DynamicThreshold(ClassifierFree(), limit=-1.0), "limit=-1.0"),
        (lambda: AdaptiveProjected(threshold=-1.0), "threshold=-1.0"),
        (lambda: FrequencyDecoupled(shares=[]), "shares is empty"),
        (
            lambda: PerturbedAttention(Multistage((Stage("x", 2, PerturbedAttention(ClassifierFree())),))),
            "holds a PerturbedAttention",
        ),
    ],
)
def test_wrong_settings_are_named(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_words_of_a_prompt_are_told_by_name() -> None:
    spans = ((Span("a", 1, 2), Span("red", 2, 3), Span("submarine", 3, 5)), (Span("the", 1, 2), Span("cat", 2, 3)))
    condition = Condition(torch.zeros(2, 77, 4), spans=spans)
    assert begun_anew(EXCITE).tokens(condition, 75) == [[2, 3, 4], [2]]
    assert replace(EXCITE, words=("cat", "a")).tokens(condition, 75) == [[1], [2]]
