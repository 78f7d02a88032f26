"""Every guidance on latents that are vectors [B, d], under a transformer told a class: it works, or says why not."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tiny import DRAWN, tiny_model
from torch import Tensor

from experiments.files import CONF, UserError
from experiments.run import build
from guidance import ClassifierFree, Guidance, Unfit, guided
from ldm.config import ModelConfig
from samplers import ImageNoise, KeyedNoise, Schedule, as_x_0, ddim

OF_PICTURES = {"classifier", "clip"}  # networks of their own, which `check_classifiers` refuses
NAMES = sorted({path.stem for path in (CONF / "guidance").glob("*.yaml")} - OF_PICTURES)
SETTINGS = {
    "multistage": ["guidance.stages=[{prompt: A, steps: 2}, {prompt: B, steps: 2}]"],
    "composable": ["guidance.others=[{prompt: B, weight: 2}]"],
    "perp_neg": ["guidance.negatives=[{prompt: B, weight: 2}]"],
    "pag": ["guidance.layers=[blocks.1]"],
    "seg": ["guidance.layers=[blocks.1]"],
    "sag": ["guidance.layers=[blocks.1]"],
    "attend_and_excite": ["guidance.words=[A]"],
}
NEED_WORDS = {"attend_and_excite", "cdg", "pladis", "scfg", "segmentation_free", "temperature"}
NEED_A_GRID = {"fdg", "freeu", "sag", "samg"}
SEEDS = (3, 4)


def made(name: str) -> Guidance:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = compose("sample", [f"guidance={name}", *SETTINGS.get(name, [])]).guidance
    return instantiate(settings, _convert_="all")


def drawn(config: ModelConfig, guidance: Guidance) -> Tensor:
    model = tiny_model(config)
    networks = {"main": as_x_0(model.unet, "x0"), "weak": as_x_0(model.unet, "x0")}
    conditions = model.conditions(["A", "7"], noise=KeyedNoise(SEEDS))
    denoise = guided(networks, guidance, conditions)
    with torch.no_grad():
        *_, (_, x_t, _) = ddim(denoise, ImageNoise(SEEDS, (12,))(), Schedule().steps(4))
    return x_t


@pytest.mark.parametrize("name", NAMES)
def test_guidance(name: str) -> None:
    if name in NEED_WORDS | NEED_A_GRID:
        with pytest.raises(Unfit):
            drawn(DRAWN, made(name))
        return
    out = drawn(DRAWN, made(name))
    assert out.shape == (2, 12) and out.isfinite().all()
    sliced = replace(DRAWN, dit=replace(DRAWN.dit, tokens=3))
    assert drawn(sliced, made(name)).isfinite().all()


@dataclass(frozen=True)
class Holding(ClassifierFree):
    """A guidance with a network of its own."""

    network: torch.nn.Module = field(default_factory=lambda: torch.nn.Linear(1, 1))


def test_networks_that_look_at_pictures_are_refused() -> None:
    build.check_classifiers(Holding(), tiny_model())
    with pytest.raises(UserError, match="guidance.network: is a network that looks at pictures"):
        build.check_classifiers(Holding(), tiny_model(DRAWN))
