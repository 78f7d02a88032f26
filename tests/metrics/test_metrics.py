"""Each metric against an implementation that is not ours, on networks with random weights that the tests write."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import open_clip
import pytest
import torch
from folders import BENCH, CLIP, CPU, JUDGE, make_folder, make_run, metric, randomise
from PIL import Image
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric

from experiments.emoji.judge import Judge, JudgeOutput
from experiments.frechet import frechet_distance, gaussian
from experiments.metrics import Unmeasurable, features, folders
from experiments.metrics.alpha_fid import alpha, distances, named
from experiments.metrics.estimates import (
    Bootstrap,
    Clustered,
    compare_paired,
    interval,
    sign_test,
    student_p,
    student_quantile,
    two_way,
)
from experiments.metrics.features import JudgeFeatures
from experiments.metrics.judge import Asked, Natural, judged, parse
from experiments.metrics.measuring import evaluate

EIGVALS = np.linalg.eigvals


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of torch-fidelity's file."""
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *a, **k: {})
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none")
    torch.save(network.state_dict(), file)
    return file


# estimates


def test_bootstrap_interval_is_that_of_the_normal_theory() -> None:
    scores = np.random.default_rng(0).normal(3, 2, size=400)
    estimate = Bootstrap(1000).mean(scores.tolist(), range(400))
    half = 1.96 * scores.std() / 20
    assert estimate.value == pytest.approx(scores.mean())
    assert estimate.low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(scores.mean() + half, abs=0.1 * half)
    assert Bootstrap(1000).mean(scores.tolist(), range(400)) == estimate
    assert Bootstrap(1000, seed=1).mean(scores.tolist(), range(400)) != estimate


def test_bootstrap_of_prompts_draws_whole_prompts() -> None:
    scores, prompts = [0.0] * 10 + [1.0] * 10 + [0.0] * 10 + [1.0] * 10, [i // 10 for i in range(40)]
    draws = list(Bootstrap(20, unit="prompts").draws(prompts))
    assert all(np.bincount(np.array(prompts)[i], minlength=4)[p] % 10 == 0 for i in draws for p in range(4))
    wide, narrow = (Bootstrap(500, unit=unit).mean(scores, prompts) for unit in ("prompts", "pictures"))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_missing_scores_are_left_out_and_one_picture_has_no_interval() -> None:
    estimate = Bootstrap(50).mean([None, 2.0, None], "abc")
    assert (estimate.value, estimate.low, estimate.high, estimate.count) == (2, None, None, 1)


def test_interval_of_a_distance_has_the_spread_of_fresh_draws() -> None:
    rng = np.random.default_rng(0)
    target = gaussian(torch.from_numpy(rng.normal(size=(400, 4))))
    samples = [torch.from_numpy(rng.normal(0.5, 1, size=(100, 4))) for _ in range(120)]
    values = [frechet_distance(gaussian(sample), target) for sample in samples]
    spread = 2 * 1.96 * np.std(values)
    widths, covered = [], 0
    for sample, value in zip(samples[:20], values[:20], strict=True):
        estimate = Bootstrap(100).distance(
            value, lambda i, sample=sample: frechet_distance(gaussian(sample[i]), target), range(100)
        )
        widths.append(estimate.high - estimate.low)
        covered += estimate.low < np.mean(values) < estimate.high
    assert np.mean(widths) == pytest.approx(spread, rel=0.15)
    assert covered >= 16


def test_interval_of_a_distance_is_moved_to_its_value() -> None:
    drawn = np.linspace(6, 10, 1001)  # their mean is 8
    found = interval(3, drawn, 5, least=0)
    assert (found.low, found.high) == pytest.approx((1.1, 4.9))
    assert interval(1, drawn, 5, least=0).low == 0
    assert interval(8, drawn, 5).low == pytest.approx(6.1)


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(8, 2, 112 / 1024), (2, 8, 112 / 1024), (5, 5, 1), (0, 0, 1), (9, 0, 2 / 512)]
)
def test_sign_test(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p)


