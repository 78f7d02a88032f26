"""The algebra of guidances, on a tiny U-Net with random weights."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from guidance import Branch, ClassifierFree, Interval, Multistage, Probe, Rescale, SegmentationFree, Stage, guided
from guidance.edits import chain, leave_out, only_at, record, scale_strongest
from ldm.attention import AttentionEdit, Site
from ldm.config import UNetConfig
from ldm.text import Span, Text, Texts
from ldm.unet import UNet
from samplers import ImageNoise, Schedule, Step, as_eps, ddim

SHAPE = (4, 8, 12)  # not square, so that height and width cannot be mixed up
SCHEDULE = Schedule()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    config = UNetConfig(channels=(32, 64), blocks_per_level=1, attention=(True, True), heads=(2, 4), text_width=16)
    unet = UNet(config).eval().requires_grad_(False)
    for name, p in unet.named_parameters():
        p.copy_(
            torch.randn(p.shape) * (0.1 if p.ndim < 2 else 0.08) + (1.0 if "norm" in name and "weight" in name else 0)
        )
    return unet


def text(seed: int, rows: int = 2) -> Text:
    g = torch.Generator().manual_seed(seed)
    spans = (Span("a", 1, 2), Span("fish", 2, 4))
    return Text(torch.randn(1, 77, 16, generator=g).expand(rows, -1, -1), (spans,) * rows)


PROMPTS = {"a dragon": text(3), "a fish": text(4)}
TEXTS = Texts(cond=text(1), negative=text(2), encode=PROMPTS.__getitem__)
STEPS = SCHEDULE.steps(10)
NOISE = ImageNoise([5, 6], SHAPE)()


def run(unet: UNet, guidance, texts: Texts = TEXTS, x_T: Tensor = NOISE, steps: list[Step] = STEPS) -> Tensor:
    predict = as_eps(unet, "eps", SCHEDULE.alpha_bar)
    *_, (_, x_t, _) = ddim(guided(predict, guidance, texts), x_T, steps, SCHEDULE.alpha_bar)
    return x_t


def eps_of(unet: UNet, guidance, step: Step = STEPS[0], texts: Texts = TEXTS) -> Tensor:
    return guided(as_eps(unet, "eps", SCHEDULE.alpha_bar), guidance, texts)(NOISE, step)


def passes(guidance) -> list[int]:
    return [len(guidance.branches(TEXTS, step)) for step in STEPS]


def test_classifier_free_is_its_formula_over_separate_passes(unet: UNet) -> None:
    cond = unet(NOISE, STEPS[0].t, TEXTS.cond.embedding)
    negative = unet(NOISE, STEPS[0].t, TEXTS.negative.embedding)
    w = 6.5
    assert relative(eps_of(unet, ClassifierFree(7.5)), (w + 1) * cond - w * negative) < 1e-5  # Ho & Salimans eq. 6
    assert relative(eps_of(unet, ClassifierFree(0)), negative) < 1e-6


def test_scale_1_is_the_conditional_at_half_the_cost(unet: UNet) -> None:
    assert torch.equal(eps_of(unet, ClassifierFree(1)), unet(NOISE, STEPS[0].t, TEXTS.cond.embedding))
    assert passes(ClassifierFree(1)) == [1] * 10
    assert passes(ClassifierFree(2)) == [2] * 10


def test_every_guidance_in_one_batch_equals_separate_passes(unet: UNet) -> None:
    def one_by_one(x: Tensor, t: int, text: Tensor, edits: list[AttentionEdit | None]) -> Tensor:
        parts = zip(x.chunk(len(edits)), text.chunk(len(edits)), edits, strict=True)
        return torch.cat([unet(x_k, t, text_k, [edit]) for x_k, text_k, edit in parts])

    for guidance in (ClassifierFree(), SegmentationFree(cfg_steps=0), Rescale(SegmentationFree())):
        for step in (STEPS[0], STEPS[9]):
            separate = guided(one_by_one, guidance, TEXTS)(NOISE, step)
            assert relative(eps_of(unet, guidance, step), separate) < 1e-5


def test_branches_split_for_memory_give_the_same(unet: UNet) -> None:
    rows: list[int] = []

    def counted(x: Tensor, t: int, text: Tensor, edits: list[AttentionEdit | None]) -> Tensor:
        rows.append(len(x))
        return unet(x, t, text, edits)

    words = SegmentationFree(cfg_steps=0, candidates="words")  # whose edit has one mask per image
    for guidance in (ClassifierFree(), words):
        whole = eps_of(unet, guidance, STEPS[9])
        for max_batch, expected in [(None, [4]), (4, [4]), (3, [2, 2]), (1, [2, 2])]:  # a branch is never cut
            rows.clear()
            split = guided(counted, guidance, TEXTS, max_batch)(NOISE, STEPS[9])
            assert rows == expected
            assert relative(split, whole) < 1e-5


def test_the_network_sees_the_same_text_in_every_step(unet: UNet) -> None:
    """So that it need not read it anew; and what it keeps of one text is never taken for another's."""
    shown: list[Tensor] = []

    def predict(x: Tensor, t: int, text: Tensor, edits: list[AttentionEdit | None]) -> Tensor:
        shown.append(text)
        return unet(x, t, text, edits)

    stages = Multistage([Stage("a dragon", 4), Stage("a fish", 6)], Interval(ClassifierFree(3), 0.2, 0.8))
    denoise, fresh = guided(predict, stages, TEXTS), as_eps(unet, "eps", SCHEDULE.alpha_bar)
    for step in STEPS:
        anew = guided(lambda x, t, text, edits: fresh(x, t, text.clone(), edits), stages, TEXTS)
        assert torch.equal(denoise(NOISE, step), anew(NOISE, step))
    assert [i for i in range(1, 10) if shown[i] is not shown[i - 1]] == [2, 4, 8]


