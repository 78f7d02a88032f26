"""The algebra of the guidances of today, on a tiny U-Net with random weights."""

from dataclasses import dataclass, replace

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from small import CONDITIONS, NOISE, PROMPTS, STEPS, denoised, networks, passes, relative, run, told
from torch import Tensor

from guidance import (
    Branch,
    ClassifierFree,
    Interval,
    Multistage,
    OptimizedScale,
    Probe,
    Rescale,
    SegmentationFree,
    Stage,
    guided,
)
from guidance.branch import Guidance, plan
from guidance.edits import leave_out, only_at, record, scale_strongest
from ldm.attention import AttentionEdit, Edits, Site
from ldm.condition import Condition, Conditions, Span
from ldm.unet import UNet
from samplers import Flow, Level, Schedule, Step, as_x_0


def eps_of(unet: UNet, guidance: Guidance, step: Step = STEPS[0], conditions: Conditions = CONDITIONS) -> Tensor:
    return denoised(unet, guidance, step, conditions).eps


def predicted(unet: UNet, condition: Condition, step: Step = STEPS[0], edit: AttentionEdit | None = None) -> Tensor:
    """eps of one pass, without any guidance."""
    return unet(NOISE, step.now.t, condition, [[edit]] if edit else ())


def test_classifier_free_is_its_formula_over_separate_passes(unet: UNet) -> None:
    cond, negative = predicted(unet, CONDITIONS.cond), predicted(unet, CONDITIONS.negative)
    w = 6.5
    assert relative(eps_of(unet, ClassifierFree(7.5)), (w + 1) * cond - w * negative) < 1e-5  # Ho & Salimans eq. 6
    assert relative(eps_of(unet, ClassifierFree(0)), negative) < 1e-6


def test_scale_1_is_the_conditional_at_half_the_cost(unet: UNet) -> None:
    alone = denoised(unet, ClassifierFree(1))
    assert torch.equal(alone.x_0, STEPS[0].now.x_0(NOISE, predicted(unet, CONDITIONS.cond)))
    assert relative(alone.eps, predicted(unet, CONDITIONS.cond)) < 1e-6
    assert passes(ClassifierFree(1)) == [1] * 10
    assert passes(ClassifierFree(2)) == [2] * 10


def test_every_guidance_in_one_batch_equals_separate_passes(unet: UNet) -> None:
    plain = networks(unet)

    def one_by_one(x: Tensor, level: Level, condition: Condition, edits: Edits, t: float) -> Tensor:
        parts = zip(
            x.chunk(2), (condition.rows(slice(0, 2)), condition.rows(slice(2, 4))), edits or [(), ()], strict=True
        )
        return torch.cat([plain(x_k, level, condition_k, [edits_k], t) for x_k, condition_k, edits_k in parts])

    for guidance in (ClassifierFree(), SegmentationFree(cfg_steps=0), Rescale(SegmentationFree())):
        for step in (STEPS[0], STEPS[9]):
            separate = guided(one_by_one, guidance, CONDITIONS)(NOISE, step)
            assert relative(eps_of(unet, guidance, step), separate.eps) < 1e-5


def test_branches_split_for_memory_give_the_same(unet: UNet) -> None:
    plain, rows = networks(unet), list[int]()

    def counted(x: Tensor, level: Level, condition: Condition, edits: Edits, t: float) -> Tensor:
        rows.append(len(x))
        return plain(x, level, condition, edits, t)

    words = SegmentationFree(cfg_steps=0, candidates="words")  # whose edit has one mask per image
    for guidance in (ClassifierFree(), words):
        whole = eps_of(unet, guidance, STEPS[9])
        for max_batch, expected in [(None, [4]), (4, [4]), (3, [2, 2]), (2, [2, 2])]:  # a branch is never cut
            rows.clear()
            split = guided(counted, guidance, CONDITIONS, max_batch)(NOISE, STEPS[9])
            assert rows == expected
            assert relative(split.eps, whole) < 1e-5
        with pytest.raises(ValueError, match="max_batch=1: one pass has 2 rows"):
            guided(counted, guidance, CONDITIONS, 1)(NOISE, STEPS[9])


