"""Every mix rule with every weak pass, and everything around everything, for three steps."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small import CONDITIONS, NOISE, PROMPTS, Tiny, networks, relative, small_classifier, small_unet
from tiny import tiny_model
from torch import Tensor

from guidance import (
    AdaptiveProjected,
    AttendAndExcite,
    AttentionTemperature,
    Autoguidance,
    CFGPlusPlus,
    ClassifierFree,
    ClassifierGuided,
    ClipGuided,
    Composable,
    ConditionAnnealed,
    DegradedCondition,
    DynamicThreshold,
    FreeU,
    FrequencyDecoupled,
    IndependentCondition,
    Interval,
    Linear,
    MagnitudeAware,
    Mix,
    Momentum,
    Multistage,
    OptimizedScale,
    PerpNeg,
    PerturbedAttention,
    Probe,
    Rescale,
    Scheduled,
    SegmentationFree,
    SelfAttentionGuidance,
    SemanticAware,
    SlidingMode,
    SmoothedEnergy,
    SparseCross,
    SpatiallyAdaptive,
    Stage,
    Tangential,
    guided,
)
from guidance.branch import Guidance
from guidance.edits import record
from ldm.condition import Condition, Conditions
from ldm.unet import UNet
from samplers import KeyedNoise, Schedule

STEPS = Schedule().steps(3)
ONE = slice(0, 1)


def encode(prompt: str) -> Condition:
    return (PROMPTS[prompt] if prompt else CONDITIONS.negative).rows(ONE)


ROWS = CONDITIONS.cond.rows(ONE), CONDITIONS.negative.rows(ONE)
TOLD = Conditions(*ROWS, encode, KeyedNoise([5]), tiny_model().autoencoder.decode)

RULES: dict[str, Mix] = {
    "apg": AdaptiveProjected(threshold=1.0),
    "thresholded": AdaptiveProjected(eta=1.0, threshold=0.2, momentum=0.0),
    "tcfg": Tangential(),
    "cfg_zero": OptimizedScale(),
    "fdg": FrequencyDecoupled(),
    "samg": SpatiallyAdaptive(),
    "smc": SlidingMode(gain=0.1),
    "mambo": MagnitudeAware(),
}
WEAK: dict[str, Callable[[Mix], Guidance]] = {
    "cfg": lambda mix: ClassifierFree(3, mix),
    "segmentation_free": lambda mix: SegmentationFree(3, 1, sf_scale=3, mix=mix),
    "scores": lambda mix: SegmentationFree(3, 1, sf_scale=3, apply="scores", mix=mix),
    "pag": lambda mix: PerturbedAttention(ClassifierFree(2), 3, mix=mix),
    "seg": lambda mix: SmoothedEnergy(ClassifierFree(1), 3, mix=mix),
    "sag": lambda mix: SelfAttentionGuidance(ClassifierFree(2), 2, mix=mix),
    "autoguidance": lambda mix: Autoguidance(2, mix),
    "icg": lambda mix: IndependentCondition(3, mix),
    "cdg": lambda mix: DegradedCondition(3, mix),
    "scfg": lambda mix: SemanticAware(3, finest=1, coarsest=8, mix=mix),
    "cfg_pp": lambda mix: CFGPlusPlus(1.0, mix),  # at less it amounts to less than the conditional in three steps
}
SEVERAL: dict[str, Guidance] = {  # passes, whose rule is their own
    "composable": Composable(({"prompt": "a dragon", "weight": 2}, {"prompt": "a fish", "weight": -1}), scale=3),
    "perp_neg": PerpNeg(({"prompt": "a dragon", "weight": 1.5},)),
}
WHEN = ("stages", "interval")
AROUND: dict[str, Callable[[Guidance], Guidance]] = {
    "stages": lambda inner: Multistage((Stage("a dragon", 1), Stage("a fish", 2)), inner),
    "stage": lambda inner: Multistage((Stage("a dragon", 2, inner), Stage(None, 1, SegmentationFree(3, 0)))),
    "interval": lambda inner: Interval(inner, 0.3, 1.0),
    "rescale": Rescale,
    "probe": lambda inner: Probe(inner, record(lambda site, weights: None)),
    "scheduled": Scheduled,
    "dynamic_threshold": lambda inner: DynamicThreshold(inner, limit=1.0),  # by mimic an x_0 that is cond's stays
    "momentum": Momentum,
    "cads": ConditionAnnealed,
    "pladis": SparseCross,
    "temperature": AttentionTemperature,
    "freeu": FreeU,
    "pag": PerturbedAttention,
    "seg": SmoothedEnergy,
    "sag": SelfAttentionGuidance,
    "attend_and_excite": lambda inner: AttendAndExcite(inner, step_size=1.0, downscale=2, rounds=1),
    "classifier": lambda inner: ClassifierGuided(inner, small_classifier(), 2.0),
    "clip": lambda inner: ClipGuided(inner, Tiny(), 2.0, cutouts=1),
}


@pytest.fixture(scope="module")
def both() -> dict[str, UNet]:
    weak = small_unet()
    with torch.no_grad():
        weak.conv_out.weight.mul_(0.5)
    return {"main": small_unet(), "weak": weak}


def sampled(both: dict[str, UNet], guidance: Guidance) -> Tensor:
    with torch.no_grad():
        denoise, x = guided(networks(both), guidance, TOLD), NOISE[ONE]
        for step in STEPS:
            x = step.to.x_t(*denoise(x, step))
    assert x.isfinite().all() and x.norm() < 100 * NOISE[ONE].norm()
    return x


def inners(weak: str) -> list[Guidance]:
    return [SEVERAL[weak]] if weak in SEVERAL else [WEAK[weak](mix) for mix in (Linear(), *RULES.values())]


@pytest.mark.parametrize("weak", [*WEAK, *SEVERAL])
def test_every_rule_with_every_weak_pass_alone_in_stages_and_in_an_interval(both: dict[str, UNet], weak: str) -> None:
    pictures = [sampled(both, inner) for inner in inners(weak)]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert relative(one, other) > 1e-4
    for inner, bare in zip(inners(weak), pictures, strict=True):
        for when in WHEN:
            assert relative(sampled(both, AROUND[when](inner)), bare) > 1e-5, (when, inner)


@pytest.mark.slow
@pytest.mark.parametrize("around", sorted(AROUND.keys() - WHEN))
@pytest.mark.parametrize("weak", [*WEAK, *SEVERAL])
def test_all_else_around_every_rule_with_every_weak_pass(both: dict[str, UNet], around: str, weak: str) -> None:
    if around == weak:
        return  # refused, see below
    for inner in inners(weak):
        found = relative(sampled(both, AROUND[around](inner)), sampled(both, inner))
        assert found == 0 if around == "probe" else found > 1e-5, inner


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_everything_around_them(both: dict[str, UNet], around: Callable[[Guidance], Guidance]) -> None:
    """Stages, intervals, corrections, weak passes and edits: with rules that remember, a second round, and stages."""
    inner = SelfAttentionGuidance(SmoothedEnergy(ClassifierFree(3, RULES["apg"]), 2, ("up_blocks",), mix=RULES["smc"]))
    for within in (inner, SegmentationFree(3, 1, sf_scale=3, mix=RULES["tcfg"]), WEAK["cfg_pp"](RULES["fdg"])):
        if within is inner and around in (SmoothedEnergy, SelfAttentionGuidance):
            within = inner.inner.inner  # a pass of a name of its own
        assert torch.equal(sampled(both, around(within)), sampled(both, around(within)))
    assert not RULES["apg"].memory and not RULES["smc"].memory and not inner.maps


TELLING_ANOTHER = {"pladis", "temperature", "freeu", "cads", "stages", "stage"}  # than the prompt's plain pass


@pytest.mark.parametrize("name", sorted(AROUND.keys() - TELLING_ANOTHER))
def test_outside_an_interval_each_is_the_conditional_alone(both: dict[str, UNet], name: str) -> None:
    nothing = sampled(both, Interval(AROUND[name](ClassifierFree(3)), 0.0, 0.0))
    assert relative(nothing, sampled(both, ClassifierFree(1))) < 1e-5


def test_stages_with_a_guidance_each(both: dict[str, UNet]) -> None:
    """A stage of each of three kinds is what they do one after another."""
    kinds = [WEAK["pag"](RULES["apg"]), WEAK["sag"](RULES["samg"]), WEAK["segmentation_free"](RULES["tcfg"])]
    prompts = ["a dragon", "a fish", None]
    x = NOISE[ONE]
    with torch.no_grad():
        for step, kind, prompt in zip(STEPS, kinds, prompts, strict=True):
            told = TOLD if prompt is None else replace(TOLD, cond=encode(prompt))
            x = step.to.x_t(*guided(networks(both), kind, told)(x, step))
    stages = [Stage(prompt, 1, kind) for prompt, kind in zip(prompts, kinds, strict=True)]
    assert torch.equal(sampled(both, Multistage(tuple(stages))), x)


@pytest.mark.parametrize("edited", ["pladis", "temperature", "freeu"])
@pytest.mark.parametrize("inner", [ClassifierFree(3), SegmentationFree(3, 1, sf_scale=3, apply="scores")])
def test_a_weak_pass_differs_from_the_conditional_by_its_perturbation_alone(
    both: dict[str, UNet], edited: str, inner: Guidance
) -> None:
    """So one that perturbs nothing leaves what is inside it, whatever edits that has."""
    within = AROUND[edited](inner)
    for unperturbed in (PerturbedAttention(within, layers=("nowhere",)), SmoothedEnergy(within, sigma=0.0)):
        assert relative(sampled(both, unperturbed), sampled(both, within)) < 1e-4


def test_a_guidance_that_adds_a_pass_is_refused_inside_another_of_its_class() -> None:
    for outer in (PerturbedAttention, SmoothedEnergy, SelfAttentionGuidance):
        with pytest.raises(ValueError, match=f"holds a {outer.__name__}"):
            outer(Rescale(outer(ClassifierFree(3))))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("apg", "smc")])
def test_a_rule_inside_cfg_pp_is_the_rule_of_classifier_free_guidance(both: dict[str, UNet], rule: str) -> None:
    """At the scale that CFG++ amounts to under DDIM: both steps end in the same place."""
    for step in Schedule().steps(12)[:-1:3]:
        g = 1 / (1 - step.to.sigma / step.now.sigma)
        ends = []
        for guidance in (CFGPlusPlus(1.0, RULES[rule]), ClassifierFree(g, RULES[rule])):
            with torch.no_grad():
                ends.append(step.to.x_t(*guided(networks(both), guidance, TOLD)(NOISE[ONE], step)))
        assert relative(*ends) < 1e-4