def edited(unet: UNet, step: Step, change) -> Tensor:
    """The U-Net with `change(weights, site)` applied to cross-attention, by replacing the softmax of its layers."""
    return unet(NOISE, step.t, TEXTS.cond.embedding, [AttentionEdit(change)])


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

    eps_c, eps_n = unet(NOISE, step.t, TEXTS.cond.embedding), edited(unet, step, by_loops)
    assert relative(eps_n, eps_c) > 1e-2  # the edit does something
    guidance = SegmentationFree(scale=7.5, cfg_steps=5, sf_strength=w_bar, sf_scale=a)
    assert relative(eps_of(unet, guidance, step), eps_c + w_bar * (eps_c - eps_n)) < 1e-5
    assert torch.equal(eps_of(unet, guidance, STEPS[4]), eps_of(unet, ClassifierFree(7.5), STEPS[4]))
    assert passes(guidance) == [2] * 10


def test_cfg_steps_counts_or_is_a_fraction() -> None:
    def classifier_free(cfg_steps: int | float) -> int:
        return sum("negative" in SegmentationFree(cfg_steps=cfg_steps).branches(TEXTS, step) for step in STEPS)

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


def test_words_come_from_the_prompt_of_the_stage(unet: UNet) -> None:
    """Inside a stage the candidates are the words of that stage's prompt, not of the image's."""
    fish = replace(PROMPTS["a fish"], spans=((Span("fish", 2, 3),),) * 2)
    texts = replace(TEXTS, encode=lambda prompt: fish)
    inner = SegmentationFree(cfg_steps=0, candidates="words")
    branch = Multistage([Stage("a fish", 10)], inner).branches(texts, STEPS[0])["rest"]
    weights = torch.rand(2, 2, 4, 77)
    changed = branch.edit.function(weights, Site("x", "cross", 2, 2)) != weights
    assert changed[..., 2].all()
    assert changed.sum() == 2 * 2 * 4


