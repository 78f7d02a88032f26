"""What a guidance may do, each by the smallest that needs it, one class; and the wrappers around those that do most."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small import CONDITIONS, FOUR, NOISE, PROMPTS, SHAPE, STEPS, denoised, networks, relative, run, small_unet, told
from torch import Tensor, nn
from toys import Autoguidance, Damped, Emphasis, Faded, Manifold, Momentum, Noisy, SelfAttention, Towards

from guidance import Branch, ClassifierFree, Interval, Multistage, Probe, Rescale, Stage, Wrapper, guided
from guidance.branch import Guidance, more
from guidance.edits import record
from ldm.attention import AttentionEdit, FeatureEdit, Site
from ldm.condition import Condition, Conditions, stack
from ldm.unet import UNet
from samplers import Denoised, KeyedNoise, Step

STAGES = (Stage("a dragon", 2), Stage("a fish", 2))
LOOK = record(lambda site, weights: None)


@pytest.fixture(autouse=True)
def without_gradients():
    """As every verb runs."""
    with torch.no_grad():
        yield


# --- it remembers -----------------------------------------------------------------------------------------------------


def test_memory_lives_for_one_sampling(unet: UNet) -> None:
    guidance = Momentum(3)
    once = run(unet, guidance, steps=FOUR)
    assert torch.equal(run(unet, guidance, steps=FOUR), once)
    assert guidance.memory == {}
    predict, x, difference = networks(unet), NOISE, 0  # by hand
    for step in FOUR:
        cond, negative = (predict(x, step.now, part) for part in (CONDITIONS.cond, CONDITIONS.negative))
        difference = cond - negative + 0.5 * difference
        x_0 = negative + 3 * difference
        x = step.to.signal * x_0 + step.to.noise * step.now.eps(x, x_0)
    assert relative(once, x) < 1e-4
    assert relative(once, run(unet, ClassifierFree(3), steps=FOUR)) > 1e-2


def test_memory_is_written_in_the_first_evaluation_of_a_step_alone(unet: UNet) -> None:
    plain, twice = guided(networks(unet), Momentum(3), CONDITIONS), guided(networks(unet), Momentum(3), CONDITIONS)
    for step in STEPS[:3]:
        out = twice(NOISE, step)
        assert torch.equal(out.x_0, plain(NOISE, step).x_0)
        again = twice(NOISE, replace(step, now=step.to, stage=1))
        assert torch.equal(twice(NOISE, replace(step, now=step.to, stage=1)).x_0, again.x_0)


@pytest.mark.parametrize(
    "around",
    [
        Rescale,
        lambda inner: Interval(Rescale(inner), 0.25, 1.0),
        lambda inner: Multistage(STAGES, inner),
        lambda inner: Multistage((Stage("a dragon", 3, Interval(inner)), Stage("a fish", 1))),
        lambda inner: Probe(Rescale(inner), LOOK),
    ],
)
def test_memory_inside_wrappers_begins_anew(unet: UNet, around: Callable[[Guidance], Guidance]) -> None:
    inner = Momentum(3)
    guidance = around(inner)
    assert torch.equal(run(unet, guidance, steps=FOUR), run(unet, guidance, steps=FOUR))
    assert inner.memory == {}


# --- it draws ---------------------------------------------------------------------------------------------------------


def test_what_a_guidance_draws_is_the_image_s_own(unet: UNet) -> None:
    first_alone = replace(
        CONDITIONS,
        cond=CONDITIONS.cond.rows(slice(0, 1)),
        negative=CONDITIONS.negative.rows(slice(0, 1)),
        noise=KeyedNoise([5]),
    )
    for step in STEPS:
        among = Noisy().branches(CONDITIONS, step)["cond"].condition.tokens
        assert torch.equal(among[:1], Noisy().branches(first_alone, step)["cond"].condition.tokens)
    both = run(unet, Noisy(3), steps=FOUR)
    assert torch.equal(run(unet, Noisy(3), steps=FOUR), both)
    assert relative(run(unet, Noisy(3), first_alone, NOISE[:1], FOUR), both[:1]) < 1e-4
    assert relative(both, run(unet, ClassifierFree(3), steps=FOUR)) > 1e-2
    dumb = Conditions(CONDITIONS.cond, CONDITIONS.negative, CONDITIONS.encode)
    with pytest.raises(ValueError, match="draws noise: .*KeyedNoise"):
        run(unet, Noisy(), dumb)


# --- it has a second network ------------------------------------------------------------------------------------------


def test_a_second_network(unet: UNet) -> None:
    weak = small_unet()
    weak.conv_out.weight.mul_(0.5)
    both = {"main": networks(unet), "weak": networks(weak)}
    for step in (STEPS[0], STEPS[9]):
        cond, worse = (predict(NOISE, step.now, CONDITIONS.cond) for predict in both.values())
        assert relative(guided(both, Autoguidance(), CONDITIONS)(NOISE, step).x_0, 2 * cond - worse) < 1e-5
    for networks_given in (networks(unet), {"main": networks(unet), "other": networks(weak)}):
        with pytest.raises(ValueError, match="branch 'weak' needs a network 'weak': there is main"):
            guided(networks_given, Autoguidance(), CONDITIONS)(NOISE, STEPS[0])


# --- it has a second round --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_second_round_depends_on_the_first(unet: UNet, rounds: int) -> None:
    step = STEPS[6]
    cond = step.now.x_0(NOISE, unet(NOISE, step.now.t, CONDITIONS.cond))
    last = cond
    for _ in range(rounds):
        blurred = step.now.signal * F.avg_pool2d(last, 3, 1, 1) + step.now.noise * step.now.eps(NOISE, last)
        last = step.now.x_0(blurred, unet(blurred, step.now.t / 2, CONDITIONS.cond))
    assert relative(denoised(unet, SelfAttention(2, rounds), step).x_0, cond + 2 * (cond - last)) < 1e-5


def test_a_pass_may_be_told_a_time_of_its_own(unet: UNet) -> None:
    """Beside others in one forward; the level that turns the prediction into x_0 stays the step's."""

    @dataclass(frozen=True)
    class Late(Autoguidance):
        def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
            return {"cond": Branch(conditions.cond), "weak": Branch(conditions.cond, t=600.5)}

    step = STEPS[3]
    cond, late = (step.now.x_0(NOISE, unet(NOISE, t, CONDITIONS.cond)) for t in (step.now.t, 600.5))
    assert relative(denoised(unet, Late(), step).x_0, 2 * cond - late) < 1e-5


