"""A guidance and a sampler of one's own: one class or function here, one yaml, and no other file touched."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import Outcome, tiny_model
from torch import Tensor

from guidance import Branch
from ldm.text import Texts
from samplers import ImageNoise, Schedule, Step


@dataclass(frozen=True)
class Between:
    """Halfway between the prompt and another one: needs a text of its own and three branches."""

    other: str
    weight: float = 0.5

    def branches(self, texts: Texts, step: Step) -> dict[str, Branch]:
        return {"cond": Branch(texts.cond), "other": Branch(texts.encode(self.other)), "none": Branch(texts.negative)}

    def combine(self, eps: dict[str, Tensor], x_t: Tensor, step: Step) -> Tensor:
        mixed = (1 - self.weight) * eps["cond"] + self.weight * eps["other"]
        return eps["none"] + 3 * (mixed - eps["none"])


def euler(
    denoise: Callable[[Tensor, Step], Tensor],
    x_T: Tensor,
    steps: Sequence[Step],
    alpha_bar: Tensor,
    noise: Callable[[], Tensor],
    strength: float = 1.0,
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """The probability-flow ODE in sigma, by Euler's method: another way to write DDIM."""
    x_t = x_T
    for step in steps:
        a_t, a_s = alpha_bar[step.t], alpha_bar[step.s or 0]
        sigma_t, sigma_s = (1 / a_t - 1).sqrt(), (1 / a_s - 1).sqrt()
        eps = strength * denoise(x_t, step)
        x_t = a_s.sqrt() * (x_t / a_t.sqrt() + (sigma_s - sigma_t) * eps)
        yield step, x_t, x_t


def test_own_guidance_and_sampler(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> None:
    for group, name, text in [
        ("guidance", "between", "_target_: test_extend.Between\nother: ???\nweight: 0.5\n"),
        ("sampler", "euler", "_target_: test_extend.euler\nsteps: 6\nspacing: null\nstrength: 1.0\n"),
    ]:
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(text)

    def sample(out: str, *overrides: str) -> Tensor:
        search = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
        asked = ["model=file", f"model.path={tiny_folder}", "prompt='a fish'", "seeds=[5]", "save_latents=true"]
        outcome = cli("sample", search, *asked, f"hydra.run.dir={tmp_path / out}", *overrides)
        assert outcome.status == 0, outcome.err
        return load_file(tmp_path / out / "latents.safetensors")["x_0"]

    # in the notation of the loop, without any of the project's loops or guidances
    model, schedule = tiny_model(), Schedule()
    x = ImageNoise([5], (4, 8, 8))()
    text = [model.encode_text([prompt]).embedding for prompt in ("a fish", "a cat", "")]
    for t, s in [(831, 665), (665, 499), (499, 333), (333, 167), (167, 1), (1, 0)]:
        eps_fish, eps_cat, eps_none = (model.unet(x, t, e) for e in text)
        eps = eps_none + 3 * (0.75 * eps_fish + 0.25 * eps_cat - eps_none)
        a_t, a_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
        x = a_s.sqrt() * (x - (1 - a_t).sqrt() * eps) / a_t.sqrt() + (1 - a_s).sqrt() * eps
    expected = x

    mixed = ["guidance=between", "guidance.other='a cat'", "guidance.weight=0.25"]
    got = sample("a", *mixed, "sampler=euler")
    assert (got - expected).norm() < 1e-4 * expected.norm()
    assert (sample("b", *mixed, "sampler.steps=6") - expected).norm() < 1e-4 * expected.norm()

    # and it composes like the built-in ones
    stages = "guidance.inner.stages=[{prompt: a fish, steps: 3}, {prompt: a dog, steps: 3}]"
    nested = ["guidance=rescale", "guidance@guidance.inner=multistage", "guidance@guidance.inner.inner=between"]
    settings = ["guidance.inner.inner.other='a cat'", "sampler=euler", "sampler.strength=0.9"]
    assert torch.isfinite(sample("c", *nested, *settings, stages)).all()
