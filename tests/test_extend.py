"""Parts of one's own: guidance, sampler, metric, study, suite, network. One class, one yaml, no other file touched."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from safetensors.torch import load_file
from tiny import Outcome, tiny_model
from torch import Tensor

from experiments.metrics import Bench, Result
from experiments.metrics.estimates import Estimate
from experiments.metrics.folders import FinishedRun, read, to_tensor
from guidance import Branch, ClassifierFree, Guidance, Interval, Rescale, guided
from ldm import LatentDiffusion
from ldm.condition import Condition, Conditions
from samplers import ImageNoise, KeyedNoise, Schedule, Step, as_x_0, ddim
from samplers.predict import Denoise
from samplers.schedule import Noise


@dataclass(frozen=True)
class Between:
    """Halfway between the prompt and another one: needs a text of its own and three branches."""

    other: str
    weight: float = 0.5

    def branches(self, conditions: Conditions, step: Step) -> dict[str, Branch]:
        prompts = {"cond": conditions.cond, "other": conditions.encode(self.other), "none": conditions.negative}
        return {name: Branch(condition) for name, condition in prompts.items()}

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        mixed = (1 - self.weight) * x_0["cond"] + self.weight * x_0["other"]
        return x_0["none"] + 3 * (mixed - x_0["none"])


def tangent(
    denoise: Denoise, x_T: Tensor, steps: Sequence[Step], noise: Noise | None = None, strength: float = 1.0
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """The probability-flow ODE in sigma, by Euler's method: another way to write DDIM."""
    y = x_T / steps[0].now.signal
    for step in steps:
        x_0, eps = denoise(step.now.signal * y, step)
        y = y + (step.to.sigma - step.now.sigma) * strength * eps
        yield step, step.to.signal * y, x_0


