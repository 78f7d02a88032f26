"""Classifier and CLIP guidance against closed forms, where data is a mixture of Gaussians and everything is known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CONDITIONS, FOUR, NOISE, SEEDS, Tiny, relative, run, small_classifier
from tiny import Outcome, tiny_model
from torch import Tensor

from guidance import (
    ClassifierFree,
    ClassifierGuided,
    ClipGuided,
    Guidance,
    Interval,
    Multistage,
    Rescale,
    SegmentationFree,
    Stage,
    Unfit,
    guided,
)
from ldm.classifier import ClassifierConfig, LatentClassifier
from ldm.condition import Condition, Conditions, Span
from ldm.files.classifiers import load_classifier, write_classifier
from ldm.unet import UNet
from samplers import Denoised, KeyedNoise, Level, Schedule, Step, ddim
from samplers.schedule import CLEAN

SCHEDULE = Schedule()
LEVELS = [SCHEDULE.level(t) for t in (0, 200, 500, 999)]


@dataclass(frozen=True)
class Mixture:
    """p(x_0) = sum_k weights[k] N(means[k], stds[k]^2), each number of a latent by itself; all of it in float64."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    def log_parts(self, x_t: Tensor, level: Level) -> Tensor:
        """log(weights[k] N(x_t; ...)) [..., k]; less a constant."""
        means, stds = torch.tensor(self.means).double(), torch.tensor(self.stds).double()
        variances = level.signal**2 * stds**2 + level.noise**2
        parts = -((x_t.double()[..., None] - level.signal * means) ** 2) / (2 * variances) - variances.log() / 2
        return parts + torch.tensor(self.weights).double().log()

    def posterior(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_0 given x_t."""
        shares = self.log_parts(x_t, level).softmax(dim=-1)
        means, variances = torch.tensor(self.means).double(), torch.tensor(self.stds).double() ** 2
        gain = level.signal * variances / (level.signal**2 * variances + level.noise**2)
        inside = means + gain * (x_t.double()[..., None] - level.signal * means)
        left = variances * (1 - gain * level.signal)
        mean = (shares * inside).sum(dim=-1)
        return mean, (shares * (left + inside**2)).sum(dim=-1) - mean**2

    def __call__(self, x_t: Tensor, level: Level, condition: object, edits: object = (), t: object = None) -> Tensor:
        return self.posterior(x_t, level)[0]

    def of(self, parts: Sequence[int]) -> "Mixture":
        """The mixture given that it is one of these parts."""
        return Mixture(*(tuple(values[k] for k in parts) for values in (self.weights, self.means, self.stds)))


@dataclass(frozen=True)
class Knows:
    """The classifier of a mixture: a class is a set of its parts."""

    mixture: Mixture
    parts: dict[str, list[int]]

    @property
    def classes(self) -> list[str]:
        return list(self.parts)

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        log_parts = self.mixture.log_parts(x_t, SCHEDULE.level(t)).flatten(1, -2).squeeze(1)
        return torch.stack([log_parts[:, parts].logsumexp(dim=1) for parts in self.parts.values()], dim=1)


TWO = Mixture((0.3, 0.7), (-1.0, 1.5), (0.4, 0.2))
THREE = Mixture((0.5, 0.2, 0.3), (-2.0, 0.5, 2.0), (0.2, 0.1, 0.3))
NONE = Conditions(Condition(), Condition(), lambda prompt: Condition())
PLAIN = ClassifierFree(1)
TWO_CLASSES = Knows(TWO, {"left": [0], "right": [1]})


def points(count: int = 40) -> Tensor:
    return torch.linspace(-3, 3, count, dtype=torch.float64).reshape(-1, 1, 1, 1)


def at(level: Level) -> Step:
    return Step(3, 10, level, CLEAN)


def denoised(mixture: Mixture, guidance: Guidance, level: Level, conditions: Conditions = NONE) -> Denoised:
    return guided(mixture, guidance, conditions)(points(), at(level))


def sampled(mixture: Mixture, guidance: Guidance, count: int, conditions: Conditions = NONE) -> Tensor:
    x_T = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = SCHEDULE.steps(200, final="clean")
    *_, (_, x, _) = ddim(guided(mixture, guidance, conditions), x_T, steps)
    return x.flatten()


# --- classifier guidance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: f"t{level.t:g}")
def test_at_scale_1_it_is_the_conditional_model(level: Level) -> None:
    """In x_0 as in eps: the score of p(x_t | y) is that of p(x_t) and the gradient of log p(y | x_t)."""
    for name, parts in TWO_CLASSES.parts.items():
        out = denoised(TWO, ClassifierGuided(PLAIN, TWO_CLASSES, labels=[name]), level)
        exact = TWO.of(parts)(points(), level, None)
        assert relative(out.x_0, exact) < 1e-6
        assert relative(out.eps, level.eps(points(), exact)) < 1e-6


@pytest.mark.parametrize(("scale", "temperature"), [(2.0, 1.0), (1.0, 3.0), (0.7, 0.5)])
def test_scale_and_temperature(scale: float, temperature: float) -> None:
    """g = (1 - p) (d f_right - d f_left) / tau with p the sigmoid of (f_right - f_left) / tau."""
    for level in LEVELS[1:]:
        x = points()
        means, variances = (level.signal * torch.tensor(TWO.means), torch.tensor(TWO.stds) ** 2)
        variances = level.signal**2 * variances + level.noise**2
        slope = (means - x[..., None]) / variances  # of each part's log density
        f = TWO.log_parts(x, level)
        p = ((f[..., 1] - f[..., 0]) / temperature).sigmoid()
        g = (1 - p) * (slope[..., 1] - slope[..., 0]) / temperature
        guidance = ClassifierGuided(PLAIN, TWO_CLASSES, scale, temperature, ["right"])
        out = denoised(TWO, guidance, level)
        plain = TWO(x, level, None)
        assert relative(out.eps, level.eps(x, plain) - scale * level.noise * g) < 1e-6
        assert relative(out.x_0, plain + scale * level.noise**2 / level.signal * g) < 1e-6


def test_what_is_sampled_has_the_moments_of_the_class() -> None:
    count = 2000
    plain = sampled(TWO, PLAIN, count)
    share = (plain > 0.3).double().mean()
    assert abs(share - 0.7) < 4 * math.sqrt(0.21 / count)
    for name, k in (("left", 0), ("right", 1)):
        x = sampled(TWO, ClassifierGuided(PLAIN, TWO_CLASSES, labels=[name]), count)
        assert abs(x.mean() - TWO.means[k]) < 4 * TWO.stds[k] / math.sqrt(count)
        assert abs(x.std() - TWO.stds[k]) < 4 * TWO.stds[k] / math.sqrt(2 * count) + 0.01 * TWO.stds[k]


def test_what_is_sampled_has_the_weights_of_the_class() -> None:
    """The class of the first two of three parts: one to the other as 5 to 2, and nothing of the third."""
    count, classes = 2000, Knows(THREE, {"low": [0, 1], "high": [2]})
    x = sampled(THREE, ClassifierGuided(PLAIN, classes, labels=["low"]), count)
    assert (x > 1.2).double().mean() < 0.005
    share = (x < -0.75).double().mean()
    assert abs(share - 5 / 7) < 4 * math.sqrt(10 / 49 / count) + 0.005


def test_several_classes_add_up() -> None:
    classes = Knows(THREE, {"a": [0], "b": [1], "c": [2]})
    level = LEVELS[2]
    both = denoised(THREE, ClassifierGuided(PLAIN, classes, labels=["a", "b"]), level).x_0
    each = [denoised(THREE, ClassifierGuided(PLAIN, classes, labels=[name]), level).x_0 for name in "ab"]
    assert relative(both, sum(each) - THREE(points(), level, None)) < 1e-9


def test_at_scale_0_it_is_the_inner_guidance_to_the_bit() -> None:
    unet = tiny_model().unet
    for inner in (ClassifierFree(3), SegmentationFree(3, 1, sf_scale=3), Rescale(ClassifierFree(3))):
        plain = run(unet, inner, steps=FOUR)
        assert torch.equal(run(unet, ClassifierGuided(inner, small_classifier(), 0.0), steps=FOUR), plain)
        assert torch.equal(run(unet, ClipGuided(inner, Tiny(), 0.0), LOOKING, steps=FOUR), plain)


def test_where_no_signal_is_left_nothing_is_added() -> None:
    level = Level(999, 0.0, 1.0)
    predict: Callable[..., Tensor] = lambda x_t, *others: 0 * x_t + 0.5  # noqa: E731
    for guidance in (ClassifierGuided(PLAIN, TWO_CLASSES, labels=["left"]), ClipGuided(PLAIN, Angle(1, 0))):
        out = guided(predict, guidance, NONE)(points(), at(level))
        assert torch.equal(out.x_0, torch.full_like(points(), 0.5)) and torch.equal(out.eps, points())


# --- CLIP guidance ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Angle:
    """A CLIP of one pixel x, whose vector has the angle k x; every text's has the angle theta.

    So the loss is (k x - theta)^2 / 2: minus the logarithm of a Gaussian.
    """

    k: float
    theta: float
    size: int = 1

    def images(self, pictures: Tensor) -> Tensor:
        angle = self.k * pictures.flatten(1)
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([[math.cos(self.theta), math.sin(self.theta)]] * len(prompts))


IDENTITY = replace(NONE, decode=lambda latents: latents, noise=lambda key, shape: torch.zeros(40, *shape))


def through(way: str, scale: float = 0.5) -> ClipGuided:
    return ClipGuided(PLAIN, Angle(0.6, 0.4), scale, cutouts=0, through=way, prompt="x")


@pytest.mark.parametrize("level", LEVELS[1:], ids=lambda level: f"t{level.t:g}")
def test_clip_guidance_of_two_gaussians(level: Level) -> None:
    """Through the network d x_0 / d x_t is signal / noise^2 times the variance of x_0 given x_t (Tweedie)."""
    mean, variance = TWO.posterior(points(), level)
    g_0 = -0.6 * (0.6 * mean - 0.4)
    fixed, whole = (denoised(TWO, through(way), level, IDENTITY) for way in ("decoder", "network"))
    assert relative(fixed.x_0, mean + 0.5 * level.sigma**2 * g_0) < 1e-5
    assert relative(whole.x_0, mean + 0.5 * variance * g_0) < 1e-5
    for out in (fixed, whole):
        assert relative(level.x_t(*out), points()) < 1e-9, "eps moves with x_0"


def test_clip_guidance_of_one_gaussian_samples_the_gaussian_that_it_should() -> None:
    """Of a standard normal x_0 = signal x_t, so each step is affine, and x is N(offset, slope^2)."""
    one, slope, offset, steps = Mixture((1.0,), (0.0,), (1.0,)), 1.0, 0.0, SCHEDULE.steps(10, final="clean")
    for step in steps:
        now, to = step.now, step.to
        # x_0' = signal x - s k (k signal x - theta) noise^2
        a, b = now.signal * (1 - 0.5 * 0.36 * now.noise**2), 0.5 * 0.6 * 0.4 * now.noise**2
        eps_a, eps_b = (1 - now.signal * a) / now.noise, -now.signal * b / now.noise
        slope, offset = (
            (to.signal * a + to.noise * eps_a) * slope,
            (to.signal * a + to.noise * eps_a) * offset + to.signal * b + to.noise * eps_b,
        )
    *_, (_, x, _) = ddim(guided(one, through("network"), IDENTITY), points(), steps)
    assert relative(x, slope * points() + offset) < 1e-5
    assert offset > 0.05 and slope < 0.95, "it pulls"


LOOKING = replace(CONDITIONS, decode=tiny_model().autoencoder.decode)


@pytest.fixture(scope="module")
def around() -> dict[str, Callable[[Guidance], Guidance]]:
    classifier = small_classifier()
    return {
        "classifier": lambda inner: ClassifierGuided(inner, classifier, 3.0),
        "clip": lambda inner: ClipGuided(inner, Tiny(), 3.0),
        "clip through the decoder": lambda inner: ClipGuided(inner, Tiny(), 0.3, through="decoder"),
    }


NAMES = ["classifier", "clip", "clip through the decoder"]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_images(name: str, around: dict[str, Callable[[Guidance], Guidance]], unet: UNet) -> None:
    guidance = around[name](ClassifierFree(2))
    together = run(unet, guidance, LOOKING, steps=FOUR)
    assert relative(together, run(unet, ClassifierFree(2), steps=FOUR)) > 1e-3
    for i, seed in enumerate(SEEDS):
        row = slice(i, i + 1)
        texts = {"cond": CONDITIONS.cond.rows(row), "negative": CONDITIONS.negative.rows(row)}
        one = replace(LOOKING, **texts, noise=KeyedNoise([seed]))
        assert relative(run(unet, guidance, one, NOISE[row], FOUR), together[row]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_it_acts_in_an_interval_and_follows_the_stages(
    name: str, around: dict[str, Callable[[Guidance], Guidance]], unet: UNet
) -> None:
    """Steps outside leave the conditional alone; a stage's prompt is what is classified, and looked for."""
    wrap = around[name]
    half = run(unet, Interval(wrap(ClassifierFree(2)), 0.0, 0.5), LOOKING, steps=FOUR)
    first = run(unet, wrap(ClassifierFree(2)), LOOKING, steps=FOUR[:2])
    rest = run(unet, ClassifierFree(1), CONDITIONS, first, FOUR[2:])
    assert relative(half, rest) < 1e-5
    stages = Multistage((Stage("a dragon", 2), Stage("a fish", 2)), wrap(ClassifierFree(2)))
    told = [replace(LOOKING, cond=LOOKING.encode(prompt)) for prompt in ("a dragon", "a fish")]
    x = run(unet, wrap(ClassifierFree(2)), told[0], steps=FOUR[:2])
    expected = run(unet, wrap(ClassifierFree(2)), told[1], x, FOUR[2:])
    assert relative(run(unet, stages, LOOKING, steps=FOUR), expected) < 1e-5
    rescaled = run(unet, Rescale(wrap(SegmentationFree(2, 1, sf_scale=3))), LOOKING, steps=FOUR)
    assert rescaled.isfinite().all()


def test_cutouts_are_the_image_s_own_and_new_in_each_step() -> None:
    guidance = ClipGuided(PLAIN, Tiny(), cutouts=5)
    guidance.told["now"] = LOOKING
    first, second = guidance.squares(FOUR[0]), guidance.squares(FOUR[1])
    assert first.shape == (2, 5, 3) and (first > 0).all() and (first < 1).all()
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    guidance.told["now"] = replace(LOOKING, noise=KeyedNoise([SEEDS[1]]))
    assert torch.equal(guidance.squares(FOUR[0])[0], first[1])
    picture = torch.randn(1, 3, 20, 30)
    assert guidance.cut(picture, first[0]).shape == (5, 3, 8, 8)
    whole = guidance.cut(picture[..., :20], torch.tensor([[1.0, 0.3, 0.7]]))
    assert torch.equal(whole, guidance.cut(picture[..., :20], torch.zeros(0, 3)))


# --- labels, files and errors -----------------------------------------------------------------------------------------


def test_labels_stand_in_the_prompt() -> None:
    def named(*words: str) -> list[float]:
        spans = tuple(Span(word, i, i + 1) for i, word in enumerate(words))
        return guidance.rows_of(Condition(spans=(spans,)), torch.zeros(1))[0].tolist()

    guidance = ClassifierGuided(PLAIN, small_classifier())
    assert named("a", "fish") == [1, 0]
    assert named("a", "red", "light", "bulb", "and", "a", "fish") == [1, 1]
    with pytest.raises(Unfit, match=r"no class of the classifier stands in a prompt: .* fish, light bulb"):
        named("a", "bulb", "of", "light")
    with pytest.raises(Unfit, match="no class"):
        guidance.rows_of(Condition(), torch.zeros(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: ClassifierGuided(PLAIN, c, -1.0), "scale=-1.0"),
        (lambda c: ClassifierGuided(PLAIN, c, temperature=0), "temperature=0: must be above 0"),
        (
            lambda c: ClassifierGuided(PLAIN, c, labels=["cow"]),
            r"labels=\['cow'\]: must be classes .* fish, light bulb",
        ),
        (lambda c: ClassifierGuided(PLAIN, c, labels=[]), r"labels=\[\]: must be classes"),
        (lambda c: ClipGuided(PLAIN, Tiny(), through="air"), "through=air: must be network or decoder"),
    ],
)
def test_wrong_settings(make: Callable[[LatentClassifier], Guidance], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(small_classifier())


def written(folder: Path, **changes: Any) -> Path:
    write_classifier(LatentClassifier(replace(ClassifierConfig(("fish", "cat"), 4, (8, 16)), **changes)), folder)
    return folder


def test_a_classifier_is_read_as_it_was_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    written(tmp_path / "a")
    first, again = load_classifier(tmp_path / "a"), load_classifier(tmp_path / "a")
    x = torch.randn(2, 4, 8, 12)
    assert first.config == ClassifierConfig(("fish", "cat"), 4, (8, 16)) and torch.equal(first(x, 3.5), again(x, 3.5))
    assert not torch.equal(first(x, 3.5), first(x, 800)) and first(x, 3.5).shape == (2, 2)
    assert relative(first(x, torch.tensor([3.5, 800])), torch.stack([first(x, 3.5)[0], first(x, 800)[1]])) < 1e-5
    (tmp_path / "a" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_classifier(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text('{"classes": ["x"], "channels": [9]}')
    with pytest.raises(ValueError, match="channels that norm_groups divides"):
        load_classifier(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no classifier there .config.json.: python -m experiments.train"):
        load_classifier(tmp_path / "b")


def test_from_the_command_line(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> None:
    """Drawn, refused, and refused to resume once the classifier is another: its path is no part of a picture."""
    asked = ["model=file", f"model.path={tiny_folder}", "prompt='a fish'", "sampler.steps=2", "guidance=classifier"]

    def sample(folder: Path, out: str, *more: str) -> str:
        outcome = cli("sample", *asked, f"guidance.classifier.path={folder}", f"hydra.run.dir={tmp_path / out}", *more)
        assert outcome.status == 0 or "Traceback" not in outcome.err, outcome.err
        return outcome.err.splitlines()[-1] if outcome.status else ""

    torch.manual_seed(0)
    folder = written(tmp_path / "classifier")
    assert sample(folder, "run") == ""
    (tmp_path / "classifier").rename(tmp_path / "moved")
    assert sample(tmp_path / "moved", "other") == ""
    pictures = [(tmp_path / run / "images" / "00000_0.png").read_bytes() for run in ("run", "other")]
    assert pictures[0] == pictures[1]
    written(tmp_path / "classifier")
    assert "weights of guidance.classifier" in sample(folder, "run")
    assert "no classifier there" in sample(tmp_path / "nowhere", "a")
    assert "trained on latents of another autoencoder" in sample(written(tmp_path / "c", scale=0.5), "a")
    assert "no class of the classifier stands in a prompt" in sample(folder, "a", "prompt='a cow'")
    assert "labels=['cow']" in sample(folder, "a", "guidance.labels=[cow]")
    assert not list((tmp_path / "a").glob("images/*"))


def test_the_embedded_clip_guides(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> None:
    asked = ["model=file", f"model.path={tiny_folder}", "prompt='a fish'", "sampler.steps=1", "guidance=clip"]
    outcome = cli("sample", *asked, f"hydra.run.dir={tmp_path / 'a'}", "guidance.cutouts=2")
    assert outcome.status == 0, outcome.err
    outcome = cli("sample", *asked, f"hydra.run.dir={tmp_path / 'b'}", "guidance.clip.model=nowhere")
    assert outcome.status == 1 and "model=nowhere: neither a folder nor a name" in outcome.err
    assert outcome.err.count("\n") == 1 and not (tmp_path / "b").exists()
