"""Studies of the network on scenes whose masks are known, against loops and against networks made for the purpose."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from packages import SHAPES, WORLD, write_package
from PIL import Image
from tiny import tiny_model
from torch import Tensor

from experiments.emoji.world import EmojiScenes, Scene, load_atlas
from experiments.files import CONF, UserError
from experiments.metrics import Bench, Result
from experiments.metrics.estimates import Bootstrap
from experiments.run import build
from experiments.studies import implied_segmentation, motivation, scenes, segfree_exact
from experiments.studies.implied_segmentation import ImpliedSegmentation, layer_name, overlap, share_right
from experiments.studies.inversion_error import InversionError
from experiments.studies.motivation import Motivation
from experiments.studies.segfree_exact import Forms, SegfreeExact, exact_form
from guidance import Branch, CFGPlusPlus, ClassifierFree, Guidance, SegmentationFree, guided
from ldm import LatentDiffusion, load_model
from ldm.attention import AttentionEdit, Site
from samplers import Schedule, as_x_0, ddim, ddim_inverse

STUDIES = [ImpliedSegmentation, SegfreeExact, Motivation]
SITES = [
    Site("down_blocks.0.attentions.0.transformer_blocks.0.attn2", "cross", 8, 8),
    Site("mid_block.attentions.0.transformer_blocks.0.attn2", "cross", 4, 4),
]


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings that all studies have in common, of the toy world."""
    folder = tmp_path_factory.mktemp("studies")
    write_package(folder / "icons", "warm-set", "#ff4000", packed=True)
    write_package(folder / "icons", "icy-set", "#00a0ff", packed=False)
    return {"world": asdict(WORLD), "icons": str(folder / "icons"), "cache": str(folder / "cache")}


def bench(batch_size: int = 32) -> Bench:
    return Bench(torch.device("cpu"), batch_size, Bootstrap(resamples=50))


def first_batch(study: scenes.SceneStudy, model: LatentDiffusion) -> scenes.Noised:
    with torch.no_grad():
        return next(study.batches(model, bench()))


def held_out(icons: dict[str, Any], count: int) -> list[Scene]:
    atlas = load_atlas(WORLD, Path(icons["icons"]), Path(icons["cache"]))
    drawn = EmojiScenes(WORLD, atlas, "held_out", layouts=("beside", "above"))
    return [drawn[i] for i in range(count)]


