"""The measures that the experiments bring: effective scale, the shares of two objects, the choice among words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from folders import BENCH, CLIP, CPU, JUDGE, make_run, metric, randomise
from hydra import compose, initialize_config_dir
from PIL import Image
from tiny import tiny_model
from torch import Tensor

import samplers
from experiments.emoji.judge import load_judge
from experiments.files import CONF
from experiments.metrics import Bench
from experiments.metrics.effective_scale import SEEN, Projection, Scales
from experiments.metrics.estimates import Bootstrap
from experiments.metrics.measuring import evaluate
from experiments.run import build, draw
from experiments.run.logger import Logger
from guidance import (
    CFGPlusPlus,
    ClassifierFree,
    ConditionAnnealed,
    FreeU,
    Interval,
    MagnitudeAware,
    Multistage,
    Rescale,
    Scheduled,
    SegmentationFree,
    Stage,
    guided,
)
from guidance.branch import Guidance, combined
from samplers import ImageNoise, KeyedNoise, Schedule, as_x_0

STEPS = Schedule().steps(6)


def projected(guidance: object) -> list[dict]:
    """What the probe sees of a guidance along six steps of a tiny model."""
    model = tiny_model()
    probe = Projection(guidance)
    conditions = model.conditions(["a cat", "two dogs"], ["", "red"])
    predict = as_x_0(model.unet, "eps")
    plain = guided(predict, guidance, conditions)
    probed = guided({"main": predict, build.ASIDE: predict}, probe, conditions)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for step in STEPS:
            x_t = torch.randn(2, 4, 8, 8, generator=g)
            torch.testing.assert_close(probed(x_t, step), plain(x_t, step), rtol=1e-5, atol=1e-5)
    return probe.steps


def test_without_a_step_there_is_no_scale() -> None:
    """As in a picture that is given, at task.strength=0."""
    scales = Scales()
    scales.around(ClassifierFree())
    assert scales.done(torch.zeros(2, 3, 8, 8)) == [{SEEN: None}] * 2


@pytest.mark.parametrize("g", [0.0, 1.0, 3.0, 7.5])
def test_effective_scale_of_classifier_free_guidance_is_its_scale(g: float) -> None:
    for seen in projected(ClassifierFree(g)):
        torch.testing.assert_close(seen["scale"], torch.full((2,), g, dtype=torch.float64), rtol=1e-4, atol=1e-4)
        cosine = torch.full((2,), float(g > 0), dtype=torch.float64)  # at 0 there is no direction
        torch.testing.assert_close(seen["cosine"], cosine, rtol=1e-6, atol=1e-6)


def test_effective_scale_outside_an_interval_is_1() -> None:
    scales = [seen["scale"].mean().item() for seen in projected(Interval(ClassifierFree(5.0), start=0.5))]
    assert scales == pytest.approx([1, 1, 1, 5, 5, 5], rel=1e-4)


@pytest.mark.parametrize("inner", [ClassifierFree(5.0, MagnitudeAware()), Scheduled(ClassifierFree(5.0))])
def test_what_scales_the_difference_alone_has_a_cosine_of_1(inner: Guidance) -> None:
    seen = projected(inner)
    assert all(one["cosine"].numpy() == pytest.approx(1, abs=1e-5) for one in seen)
    assert max((one["scale"] - 5).abs().max() for one in seen) > 0.1


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sampler").glob("*.yaml")))
def test_every_sampler_takes_cfg_plus_plus_and_an_effective_scale(name: str) -> None:
    """In each step once, also where a method evaluates a step again at its end, from which to there is no step."""
    model, n = tiny_model(), 4
    conditions, predict = model.conditions(["a cat", "two dogs"]), as_x_0(model.unet, "eps")
    for guidance in (ClassifierFree(3.0), CFGPlusPlus(0.6)):
        probe = Projection(guidance)
        denoise = guided({"main": predict, build.ASIDE: predict}, probe, conditions)
        x_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        drawn = ImageNoise([1, 2], (4, 8, 8))
        with torch.no_grad():
            states = list(getattr(samplers, name)(denoise, x_T, Schedule().steps(n, final="clean"), drawn))
        assert all(x_t.isfinite().all() for _, x_t, _ in states)
        assert [one["i"] for one in probe.steps] == list(range(n))
        if isinstance(guidance, ClassifierFree):
            assert all(one["scale"].numpy() == pytest.approx(3, rel=1e-3) for one in probe.steps)
        else:
            assert all(one["scale"].isfinite().all() for one in probe.steps)


def test_effective_scale_of_segmentation_free_steps_is_a_projection() -> None:
    """Against the algebra on the predictions themselves; rescaling changes it too."""
    guidance = SegmentationFree(scale=4.0, cfg_steps=3, sf_strength=2.0)
    seen = projected(guidance)
    assert [s["scale"].mean().item() for s in seen[:3]] == pytest.approx([4.0] * 3, rel=1e-4)
    rng = torch.Generator().manual_seed(1)
    x_0 = {name: torch.randn(2, 4, 8, 8, generator=rng) for name in ("cond", "rest", "plain negative")}
    for outer in (guidance, Rescale(guidance, 0.7)):
        probe, x_t, step = Projection(outer), torch.randn(2, 4, 8, 8, generator=rng), STEPS[4]
        probe.taken[step] = "cond", "plain negative"
        out = probe.combine(x_0, x_t, step).x_0
        assert torch.equal(out, combined(outer, {k: x_0[k] for k in ("cond", "rest")}, x_t, step).x_0)
        for b in range(2):
            d, v = ((e[b] - x_0["plain negative"][b]).flatten().numpy() for e in (x_0["cond"], out))
            assert probe.steps[0]["scale"][b].item() == pytest.approx(np.linalg.lstsq(d[:, None], v)[0][0], rel=1e-4)
            assert probe.steps[0]["cosine"][b].item() == pytest.approx(np.corrcoef(d, v)[0, 1], abs=0.05)


def test_effective_scale_lies_along_plain_passes() -> None:
    """Of a guidance that edits its conditional pass, or noises what that is told; in a stage of another prompt, too."""
    model = tiny_model()
    conditions = model.conditions(["a cat", "two dogs"], noise=KeyedNoise([1, 2]))
    predict, step = as_x_0(model.unet, "eps"), STEPS[1]
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    u = guided(predict, ClassifierFree(0.0), conditions)(x_t, step).x_0
    for inner in (FreeU(ClassifierFree(5.0)), ConditionAnnealed(ClassifierFree(5.0))):
        for prompt, guidance in ((None, inner), ("a fish", Multistage((Stage("a fish", 6),), inner))):
            told = conditions if prompt is None else replace(conditions, cond=conditions.encode(prompt))
            c = guided(predict, ClassifierFree(1.0), told)(x_t, step).x_0
            probe = Projection(guidance)
            out = guided({"main": predict, build.ASIDE: predict}, probe, conditions)(x_t, step).x_0
            for b in range(2):
                d, v = ((e[b] - u[b]).flatten().numpy() for e in (c, out))
                assert probe.steps[0]["scale"][b].item() == pytest.approx(
                    np.linalg.lstsq(d[:, None], v)[0][0], rel=1e-3
                )


def test_effective_scale_of_a_run_draws_its_pictures_again(tmp_path: Path, tiny_folder: Path) -> None:
    asked = [
        "model=file",
        f"model.path={tiny_folder}",
        "sampler.steps=4",
        "seeds=[3,4,5]",
        "batch_size=2",
        "device=cpu",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("sample", [*asked, "prompt=a cat", "guidance.scale=2.5"])
    job = draw.prepare(cfg)
    with Logger(cfg.logger, job.settings, tmp_path) as logger:
        draw.draw(job, tmp_path, logger)
    found = evaluate(tmp_path, metric("effective_scale", pictures=3), BENCH)["effective_scale"]
    assert found["value"] == pytest.approx(2.5, rel=1e-4)
    assert found["count"] == len(found["per_image"]) == 3
    assert found["about"]["by_step"]["timestep"] == [751, 501, 251, 1]
    assert found["about"]["by_step"]["scale"] == pytest.approx([2.5] * 4, rel=1e-4)


def test_shares_of_two_objects(tmp_path: Path, judge_folder: Path) -> None:  # noqa: F811
    run = make_run(tmp_path / "run", [{"prompt": "a cat"}, {"prompt": "a dragon"}], [0, 1, 2])
    judge = load_judge(judge_folder)
    pictures = [np.array(Image.open(path)) for path in sorted((run / "images").iterdir())]
    labels = judge(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1).labels.argmax(dim=1)
    cat, dragon = (labels[labels > 0].bincount(minlength=len(JUDGE.concepts) + 1).argsort()[-2:] - 1).tolist()
    objects = [JUDGE.concepts[k] for k in (cat, dragon)]  # of a random judge, what it sees most
    settings = metric("object_shares", objects=objects, weights=str(judge_folder))
    found = evaluate(run, settings, BENCH)["object_shares"]
    shares, both = [], []
    for row in found["per_image"]:
        pixels = torch.from_numpy(np.array(Image.open(run / row["file"]))).permute(2, 0, 1)[None] / 127.5 - 1
        output = judge(pixels)
        labels = output.labels[0].argmax(dim=0)
        counts = [int((labels == 1 + k).sum()) for k in (cat, dragon)]
        assert row["value"] == (counts[0] / sum(counts) if sum(counts) else None)
        assert (row["first"], row["second"]) == tuple((output.presence[0, [cat, dragon]] > 0).tolist())
        shares += [row["value"]] if row["value"] is not None else []
        both.append(row["first"] and row["second"])
    assert shares  # else this tests nothing
    assert found["value"] == pytest.approx(np.mean(shares))
    assert found["details"]["both"]["value"] == pytest.approx(np.mean(both))


def test_word_choice_is_open_clip_s(tmp_path: Path, clip_folder: Path) -> None:  # noqa: F811
    prompts = ["a red cat", "a blue cat", "a red cat and a blue dog", "a cat"]
    run = make_run(tmp_path / "run", [{"prompt": prompt} for prompt in prompts], [0, 1, 2, 3])
    found = evaluate(run, metric("word_choice", words=["red", "blue"], model=str(clip_folder)), BENCH)
    result = found["word_choice"]
    network = randomise(open_clip.model.CLIP(**CLIP))
    right = []
    for row in result["per_image"]:
        own = [("red", 0), ("blue", 1), (None, 2), (None, 3)][int(row["file"][7:12])][0]
        if own is None:
            assert row["value"] is None
            continue
        texts = open_clip.tokenize([f"a {word} cat" for word in ("red", "blue")])
        pixels = torch.from_numpy(np.array(Image.open(run / row["file"]))).permute(2, 0, 1) / 127.5 - 1
        with torch.no_grad():
            image, text, _ = network(pixels[None], texts)
        best = ("red", "blue")[int((image @ text.T).argmax())]
        assert row["value"] == float(best == own)
        right.append(row["value"])
    assert result["value"] == pytest.approx(np.mean(right))
    assert result["count"] == len(right) == 8
    assert 0 < sum(right) < 8  # else this tests nothing
    assert result["warnings"] == ["8 pictures left out: their prompts hold none of the words, or several"]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("object_shares", {"objects": ["cat"]}, "must be two of"),
        ("object_shares", {"objects": ["cat", "cow"]}, "must be two of"),
        ("word_choice", {"words": ["red"]}, "at least two"),
        ("word_choice", {"words": ["green", "grey"]}, "no prompt holds"),
        ("effective_scale", {"pictures": 0}, "at least 1"),
    ],
)
def test_bad_settings(tmp_path: Path, name: str, settings: dict, said: str) -> None:
    run = make_run(tmp_path / "run", [{"prompt": "a red cat"}], [0, 1])
    with pytest.raises(ValueError, match=f"{name}: .*{said}"):
        evaluate(run, metric(name, **settings), Bench(CPU, 4, Bootstrap(resamples=2)))


def test_a_result_is_kept_until_its_basis_changes(tmp_path: Path, judge_folder: Path) -> None:  # noqa: F811
    run = make_run(tmp_path / "run", [{"prompt": "a cat"}], [0, 1, 2])
    settings = metric("judge", weights=str(judge_folder))
    stored = run / "metrics" / "judge.json"

    def measured_again(**change: object) -> bool:
        stored.write_text(stored.read_text().replace('"commit": ', '"marked": 1,\n "commit": '))
        evaluate(run, settings | {"judge": {**settings["judge"], **change}}, BENCH, again=False)
        return "marked" not in stored.read_text()

    evaluate(run, settings, BENCH)
    assert not measured_again()
    assert measured_again(prompt="a dragon")
    other: Tensor = torch.zeros(3, 16, 16)
    Image.fromarray(other.byte().permute(1, 2, 0).numpy()).save(run / "images" / "00000_0.png")
    assert measured_again(prompt="a dragon")