def test_the_network_sees_the_same_condition_in_every_step(unet: UNet) -> None:
    """So that it need not read it anew; and what is kept of one condition is never taken for another's."""
    plain, shown = networks(unet), list[Condition]()

    def predict(x: Tensor, level: Level, condition: Condition, edits: Edits, t: float) -> Tensor:
        shown.append(condition)
        return plain(x, level, condition, edits, t)

    def forgetful(x: Tensor, level: Level, condition: Condition, edits: Edits, t: float) -> Tensor:
        return plain(x, level, replace(condition, kept=None), edits, t)

    stages = Multistage([Stage("a dragon", 4), Stage("a fish", 6)], Interval(ClassifierFree(3), 0.2, 0.8))
    denoise, anew = guided(predict, stages, CONDITIONS), guided(forgetful, stages, CONDITIONS)
    for step in STEPS:
        assert torch.equal(denoise(NOISE, step).x_0, anew(NOISE, step).x_0)
    assert [i for i in range(1, 10) if shown[i] is not shown[i - 1]] == [2, 4, 8]


def test_segmentation_free_is_its_formula(unet: UNet) -> None:
    a, w_bar, step = 10.0, 2.0, STEPS[7]

    def by_loops(weights: Tensor, site: Site) -> Tensor:
        out = weights.clone()
        for b in range(weights.shape[0]):
            for h in range(weights.shape[1]):
                for p in range(weights.shape[2]):
                    k = 1 + int(weights[b, h, p, 1:].argmax())
                    out[b, h, p, k] = -a * weights[b, h, p, k]
        return out

    eps_c = predicted(unet, CONDITIONS.cond, step)
    eps_n = predicted(unet, CONDITIONS.cond, step, AttentionEdit(by_loops))
    assert relative(eps_n, eps_c) > 1e-2  # the edit does something
    guidance = SegmentationFree(scale=7.5, cfg_steps=5, sf_strength=w_bar, sf_scale=a)
    assert relative(eps_of(unet, guidance, step), eps_c + w_bar * (eps_c - eps_n)) < 1e-5
    assert torch.equal(eps_of(unet, guidance, STEPS[4]), eps_of(unet, ClassifierFree(7.5), STEPS[4]))
    assert passes(guidance) == [2] * 10


def test_segmentation_free_pushes_out_in_its_layers_alone(unet: UNet) -> None:
    everywhere = run(unet, SegmentationFree(cfg_steps=0, sf_scale=3))
    blocks = run(unet, SegmentationFree(cfg_steps=0, sf_scale=3, layers=("down_blocks", "mid_block", "up_blocks")))
    assert torch.equal(blocks, everywhere)
    assert torch.equal(run(unet, SegmentationFree(cfg_steps=0, layers=())), run(unet, ClassifierFree(1)))

    edit = only_at(["up_blocks.1"], scale_strongest(-3))
    step = STEPS[5]
    eps_c, eps_n = predicted(unet, CONDITIONS.cond, step), predicted(unet, CONDITIONS.cond, step, edit)
    some = SegmentationFree(cfg_steps=0, sf_scale=3, layers=("up_blocks.1",))
    assert relative(eps_of(unet, some, step), eps_c + 2 * (eps_c - eps_n)) < 1e-5
    assert relative(eps_of(unet, some, step), eps_of(unet, SegmentationFree(cfg_steps=0, sf_scale=3), step)) > 1e-3


def test_cfg_steps_counts_or_is_a_fraction() -> None:
    def classifier_free(cfg_steps: int | float) -> int:
        guidance = SegmentationFree(cfg_steps=cfg_steps)
        return sum("negative" in guidance.branches(CONDITIONS, step) for step in STEPS)

    for cfg_steps, count in [(0, 0), (1, 1), (10, 10), (99, 10), (0.0, 0), (0.25, 3), (0.3, 3), (1.0, 10)]:
        assert classifier_free(cfg_steps) == count


def strongest(weights: Tensor, edit: AttentionEdit) -> Tensor:
    """Which tokens an edit by factor 0 sets to zero, [B, H, P]."""
    changed = edit.function(weights, Site("x", "cross", 2, 2)) == 0
    assert (changed.sum(-1) == 1).all()
    return changed.float().argmax(-1)


