"""The samplers on a mixture of Gaussians, where the best denoiser, the score and the ODE's solution are known."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from toy import level_of, relative

from experiments.studies.mixture import Mixture, three
from samplers import (
    Flow,
    Level,
    Schedule,
    Step,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    euler_ancestral,
    euler_maruyama,
    heun,
    langevin,
    lms,
    plms,
    unipc,
)
from samplers.schedule import steps_through

HIGH, LOW = 10.0, 0.2  # two levels of noise, far enough from both ends
MIXTURE = three()


def drawn(count: int, seed: int = 0) -> Callable[[], Tensor]:
    g = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(count, 2, generator=g, dtype=torch.float64)


def exponential(n: int) -> list[Step]:
    return steps_through([level_of(HIGH * (LOW / HIGH) ** (i / n), 0) for i in range(n + 1)])


@pytest.fixture(scope="module")
def solution() -> tuple[Tensor, Tensor]:
    """Points at the upper level, and where the probability-flow ODE takes them, by Runge and Kutta in log sigma."""
    x = drawn(16)()

    def slope(y: Tensor, log_sigma: float) -> Tensor:
        level = level_of(math.exp(log_sigma), 0)
        return y - MIXTURE.x_0(y * level.signal, level)  # sigma dy/dsigma

    y, n = x / level_of(HIGH, 0).signal, 160
    h = math.log(LOW / HIGH) / n
    for i in range(n):
        u = math.log(HIGH) + i * h
        k_1 = slope(y, u)
        k_2 = slope(y + h / 2 * k_1, u + h / 2)
        k_3 = slope(y + h / 2 * k_2, u + h / 2)
        k_4 = slope(y + h * k_3, u + h)
        y = y + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return x, y * level_of(LOW, 0).signal


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(ddim, 1), (euler, 1), (heun, 2), (dpmpp_2m, 2), (plms, 2), (unipc, 2), (partial(lms, order=2), 2)],
    ids=["ddim", "euler", "heun", "dpmpp_2m", "plms", "unipc", "lms"],
)
def test_order_of_convergence(sampler: Callable, order: int, solution: tuple[Tensor, Tensor]) -> None:
    x_T, exact = solution
    errors = []
    for n in (40, 80, 160):
        *_, (_, x_t, _) = sampler(MIXTURE.denoise, x_T, exponential(n))
        errors.append(relative(x_t, exact))
    assert abs(math.log2(errors[0] / errors[-1]) / 2 - order) < 0.15
    assert errors[-1] < 2e-4 if order == 2 else errors[-1] < 1e-2


def deviations(x: Tensor) -> Tensor:
    """Of the weights, means and covariances of points [N, 2] from the mixture's, in standard errors.

    Each is the mean of something whose expectation under the mixture is 0: by the shares p(k given x) that a point has.
    """
    shares, off = MIXTURE.shares(x), x[:, None] - MIXTURE.means
    squares = (off[..., :, None] * off[..., None, :] - MIXTURE.covariances).flatten(2)[..., [0, 1, 3]]
    weights = (shares - MIXTURE.weights)[..., None]
    found = torch.cat([weights, shares[..., None] * off, shares[..., None] * squares], dim=-1).flatten(1)
    return found.mean(dim=0) / (found.std(dim=0) / math.sqrt(len(x)))


def reached(x: Tensor) -> bool:
    """Whether the deviations are those of sampling: of square 1 on average."""
    found = deviations(x)
    return bool(found.abs().max() < 4 and found.square().mean() < 2.2)


KARRAS, FLOW = Schedule().steps(150, "karras"), Flow().steps(150)


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        (partial(ddim, eta=1.0), FLOW),
        (ddpm, KARRAS),
        (euler_ancestral, KARRAS),
        (partial(euler, s_churn=15.0), KARRAS),
        (dpmpp_2m_sde, Schedule().steps(50, "karras")),
        (dpmpp_2m_sde, Flow().steps(50)),
        (euler_maruyama, KARRAS),
        (euler_maruyama, FLOW),
        (partial(langevin, corrections=20), Schedule().steps(40, "exponential")),
        (partial(langevin, corrections=1, snr=0.16), KARRAS),
        (partial(langevin, corrections=1, snr=0.16), FLOW),
    ],
    ids=lambda value: "flow" if value is FLOW else getattr(value, "__name__", None),
)
def test_stochastic_samplers_reach_the_mixture(sampler: Callable, steps: list[Step]) -> None:
    noise = drawn(1500)
    *_, (_, x, _) = sampler(MIXTURE.denoise, noise(), steps, noise)
    assert reached(x)


def test_deviations_are_seen() -> None:
    noise = drawn(1500)
    assert reached(MIXTURE.sample(1500, torch.Generator().manual_seed(0)))
    *_, (_, x, _) = euler_ancestral(MIXTURE.denoise, noise(), Schedule().steps(20, "karras"), noise)
    assert not reached(x)  # too few steps
    x_T = noise()
    *_, (_, x, _) = euler_maruyama(MIXTURE.denoise, x_T, KARRAS, lambda: 0.9 * noise())
    assert not reached(x)  # too little noise


@pytest.mark.parametrize("t", [-1, 999.5, 1000, float("nan")])
def test_there_is_no_level_beyond_the_schedule(t: float) -> None:
    with pytest.raises(ValueError, match="there is no level of noise, the last is 999"):
        Schedule().level(t)
    with pytest.raises(ValueError, match="t=998.5"):
        Schedule(zero_terminal_snr=True).level(998.5)


@pytest.mark.parametrize("level", [Schedule().level(300), Schedule().level(900), Flow().level(600)])
def test_tweedie_s_formula(level: Level) -> None:
    """E[x_0 given x_t] = (x_t + noise^2 score) / signal, the score by autograd."""
    x_t = drawn(50)().requires_grad_()
    (score,) = torch.autograd.grad(MIXTURE.at(level).log_density(x_t).sum(), x_t)
    x_0 = MIXTURE.x_0(x_t.detach(), level)
    torch.testing.assert_close(x_0, (x_t.detach() + level.noise**2 * score) / level.signal, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [100, 500])
def test_ddpm_s_loss_and_score_matching_have_one_minimiser(t: int) -> None:
    """Over eps(x) = theta . features(x): Ho et al. 2020's |eps(x_t) - eps|^2, Vincent 2011's
    |score(x_t) - grad log q(x_t | x_0)|^2, and |score(x_t) - grad log p(x_t)|^2; by quadrature over x_0 and eps."""
    line = Mixture(*(torch.tensor(n, dtype=torch.float64) for n in ([0.3, 0.7], [[-1.0], [0.8]], [[[0.1]], [[0.3]]])))
    level = Schedule().level(t)
    x_0, eps = torch.meshgrid(*[torch.linspace(-8, 8, 401, dtype=torch.float64)] * 2, indexing="ij")
    x_0, eps = x_0.flatten(), eps.flatten()
    weight = line.log_density(x_0[:, None]).exp() * (-(eps**2) / 2).exp()

    def features(x: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(x), x, torch.tanh(2 * x), torch.sin(x)], dim=1)

    def minimiser(phi: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        root = weight.sqrt()
        return torch.linalg.lstsq(root[:, None] * phi, (root * target)[:, None]).solution[:, 0]

    x_t = level.x_t(x_0, eps)
    by_eps = minimiser(features(x_t), eps, weight)
    by_denoising = minimiser(features(x_t), (level.signal * x_0 - x_t) / level.noise**2, weight)
    x = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None].requires_grad_()
    log_density = line.at(level).log_density(x)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    by_score = minimiser(features(x.detach()[:, 0]), score[:, 0], log_density.detach().exp())
    torch.testing.assert_close(-level.noise * by_denoising, by_eps, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(-level.noise * by_score, by_eps, rtol=1e-5, atol=1e-5)
