"""The transformer on latents of drawings: exact resume, the variational bound, and a class learnt by heart."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from experiments.files import CONF, UserError
from experiments.training import loop
from experiments.training.vector_dit import DiTPart, clean, load_vector_autoencoder, variational_bound
from experiments.vectors.data import STEP, Drawings
from guidance import ClassifierFree, guided
from ldm import load_model
from ldm.files.vectors import write_vector_autoencoder
from ldm.svg.drawing import BOX
from ldm.svg.sequences import CLOSE, END, LINE, MOVE
from samplers import ImageNoise, Schedule, add_noise, as_x_0, ddim
from samplers.predict import target


def triangles(count: int, seed: int = 0) -> Drawings:
    """Triangles that point up ("up") and down ("down"), of many sizes."""
    g = torch.Generator().manual_seed(seed)
    kinds = torch.tensor([MOVE, LINE, LINE, CLOSE, END, END], dtype=torch.uint8).repeat(count, 1)
    labels = torch.arange(count) % 2
    half, turn = 4 + 6 * torch.rand(count, generator=g), 1.0 - 2 * labels
    corners = torch.tensor([[0.0, -1], [1, 1], [-1, 1]])
    arguments = torch.zeros(count, 6, 6)
    arguments[:, :3, 4:] = BOX / 2 + half[:, None, None] * corners * torch.stack([turn, turn], dim=1)[:, None]
    arguments = (arguments / STEP).round().to(torch.int16)
    renders = torch.zeros(count, 32, 32, dtype=torch.uint8)
    return Drawings(("up", "down"), None, kinds, arguments, renders, labels, tuple("x" * count))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_examples", lambda cfg: (triangles(64), triangles(16, seed=1)))


def config(folder: Path, part: str, *more: str) -> DictConfig:
    short = ["part.steps=6", "part.batch=8", "part.micro=4", "part.warmup=2", "log_every=2", "save_seconds=1000"]
    small = {
        "autoencoder": [f"part.autoencoder.{x}" for x in ("commands=6", "latent_width=8", "width=16", "blocks=1")],
        "dit": ["part.dit.width=16", "part.dit.layers=2"],
    }
    places = ["device=cpu", f"out={folder / part}", f"autoencoder={folder / 'autoencoder' / 'checkpoint.pt'}"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"part=vector/{part}", *places, *short, *small[part], "bf16=false", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder of triangles."""
    folder = tmp_path_factory.mktemp("triangles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_examples", lambda cfg: (triangles(64), triangles(16, seed=1)))
        loop.train(config(folder, "autoencoder", "part.steps=200", "part.lr=0.003"))
    return folder