def test_choices_of_the_strongest_token() -> None:
    weights = torch.rand(2, 3, 4, 77).softmax(-1)
    weights[..., 0] = 2  # BOS is the strongest everywhere, and never chosen
    by_head = strongest(weights, scale_strongest(0.0, "head"))
    assert torch.equal(by_head, weights[..., 1:].argmax(-1) + 1)
    by_mean = strongest(weights, scale_strongest(0.0, "mean"))
    assert torch.equal(by_mean, (weights.mean(1, keepdim=True)[..., 1:].argmax(-1) + 1).expand(2, 3, 4))
    spans = ((Span("a", 1, 2), Span("fish", 2, 4)), (Span("cats", 5, 7),))
    words = strongest(weights, scale_strongest(0.0, "head", spans))
    assert set(words[0].unique().tolist()) <= {1, 2, 3}
    assert torch.equal(words[1], weights[1, ..., 5:7].argmax(-1) + 5)


@pytest.mark.parametrize("argmax", ["head", "mean"])
def test_an_image_whose_prompt_has_no_words_stays_as_it_is(unet: UNet, argmax: str) -> None:
    weights = torch.rand(2, 3, 4, 77).softmax(-1)
    weights[..., 0] = 2
    spans = ((Span("a", 1, 2),), ())
    changed = scale_strongest(-10.0, argmax, spans).function(weights, Site("x", "cross", 2, 2))
    assert torch.equal(changed[1], weights[1])
    assert torch.equal(changed[0, ..., 1], -10 * weights[0, ..., 1])
    # so that it is drawn by the conditional alone, beside one that is not
    conditions = replace(CONDITIONS, cond=replace(CONDITIONS.cond, spans=spans))
    guidance = SegmentationFree(cfg_steps=0, candidates="words", argmax=argmax)
    got, alone = eps_of(unet, guidance, STEPS[9], conditions), eps_of(unet, ClassifierFree(1), STEPS[9])
    assert relative(got[1], alone[1]) < 1e-5 and relative(got[0], alone[0]) > 1e-3


def test_words_come_from_the_prompt_of_the_stage() -> None:
    """Inside a stage the candidates are the words of that stage's prompt, not of the image's."""
    fish = replace(PROMPTS["a fish"], spans=((Span("fish", 2, 3),),) * 2)
    conditions = replace(CONDITIONS, encode=lambda prompt: fish)
    inner = SegmentationFree(cfg_steps=0, candidates="words")
    (edit,) = Multistage([Stage("a fish", 10)], inner).branches(conditions, STEPS[0])["rest"].edits
    weights = torch.rand(2, 2, 4, 77)
    changed = edit.function(weights, Site("x", "cross", 2, 2)) != weights
    assert changed[..., 2].all()
    assert changed.sum() == 2 * 2 * 4


def test_edit_that_multiplies_by_1_makes_segmentation_free_the_conditional(unet: UNet) -> None:
    @dataclass(frozen=True)
    class Unchanged(SegmentationFree):
        def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
            branches = super().branches(conditions, step)
            return {**branches, "rest": Branch(conditions.cond, (scale_strongest(1.0),))}

    got = eps_of(unet, Unchanged(cfg_steps=0), STEPS[3])
    assert relative(got, eps_of(unet, ClassifierFree(1), STEPS[3])) < 1e-5


def test_sites_are_told_to_edits_and_restrict_them(unet: UNet) -> None:
    seen: list[tuple[Site, tuple[int, ...]]] = []
    probe = record(lambda site, weights: seen.append((site, tuple(weights.shape))), lambda site: True)
    predicted(unet, CONDITIONS.cond, edit=probe)
    assert {site.kind for site, _ in seen} == {"self", "cross"}
    assert {(site.height, site.width) for site, _ in seen} == {(8, 12), (4, 6)}
    for site, (_, _, patches, keys) in seen:
        assert patches == site.height * site.width
        assert keys == (77 if site.kind == "cross" else patches)
    names = {site.name for site, _ in seen}
    assert names == {name for name, _ in unet.named_modules() if name.endswith(("attn1", "attn2"))}

    seen.clear()
    predicted(unet, CONDITIONS.cond, edit=only_at(["up_blocks.1"], probe))
    assert {site.name for site, _ in seen} == {name for name in names if name.startswith("up_blocks.1")}


def test_left_out_tokens_are_masked_keys() -> None:
    scores = torch.randn(2, 2, 4, 77)
    spans = ((Span("fish", 2, 4),), (Span("a", 1, 2), Span("cat", 5, 6)))
    masked = scores.clone()
    masked[0, ..., 2:4] = masked[1, ..., 1] = masked[1, ..., 5] = -torch.inf
    got = leave_out(spans).function(scores.softmax(-1), Site("x", "cross", 2, 2))
    torch.testing.assert_close(got, masked.softmax(-1))