def test_edit_that_multiplies_by_1_makes_segmentation_free_the_conditional(unet: UNet) -> None:
    @dataclass(frozen=True)
    class Unchanged(SegmentationFree):
        def branches(self, texts: Texts, step: Step) -> dict[str, Branch]:
            branches = super().branches(texts, step)
            return {**branches, "rest": Branch(texts.cond, scale_strongest(1.0))}

    got = eps_of(unet, Unchanged(cfg_steps=0), STEPS[3])
    assert relative(got, eps_of(unet, ClassifierFree(1), STEPS[3])) < 1e-5


def test_identity_edit_equals_no_edit(unet: UNet) -> None:
    for where in (lambda site: site.kind == "cross", lambda site: site.kind == "self", lambda site: True):
        identity = AttentionEdit(lambda weights, site: weights, where)
        plain = unet(NOISE, 500, TEXTS.cond.embedding)
        assert relative(unet(NOISE, 500, TEXTS.cond.embedding, [identity]), plain) < 1e-5


def test_an_edit_touches_its_own_branch_only(unet: UNet) -> None:
    zero = AttentionEdit(lambda weights, site: 0 * weights, lambda site: True)
    x, both = NOISE.repeat(2, 1, 1, 1), torch.cat([TEXTS.cond.embedding] * 2)
    plain, out = unet(x, 500, both), unet(x, 500, both, [None, zero])
    assert relative(out[:2], plain[:2]) < 1e-6
    assert relative(out[2:], plain[2:]) > 1e-2


def test_sites_are_told_to_edits_and_restrict_them(unet: UNet) -> None:
    seen: list[tuple[Site, tuple[int, ...]]] = []
    probe = record(lambda site, weights: seen.append((site, tuple(weights.shape))), lambda site: True)
    unet(NOISE, 500, TEXTS.cond.embedding, [probe])
    assert {site.kind for site, _ in seen} == {"self", "cross"}
    assert {(site.height, site.width) for site, _ in seen} == {(8, 12), (4, 6)}
    for site, (_, _, patches, keys) in seen:
        assert patches == site.height * site.width
        assert keys == (77 if site.kind == "cross" else patches)
    names = {site.name for site, _ in seen}
    assert names == {name for name, _ in unet.named_modules() if name.endswith(("attn1", "attn2"))}

    seen.clear()
    unet(NOISE, 500, TEXTS.cond.embedding, [only_at(["up_blocks.1"], probe)])
    assert {site.name for site, _ in seen} == {name for name in names if name.startswith("up_blocks.1")}


def test_chained_edits_act_one_after_another() -> None:
    site = Site("x", "cross", 2, 2)
    double = AttentionEdit(lambda weights, site: 2 * weights)
    elsewhere = AttentionEdit(lambda weights, site: weights + 1, lambda site: site.kind == "self")
    edit = chain(double, None, elsewhere, AttentionEdit(lambda weights, site: weights + 3))
    assert edit.function(torch.ones(1, 1, 4, 7), site).eq(5).all()
    assert edit.where(site)
    assert edit.where(replace(site, kind="self"))
    assert chain(None, None) is None


def test_left_out_tokens_are_masked_keys() -> None:
    scores = torch.randn(2, 2, 4, 77)
    spans = ((Span("fish", 2, 4),), (Span("a", 1, 2), Span("cat", 5, 6)))
    masked = scores.clone()
    masked[0, ..., 2:4] = masked[1, ..., 1] = masked[1, ..., 5] = -torch.inf
    got = leave_out(spans).function(scores.softmax(-1), Site("x", "cross", 2, 2))
    torch.testing.assert_close(got, masked.softmax(-1))


def test_multistage_with_equal_stages_is_one_stage(unet: UNet) -> None:
    one = run(unet, ClassifierFree(3))
    same = replace(TEXTS, encode=lambda prompt: TEXTS.cond)
    assert torch.equal(run(unet, Multistage([Stage("x", 4), Stage("y", 6)], ClassifierFree(3)), same), one)
    assert torch.equal(run(unet, Multistage([Stage(None, 4), Stage(None, 6)], ClassifierFree(3))), one)