def test_sign_test_of_many_is_the_normal_theory_s() -> None:
    z = (15300 - 14700 - 1) / math.sqrt(30000)
    assert sign_test(15300, 14700) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_ties_count_for_neither_side() -> None:
    found = compare_paired([1, 2, 3, 4, 5.00001], [0, 3, 1, 2, 5], range(5), Bootstrap(10))
    assert (found["wins"], found["losses"], found["ties"]) == (3, 1, 1)
    assert found["win_rate"].value == 0.75
    assert found["p"] == sign_test(3, 1)
    assert found["difference"].value == pytest.approx(4 / 5, abs=1e-5)
    assert compare_paired([1, 1], [1, 1], range(2), Bootstrap(10))["win_rate"] is None
    by_prompt = compare_paired([1, 2, 0, 5], [0, 0, 1, 4], "aabb", Bootstrap(10, unit="prompts"))
    assert (by_prompt["wins"], by_prompt["losses"], by_prompt["ties"], by_prompt["p"]) == (1, 0, 1, 1)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 101])
def test_student_p_is_the_density_s_integral(freedom: int) -> None:
    density = torch.distributions.StudentT(torch.tensor(float(freedom), dtype=torch.float64))
    for t in (0.0, 0.3, 1.7, 4.0):
        x = torch.linspace(0, t, 20001, dtype=torch.float64)
        inside = 2 * torch.trapezoid(density.log_prob(x).exp(), x).item()
        assert student_p(t, freedom) == pytest.approx(1 - inside, abs=1e-8)
        assert student_p(-t, freedom) == student_p(t, freedom)


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (19, 2.0930), (1000, 1.9623)])
def test_student_quantile_is_the_tables(freedom: int, t: float) -> None:
    assert student_quantile(freedom) == pytest.approx(t, abs=1e-4)


def crossed(prompts: int, raters: int, seed: int, share: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values with an effect of either kind of cluster; each pair of clusters there with a probability of `share`."""
    rng = np.random.default_rng(seed)
    p, r = np.nonzero(rng.random((prompts, raters)) < share)
    return rng.normal(size=prompts)[p] + 0.5 * rng.normal(size=raters)[r] + rng.normal(size=len(p)), p, r


@pytest.mark.parametrize(("prompts", "raters", "share"), [(12, 7, 1.0), (9, 20, 0.6)])
def test_two_way_is_the_sandwich_of_indicators(prompts: int, raters: int, share: float) -> None:
    x, p, r = crossed(prompts, raters, 0, share)
    e = np.outer(x - x.mean(), x - x.mean()) / len(x) ** 2
    same_p, same_r = p[:, None] == p, r[:, None] == r
    first, second, both = (
        (e * same).sum() * g / (g - 1) for same, g in ((same_p, prompts), (same_r, raters), (same_p & same_r, len(x)))
    )
    found = two_way(x, p.tolist(), [f"rater {i}" for i in r])
    assert found.value == pytest.approx(x.mean())
    assert found.error == pytest.approx(math.sqrt(max(first, second, first + second - both)))
    assert (found.freedom, found.count) == (min(prompts, raters) - 1, len(x))
    half = student_quantile(found.freedom) * found.error
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half))
    assert student_p(half / found.error, found.freedom) == pytest.approx(0.05)


def test_two_way_is_student_s_where_nothing_is_shared() -> None:
    x = np.random.default_rng(0).normal(1, 2, size=25)
    found = two_way(x, range(25), range(25))
    assert found.error == pytest.approx(x.std(ddof=1) / 5)
    assert found.freedom == 24
    assert found.p() == student_p(x.mean() / found.error, 24)
    assert found.p(found.low) == pytest.approx(0.05)


def test_two_way_of_the_same_answers_twice_is_no_surer() -> None:
    x, p, r = crossed(10, 8, 1)
    once, twice = two_way(x, p, r), two_way(np.repeat(x, 2), np.repeat(p, 2), np.repeat(r, 2))
    assert twice.error == pytest.approx(once.error)
    assert twice.count == 2 * once.count


def test_two_way_leaves_out_a_kind_of_one_cluster() -> None:
    x, p, _ = crossed(10, 4, 2)
    means = np.bincount(p, x) / 4
    for found in (two_way(x, p, np.zeros(40, int)), two_way(x, np.zeros(40, int), p)):
        assert found.error == pytest.approx(means.std(ddof=1) / math.sqrt(10))
        assert found.freedom == 9
    assert two_way([1, 3], "aa", "bb") == Clustered(2, None, None, 2, None, 0)
    assert two_way([1, 3], "aa", "bb").p() is None
    assert two_way([1, 1], "ab", "ab").p() == 0.5  # of the sign test: alike, but only two
    assert two_way([1, 1], "ab", "ab").p(1) == 1


# distances


@pytest.mark.parametrize(("n", "m", "width"), [(200, 300, 16), (12, 300, 16), (10, 14, 32)])
def test_frechet_distance_is_torch_fidelity_s(n: int, m: int, width: int) -> None:
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=g, dtype=torch.float64)
    one, other = torch.randn(n, width, generator=g).double(), torch.randn(m, width, generator=g).double() @ mix + 0.3
    theirs = fid_statistics_to_metric(fid_features_to_statistics(one), fid_features_to_statistics(other), False)
    assert frechet_distance(gaussian(one), gaussian(other)) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-4
    )


def exact_gaussian(mean: torch.Tensor, std: torch.Tensor, seed: int, n: int = 200) -> torch.Tensor:
    """Samples [n, D] whose mean and diagonal covariance are exactly these."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(dim=0)
    whitened = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T)).T)
    return whitened * std + mean