def test_what_is_left_of_a_patch_that_saw_a_left_out_token_alone_is_shared_equally() -> None:
    scores = torch.zeros(1, 1, 1, 5)
    scores[..., 2] = 500  # the weights of the others are 0 in float32
    got = leave_out([(Span("fish", 2, 3),)]).function(scores.softmax(-1), Site("x", "cross", 1, 1))
    assert got is not None and got.flatten().tolist() == [0.25, 0.25, 0, 0.25, 0.25]


def test_multistage_with_equal_stages_is_one_stage(unet: UNet) -> None:
    one = run(unet, ClassifierFree(3))
    same = replace(CONDITIONS, encode=lambda prompt: CONDITIONS.cond)
    assert torch.equal(run(unet, Multistage([Stage("x", 4), Stage("y", 6)], ClassifierFree(3)), same), one)
    assert torch.equal(run(unet, Multistage([Stage(None, 4), Stage(None, 6)], ClassifierFree(3))), one)


def test_multistage_equals_two_samplings_one_after_the_other(unet: UNet) -> None:
    guidance = Multistage([Stage("a dragon", 4), {"prompt": "never", "steps": 0}, {"prompt": "a fish", "steps": 6}])
    # the first part ends at the level that its last step leads to
    by_hand = run(unet, ClassifierFree(), told("a dragon"), steps=STEPS[:4])
    by_hand = run(unet, ClassifierFree(), told("a fish"), by_hand, STEPS[4:])
    assert torch.equal(run(unet, guidance), by_hand)


def test_stage_guidance_and_inner_guidance(unet: UNet) -> None:
    stages = [Stage("a dragon", 4), Stage("a fish", 6, SegmentationFree(cfg_steps=5, sf_scale=5))]
    guidance = Multistage(stages, Rescale(ClassifierFree(4)))
    names = [tuple(guidance.branches(CONDITIONS, step)) for step in STEPS]
    # cfg_steps counts from the start of sampling, so one step of the second stage is still classifier-free
    assert names == [("cond", "negative")] * 5 + [("cond", "rest")] * 5
    common = eps_of(unet, Rescale(ClassifierFree(4)), STEPS[3], told("a dragon"))
    assert torch.equal(eps_of(unet, guidance, STEPS[3]), common)
    own = eps_of(unet, stages[1].guidance, STEPS[6], told("a fish"))
    assert torch.equal(eps_of(unet, guidance, STEPS[6]), own)


@pytest.mark.parametrize(
    ("wanted", "n", "counts"),
    [
        ([8, 12], 20, [8, 12]),
        ([0, 20], 20, [0, 20]),
        ([0.4, 0.6], 20, [8, 12]),
        ([0.5, 0.5], 7, [4, 3]),
        ([1 / 3, 1 / 3, 1 / 3], 20, [7, 7, 6]),
        ([0.1, 0.0, 0.9], 10, [1, 0, 9]),
        ([1.0], 5, [5]),
        ([0, 1.0], 5, [0, 5]),
        ([0.29, 0.71], 100, [29, 71]),
    ],
)
def test_steps_of_stages(wanted: list[float], n: int, counts: list[int]) -> None:
    assert Multistage([Stage("x", steps) for steps in wanted]).counts(n) == counts


def test_plan_is_the_prompt_of_every_step() -> None:
    stages = Multistage([Stage("a dragon", 0.4), Stage(None, 0.2), Stage("a fish", 0.4)])
    expected = ["a dragon"] * 4 + [None] * 2 + ["a fish"] * 4
    assert plan(stages, STEPS) == expected
    for wrapper in (Rescale(stages), Interval(stages, 0.2, 0.8), Probe(stages, record(lambda *_: None))):
        assert plan(Rescale(wrapper), STEPS) == expected
    assert plan(ClassifierFree(), STEPS) == plan(Rescale(ClassifierFree()), STEPS) == [None] * 10
    # a stage's own guidance may have stages too, and then it is their prompts that are shown
    inside = Multistage([Stage("a cat", 8), Stage(None, 2)])
    outside = Multistage([Stage("a dragon", 5), Stage("a fish", 5, Rescale(inside))])
    assert plan(outside, STEPS) == ["a dragon"] * 5 + ["a cat"] * 3 + ["a fish"] * 2
    # with `start`, the last of the steps
    assert plan(stages, Schedule().steps(10, start=0.5)) == expected[5:]
    too_few = Multistage([Stage("a dragon", 4), Stage("a fish", 5)])
    for guidance in (too_few, Rescale(Interval(too_few)), Multistage([Stage("x", 1.0, too_few)])):
        with pytest.raises(ValueError, match=r"\[4, 5\] sum to 9, but the sampler takes 10 steps"):
            plan(guidance, STEPS)