# --- it wants a gradient ----------------------------------------------------------------------------------------------


def test_gradients_through_the_network(unet: UNet) -> None:
    # of a network whose x_0 is k x_t: 2 k (k x_t - picture)
    picture, step = 1.0, STEPS[4]
    linear = guided(lambda x, *_: 0.3 * x, Towards(picture), CONDITIONS)
    out = linear(NOISE, step)
    torch.testing.assert_close(out.x_0, 0.3 * NOISE - 0.1 * 2 * 0.3 * (0.3 * NOISE - picture))
    assert not out.x_0.requires_grad and not out.eps.requires_grad and not NOISE.requires_grad
    # the same from the eps of the passes, where their distance is another
    by_eps = guided(lambda x, *_: 0.3 * x, Towards(picture, space="eps"), CONDITIONS)(NOISE, step)
    k = (1 - step.now.signal * 0.3) / step.now.noise
    torch.testing.assert_close(by_eps.eps, k * NOISE - 0.1 * 2 * k * (k * NOISE - picture))
    # of the U-Net: along a direction, against a difference of two distances
    double, x_t = small_unet().double(), NOISE.double()
    conditions = replace(CONDITIONS, cond=Condition(CONDITIONS.cond.tokens.double()))
    conditions = replace(conditions, negative=conditions.cond)
    moved = denoised(double, Towards(picture, 1.0), step, conditions, x_t)
    predict, along = networks(double), torch.randn(NOISE.shape, dtype=torch.float64) * 1e-5
    x_0, more, less = (predict(x, step.now, conditions.cond) for x in (x_t, x_t + along, x_t - along))
    difference = ((more - picture).square().sum() - (less - picture).square().sum()) / 2
    assert abs(((x_0 - moved.x_0) * along).sum() / difference - 1) < 1e-6


