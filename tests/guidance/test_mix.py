"""The mix rules: each beside a reference written apart, and what is asked of all."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.magnitude_aware_guidance import mambo_guidance as magnitude_aware
from diffusers.guiders.tangential_classifier_free_guidance import normalized_guidance as tangential
from scipy.ndimage import convolve1d
from small import CONDITIONS, FOUR, NOISE, SHAPE, STEPS, relative, run
from torch import Tensor

from guidance import (
    AdaptiveProjected,
    ClassifierFree,
    FrequencyDecoupled,
    Linear,
    MagnitudeAware,
    Mix,
    Multistage,
    OptimizedScale,
    SegmentationFree,
    SlidingMode,
    SpatiallyAdaptive,
    Stage,
    Tangential,
    guided,
)
from guidance.branch import begun_anew
from guidance.mix import mixed
from ldm.unet import UNet
from samplers import Flow, as_x_0, ddim
from samplers.predict import PREDICTIONS

RULES: dict[str, Mix] = {
    "linear": Linear(),
    "apg": AdaptiveProjected(threshold=2.0),
    "tcfg": Tangential(),
    "cfg_zero": OptimizedScale(),
    "fdg": FrequencyDecoupled(parallel=0.5),
    "samg": SpatiallyAdaptive(),
    "smc": SlidingMode(),
    "mambo": MagnitudeAware(),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
G = torch.Generator().manual_seed(1)
WEAK = torch.randn(3, 2, *SHAPE, generator=G)  # of three steps
COND = WEAK + 0.3 * torch.randn(3, 2, *SHAPE, generator=G)
STEP = STEPS[5]


def pushes(rule: Mix, cond: Tensor = COND, weak: Tensor = WEAK, scale: float = 7.5) -> list[Tensor]:
    """What a rule makes of three steps, begun anew."""
    rule = begun_anew(rule)
    return [rule.push(c, w, scale, step) for c, w, step in zip(cond, weak, STEPS[5:8], strict=True)]


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eta", "threshold", "beta"), [(0.0, 7.5, -0.75), (1.0, 3.0, 0.5), (0.3, 0.0, 0.0), (1.0, 7.5, 0.0)]
)
def test_adaptive_projected_is_diffusers_function(eta: float, threshold: float, beta: float) -> None:
    buffer = MomentumBuffer(beta)
    got = pushes(AdaptiveProjected(eta, threshold, beta), scale=10)
    for ours, cond, weak in zip(got, COND, WEAK, strict=True):
        theirs = normalized_guidance(cond, weak, 9, buffer, eta, threshold, use_original_formulation=True)
        assert relative(ours, theirs) < 1e-6


def test_tangential_is_diffusers_function() -> None:
    for ours, cond, weak in zip(pushes(Tangential()), COND, WEAK, strict=True):
        assert relative(ours, tangential(cond, weak, 7.5)) < 1e-5


def test_optimized_scale_is_diffusers_guider() -> None:
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=7.5, zero_init_steps=1)
    for i, rule in [(0, OptimizedScale(1)), (3, OptimizedScale(1)), (0, OptimizedScale(0.1)), (1, OptimizedScale(0.1))]:
        guider.set_state(step=i, num_inference_steps=10, timestep=torch.tensor(500))
        ours = rule.push(COND[0], WEAK[0], 7.5, STEPS[i])
        assert torch.allclose(ours, guider.forward(COND[0], WEAK[0]).pred, rtol=1e-5, atol=1e-5)


def test_magnitude_aware_is_diffusers_function() -> None:
    """Theirs takes norms over three axes, which four make crash: each image as a row of three."""
    for ours, cond, weak in zip(pushes(MagnitudeAware()), COND, WEAK, strict=True):
        theirs = magnitude_aware(cond.flatten(2), weak.flatten(2), 7.5, 8.0)
        assert relative(ours.flatten(2), theirs) < 1e-6
    linear = pushes(Linear())
    assert all(relative(a, b) < 1e-6 for a, b in zip(pushes(MagnitudeAware(0)), linear, strict=True))


def halved(x: np.ndarray) -> np.ndarray:
    """Blurred by the binomial kernel, and the mean of each 2 x 2 cells: bilinear at half the size."""
    x = blurred(x)
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def doubled(x: np.ndarray) -> np.ndarray:
    for axis in (-2, -1):  # bilinear: three quarters of the nearest cell, one quarter of the next, the edge repeated
        x = np.moveaxis(x, axis, 0)
        before, after = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
        x = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=1).reshape(-1, *x.shape[1:])
        x = np.moveaxis(x, 0, axis)
    return blurred(x)


def blurred(x: np.ndarray) -> np.ndarray:
    for axis in (-2, -1):
        x = convolve1d(x, np.array([1, 4, 6, 4, 1]) / 16, axis=axis, mode="mirror")
    return x


@pytest.mark.parametrize("parallel", [1.0, 0.25])
def test_frequency_decoupled_is_its_algorithm(parallel: float) -> None:
    cond, weak = COND[0].double().numpy(), WEAK[0].double().numpy()

    def levels(x: np.ndarray) -> list[np.ndarray]:
        return [x - doubled(halved(x)), halved(x)]

    guided = []
    for w, c, u in zip((10, 5), levels(cond), levels(weak), strict=True):
        d = c - u
        parts = [(d_b * c_b).sum() / (c_b * c_b).sum() * c_b for d_b, c_b in zip(d, c, strict=True)]
        along = np.stack(parts)
        guided.append(u + w * d - (w - 1) * (1 - parallel) * along)
    expected = torch.from_numpy(guided[0] + doubled(guided[1]))
    ours = FrequencyDecoupled(parallel=parallel).push(COND[0].double(), WEAK[0].double(), 10, STEP)
    assert relative(ours, expected) < 1e-6


def test_a_pyramid_of_odd_sizes_is_joined_again() -> None:
    cond, weak = (x[0, :, :, :7, :11] for x in (COND, WEAK))
    ours = FrequencyDecoupled(shares=(1.0, 1.0, 1.0)).push(cond, weak, 5, STEP)
    assert relative(ours, weak + 5 * (cond - weak)) < 1e-5


def test_spatially_adaptive_is_its_formula() -> None:
    ours, difference = SpatiallyAdaptive().push(COND[0], WEAK[0], 8.5, STEP), COND[0] - WEAK[0]
    for b in range(2):
        energy = (difference[b] ** 2).mean(0)
        energy = (energy - energy.min()) / (energy.max() - energy.min())
        assert relative(ours[b], WEAK[0, b] + (12 - energy * (12 - 5)) * difference[b]) < 1e-5


def test_sliding_mode_is_the_authors_loop() -> None:
    before = None
    for ours, cond, weak in zip(pushes(SlidingMode(lam=0.3, gain=0.2)), COND, WEAK, strict=True):
        e = cond - weak
        before = e if before is None else before
        s = (e - before) + 0.3 * before
        before = e + -0.2 * torch.sign(s)
        assert relative(ours, weak + 7.5 * before) < 1e-6


# --- what is asked of all ---------------------------------------------------------------------------------------------


@each_rule
def test_scale_1_is_the_conditional(rule: Mix) -> None:
    assert torch.equal(mixed(rule, COND[0], WEAK[0], 1, NOISE, STEP), COND[0])
    if not isinstance(rule, SlidingMode):  # whose difference is another at scale 1 too
        assert relative(begun_anew(rule).push(COND[0], WEAK[0], 1, STEP), COND[0]) < 1e-5


@each_rule
def test_passes_that_agree_are_not_pushed(rule: Mix) -> None:
    assert relative(pushes(rule, COND, COND)[0], COND[0]) < 1e-4


@each_rule
def test_a_batch_is_its_images(rule: Mix) -> None:
    both = pushes(rule)
    for b in range(2):
        alone = pushes(rule, COND[:, b : b + 1], WEAK[:, b : b + 1])
        for one, among in zip(alone, both, strict=True):
            assert relative(one, among[b : b + 1]) < 1e-5


@each_rule
def test_rules_differ_from_linear(rule: Mix) -> None:
    last = relative(pushes(rule)[-1], pushes(Linear())[-1])
    assert (last > 1e-3) is not isinstance(rule, Linear)


def test_linear_rules_read_the_same_in_both_spaces() -> None:
    class LinearInEps(Linear):
        space = "eps"

    class FrequencyInEps(FrequencyDecoupled):
        space = "eps"

    for rule, also in [(Linear(), LinearInEps()), (FrequencyDecoupled(), FrequencyInEps())]:
        a, b = (mixed(r, COND[0], WEAK[0], 7.5, NOISE, STEP) for r in (rule, also))
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("prediction", PREDICTIONS)
@each_rule
def test_a_rule_sees_the_estimates_in_its_own_space(unet: UNet, rule: Mix, prediction: str) -> None:
    """In "output", those are the very outputs of a network, whatever it predicts."""
    step, guidance = STEPS[6], ClassifierFree(3, rule)
    outputs = [unet(NOISE, step.now.t, part) for part in (CONDITIONS.cond, CONDITIONS.negative)]
    x_0 = [as_x_0(lambda *_, out=out: out, prediction)(NOISE, step.now, None) for out in outputs]
    seen = {"x_0": x_0, "eps": [step.now.eps(NOISE, x) for x in x_0], "output": outputs}[rule.space]
    pushed = begun_anew(rule).push(*seen, 3, step)
    read = {"x_0": "x0", "eps": "eps", "output": prediction}[rule.space]
    out = guided(as_x_0(unet, prediction), guidance, CONDITIONS)(NOISE, step)
    assert relative(out.x_0, as_x_0(lambda *_: pushed, read)(NOISE, step.now, None)) < 1e-4
    assert relative(step.now.x_t(*out), NOISE) < 1e-5


@each_rule
def test_where_no_signal_is_left(rule: Mix) -> None:
    step = replace(Flow().steps(4)[0], prediction="flow")
    if rule.space == "output":
        velocities = [NOISE - x_0 for x_0 in (COND[0], WEAK[0])]
        expected = NOISE - begun_anew(rule).push(*velocities, 3, step)
        assert relative(mixed(begun_anew(rule), COND[0], WEAK[0], 3, NOISE, step), expected) < 1e-6
    # in eps nothing can be told
    step = replace(step, prediction="eps")
    x_0 = mixed(begun_anew(rule), COND[0], WEAK[0], 3, NOISE, step)
    assert x_0.isfinite().all()
    if rule.space != "x_0":
        assert relative(x_0, WEAK[0] + 3 * (COND[0] - WEAK[0])) < 1e-6


def test_nothing_moves_on_a_flow_while_the_velocity_is_zero(unet: UNet) -> None:
    guidance = ClassifierFree(3, OptimizedScale(zero_steps=2))
    denoise = guided(as_x_0(unet, "flow"), guidance, CONDITIONS)
    moments = [x_t for _, x_t, _ in ddim(denoise, NOISE, Flow(3.0).steps(4))]
    assert relative(moments[1], NOISE) < 1e-6
    assert relative(moments[2], NOISE) > 0.1


def test_spatially_adaptive_is_linear_where_passes_differ_evenly() -> None:
    even = WEAK[0] + 0.1 * torch.tensor([1.0, -2.0, 0.5, 3.0])[:, None, None]
    assert relative(SpatiallyAdaptive().push(even, WEAK[0], 7.5, STEP), WEAK[0] + 7.5 * (even - WEAK[0])) < 1e-5


REMEMBERING = {name: RULES[name] for name in ("apg", "smc")}


@pytest.mark.parametrize("rule", REMEMBERING.values(), ids=REMEMBERING)
def test_memory_lives_for_one_sampling(unet: UNet, rule: Mix) -> None:
    for guidance in (
        ClassifierFree(3, rule),
        SegmentationFree(3, 2, mix=rule),
        Multistage((Stage("a dragon", 2, ClassifierFree(3, rule)), Stage("a fish", 2))),
    ):
        once = run(unet, guidance, steps=FOUR)
        assert torch.equal(run(unet, guidance, steps=FOUR), once)
    assert not rule.memory
    # and is written in the first evaluation of a step alone
    rule = begun_anew(rule)
    rule.push(COND[0], WEAK[0], 3, STEP)
    kept = dict(rule.memory)
    again = replace(STEP, now=STEP.to, stage=1)
    rule.push(COND[1], WEAK[1], 3, again)
    assert all(rule.memory[name] is value for name, value in kept.items())


@pytest.mark.parametrize(
    "forgetful", [AdaptiveProjected(momentum=0.0, threshold=2.0), SlidingMode(gain=0.0)], ids=["apg", "smc"]
)
def test_without_momentum_a_rule_has_no_past(forgetful: Mix) -> None:
    for among, cond, weak in zip(pushes(forgetful), COND, WEAK, strict=True):
        assert torch.equal(among, begun_anew(forgetful).push(cond, weak, 7.5, STEP))


def test_a_rule_of_one_s_own_needs_no_more_than_push() -> None:
    rule = SimpleNamespace(space="x_0", push=lambda cond, weak, scale, step: (cond + weak) / 2)
    guidance = ClassifierFree(3, rule)
    x_0 = {"cond": COND[0], "negative": WEAK[0]}
    assert torch.equal(guidance.combine(x_0, NOISE, STEP), (COND[0] + WEAK[0]) / 2)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="spread=2"):
        SpatiallyAdaptive(2)
    with pytest.raises(ValueError, match="zero_steps=1.5"):
        OptimizedScale(1.5)