def test_alpha_fid_of_known_gaussians() -> None:
    g = torch.Generator().manual_seed(1)
    means, stds = torch.randn(3, 8, generator=g).double(), 0.5 + torch.rand(3, 8, generator=g).double()
    ours, one, other = (exact_gaussian(m, s, i) for i, (m, s) in enumerate(zip(means, stds, strict=True)))
    x, y = ((means[0] - means[i]).square().sum().item() + (stds[0] - stds[i]).square().sum().item() for i in (1, 2))
    found = distances(ours, gaussian(one), gaussian(other))
    assert found["x"] == pytest.approx(x, rel=1e-3)
    assert found["alpha"] == pytest.approx(math.sqrt((x * x + y * y + (x - y) ** 2) / 2), rel=1e-3)
    assert alpha(3, 3) == pytest.approx(3)
    assert alpha(0, 6) == pytest.approx(6)


def test_named_objects() -> None:
    names = ["palm tree", "tree", "cat"]
    assert named(("A cat under a palm tree",), names) == ["cat", "palm tree"]
    assert named(("a tree", "a cat and a tree"), names) == ["tree", "cat"]
    assert named(("caterpillar",), names) == []


def test_alpha_fid_of_a_run(tmp_path: Path, judge_folder: Path) -> None:
    run = make_run(tmp_path / "run", [{"prompt": "a cat and a dragon"}, {"prompt": "a fish by a cat"}], [0, 1, 2, 3])
    for i, name in enumerate(("cat", "dragon", "fish")):
        make_folder(tmp_path / "objects" / name, 5 + i, 100 * i)
    settings = metric("alpha_fid", references=str(tmp_path / "objects"), weights=str(judge_folder))
    found = evaluate(run, settings, BENCH)["alpha_fid"]
    look = JudgeFeatures(judge_folder, CPU)

    def statistics(files: list[Path]) -> dict:
        images = torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files])
        return fid_features_to_statistics(look(images)[0].double())

    objects = {n: statistics(sorted((tmp_path / "objects" / n).glob("*.png"))) for n in ("cat", "dragon", "fish")}
    alphas = []
    for p, pair in enumerate([("cat", "dragon"), ("fish", "cat")]):
        ours = statistics(sorted((run / "images").glob(f"{p:05d}_*")))
        fid = [fid_statistics_to_metric(ours, objects[o], False)["frechet_inception_distance"] for o in pair]
        alphas.append(math.sqrt((fid[0] ** 2 + fid[1] ** 2 + (fid[0] - fid[1]) ** 2) / 2))
    assert [row["alpha"] for row in found["about"]["captions"]] == pytest.approx(alphas, rel=1e-4)
    assert found["value"] == pytest.approx(np.mean(alphas), rel=1e-4)
    assert found["low"] < found["value"] < found["high"]
    assert found["details"]["pooled"]["count"] == 8
    assert found["about"]["references"]["cat"]["count"] == 5
    assert "4 pictures of a caption are no more than the 16 features" in found["warnings"][0]
    # stages that were skipped leave no prompt: the objects are said
    alone = make_run(tmp_path / "alone", [{"stages": [{"prompt": "a cat", "steps": 4}]}], [0, 1])
    said = metric("alpha_fid", references=str(tmp_path / "objects"), weights=str(judge_folder))
    with pytest.raises(ValueError, match="no picture of the run is of two of the objects cat, dragon, fish"):
        evaluate(alone, said, BENCH)
    said["alpha_fid"]["objects"] = ["cat", "fish"]
    assert evaluate(alone, said, BENCH)["alpha_fid"]["about"]["captions"][0]["objects"] == ["cat", "fish"]