def test_gradients_are_the_same_within_a_whole_sampling(unet: UNet) -> None:
    guidance = Towards(strength=0.01)
    without = run(unet, guidance, steps=FOUR)
    with torch.enable_grad():
        assert torch.equal(run(unet, guidance, steps=FOUR), without)
    assert relative(without, run(unet, ClassifierFree(1), steps=FOUR)) > 1e-3


def test_a_whole_sampling_can_be_differentiated(unet: UNet) -> None:
    with torch.enable_grad():
        x_T = NOISE.clone().requires_grad_()
        run(unet, ClassifierFree(2), x_T=x_T, steps=FOUR[:2]).sum().backward()
    assert x_T.grad is not None and x_T.grad.abs().max() > 0


# --- it edits in place ------------------------------------------------------------------------------------------------


def test_an_edit_in_place_acts(unet: UNet) -> None:
    def out_of_place(weights: Tensor, site: Site) -> Tensor:
        return torch.cat([weights[..., :5], 4 * weights[..., 5:9], weights[..., 9:]], dim=-1)

    step = STEPS[5]
    edited = step.now.x_0(NOISE, unet(NOISE, step.now.t, CONDITIONS.cond, [[AttentionEdit(out_of_place)]]))
    plain = step.now.x_0(NOISE, unet(NOISE, step.now.t, CONDITIONS.cond))
    assert relative(edited, plain) > 1e-3
    assert relative(denoised(unet, Emphasis(), step).x_0, 2 * edited - plain) < 1e-5


# --- its cond is a text of its own ------------------------------------------------------------------------------------


def test_a_text_of_its_own(unet: UNet) -> None:
    mixed = 0.6 * CONDITIONS.cond.tokens + 0.4 * PROMPTS["a dragon"].tokens
    by_hand = run(unet, ClassifierFree(3), replace(CONDITIONS, cond=Condition(mixed)), steps=FOUR)
    assert relative(run(unet, Faded(3), steps=FOUR), by_hand) < 1e-4
    assert relative(by_hand, run(unet, ClassifierFree(3), steps=FOUR)) > 1e-2


# --- it says what the sampler goes on with ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Growing(ClassifierFree):
    """What CFG++ comes to under DDIM: classifier-free, with a scale of each step's own."""

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        scale = self.scale * step.now.sigma / (step.now.sigma - step.to.sigma)
        return x_0["negative"] + scale * (x_0["cond"] - x_0["negative"])


def test_x_0_and_eps_may_part() -> None:
    double, x_T = small_unet().double(), NOISE.double()
    conditions = Conditions(*(Condition(part.tokens.double()) for part in (CONDITIONS.cond, CONDITIONS.negative)), None)
    apart = run(double, Manifold(), conditions, x_T, FOUR)
    assert relative(apart, run(double, Growing(0.6), conditions, x_T, FOUR)) < 1e-10
    assert relative(apart, run(double, ClassifierFree(0.6), conditions, x_T, FOUR)) > 1e-3


# --- its formula is one of eps ----------------------------------------------------------------------------------------


