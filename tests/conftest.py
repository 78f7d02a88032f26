import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub: no test may reach for the network
os.environ["WANDB_SILENT"] = "true"

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ldm.autoencoder import Autoencoder
from ldm.config import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from ldm.files.writing import write_folder
from ldm.model import LatentDiffusion
from ldm.text import TextEncoder
from ldm.unet import UNet

TINY = ModelConfig(
    unet=UNetConfig(channels=(32, 64), blocks_per_level=1, attention=(True, True), heads=(2, 4), text_width=16),
    autoencoder=AutoencoderConfig(channels=(32, 32), blocks_per_level=1),
    text=TextEncoderConfig(width=16, mlp_width=32, layers=1, heads=2),
    image_size=16,
)


def tiny_model(config: ModelConfig = TINY) -> LatentDiffusion:
    """A model of the family, small enough to sample from in milliseconds, its weights random and nowhere zero."""
    g = torch.Generator().manual_seed(0)
    networks = UNet(config.unet), Autoencoder(config.autoencoder), TextEncoder(config.text)
    for network in networks:
        network.eval().requires_grad_(False)
        for name, p in network.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(centre + 0.1 * torch.randn(p.shape, generator=g))
    return LatentDiffusion(*networks, config)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(tiny_model(), folder)
    return folder


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """cli("sample", "prompt=x", ...): a verb in this process, as `python -m experiments.sample` would run it."""
    import experiments.cli
    import experiments.sample

    verbs = {"sample": experiments.sample.main}

    def run(verb: str, *overrides: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"experiments/{verb}.py", *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capsys.readouterr()
        status = 0
        try:
            experiments.cli.run(verbs[verb], verb)
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run