@pytest.fixture
def sample(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> Callable[..., Tensor]:
    """sample("guidance=between", ...): x_0 of one picture of a fish, the configs below being found."""
    for group, name, text in [
        ("guidance", "between", "_target_: test_extend.Between\nother: ???\nweight: 0.5\n"),
        ("guidance", "toy", "_target_: ???\n"),
        ("sampler", "tangent", "_target_: test_extend.tangent\nsteps: 6\nspacing: null\nfinal: null\nstrength: 1.0\n"),
    ]:
        (tmp_path / "conf" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(text)
    count = iter(range(100))

    def run(*overrides: str) -> Tensor:
        out, search = tmp_path / str(next(count)), f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
        asked = ["model=file", f"model.path={tiny_folder}", "prompt='a fish'", "seeds=[5]", "save_latents=true"]
        outcome = cli("sample", search, *asked, f"hydra.run.dir={out}", *overrides)
        assert outcome.status == 0, outcome.err
        return load_file(out / "latents.safetensors")["x_0"]

    return run


def test_own_guidance_and_sampler(sample: Callable[..., Tensor]) -> None:
    # in the notation of the loop, without any of the project's loops or guidances
    model, alpha_bar = tiny_model(), Schedule().alpha_bar
    x = ImageNoise([5], (4, 8, 8))()
    conditions = [model.condition([prompt]) for prompt in ("a fish", "a cat", "")]
    for t, s in [(831, 665), (665, 499), (499, 333), (333, 167), (167, 1), (1, 0)]:
        eps_fish, eps_cat, eps_none = (model.unet(x, t, condition) for condition in conditions)
        eps = eps_none + 3 * (0.75 * eps_fish + 0.25 * eps_cat - eps_none)
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        x = a_s.sqrt() * (x - (1 - a_t).sqrt() * eps) / a_t.sqrt() + (1 - a_s).sqrt() * eps

    mixed = ["guidance=between", "guidance.other='a cat'", "guidance.weight=0.25"]
    for sampler in ("sampler=tangent", "sampler.steps=6"):
        assert (sample(*mixed, sampler) - x).norm() < 1e-4 * x.norm()

    # and it composes like the built-in ones
    stages = "guidance.inner.stages=[{prompt: a fish, steps: 3}, {prompt: a dog, steps: 3}]"
    nested = ["guidance=rescale", "guidance@guidance.inner=multistage", "guidance@guidance.inner.inner=between"]
    settings = ["guidance.inner.inner.other='a cat'", "sampler=tangent", "sampler.strength=0.9"]
    assert torch.isfinite(sample(*nested, *settings, stages)).all()


def test_every_toy_guidance_by_its_config_alone(sample: Callable[..., Tensor]) -> None:
    """Each is drawn from the command line as from Python: with memory, noise, a second round, gradients and so on."""
    model, steps = tiny_model(), Schedule().steps(3)
    predict = as_x_0(model.unet, "eps")

    def by_hand(guidance: Guidance) -> Tensor:
        conditions = model.conditions(["a fish"], noise=KeyedNoise([5]))
        with torch.no_grad():
            *_, (_, x_t, _) = ddim(guided(predict, guidance, conditions), ImageNoise([5], (4, 8, 8))(), steps)
        return x_t

    short = ("sampler.steps=3", "guidance=toy")
    plain = by_hand(ClassifierFree())
    for toy in (toys.Momentum, toys.Noisy, toys.SelfAttention, toys.Towards, toys.Emphasis, toys.Faded, toys.Manifold):
        drawn, expected = sample(*short, f"guidance._target_=toys.{toy.__name__}"), by_hand(toy())
        assert (drawn - expected).norm() < 1e-4 * expected.norm(), toy
        assert (drawn - plain).norm() > 1e-3 * plain.norm(), toy

    wrapped = ["guidance=interval", "guidance@guidance.inner=rescale", "guidance@guidance.inner.inner=toy"]
    drawn = sample("sampler.steps=3", *wrapped, "guidance.start=0", "guidance.inner.inner._target_=toys.SelfAttention")
    expected = by_hand(Interval(Rescale(toys.SelfAttention()), 0.0, 0.8))
    assert (drawn - expected).norm() < 1e-4 * expected.norm()


@dataclass(frozen=True)
class Brightness:
    """A metric: the mean of a picture's pixels, in 0..1."""

    channel: int | None = None

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        pixels = [to_tensor(read(path)).float() / 255 for path in run.pictures.files]
        scores = [(image if self.channel is None else image[self.channel]).mean().item() for image in pixels]
        per_image = [{"file": r["file"], "value": s} for r, s in zip(run.records, scores, strict=True)]
        return Result(bench.bootstrap.mean(scores, run.captions), per_image=per_image)


@dataclass(frozen=True)
class TextEnergy:
    """A study: the mean square of what the network is told of a prompt."""

    prompt: str

    def measure(self, model: LatentDiffusion, bench: Bench, folder: Path) -> Result:
        tokens = model.condition([self.prompt]).tokens
        assert tokens is not None
        return Result(Estimate(tokens.square().mean().item(), None, None, 1))


def own(folder: Path, group: str, name: str, text: str) -> str:
    """Writes a yaml of one's own; returns the override by which Hydra finds it."""
    path = folder / "conf" / group / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return f"hydra.searchpath=[file://{folder / 'conf'}]"


def test_own_suite_and_metric(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> None:
    search = own(tmp_path, "prompts", "birds", "lines: [a wren, a heron]\n")
    own(tmp_path, "metrics", "brightness", "brightness:\n  _target_: test_extend.Brightness\n  channel: null\n")
    model = ["model=file", f"model.path={tiny_folder}", "sampler.steps=1"]
    outcome = cli("sample", search, "prompts=birds", *model, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    measured = cli(
        "evaluate", search, f"run={tmp_path / 'run'}", "metrics=[brightness]", "metrics.brightness.channel=1"
    )
    assert measured.status == 0, measured.err
    records = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == ["a wren", "a heron"]
    greens = [np.asarray(Image.open(tmp_path / "run" / record["file"]))[..., 1].mean() / 255 for record in records]
    found = json.loads((tmp_path / "run" / "metrics" / "brightness.json").read_text())
    assert found["value"] == pytest.approx(np.mean(greens), abs=1e-6)
    assert [score["value"] for score in found["per_image"]] == pytest.approx(greens, abs=1e-6)


def test_own_study(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> None:
    experiment = "name: energy\nstudy:\n  _target_: test_extend.TextEnergy\n  prompt: a wren\n"
    search = own(tmp_path, "experiment", "energy", f"# @package _global_\n{experiment}")
    asked = ["experiment=energy", "model=file", f"model.path={tiny_folder}", f"hydra.run.dir={tmp_path / 'cell'}"]
    outcome = cli("ablate", search, *asked)
    assert outcome.status == 0, outcome.err
    expected = tiny_model().condition(["a wren"]).tokens.square().mean().item()
    (file,) = tmp_path.rglob("energy.json")
    assert json.loads(file.read_text())["value"] == pytest.approx(expected, rel=1e-5)


def test_own_network() -> None:
    """A network that knows the data, a standard normal, is sampled as the U-Net is: x_t stays what it was."""

    def network(x_t: Tensor, t: float, condition: Condition, edits: Sequence[object]) -> Tensor:
        """v of standard normal data, whose x_0 given x_t is signal x_t: v = signal eps - noise x_0 is 0."""
        return torch.zeros_like(x_t)

    told = Condition(vector=torch.zeros(3, 1))
    conditions = Conditions(told, told, lambda prompt: told)
    x_T = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    denoise = guided(as_x_0(network, "v"), ClassifierFree(4), conditions)
    *_, (_, x_t, _) = ddim(denoise, x_T, Schedule().steps(10, final="clean"))
    y = x_T  # the probability-flow ODE step by step, in the angles of signal and noise
    for step in Schedule().steps(10, final="clean"):
        y = (step.to.signal * step.now.signal + step.to.noise * step.now.noise) * y
    torch.testing.assert_close(x_t, y)