def test_a_run_stopped_and_resumed_equals_an_undisturbed_one(folder: Path, tmp_path: Path) -> None:
    sigma = "part.dit.learn_sigma=true"
    loop.train(config(folder, "dit", f"out={tmp_path / 'whole'}", sigma))
    loop.train(config(folder, "dit", f"out={tmp_path / 'parts'}", sigma, "stop_after=3"))
    loop.train(config(folder, "dit", f"out={tmp_path / 'parts'}", sigma))
    whole, parts = (torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 6
    for key in ("network", "ema"):
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
    assert whole["history"] == parts["history"]
    model = load_model(tmp_path / "whole" / "model")
    assert model.config.classes.names == ("up", "down") and model.config.latents == "drawings"


def test_what_is_drawn_is_of_its_class(folder: Path, tmp_path: Path) -> None:
    """Two kinds of triangles, told apart by where their points lie."""
    longer = ["part.steps=300", "part.batch=32", "part.micro=32", "part.lr=0.004", "part.ema_decay=0.98"]
    loop.train(config(folder, "dit", f"out={tmp_path}", "part.dit.width=32", "log_every=100", *longer))
    model = load_model(tmp_path / "model")
    denoise = guided(as_x_0(model.unet, "x0"), ClassifierFree(2), model.conditions(["up"] * 8 + ["down"] * 8))
    with torch.no_grad():
        *_, (_, x_t, _) = ddim(denoise, ImageNoise(range(16), (8,))(), Schedule().steps(20))
    drawings = model.draw(x_t)
    assert all(drawing.paths and drawing.paths[0].closed for drawing in drawings)
    points = [[drawing.paths[0].start, *(segment.end for segment in drawing.paths[0].segments)] for drawing in drawings]
    above = [sum(y < BOX / 2 for _, y in corners[:3]) for corners in points]
    assert above == [1] * 8 + [2] * 8


def test_settings_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    for wrong, message in [
        ("part.dit.tokens=3", "8 numbers cannot be cut into 3 slices"),
        ("part.schedule.kind=flow", "variance-preserving"),
        (f"autoencoder={tmp_path}/none.pt", "no vector/autoencoder at"),
    ]:
        with pytest.raises(UserError, match=message):
            loop.train(config(folder, "dit", f"out={tmp_path / 'out'}", wrong))


def test_latents_have_unit_variance(folder: Path) -> None:
    autoencoder, settings = load_vector_autoencoder(folder / "autoencoder" / "checkpoint.pt", triangles(64))
    with torch.no_grad():
        latents = autoencoder.encode(triangles(64).sequences())[0]
    assert settings.scale == autoencoder.scale and abs(latents.std().item() - 1) < 1e-3
    write_vector_autoencoder(autoencoder, folder / "finished")
    again, _ = load_vector_autoencoder(folder / "finished", triangles(64))
    with torch.no_grad():
        off = again.encode(triangles(64).sequences())[0] - latents
    assert off.norm() < 1e-2 * latents.norm()  # its weights were rounded to 16 bits
    (folder / "finished" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="autoencoder: .*not those of an autoencoder of its"):
        load_vector_autoencoder(folder / "finished", triangles(64))


# --- the hybrid loss --------------------------------------------------------------------------------------------------


def test_variational_bound_is_the_divergence_of_two_normals() -> None:
    """Against torch's own, with the posterior written out from Bayes' rule in sigma."""
    schedule, g = Schedule(), torch.Generator().manual_seed(0)
    t = torch.tensor([1, 10, 400, 999])
    x_0, eps, off = torch.randn(3, 4, 5, generator=g, dtype=torch.float64)
    v = 2 * torch.rand(4, 5, generator=g, dtype=torch.float64) - 1
    x_t = add_noise(x_0, eps, *schedule.at(t))
    guess = x_0 + 0.1 * off
    found = variational_bound(schedule, x_0, x_t, t, guess, v)
    for row, step in enumerate(t.tolist()):
        a_t, a_s = schedule.alpha_bar[step].item(), schedule.alpha_bar[step - 1].item()
        alpha = a_t / a_s
        precision = 1 / (1 - a_s) + alpha / (1 - alpha)  # of x_s: the prior given x_0, and what x_t says

        def mean(clean: torch.Tensor) -> torch.Tensor:
            return (a_s**0.5 * clean / (1 - a_s) + alpha**0.5 * x_t[row] / (1 - alpha)) / precision  # noqa: B023

        share = (v[row] + 1) / 2
        deviation = (share * torch.tensor(1 - alpha).log() - (1 - share) * torch.tensor(precision).log()).exp().sqrt()
        true = torch.distributions.Normal(mean(x_0[row]), precision**-0.5)
        model = torch.distributions.Normal(mean(guess[row]), deviation)
        expected = torch.distributions.kl_divergence(true, model).mean() / torch.tensor(2.0).log()
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-9)


def test_variances_learn_and_the_prediction_does_not(folder: Path) -> None:
    cfg = config(folder, "dit", "part.dit.learn_sigma=true", "part.vlb_weight=1000").part
    part = DiTPart(cfg, triangles(64), folder / "autoencoder" / "checkpoint.pt")
    batch = triangles(64).collate(list(range(8)))

    def gradient(weight: float) -> torch.Tensor:
        part.vlb_weight = weight
        part.zero_grad()
        part(batch, torch.Generator().manual_seed(0)).backward()
        return part.dit.proj_out.weight.grad.clone()

    with_bound, without = gradient(1000), gradient(0)
    assert torch.equal(with_bound[:8], without[:8]) and without[:8].any()
    assert with_bound[8:].any() and not without[8:].any()


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_clean_estimates(prediction: str) -> None:
    g, schedule = torch.Generator().manual_seed(0), Schedule()
    x_0, eps = torch.randn(2, 3, 5, generator=g)
    signal, noise = schedule.at(torch.tensor([10, 500, 900]))
    out = target(prediction, x_0, eps, signal, noise)
    found = clean(prediction, out, add_noise(x_0, eps, signal, noise), signal, noise)
    torch.testing.assert_close(found, x_0, rtol=1e-4, atol=1e-4)