def test_rescale_gives_the_conditional_deviation(unet: UNet) -> None:
    cond = eps_of(unet, ClassifierFree(1))
    full = eps_of(unet, Rescale(ClassifierFree(7.5), phi=1.0))
    torch.testing.assert_close(full.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))
    plain = eps_of(unet, ClassifierFree(7.5))
    assert torch.equal(eps_of(unet, Rescale(ClassifierFree(7.5), phi=0.0)), plain)
    part = denoised(unet, Rescale(ClassifierFree(7.5), phi=0.7))
    torch.testing.assert_close(part.eps, 0.7 * full + 0.3 * plain)
    assert relative(part.x_0, STEPS[0].now.x_0(NOISE, part.eps)) < 1e-5
    # per image: one image alone gets what it gets among others
    ratio = full / plain
    assert ratio[0].std() < 1e-4 * ratio[0].mean()
    assert abs(ratio[0].mean() - ratio[1].mean()) > 1e-6


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_rescale_is_diffusers_function_of_what_the_network_predicts(unet: UNet, prediction: str) -> None:
    step = (Flow() if prediction == "flow" else Schedule()).steps(10)[2]
    predict = as_x_0(unet, prediction)
    cond, negative = (unet(NOISE, step.now.t, part) for part in (CONDITIONS.cond, CONDITIONS.negative))
    out = guided(predict, Rescale(ClassifierFree(7.5), phi=0.7), CONDITIONS)(NOISE, step)
    theirs = rescale_noise_cfg(negative + 7.5 * (cond - negative), cond, 0.7)
    assert relative(out.x_0, as_x_0(lambda *_: theirs, prediction)(NOISE, step.now, None)) < 1e-5
    assert relative(step.now.x_t(*out), NOISE) < 1e-6
    in_eps = guided(predict, Rescale(ClassifierFree(7.5), 0.7, "eps"), CONDITIONS)(NOISE, step)
    assert (relative(in_eps.x_0, out.x_0) < 1e-5) is (prediction == "eps")


def test_rescale_leaves_what_has_no_deviation(unet: UNet) -> None:
    """Not even rounding of it."""
    nothing = ClassifierFree(3, OptimizedScale(zero_steps=1))
    plain, rescaled = (denoised(unet, one).eps for one in (nothing, Rescale(nothing)))
    assert plain.abs().max() < 1e-5 and rescaled.abs().max() < 1e-5


def test_rescale_changes_nothing_where_no_signal_is_left() -> None:
    """There eps is x_t, whatever the estimates of x_0 are."""
    (step, *_) = Flow().steps(4)
    assert step.prediction == "eps"
    x_0 = {"cond": torch.randn(2, 3), "negative": torch.randn(2, 3)}
    x_t = torch.randn(2, 3)
    out = Rescale(ClassifierFree(3), phi=1.0).combine(x_0, x_t, step)
    torch.testing.assert_close(out.x_0, x_0["negative"] + 3 * (x_0["cond"] - x_0["negative"]))
    assert torch.equal(out.eps, x_t)


def test_interval_runs_the_conditional_alone_outside(unet: UNet) -> None:
    guidance = Interval(ClassifierFree(5), start=0.2, stop=0.5)
    assert passes(guidance) == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    assert torch.equal(eps_of(unet, guidance, STEPS[1]), eps_of(unet, ClassifierFree(1), STEPS[1]))
    assert torch.equal(eps_of(unet, guidance, STEPS[2]), eps_of(unet, ClassifierFree(5), STEPS[2]))
    sigma = [step.now.sigma for step in STEPS]
    assert passes(Interval(ClassifierFree(5), sigma_lo=sigma[6], sigma_hi=sigma[3])) == [1, 1, 1, 2, 2, 2, 1, 1, 1, 1]