def few_eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Those that are not 0 of a wide matrix of low rank, within the space that it reaches: in no time."""
    basis, _ = np.linalg.qr(matrix @ np.random.default_rng(0).normal(size=(len(matrix), 16)))
    return EIGVALS(basis.T @ matrix @ basis)


def test_frechet_and_inception_score_are_torch_fidelity_s(
    tmp_path: Path, inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np.linalg, "eigvals", few_eigenvalues)
    run = make_run(tmp_path / "run", [{"prompt": "x"}], [0, 1, 2, 3], "sd15", 24)
    reference = make_folder(tmp_path / "reference", 3, size=24)
    shared = {"weights": str(inception_file), "resamples": 2}
    found = evaluate(
        run,
        metric("frechet", reference=str(reference), **shared) | metric("inception_score", splits=2, **shared),
        BENCH,
    )
    theirs = calculate_metrics(
        input1=str(run / "images"), input2=str(reference), fid=True, isc=True, isc_splits=2, cuda=False, verbose=False,
        cache=False, save_cpu_ram=True, batch_size=4, feature_extractor_weights_path=str(inception_file),
    )  # fmt: skip
    assert found["frechet"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert found["inception_score"]["value"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    about = found["frechet"]["about"]
    assert about["reference"]["count"] == 3
    assert about["features"]["preprocessing"] == "299 px, bilinear as TensorFlow 1"
    assert "not torch-fidelity's published" in found["frechet"]["warnings"][0]
    assert "4 pictures are no more than the 2048 features" in found["frechet"]["warnings"][1]


def test_frechet_and_inception_score_of_the_judge(tmp_path: Path, judge_folder: Path) -> None:
    run = make_run(tmp_path / "run", [{"prompt": "a cat"}], list(range(24)))
    reference = make_folder(tmp_path / "reference", 40)
    settings = metric("frechet", reference=str(reference), weights=str(judge_folder))
    found = evaluate(run, settings | metric("inception_score", splits=3, weights=str(judge_folder)), BENCH)
    look, values = JudgeFeatures(judge_folder, CPU), []
    for folder in (run / "images", reference):
        files = sorted(folder.glob("*.png"), key=lambda f: int(f.stem.split("_")[-1]))
        values.append(look(torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files])))
    one, other = (v[0].double().numpy() for v in values)
    s1, s2 = np.cov(one.T), np.cov(other.T)
    root = np.linalg.eigvals(s1 @ s2).astype(complex) ** 0.5
    fid = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * root.sum().real
    assert found["frechet"]["value"] == pytest.approx(fid, rel=1e-4)
    assert found["frechet"]["low"] < fid < found["frechet"]["high"]
    assert found["frechet"]["warnings"] == []
    isc = isc_features_to_metric(values[0][1], splits=3)["inception_score_mean"]
    assert found["inception_score"]["value"] == pytest.approx(isc, rel=1e-4)


def test_reference_hash_is_of_the_contents(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", 3)
    before = folders.open_reference(folder).sha256
    (folder / "0.png").rename(folder / "other.png")
    (folder / "captions.jsonl").write_text("{}")
    assert folders.open_reference(folder).sha256 == before
    make_folder(tmp_path / "b", 1, 77)
    (tmp_path / "b" / "0.png").rename(folder / "more.png")
    assert folders.open_reference(folder).sha256 != before


# CLIP and PickScore


LONG = "a cat " * 50


def test_clip_score_is_open_clip_s(tmp_path: Path, clip_folder: Path) -> None:
    stages = {"stages": [{"prompt": "a cat", "steps": 1}, {"prompt": "a fish", "steps": 3}]}
    run = make_run(tmp_path / "run", [{"prompt": "a cat"}, {"prompt": LONG}, stages], [0, 7])
    found = evaluate(run, metric("clip_score", model=str(clip_folder)), BENCH)["clip_score"]
    network = randomise(open_clip.model.CLIP(**CLIP))
    for record in found["per_image"]:
        prompts = [["a cat"], [LONG], ["a cat", "a fish"]][int(record["file"][7:12])]
        pixels = torch.from_numpy(np.array(Image.open(run / record["file"]))).permute(2, 0, 1) / 127.5 - 1
        with torch.no_grad():
            image, text, _ = network(pixels[None], open_clip.tokenize(prompts))
        assert record["value"] == pytest.approx(100 * (image @ text.T).mean().item(), rel=1e-4)
    assert found["value"] == pytest.approx(np.mean([record["value"] for record in found["per_image"]]))
    assert found["about"]["cut"] == [LONG]
    assert found["warnings"][0].startswith("1 prompts have more than 77 tokens")


@pytest.mark.parametrize(("words", "cut"), [(75, False), (76, True)])
def test_cut_begins_beyond_77_tokens(words: int, cut: bool) -> None:
    from experiments.metrics.clip import is_cut

    assert is_cut(open_clip.get_tokenizer("ViT-B-32"), "cat " * words, 77) == cut


@pytest.fixture(scope="module")
def pick_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in PickScore's layout: a transformers CLIPModel and its processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.modeling_clip import CLIPTextConfig, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("pick")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    shared = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(words), bos_token_id=0, eos_token_id=1, pad_token_id=1, **shared)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **shared)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    randomise(CLIPModel(config)).save_pretrained(folder)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
    return folder


def pick_scores(folder: Path, files: list[Path], prompt: str) -> list[float]:
    """As the model's card computes them."""
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(
        images=[Image.open(file) for file in files], text=prompt, padding=True, truncation=True, max_length=77,
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        out = model(**inputs)
    scores = model.logit_scale.exp() * (out.text_embeds @ out.image_embeds.T)[0]
    return scores.tolist()


def test_pick_score_and_win_rate_are_transformers_s(tmp_path: Path, pick_folder: Path) -> None:
    prompts = [{"prompt": "a cat"}, {"prompt": "fish and bat"}]
    one, other = make_run(tmp_path / "one", prompts, [0, 1, 2]), make_run(tmp_path / "other", prompts, [2, 1, 5, 0])
    (other / "images" / "00000_1.png").write_bytes((one / "images" / "00000_1.png").read_bytes())  # a tie
    found = evaluate(one, metric("pick_score", model=str(pick_folder)), BENCH, other)["pick_score"]
    ours, theirs = (
        [
            score
            for p, prompt in enumerate(prompts)
            for score in pick_scores(
                pick_folder, [run / f"images/{p:05d}_{s}.png" for s in (0, 1, 2)], prompt["prompt"]
            )
        ]
        for run in (one, other)
    )
    assert [record["value"] for record in found["per_image"]] == pytest.approx(ours, rel=1e-4)
    wins, losses = (sum(sign * (a - b) > 1e-3 for a, b in zip(ours, theirs, strict=True)) for sign in (1, -1))
    against = found["against"]
    assert wins + losses == 5
    assert (against["value"]["wins"], against["value"]["losses"], against["value"]["ties"]) == (wins, losses, 1)
    assert against["value"]["win_rate"]["value"] == wins / 5
    assert against["value"]["p"] == sign_test(wins, losses)
    assert (against["pairs"], against["unpaired"]) == (6, 2)


# the judge


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a small blue noto cat on a red background", [("cat", "blue")]),
        ("A Light Bulb to the left of an emojione fish", [("light bulb", None), ("fish", None)]),
        ("a red dragon and a blue fish", [("dragon", "red"), ("fish", "blue")]),
        ("a cat on a blue background, red fish", [("cat", None), ("fish", "red")]),
        ("blue, a cat and fish", [("cat", None), ("fish", None)]),
        ("blue old noto cat", [("cat", None)]),
        ("a combat of caterpillars", []),
    ],
)
def test_prompts_are_parsed(prompt: str, asked: list) -> None:
    assert parse((prompt,), JUDGE) == [Asked(*thing) for thing in asked]