def test_a_formula_in_eps(unet: UNet) -> None:
    step = STEPS[6]
    cond, negative = (unet(NOISE, step.now.t, part) for part in (CONDITIONS.cond, CONDITIONS.negative))
    eps = 0.9 * (negative + 3 * (cond - negative))
    out = denoised(unet, Damped(3), step)
    assert relative(out.eps, eps) < 1e-5
    assert relative(out.x_0, (NOISE - step.now.noise * eps) / step.now.signal) < 1e-5

    @dataclass(frozen=True)
    class Both(Damped):
        def combine(self, eps: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
            return Denoised(eps["cond"], eps["negative"])  # as it is: a pair is what it says

    pair = denoised(unet, Both(3), step)
    assert relative(pair.x_0, cond) < 1e-5 and relative(pair.eps, negative) < 1e-5


# --- wrappers around all of these -------------------------------------------------------------------------------------

INNER = {"second round": SelfAttention(2), "memory": Momentum(3), "pair": Manifold(), "eps": Damped(2)}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_wrappers_forward_everything(unet: UNet, inner: Guidance) -> None:
    plain = run(unet, inner, steps=FOUR)
    for nothing in (
        Wrapper(inner),
        Rescale(inner, phi=0.0),
        Interval(inner),
        Probe(inner, LOOK),
        Multistage((Stage(None, 1), Stage(None, 3)), inner),
        Interval(Probe(Rescale(Multistage((Stage(None, 1.0),), inner), phi=0.0), LOOK)),
    ):
        assert torch.equal(run(unet, nothing, steps=FOUR), plain), nothing


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_rescale_around_them(unet: UNet, inner: Guidance) -> None:
    """eps gets the deviation of the conditional one, and signal x_0 + noise eps stays what it was."""
    step = STEPS[2]
    out, before = denoised(unet, Rescale(inner, phi=1.0), step), denoised(unet, inner, step)
    cond = unet(NOISE, step.now.t, CONDITIONS.cond)
    torch.testing.assert_close(out.eps.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)), rtol=1e-4, atol=0)
    assert relative(step.now.x_t(*out), step.now.x_t(*before)) < 1e-5
    ratio = out.eps / before.eps
    assert (ratio.std(dim=(1, 2, 3)) < 1e-3 * ratio.mean(dim=(1, 2, 3))).all()


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_interval_around_them(unet: UNet, inner: Guidance) -> None:
    within, alone = guided(networks(unet), inner, CONDITIONS), guided(networks(unet), ClassifierFree(1), CONDITIONS)
    x = NOISE
    for step in FOUR:
        x_0, eps = (within if 1 <= step.i < 3 else alone)(x, step)
        x = step.to.signal * x_0 + step.to.noise * eps
    assert torch.equal(run(unet, Interval(inner, 0.25, 0.75), steps=FOUR), x)


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_multistage_around_them(unet: UNet, inner: Guidance) -> None:
    x = run(unet, inner, told("a dragon"), steps=FOUR[:2])
    apart = run(unet, inner, told("a fish"), x, FOUR[2:])
    # each stage with a guidance of its own is two samplings, one after the other
    own = Multistage([replace(stage, guidance=inner) for stage in STAGES])
    assert torch.equal(run(unet, own, steps=FOUR), apart)
    # a common one is the same, unless it remembers what happened in the stage before
    common = run(unet, Multistage(STAGES, inner), steps=FOUR)
    assert torch.equal(common, apart) is not isinstance(inner, Momentum)


def test_a_second_round_is_asked_of_the_stage_that_rules() -> None:
    stages = Multistage((Stage("a dragon", 2, SelfAttention()), Stage("a fish", 2)))
    x_0 = {"cond": torch.zeros(2, *SHAPE)}
    assert more(stages, CONDITIONS, x_0, NOISE, FOUR[1])["blurred 1"].condition is PROMPTS["a dragon"]
    assert more(stages, CONDITIONS, x_0, NOISE, FOUR[2]) == {}
    within = Interval(SelfAttention(), 0.25, 0.75)
    assert [len(more(within, CONDITIONS, x_0, NOISE, step)) for step in FOUR] == [0, 1, 1, 0]


# --- who looks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watch(Wrapper):
    """A wrapper that keeps the maps which it sees, in a list that is its owner's to give."""

    seen: list[Tensor] = field(default_factory=list)

    def see(self, site: Site, weights: Tensor) -> None:
        self.seen.append(weights)

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        cond = super().branches(conditions, step)["cond"]
        return {**super().branches(conditions, step), "cond": replace(cond, edits=(record(self.see),))}


class Owner:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def see(self, site: Site, weights: Tensor) -> None:
        self.seen.append(weights)


def keep(seen: list[Tensor], site: Site, weights: Tensor) -> None:
    seen.append(weights)


def test_maps_reach_their_owner(unet: UNet) -> None:
    owner, by_partial, by_closure, watch = Owner(), list[Tensor](), list[Tensor](), Watch(Momentum(3))

    def close(site: Site, weights: Tensor) -> None:
        by_closure.append(weights)

    for guidance in (
        Probe(Momentum(3), record(owner.see)),
        Rescale(Probe(Momentum(3), record(partial(keep, by_partial)))),
        Multistage(STAGES, Probe(Momentum(3), record(close))),
        Interval(watch),
        Probe(Momentum(3), record(watch.see)),
    ):
        denoised(unet, guidance, FOUR[0])
    maps = sum(name.endswith("attn2") for name, _ in unet.named_modules())
    assert [len(seen) for seen in (owner.seen, by_partial, by_closure, watch.seen)] == [maps, maps, maps, 2 * maps]