def test_wrappers_nest_in_any_order(unet: UNet) -> None:
    stages = [Stage("a dragon", 4), Stage("a fish", 6)]
    inside = Multistage(stages, Interval(Rescale(SegmentationFree(cfg_steps=2)), 0.1, 0.9))
    outside = Interval(Rescale(Multistage(stages, SegmentationFree(cfg_steps=2))), 0.1, 0.9)
    assert torch.equal(run(unet, inside), run(unet, outside))


def test_probe_records_maps_and_changes_nothing(unet: UNet) -> None:
    maps: list[Tensor] = []
    inner = SegmentationFree(cfg_steps=5)
    probe = Probe(inner, record(lambda site, weights: maps.append(weights)))
    layers = sum(name.endswith("attn2") for name, _ in unet.named_modules())
    assert torch.equal(run(unet, probe), run(unet, inner))
    assert len(maps) == 10 * layers
    assert all(torch.allclose(m.sum(-1), torch.ones(m.shape[:-1])) for m in maps)
    # on the branch that is edited already, the probe sees the edited weights
    maps.clear()
    denoised(unet, Probe(inner, probe.edit, branch="rest"), STEPS[9])
    assert maps
    assert all((m < 0).any() for m in maps)


def test_latents_may_be_vectors() -> None:
    """[B, d], as of a diffusion transformer on vectors: nothing is broadcast to another shape."""
    conditions = replace(CONDITIONS, cond=Condition(torch.ones(2, 1, 8)), negative=Condition(torch.zeros(2, 1, 8)))

    def x_0_of(x: Tensor, level: Level, condition: Condition, edits: Edits, t: float) -> Tensor:
        return torch.tanh(x.roll(1, 1)) + condition.tokens[:, 0]

    x_t, step = torch.randn(2, 8), STEPS[4]
    cond, negative = torch.tanh(x_t.roll(1, 1)) + 1, torch.tanh(x_t.roll(1, 1))
    guidance = Rescale(ClassifierFree(3), phi=1.0)
    out = guided(x_0_of, guidance, conditions)(x_t, step)
    eps_c, eps_n = step.now.eps(x_t, cond), step.now.eps(x_t, negative)
    eps = eps_n + 3 * (eps_c - eps_n)
    for row in range(2):
        expected = eps[row] * eps_c[row].std() / eps[row].std()
        torch.testing.assert_close(out.eps[row], expected)
    assert out.x_0.shape == (2, 8)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ClassifierFree(-1), "scale=-1"),
        (lambda: ClassifierFree(float("nan")), "scale=nan"),
        (lambda: ClassifierFree(float("inf")), "scale=inf"),
        (lambda: SegmentationFree(sf_scale=-2), "sf_scale=-2"),
        (lambda: SegmentationFree(sf_strength=float("inf")), "sf_strength=inf"),
        (lambda: SegmentationFree(cfg_steps=1.5), "cfg_steps=1.5"),
        (lambda: SegmentationFree(cfg_steps=-1), "cfg_steps=-1"),
        (lambda: SegmentationFree(argmax="max"), "argmax='max'"),
        (lambda: SegmentationFree(candidates="all"), "candidates='all'"),
        (lambda: Multistage([]), "stages is empty"),
        (lambda: Multistage([Stage("x", -1)]), "stage steps=-1"),
        (lambda: Multistage([Stage("x", 8), Stage("y", 11)]).counts(20), r"\[8, 11\] sum to 19, .* 20 steps"),
        (lambda: Multistage([Stage("x", 0.5), Stage("y", 0.4)]).counts(20), "sum to 0.9"),
        (lambda: Multistage([{"prompt": "x", "steps": 1, "guidance": {"scale": 3}}]), "stage guidance={'scale': 3}"),
        (lambda: Multistage([Stage("x", 1)], inner={"scale": 3}), "stage guidance={'scale': 3}: must be a guidance"),
        (lambda: Rescale(ClassifierFree(), phi=1.1), "phi=1.1"),
        (lambda: Interval(ClassifierFree(), start=0.5, stop=0.2), "start=0.5"),
        (lambda: Interval(ClassifierFree(), sigma_lo=-1), "sigma_lo=-1"),
    ],
)
def test_wrong_settings_are_named(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