def test_stages_are_united() -> None:
    assert parse(("a cat", "a fish next to a red cat"), JUDGE) == [Asked("fish", None), Asked("cat", "red")]


def test_a_picture_is_judged_by_presence_and_by_the_colour_of_the_object() -> None:
    labels = torch.full((1, 6, 4, 4), -20.0)
    labels[0, 1, :, :2] = 20  # a dragon at the left, a cat at the right
    labels[0, 3, :, 2:] = 20
    colours = torch.zeros(1, 2, 4, 4)
    colours[0, 0, :, :2] = 5  # red there, blue here
    colours[0, 1, :, 2:] = 5
    output = JudgeOutput(torch.tensor([[3.0, -1.0, 2.0, -1.0, -1.0]]), labels, colours, torch.zeros(1, 16))
    good = judged(output, 0, [Asked("dragon", "red"), Asked("cat", None)], JUDGE)
    assert (good["value"], good["colours"], good["both"], good["all_right"]) == (1, 1, True, True)
    swapped = judged(output, 0, [Asked("dragon", "blue"), Asked("cat", "blue")], JUDGE)
    assert (swapped["value"], swapped["colours"], swapped["both"], swapped["all_right"]) == (1, 0.5, True, False)
    absent = judged(output, 0, [Asked("fish", "red"), Asked("cat", None)], JUDGE)
    assert (absent["value"], absent["colours"], absent["both"], absent["all_right"]) == (0.5, 0, False, False)
    assert judged(output, 0, [Asked("cat", None)], JUDGE)["both"] is None
    assert good["purity"] == pytest.approx(1 / (1 + math.exp(-5)))  # of two colours' logits, 5 and 0
    assert absent["purity"] is None  # a fish that is not found has no colour
    assert judged(output, 0, [], JUDGE)["value"] is None
    fields = (output.presence, output.labels, output.colours, output.features)
    two = JudgeOutput(*(torch.cat([field.flip(1 if field is output.colours else 0), field]) for field in fields))
    assert [judged(two, b, [Asked("dragon", "red")], JUDGE)["colours"] for b in range(2)] == [0, 1]
    colours[0, :, :2, :2] = torch.tensor([0.0, 5.0])[:, None, None]  # blue leaks onto half of the dragon
    leaking = judged(output, 0, [Asked("dragon", "red")], JUDGE)
    assert (leaking["value"], leaking["purity"]) == (1, pytest.approx(0.5))