def test_multistage_equals_two_samplings_one_after_the_other(unet: UNet) -> None:
    guidance = Multistage([Stage("a dragon", 4), {"prompt": "never", "steps": 0}, {"prompt": "a fish", "steps": 6}])
    by_hand = run(unet, ClassifierFree(), replace(TEXTS, cond=PROMPTS["a dragon"]), steps=STEPS[:4])
    # the first part ends at alpha_bar of its last step's s, since steps are pairs t -> s
    by_hand = run(unet, ClassifierFree(), replace(TEXTS, cond=PROMPTS["a fish"]), by_hand, STEPS[4:])
    assert torch.equal(run(unet, guidance), by_hand)


def test_stage_guidance_and_inner_guidance(unet: UNet) -> None:
    stages = [Stage("a dragon", 4), Stage("a fish", 6, SegmentationFree(cfg_steps=5, sf_scale=5))]
    guidance = Multistage(stages, Rescale(ClassifierFree(4)))
    names = [tuple(guidance.branches(TEXTS, step)) for step in STEPS]
    # cfg_steps counts from the start of sampling, so one step of the second stage is still classifier-free
    assert names == [("cond", "negative")] * 5 + [("cond", "rest")] * 5
    dragon = replace(TEXTS, cond=PROMPTS["a dragon"])
    fish = replace(TEXTS, cond=PROMPTS["a fish"])
    assert torch.equal(eps_of(unet, guidance, STEPS[3]), eps_of(unet, Rescale(ClassifierFree(4)), STEPS[3], dragon))
    assert torch.equal(eps_of(unet, guidance, STEPS[6]), eps_of(unet, stages[1].guidance, STEPS[6], fish))


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


def test_rescale_gives_the_conditional_deviation(unet: UNet) -> None:
    cond = eps_of(unet, ClassifierFree(1))
    full = eps_of(unet, Rescale(ClassifierFree(7.5), phi=1.0))
    torch.testing.assert_close(full.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))
    plain = eps_of(unet, ClassifierFree(7.5))
    assert torch.equal(eps_of(unet, Rescale(ClassifierFree(7.5), phi=0.0)), plain)
    part = eps_of(unet, Rescale(ClassifierFree(7.5), phi=0.7))
    torch.testing.assert_close(part, 0.7 * full + 0.3 * plain)
    # per image: one image alone gets what it gets among others
    ratio = full / plain
    assert ratio[0].std() < 1e-4 * ratio[0].mean()
    assert abs(ratio[0].mean() - ratio[1].mean()) > 1e-6


def test_interval_runs_the_conditional_alone_outside(unet: UNet) -> None:
    guidance = Interval(ClassifierFree(5), start=0.2, stop=0.5)
    assert passes(guidance) == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    assert torch.equal(eps_of(unet, guidance, STEPS[1]), eps_of(unet, ClassifierFree(1), STEPS[1]))
    assert torch.equal(eps_of(unet, guidance, STEPS[2]), eps_of(unet, ClassifierFree(5), STEPS[2]))
    sigma = [step.sigma for step in STEPS]
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
    assert relative(run(unet, probe), run(unet, inner)) < 1e-5
    assert len(maps) == 10 * layers
    assert all(torch.allclose(m.sum(-1), torch.ones(m.shape[:-1])) for m in maps)
    # on the branch that is edited already, the probe sees the edited weights
    maps.clear()
    eps_of(unet, Probe(inner, probe.edit, branch="rest"), STEPS[9])
    assert maps
    assert all((m < 0).any() for m in maps)


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
        (lambda: Rescale(ClassifierFree(), phi=1.1), "phi=1.1"),
        (lambda: Interval(ClassifierFree(), start=0.5, stop=0.2), "start=0.5"),
        (lambda: Interval(ClassifierFree(), sigma_lo=-1), "sigma_lo=-1"),
    ],
)
def test_wrong_settings_are_named(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
