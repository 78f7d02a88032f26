"""A guidance and a sampler of one's own: one class or function, one yaml, and no other file touched."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toys
from safetensors.torch import load_file
from tiny import Outcome, tiny_model
from torch import Tensor

from guidance import Branch, ClassifierFree, Guidance, Interval, Rescale, guided
from ldm.condition import Conditions
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


def euler(
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
        ("sampler", "euler", "_target_: test_extend.euler\nsteps: 6\nspacing: null\nfinal: null\nstrength: 1.0\n"),
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
    for sampler in ("sampler=euler", "sampler.steps=6"):
        assert (sample(*mixed, sampler) - x).norm() < 1e-4 * x.norm()

    # and it composes like the built-in ones
    stages = "guidance.inner.stages=[{prompt: a fish, steps: 3}, {prompt: a dog, steps: 3}]"
    nested = ["guidance=rescale", "guidance@guidance.inner=multistage", "guidance@guidance.inner.inner=between"]
    settings = ["guidance.inner.inner.other='a cat'", "sampler=euler", "sampler.strength=0.9"]
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