def test_a_colour_that_leaks_onto_an_object_without_one() -> None:
    labels = torch.full((1, 6, 4, 4), -20.0)
    labels[0, 1, :, :2], labels[0, 3, :, 2:] = 20, 20  # a dragon at the left, a cat at the right
    colours = torch.zeros(1, 2, 4, 4)
    colours[0, 0, :, :2] = 9
    colours[0, 0, :2, 2:], colours[0, 1, 2:, 2:] = 9, 9  # a red dragon, and red on the upper half of the cat
    output = JudgeOutput(torch.tensor([[3.0, -1.0, 2.0, -1.0, -1.0]]), labels, colours, torch.zeros(1, 16))
    plain = {concept: dict.fromkeys(JUDGE.colours, 0.0) for concept in JUDGE.concepts}

    def leak(*asked: Asked, natural: Natural | None = plain) -> float | None:
        return judged(output, 0, list(asked), JUDGE, natural)["leak"]

    dragon, cat = Asked("dragon", "red"), Asked("cat", None)
    assert leak(dragon, cat) == pytest.approx(0.5, abs=1e-3)
    assert leak(dragon, Asked("cat", "blue")) is None  # it has a colour of its own
    assert leak(Asked("dragon", None), cat) is None  # there is none that could leak
    assert leak(dragon, Asked("fish", None)) is None  # it is not found
    assert leak(dragon, cat, natural={**plain, "cat": {"red": 0.3, "blue": 0.0}}) is None  # cats are red by nature
    assert leak(dragon, cat, natural=None) is None