def test_a_probe_of_features_keeps_the_picture(unet: UNet) -> None:
    seen = list[Tensor]()

    def look(features: Tensor, site: Site) -> Tensor:
        seen.append(features)
        return features

    probe = Probe(ClassifierFree(3), FeatureEdit(look, lambda site: site.kind == "resnet"))
    assert torch.equal(run(unet, probe, steps=FOUR), run(unet, ClassifierFree(3), steps=FOUR))
    assert len(seen) == 4 * sum(name.split(".")[-2:-1] == ["resnets"] for name, _ in unet.named_modules())


# --- what a condition keeps -------------------------------------------------------------------------------------------


def test_keys_and_values_are_made_once_a_sampling(unet: UNet) -> None:
    made = list[str]()
    layers = [(name, layer) for name, layer in unet.named_modules() if name.endswith("attn2.to_k")]
    hooks = [layer.register_forward_hook(lambda *_, name=name: made.append(name)) for name, layer in layers]
    run(unet, ClassifierFree(3), steps=FOUR)
    assert made == [name for name, _ in layers]
    run(unet, Multistage(STAGES, ClassifierFree(3)), steps=FOUR)
    assert len(made) == 3 * len(layers)
    # a condition made by hand keeps nothing
    unet(NOISE, 500, CONDITIONS.cond)
    unet(NOISE, 500, CONDITIONS.cond)
    assert len(made) == 5 * len(layers) and CONDITIONS.cond.kept is None
    for hook in hooks:
        hook.remove()


def test_nothing_that_is_kept_outlives_its_weights() -> None:
    """Swapped weights and wrapped layers, as of a LoRA, count in the next sampling under the same conditions."""

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    net, other, step = small_unet(), small_unet(), STEPS[4]
    before = denoised(net, ClassifierFree(3), step).x_0
    for module in (net, other):
        layers = [layer for name, layer in module.named_modules() if name.endswith("attn2")]
        state = module.state_dict()
        if module is net:
            module.load_state_dict({key: 1.5 * value for key, value in state.items()}, assign=True)
        else:
            for value in state.values():
                value.mul_(1.5)
        for layer in layers:
            layer.to_v = Doubled(layer.to_v)
    after = denoised(net, ClassifierFree(3), step).x_0
    assert torch.equal(after, denoised(other, ClassifierFree(3), step).x_0)
    assert relative(after, before) > 1e-2


def test_conditions_are_stacked_whole() -> None:
    tokens, vector, channels = torch.randn(2, 5, 3), torch.randn(2, 4), torch.randn(2, 1, 8, 8)
    one, other = Condition(tokens, vector, channels), Condition(-tokens, -vector, -channels)
    both = stack([one, other])
    assert torch.equal(both.tokens, torch.cat([tokens, -tokens]))
    assert torch.equal(both.vector, torch.cat([vector, -vector]))
    assert torch.equal(both.channels, torch.cat([channels, -channels]))
    assert both.kept == {} and one.kept is None
    assert torch.equal(both.rows(slice(2, 4)).channels, -channels)
    nothing = stack([Condition(), Condition()])
    assert nothing.tokens is nothing.vector is nothing.channels is None
    for mixed, said in [
        ([one, replace(other, vector=None)], "1 of 2 passes of a step have vector: all must, or none"),
        ([replace(one, tokens=None), other], "1 of 2 passes of a step have tokens"),
        ([one, other, replace(other, channels=None)], "2 of 3 passes of a step have channels"),
    ]:
        with pytest.raises(ValueError, match=said):
            stack(mixed)


def test_nothing_mutates_its_arguments(unet: UNet) -> None:
    x_T, tokens = NOISE.clone(), CONDITIONS.cond.tokens.clone()
    for guidance in (*INNER.values(), Towards(strength=0.01), Emphasis(), Noisy()):
        run(unet, guidance, steps=FOUR[:2])
    assert torch.equal(NOISE, x_T) and torch.equal(CONDITIONS.cond.tokens, tokens)