def test_masks_come_to_the_patches_of_which_they_fill_half() -> None:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[1:6, 2:9] = True
    assert scenes.on_grid(mask, 4, 6).int().tolist() == [
        [0, 1, 1, 1, 0, 0],  # 2 of 4 pixels, and at the right end 1
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert scenes.on_grid(mask, 2, 3).int().tolist() == [[0, 1, 0], [0, 1, 0]]  # 6, 12, 3 and 4, 8, 2 of 16


def test_scenes_are_noised_each_by_its_own_generator(icons: dict[str, Any]) -> None:
    model, study = tiny_model(), ImpliedSegmentation(**icons, timestep=301, count=5)
    with torch.no_grad():
        batches = list(study.batches(model, bench(2)))
    assert [len(noised.scenes) for noised in batches] == [2, 2, 1]
    x_0, x_t = torch.cat([noised.x_0 for noised in batches]), torch.cat([noised.x_t for noised in batches])
    truth = held_out(icons, 5)
    a_t = float(Schedule().alpha_bar[301])
    for i, scene in enumerate(truth):
        with torch.no_grad():
            latent = model.autoencoder.encode(scene.image[None] / 127.5 - 1)[0][0]
        eps = torch.randn(latent.shape, generator=torch.Generator().manual_seed(i))
        torch.testing.assert_close(x_0[i], latent, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x_t[i], a_t**0.5 * latent + (1 - a_t) ** 0.5 * eps, rtol=1e-4, atol=1e-4)
    assert [scene.caption for noised in batches for scene in noised.scenes] == [scene.caption for scene in truth]


def attention_of(
    place: Callable[[Scene, int], list[int]], weight: float = 0.3, heads: int = 2
) -> Callable[..., dict[str, Tensor]]:
    """A stand-in for `predict_each`: in head h, object i's patches give a weight to token place(scene, h)[i]; all
    patches give 0.1 to the caption's last word, and most to BOS, which is of no account."""

    def predict_each(model: Any, noised: scenes.Noised, branches: dict[str, Branch]) -> dict[str, Tensor]:
        (edit,) = branches["cond"].edits
        for site in SITES:
            weights = torch.zeros(len(noised.scenes), heads, site.height, site.width, 77)
            weights[..., 0] = 0.6
            for b, scene in enumerate(noised.scenes):
                weights[b, ..., noised.conditions.cond.spans[b][-1].start] = 0.1
                for h in range(heads):
                    for thing, k in zip(scene.objects, place(scene, h), strict=True):
                        weights[b, h, scenes.on_grid(thing.mask, site.height, site.width), k] = weight
            edit.function(weights.flatten(2, 3), site)
        return {"cond": noised.x_t}

    return predict_each


def measured(
    study: ImpliedSegmentation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Any, weight: float = 0.3
) -> Result:
    monkeypatch.setattr(implied_segmentation, "predict_each", attention_of(place, weight))
    return study.measure(tiny_model(), bench(), tmp_path)


def values(result: Result) -> dict[str, float]:
    return {"value": result.estimate.value} | {name: e.value for name, e in result.details.items()}


@pytest.mark.parametrize("argmax", ["head", "mean"])
def test_attention_that_segments_has_all_of_the_masks(
    argmax: str, icons: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = ImpliedSegmentation(**icons, count=6, argmax=argmax)
    found = values(measured(study, monkeypatch, tmp_path, lambda s, h: [o.tokens[0] for o in s.objects]))
    whole = ["value", "down0.0_8x8", "mid.0_4x4", "majority", "owned_by_words", "right_object"]
    assert [found[name] for name in whole] == [1.0] * len(whole)

    grids, truth = [(8, 8), (4, 4)], held_out(icons, 6)  # chance: the right masks of one scene against the next one's
    chance = []
    for one, two in zip(truth, [*truth[1:], truth[0]], strict=True):
        named = [sorted(scene.objects, key=lambda thing: thing.tokens) for scene in (one, two)]
        for grid in grids:
            pairs = [[scenes.on_grid(o.mask, *grid) for o in pair] for pair in zip(*named, strict=True)]
            overlaps = [((a & b).sum() / (a | b).sum()).item() for a, b in pairs if b.any()]
            if overlaps:
                chance.append((sum(overlaps) / len(overlaps), two.caption, grid))
    by_scene = {c: [v for v, caption, _ in chance if caption == c] for c in {caption for _, caption, _ in chance}}
    expected = sum(sum(v) / len(v) for v in by_scene.values()) / len(by_scene)
    assert found["chance"] == pytest.approx(expected)
    assert 0 < found["chance"] < 0.9


def test_attention_that_segments_in_half_of_the_heads(
    icons: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def swapped(scene: Scene, head: int) -> list[int]:
        tokens = [thing.tokens[0] for thing in scene.objects]
        return tokens if head == 0 else tokens[::-1]

    found = values(measured(ImpliedSegmentation(**icons, count=6), monkeypatch, tmp_path, swapped))
    assert found["value"] == found["right_object"] == found["right_object_mid.0_4x4"] == 0.5
    assert found["majority"] == 0  # one head of two is no majority


def test_the_right_object_may_be_known_where_another_word_is_stronger(
    icons: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = ImpliedSegmentation(**icons, count=6)
    found = values(measured(study, monkeypatch, tmp_path, lambda s, h: [o.tokens[0] for o in s.objects], weight=0.05))
    assert (found["value"], found["right_object"], found["owned_by_words"]) == (0, 1, 1)


def test_an_article_is_of_the_phrase_and_not_of_the_noun(
    icons: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = ImpliedSegmentation(**icons, count=6, span="noun")
    article = values(measured(study, monkeypatch, tmp_path, lambda s, h: [o.tokens[0] for o in s.objects]))
    noun = values(measured(study, monkeypatch, tmp_path, lambda s, h: [o.tokens[1] - 1 for o in s.objects]))
    assert (article["value"], noun["value"], noun["right_object"]) == (0, 1, 1)


def test_tokens_beyond_the_words_own_patches_if_they_may(
    icons: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = ImpliedSegmentation(**icons, count=6)
    padding = measured(replace(study, candidates="all_but_bos"), monkeypatch, tmp_path, lambda s, h: [76, 76])
    words = measured(study, monkeypatch, tmp_path, lambda s, h: [76, 76])
    scenes_ = held_out(icons, 6)
    covered = [
        sum(scenes.on_grid(thing.mask, site.height, site.width).float().mean().item() for thing in scene.objects)
        for scene in scenes_
        for site in SITES
    ]
    assert padding.details["owned_by_words"].value == pytest.approx(1 - sum(covered) / len(covered))
    assert words.details["owned_by_words"].value == 1


def test_overlap_by_hand() -> None:
    k = torch.tensor([[[5, 6, 9, 9], [9, 9, 9, 2]], [[9, 9, 9, 9], [5, 9, 9, 9]]])  # two heads, 2 x 4 patches
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:2, 2:6] = True  # patches (0, 1) and (0, 2)
    assert overlap(k, [(5, 7)], [mask]) == pytest.approx((1 / 3 + 0 / 3) / 2)
    assert overlap(k, [(5, 7)], [mask], vote=True) == 0
    assert overlap(k, [(5, 7), (2, 3)], [mask, torch.zeros_like(mask)]) == overlap(k, [(5, 7)], [mask])
    assert overlap(k, [(5, 7)], [torch.zeros_like(mask)]) is None
    assert share_right(k, [(5, 7), (9, 10)], [mask, ~mask]) == pytest.approx((0.5 + 4.5) / 8)
    assert layer_name(Site("up_blocks.1.attentions.2.transformer_blocks.0.attn2", "cross", 4, 6)) == "up1.2_4x6"


def left_out_by_hand(start: int, stop: int) -> AttentionEdit:
    def function(weights: Tensor, site: Site) -> Tensor:
        scores = weights.log()
        scores[..., start:stop] = -torch.inf
        return scores.softmax(dim=-1)

    return AttentionEdit(function)


@pytest.mark.parametrize("grid", [(16, 16), (4, 8)])
def test_the_exact_form_is_a_loop_over_words(grid: tuple[int, int], icons: dict[str, Any]) -> None:
    model, study = tiny_model(), SegfreeExact(**icons, count=3)
    noised = first_batch(study, model)
    lengths = {len(words) for words in noised.conditions.cond.spans}
    assert len(lengths) > 1, "captions of one length do not show what happens beyond the shorter one's end"
    with torch.no_grad():
        eps_c = model.unet(noised.x_t, 501, noised.conditions.cond)
        directions, words = exact_form(model, noised, eps_c, grid)
        for b, spans in enumerate(noised.conditions.cond.spans):
            x_t, text = noised.x_t[b : b + 1], noised.conditions.cond.rows(slice(b, b + 1))
            passes = [model.unet(x_t, 501, text, [[left_out_by_hand(w.start, w.stop)]])[0] for w in spans]
            high, wide = 16 // grid[0], 16 // grid[1]
            for i in range(grid[0]):
                for j in range(grid[1]):
                    at = (slice(None), slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide))
                    changes = [(eps_c[b] - eps)[at].norm().item() for eps in passes]
                    k = int(words[b, i, j])
                    assert changes[k] == pytest.approx(max(changes), rel=1e-4)
                    torch.testing.assert_close(directions[b][at], (eps_c[b] - passes[k])[at], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("candidates", ["words", "all_but_bos"])
def test_the_practical_form_is_that_of_the_guidance(candidates: str, icons: dict[str, Any]) -> None:
    model, study = tiny_model(), SegfreeExact(**icons, count=3, sf_scale=7.0, candidates=candidates)
    noised = first_batch(study, model)
    guidance = SegmentationFree(cfg_steps=0, sf_strength=1.0, sf_scale=7.0, candidates=candidates)
    with torch.no_grad():
        eps, pushed = study.passes(model, noised)
        predict = as_x_0(model.unet, "eps")
        theirs = guided(predict, guidance, noised.conditions)(noised.x_t, noised.step).eps
        empty = model.unet(noised.x_t, 501, noised.conditions.negative)
    torch.testing.assert_close(2 * eps["cond"] - eps["rest"], theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(eps["empty"], empty, rtol=1e-4, atol=1e-5)
    assert pushed.shape == (3, 16, 16)  # of the finest of the two grids
    fine, coarse = torch.zeros(5, 4, 8), torch.zeros(5, 2, 4)
    assert [layer.shape for layer in segfree_exact.finest([coarse, fine, coarse, fine])] == [fine.shape] * 2
    if candidates == "words":
        assert all(pushed[b].max() < len(words) for b, words in enumerate(noised.conditions.cond.spans))


def test_numbers_of_two_directions(icons: dict[str, Any]) -> None:
    model, study = tiny_model(), SegfreeExact(**icons, count=2)
    noised = first_batch(study, model)
    scene, words = noised.scenes[0], noised.conditions.cond.spans[0]
    g = torch.Generator().manual_seed(0)
    exact, cfg = (torch.randn(4, 16, 16, generator=g) for _ in range(2))
    inside = scenes.on_grid(scene.objects[0].mask | scene.objects[1].mask, 16, 16)
    practical = torch.where(inside, 3 * exact, -3 * exact)
    first = torch.zeros(8, 8, dtype=torch.long)
    mixed = first.clone()
    mixed[:2] = 1
    found = segfree_exact.score(scene, Forms(words, exact, practical, cfg, first, mixed))
    assert found["inside"] == pytest.approx(1)
    assert found["outside"] == pytest.approx(-1)
    share = exact[:, inside].square().sum() / exact.square().sum()
    assert found["value"] == pytest.approx(float(2 * share - 1), abs=1e-5)
    assert found["norm_ratio"] == pytest.approx(3)
    assert found["same_word"] == found["same_word_chance"] == 0.75
    assert found["exact_on_cfg"] == pytest.approx(float((exact * cfg).sum() / (cfg * cfg).sum()), abs=1e-5)
    assert found["exact_vs_cfg"] == pytest.approx(float((exact * cfg).sum() / cfg.norm() / exact.norm()), abs=1e-5)
    own = [i for i, thing in enumerate(scene.objects) if thing.tokens[0] <= words[0].start < thing.tokens[1]]
    sizes = [scenes.on_grid(thing.mask, 8, 8).sum().item() for thing in scene.objects]
    assert found["exact_own_words"] == pytest.approx(sizes[own[0]] / sum(sizes))  # all patches name the first word


def test_a_network_deaf_to_text_gains_nothing(icons: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model()
    for name, p in model.unet.named_parameters():
        if ".attn2.to_out" in name:
            p.zero_()
    found = values(Motivation(**icons, count=4, finish=3, steps=3).measure(model, bench(), tmp_path))
    assert found.pop("detail_empty") > 0
    assert set(found.values()) == {0.0}


def test_gains_by_hand(icons: dict[str, Any]) -> None:
    scene = held_out(icons, 1)[0]
    one, two, ground = motivation.regions(scene, 16, 16)
    energy = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    energy[1] = energy[0] * (1 + 7 * one)  # without object 1: 8 times the energy there
    energy[2] = 100 * energy[0] * (1 + one + 3 * two)  # without object 2: 4 times there, and twice at object 1
    gains = motivation.energy_gains(scene, energy)
    assert [gain["log2_gain"] for gain in gains] == pytest.approx([3, 1], abs=1e-4)
    assert [gain["log2_gain_over_background"] for gain in gains] == pytest.approx([3, 2], abs=1e-4)

    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    slope = (0.03 * x + 0.04 * y).expand(3, 32, 32)
    torch.testing.assert_close(motivation.detail(slope / 4), torch.full((32, 32), 0.05 / 4))
    drawn = torch.stack([slope / 8, slope / 4, slope / 2])
    more = motivation.detail_gains(scene, drawn)
    assert [m["detail_own"] for m in more] == pytest.approx([0.05 / 8, 0.15 / 8])
    assert [m["detail_gain"] for m in more] == pytest.approx([0, 0], abs=1e-6)
    only_two = torch.where(scene.objects[1].mask, slope / 2, torch.zeros(()))
    more = motivation.detail_gains(scene, torch.stack([torch.zeros_like(slope), only_two, only_two]))
    assert more[0]["detail_gain"] < -0.01
    assert more[1]["detail_gain"] == pytest.approx(more[1]["detail_own"] - more[1]["detail_other"])
    assert more[1]["detail_gain"] > 0.01


def test_a_negative_prompt_lacks_one_noun(icons: dict[str, Any]) -> None:
    for scene in held_out(icons, 40):
        for thing in scene.objects:
            lacking = motivation.without(scene.caption, thing)
            assert sorted([*lacking.split(), *thing.label.split()]) == sorted(scene.caption.split())
            other = next(o for o in scene.objects if o is not thing)
            assert other.label in lacking
    tree = replace(scene.objects[0], label="tree", tokens=(5, 7))
    assert motivation.without("a palm tree and a tree", replace(tree, tokens=(5, 7))) == "a palm tree and a"


def test_pictures_are_finished_as_the_sampler_would(icons: dict[str, Any]) -> None:
    model, study = tiny_model(), Motivation(**icons, count=3, timestep=601, steps=10, scale=3.0)
    noised = first_batch(study, model)
    schedule = Schedule()
    rest = [step for step in schedule.steps(10) if step.now.t <= 601]
    ours = motivation.steps_from(601, schedule, 10)
    assert [(s.now, s.to) for s in ours] == [(s.now, s.to) for s in rest]
    between = motivation.steps_from(550, schedule, 4)
    assert [(s.now.t, s.to.t) for s in between] == [(550, 501), (501, 251), (251, 1), (1, 0)]
    with torch.no_grad():
        negatives = motivation.negative_texts(model, noised)
        drawn = study.draw(model, noised, negatives, 2)
        assert drawn.shape == (3, 2, 3, 32, 32)
        captions = [motivation.without(scene.caption, scene.objects[1]) for scene in noised.scenes]
        conditions = model.conditions([scene.caption for scene in noised.scenes], captions)
        denoise = guided(as_x_0(model.unet, "eps"), ClassifierFree(3.0), conditions)
        *_, (_, x_0, _) = ddim(denoise, noised.x_t, rest)
        torch.testing.assert_close(drawn[2], model.decode(x_0)[:2], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(drawn[0], drawn[2], atol=1e-3)


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_does_not_depend_on_its_batches(study: type, icons: dict[str, Any], tmp_path: Path) -> None:
    settings = {**icons, "count": 5} | ({"finish": 4, "steps": 3} if study is Motivation else {})
    two, five = (study(**settings).measure(tiny_model(), bench(size), tmp_path) for size in (2, 5))
    assert values(two) == pytest.approx(values(five), rel=1e-2, abs=1e-3)
    assert all(math.isfinite(value) for value in values(two).values())
    assert 0 < Image.open(tmp_path / "figure.png").width <= 1010
    assert two.about["timestep"] == 501
    assert study(**settings, timestep=1).measure(tiny_model(), bench(), tmp_path).estimate != two.estimate


@pytest.mark.parametrize("name", ["implied_segmentation", "segfree_exact", "segfree_motivation"])
def test_an_experiment_measures_what_its_page_shows(name: str, tmp_path: Path) -> None:
    """Of the embedded model, on packages in which all icons are discs."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("ablate", [f"experiment={name}", f"icons={tmp_path / 'icons'}", f"cache={tmp_path / 'cache'}"])
    for package in cfg.study.world.styles.values():
        inside = tmp_path / "icons" / f"iconify-json-{package}-1.0.0" / "package"
        inside.mkdir(parents=True)
        discs = {icon: {"body": SHAPES["disc"].format("#c06000")} for icon in cfg.study.world.concepts.values()}
        (inside / "icons.json").write_text(json.dumps({"icons": discs, "width": 10, "height": 10}))
    study = build.create(cfg.study, "study")
    assert set(cfg.study) - {"_target_"} == {field.name for field in fields(study)}
    for field in fields(study):
        if isinstance(field.default, int | float | str) and field.name not in ("icons", "cache"):
            assert cfg.study[field.name] == field.default, field.name
    small = {"count": 2} | ({"finish": 2, "steps": 2} if name == "segfree_motivation" else {})
    found = replace(study, **small).measure(load_model("emoji"), bench(), tmp_path)
    names = {name, *(f"{name}/{detail}" for detail in found.details)}
    assert names >= {measure for curve in cfg.page.curves for measure in curve.measures}
    assert names >= {claim.measure for claim in cfg.claims}
    swept = OmegaConf.load(CONF / "experiment" / f"{name}.yaml").hydra.sweeper.params
    assert set(swept) == {axis for axis in (cfg.page.x, cfg.page.by) if axis}


@pytest.mark.parametrize(
    ("study", "settings", "message"),
    [
        (ImpliedSegmentation, {"argmax": "median"}, "argmax=median: must be head or mean"),
        (ImpliedSegmentation, {"candidates": "all"}, "candidates=all: must be words or all_but_bos"),
        (ImpliedSegmentation, {"span": "verb"}, "span=verb: must be phrase or noun"),
        (ImpliedSegmentation, {"timestep": -1}, "timestep=-1: must be a whole number"),
        (ImpliedSegmentation, {"timestep": 0.5}, "timestep=0.5: must be a whole number"),
        (ImpliedSegmentation, {"count": 1}, "count=1: must be a whole number of at least 2"),
        (ImpliedSegmentation, {"layouts": ["around"]}, "layouts=.*must be a list of some of one, beside"),
        (ImpliedSegmentation, {"layouts": []}, "layouts=.*must be a list"),
        (SegfreeExact, {"sf_scale": -1.0}, "sf_scale=-1.0"),
        (SegfreeExact, {"argmax": "median"}, "argmax='median': must be head or mean"),
        (Motivation, {"layouts": ["one"]}, "layouts=.*must have two objects"),
        (Motivation, {"scale": -2.0}, "scale=-2.0"),
        (Motivation, {"steps": 0}, "steps=0: must be a whole number of at least 1"),
        (Motivation, {"finish": -1}, "finish=-1: must be a whole number of at least 0"),
    ],
)
def test_wrong_settings_are_refused(study: type, settings: dict[str, Any], message: str, icons: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message) as error:
        study(**{**icons, **settings})
    assert "\n" not in str(error.value)


def test_a_timestep_beyond_the_model_s_is_refused(icons: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timestep=1000: the model's are 0 to 999"):
        ImpliedSegmentation(**icons, timestep=1000).measure(tiny_model(), bench(), tmp_path)
    with pytest.raises(ValueError, match="npm pack @iconify-json/warm-set"):
        study = ImpliedSegmentation(**{**icons, "icons": str(tmp_path), "cache": str(tmp_path / "cache")})
        study.measure(tiny_model(), bench(), tmp_path)


@pytest.mark.parametrize("guidance", [ClassifierFree(3.0), CFGPlusPlus(0.6)])
def test_the_error_of_an_inversion(guidance: Guidance, icons: dict[str, Any], tmp_path: Path) -> None:
    """Of each scene's latent, of its decoded picture, and the size of the noise, both ways taken by hand."""
    study, model = InversionError(**icons, count=3, guidance=guidance, steps=4, refinements=1), tiny_model()
    result = study.measure(model, bench(2), tmp_path)
    truth, steps = held_out(icons, 3), Schedule().steps(4)
    denoise = guided(as_x_0(model.unet, "eps"), guidance, model.conditions([scene.caption for scene in truth]))
    with torch.no_grad():
        x_0 = model.autoencoder.encode(torch.stack([scene.image for scene in truth]) / 127.5 - 1)[0]
        *_, (_, x_T, _) = ddim_inverse(denoise, x_0, steps, refinements=1)
        *_, (_, again, _) = ddim(denoise, x_T, steps)
        mean_square = (model.decode(again) - model.decode(x_0)).square().mean(dim=(1, 2, 3))
    for i, row in enumerate(result.per_image):
        assert row["value"] == pytest.approx(((again[i] - x_0[i]).norm() / x_0[i].norm()).item(), rel=1e-2)
        assert row["psnr"] == pytest.approx(10 * math.log10(1 / mean_square[i].item()), abs=0.1)
        assert row["x_T"] == pytest.approx(x_T[i].square().mean().sqrt().item(), rel=1e-2)
    assert result.estimate.value == pytest.approx(sum(row["value"] for row in result.per_image) / 3)
    assert set(result.details) == {"psnr", "x_T"} and (tmp_path / "figure.png").is_file()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"refinements": -1}, "refinements=-1: must be a whole number of at least 0"),
        ({"guidance": 3.0}, "guidance=3.0: must be a guidance"),
        ({"steps": 0}, "study: 0 sampling steps"),
        ({"spacing": "even"}, "study: spacing 'even' is none of"),
    ],
)
def test_an_inversion_that_cannot_be_measured(
    settings: dict[str, Any], said: str, icons: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        InversionError(**icons, **{"count": 2, **settings}).measure(tiny_model(), bench(), tmp_path)