def test_how_pictures_look_and_differ(tmp_path: Path, judge_folder: Path) -> None:
    run = make_run(tmp_path / "run", [{"prompt": "a fish"}, {"prompt": "a cat"}], [0, 1, 2])
    found = evaluate(run, metric("look") | metric("diversity", weights=str(judge_folder)), BENCH)
    for row in found["look"]["per_image"]:
        rgb = np.array(Image.open(run / row["file"])).astype(float) / 255
        luma = rgb @ [0.299, 0.587, 0.114]
        assert row["value"] == pytest.approx((rgb.max(axis=2) - rgb.min(axis=2)).mean())
        assert row["contrast"] == pytest.approx(luma.std())
    extractor = JudgeFeatures(judge_folder, CPU)
    for prompt, row in enumerate(found["diversity"]["per_image"]):
        files = [run / f"images/{prompt:05d}_{seed}.png" for seed in range(3)]
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
        a, b, c = extractor(pixels)[0]
        expected = ((a - b).norm() + (a - c).norm() + (b - c).norm()).item() / 3
        assert (row["file"], row["value"]) == (f"images/{prompt:05d}_0.png", pytest.approx(expected, rel=1e-4))
    alone = make_run(tmp_path / "alone", [{"prompt": "a fish"}], [0])
    with pytest.raises(Unmeasurable, match="no prompt has pictures of two seeds"):
        evaluate(alone, metric("diversity", weights=str(judge_folder)), BENCH)


def test_judge_of_a_run(tmp_path: Path, judge_folder: Path) -> None:
    stages = {"stages": [{"prompt": "a red dragon", "steps": 1}, {"prompt": "a cat", "steps": 3}]}
    run = make_run(tmp_path / "run", [{"prompt": "a fish"}, stages, {"prompt": "nothing"}], [0, 1, 2, 3, 4])
    found = evaluate(run, metric("judge", weights=str(judge_folder)), BENCH)["judge"]
    judge = randomise(Judge(JUDGE))
    judge.load_state_dict({k: v.half().float() for k, v in judge.state_dict().items()})
    asked = {0: [1], 1: [0, 2]}
    present, right = [], []
    for record in found["per_image"][:10]:
        pixels = torch.from_numpy(np.array(Image.open(run / record["file"]))).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            output = judge(pixels)
        things = asked[int(record["file"][7:12])]
        present += [(output.presence[0, k] > 0).item() for k in things]
        if 0 in things:
            right.append(bool(output.presence[0, 0] > 0 and output.colour_of(0)[0].argmax() == 0))
    assert found["value"] == pytest.approx(np.mean(present))
    assert found["details"]["colours"]["value"] == pytest.approx(np.mean(right))
    assert found["details"]["both"]["count"] == 5
    assert found["details"]["all_found"]["count"] == 10
    assert found["details"]["found/dragon"]["count"] == 5
    assert "5 pictures left out" in found["warnings"][0]
    told = evaluate(run, metric("judge", weights=str(judge_folder), prompt="a bat"), BENCH)["judge"]
    assert (told["count"], [*told["details"]]) == (15, ["all_found", "all_right", "found/bat"])


def test_the_embedded_model_s_runs_are_measured_by_the_embedded_networks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"prompt": "a blue cat"}], [0, 1, 2], size=64)
    reference = make_folder(tmp_path / "reference", 3, size=64)
    found = evaluate(run, metric("judge") | metric("clip_score") | metric("frechet", reference=str(reference)), BENCH)
    assert "light bulb" in found["judge"]["about"]["judge"]["concepts"]
    assert found["clip_score"]["about"]["model"] == "emoji_sixteen_clip"
    assert found["frechet"]["about"]["features"]["name"] == "judge"


def test_missing_inception_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    run = make_run(tmp_path / "run", [{"prompt": "x"}], [0, 1], "sd15")
    with pytest.raises(ValueError, match="no Inception weights here.*put it at .*torch/hub/checkpoints/weights-incep"):
        evaluate(run, metric("frechet", reference=str(run / "images")), BENCH)


def test_inception_weights_run_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return (tmp_path / "trapped").touch, ()

    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="not torch-fidelity's Inception weights"):
        features.InceptionFeatures(tmp_path / "trap.pth", CPU)
    assert not (tmp_path / "trapped").exists()
