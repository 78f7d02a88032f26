"""Levels of noise, and the steps that a sampler takes through them. The project's notation, for every process:

x_t           noisy latent, x_t = signal_t x_0 + noise_t eps                                  [B, ...]
x_0           clean latent, also its estimate: what a denoiser returns
eps           the noise in x_t, also its estimate: (x_t - signal_t x_0) / noise_t
signal_t, noise_t   sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t) on a variance-preserving schedule; 1 - s, s on a flow
sigma         noise_t / signal_t, the noise level as Karras et al. 2022 write it
log_snr       2 log(signal_t / noise_t)
T, t          training timesteps; t = 0 .. T-1 on a schedule, the largest the noisiest; t = 1000 s on a flow
beta_t        variance that timestep t adds; alpha_t = 1 - beta_t; alpha_bar_t the product of alpha_0 .. alpha_t
S, i          sampling steps (`n`) and their index; i = 0 is the noisiest
v             signal_t eps - noise_t x_0 (Salimans & Ho 2022); u = eps - x_0, the velocity of a rectified flow
g, w          guidance scale and weight, g = w + 1
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

KINDS = ("linear", "scaled_linear", "cosine")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")  # whole training timesteps
SIGMA_SPACINGS = ("karras", "exponential", "ays")  # noise levels, between training timesteps too
FINALS = ("first", "clean")
TIMES = ("logit_normal", "uniform")  # of a flow in training
RHO = 7  # Karras et al. 2022, eq. 5 and table 1
# Align Your Steps (Sabour et al. 2024), 10 steps for Stable Diffusion, in timesteps of T = 1000
AYS = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)


@dataclass(frozen=True)
class Level:
    """A level of noise, in Python floats of float64 arithmetic; t, told to the network, may lie between timesteps."""

    t: float
    signal: float
    noise: float

    @property
    def sigma(self) -> float:
        """noise / signal; infinite where no signal is left."""
        return self.noise / self.signal if self.signal else math.inf

    @property
    def log_snr(self) -> float:
        """2 log(signal / noise); infinite at both ends."""
        if not self.signal or not self.noise:
            return math.inf if self.signal else -math.inf
        return 2 * math.log(self.signal / self.noise)

    def x_t(self, x_0: Tensor, eps: Tensor) -> Tensor:
        return self.signal * x_0 + self.noise * eps

    def x_0(self, x_t: Tensor, eps: Tensor) -> Tensor:
        """The clean estimate. Raises ValueError at signal 0, where eps says nothing of it."""
        if not self.signal:
            raise ValueError(f"at t={self.t:g} no signal is left: x_0 cannot be told from eps")
        return (x_t - self.noise * eps) / self.signal

    def eps(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        return (x_t - self.signal * x_0) / self.noise


@dataclass(frozen=True)
class Step:
    """Step i of n, from the level `now` to the level `to`.

    stage       0; 1 for the second evaluation of a method that makes two: replace(step, now=step.to, stage=1)
    prediction  what the network that is guided predicts, "eps", "v", "x0" or "flow": `guided` tells a guidance
    """

    i: int
    n: int
    now: Level
    to: Level
    stage: int = 0
    prediction: str = "eps"


@dataclass(frozen=True)
class Schedule:
    """A variance-preserving process of T timesteps.

    kind  betas: "linear" (Ho et al. 2020), "scaled_linear" (Stable Diffusion: linear in sqrt(beta); its own code calls
          it "linear") or "cosine" (Nichol & Dhariwal 2021, eq. 17, capped at 0.999)
    zero_terminal_snr      moves alpha_bar so that no signal is left at T - 1 (Lin et al. 2023, algorithm 1)
    spacing, offset, final what `steps` takes where it is not told otherwise
    """

    num_timesteps: int = 1000
    kind: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False
    spacing: str = "leading"
    offset: int = 1
    final: str = "first"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"schedule kind '{self.kind}' is none of {', '.join(KINDS)}")

    @staticmethod
    def of(numbers: Any) -> "Schedule | Flow":
        """Makes the process that a model was trained on, and its own steps, of its `config.schedule`.

        Raises ValueError for an impossible one.
        """
        final = "clean" if numbers.ends_clean else "first"
        if numbers.kind == "flow" and numbers.prediction == "eps":
            raise ValueError("prediction=eps on a flow: eps says nothing of x_0 where no signal is left; use flow")
        if numbers.kind == "flow":
            return Flow(numbers.shift, numbers.num_timesteps, numbers.times)
        if numbers.zero_terminal_snr and numbers.prediction == "eps":
            raise ValueError("prediction=eps with zero_terminal_snr: eps says nothing of x_0 where no signal is left")
        return Schedule(
            numbers.num_timesteps,
            numbers.kind,
            numbers.beta_start,
            numbers.beta_end,
            numbers.zero_terminal_snr,
            numbers.spacing,
            numbers.steps_offset,
            final,
        )

    @cached_property
    def betas(self) -> Tensor:
        """[T] in float64, before any rescaling to zero terminal SNR."""
        start, end, T = self.beta_start, self.beta_end, self.num_timesteps
        if self.kind == "linear":
            return torch.linspace(start, end, T, dtype=torch.float64)
        if self.kind == "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2
        f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=0.999)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """[T] in float64."""
        alpha_bar = torch.cumprod(1 - self.betas, dim=0)
        if not self.zero_terminal_snr:
            return alpha_bar
        root = alpha_bar.sqrt()
        return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()

    @cached_property
    def log_sigma(self) -> list[float]:
        """[T], rising; its last is infinite at zero terminal SNR."""
        return (0.5 * ((1 - self.alpha_bar) / self.alpha_bar).log()).tolist()

    def level(self, t: float) -> Level:
        """The level at t; between timesteps log sigma is linear in t, as in k-diffusion.

        Raises ValueError for t outside 0 .. T-1, and between the last two of them at zero terminal SNR.
        """
        last = self.num_timesteps - 1
        if not 0 <= t <= last or (self.zero_terminal_snr and last - 1 < t < last):
            raise ValueError(f"t={t}: there is no level of noise, the last is {last}")
        lower = int(t)
        if t == lower:
            a = self.alpha_bar[lower].item()
            return Level(float(t), a**0.5, (1 - a) ** 0.5)
        below, above = self.log_sigma[lower : lower + 2]
        return self.at_sigma(math.exp(below + (t - lower) * (above - below)), t)

    def at_sigma(self, sigma: float, t: float | None = None) -> Level:
        """The level of a noise level sigma between the schedule's least and largest, and the t that belongs to it."""
        signal = 1 / math.hypot(1, sigma)
        return Level(self.t_of(math.log(sigma)) if t is None else t, signal, sigma * signal)

    def t_of(self, log_sigma: float) -> float:
        """The timestep of log sigma, interpolated linearly; the ends where it lies beyond them."""
        known = self.log_sigma
        upper = next((k for k, value in enumerate(known) if value >= log_sigma), len(known) - 1)
        if upper == 0 or log_sigma >= known[upper]:
            return float(upper)
        return upper - (known[upper] - log_sigma) / (known[upper] - known[upper - 1])

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """signal and noise [B] in float64, at whole timesteps t [B]."""
        a = self.alpha_bar[t.cpu()].to(t.device)
        return a.sqrt(), (1 - a).sqrt()

    def draw_t(self, count: int, g: torch.Generator) -> Tensor:
        """Training timesteps [count], each as likely as another."""
        return torch.randint(self.num_timesteps, (count,), generator=g)

    def steps(
        self,
        n: int,
        spacing: str | None = None,
        offset: int | None = None,
        final: str | None = None,
        start: float = 1.0,
    ) -> list[Step]:
        """Exactly n steps down the schedule, or, with `start`, the last int(start n) of them.

        spacing  leading, trailing, linspace: whole timesteps (Lin et al. 2023, table 2); karras (Karras et al. 2022,
                 eq. 5, rho 7), exponential (even in log sigma), ays (Align Your Steps, for Stable Diffusion's betas)
        offset   is added to leading timesteps (1 in Stable Diffusion), less where n leaves it no room: n = T
        final    where the last step ends: "first", alpha_bar_0 (DDIM as in Stable Diffusion); "clean", no noise. By
                 default the schedule's own; spacings in sigma come down to alpha_bar_0 themselves, and so end clean
        Raises ValueError for n outside 1 .. T, for an unknown setting, and for a spacing that zero SNR cannot take.
        """
        T, offset = self.num_timesteps, self.offset if offset is None else offset
        if offset < 0:
            raise ValueError(f"offset={offset}: must be at least 0")
        spacing = self.spacing if spacing is None else spacing
        check_steps(n, T, start)
        if spacing not in TIMESTEP_SPACINGS + SIGMA_SPACINGS:
            raise ValueError(f"spacing '{spacing}' is none of {', '.join(TIMESTEP_SPACINGS + SIGMA_SPACINGS)}")
        if self.zero_terminal_snr and spacing not in ("trailing", "linspace"):
            raise ValueError(
                f"spacing={spacing} cannot begin where no signal is left (zero_terminal_snr): use trailing"
            )
        if final is None:
            final = "clean" if spacing in SIGMA_SPACINGS else self.final
        if final not in FINALS or (final == "first" and spacing in SIGMA_SPACINGS):
            raise ValueError(f"final={final} with spacing={spacing}: must be clean, or first with whole timesteps")
        if spacing in TIMESTEP_SPACINGS:
            levels = [self.level(t) for t in whole_timesteps(T, n, spacing, offset)]
        elif spacing == "ays":
            levels = [self.between(AYS, k * (len(AYS) - 1) / max(n - 1, 1)) for k in range(n)]
        else:
            high, low = math.exp(self.log_sigma[-1]), math.exp(self.log_sigma[0])
            ramp = karras_ramp if spacing == "karras" else exponential_ramp
            levels = [self.at_sigma(ramp(high, low, k / max(n - 1, 1))) for k in range(n)]
        return steps_through([*levels, self.level(0) if final == "first" else CLEAN], start)

    def between(self, timesteps: Sequence[int], position: float) -> Level:
        """The level at a fractional position in a list of timesteps of T = 1000: log sigma is interpolated linearly."""
        k = min(int(position), len(timesteps) - 2)
        share = position - k
        a, b = (self.level(timesteps[j] * (self.num_timesteps - 1) / 999) for j in (k, k + 1))
        if share in (0, 1):
            return b if share else a
        return self.at_sigma(math.exp(math.log(a.sigma) * (1 - share) + math.log(b.sigma) * share))


@dataclass(frozen=True)
class Flow:
    """A rectified flow (Liu et al. 2022) in the form of Stable Diffusion 3: x_t = (1 - s) x_0 + s eps, t = 1000 s.

    shift  k: sampling steps and training times go to s = k s / (1 + (k - 1) s), once (Esser et al. 2024, eq. 23)
    times  of training, before the shift: "logit_normal", the sigmoid of a standard normal number (Esser et al. 2024,
           section 3.1), or "uniform" (Liu et al. 2022)
    """

    shift: float = 1.0
    num_timesteps: int = 1000
    times: str = "logit_normal"

    def __post_init__(self) -> None:
        if self.times not in TIMES:
            raise ValueError(f"times={self.times}: must be {' or '.join(TIMES)}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift={self.shift}: must be a number above 0")

    def level(self, t: float) -> Level:
        """The level at t in 0 .. T; no shift is applied, since t is what the network is told."""
        s = t / self.num_timesteps
        return Level(float(t), 1 - s, s)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """signal and noise [B] in float64, at times t [B] in 0 .. T."""
        s = t.double() / self.num_timesteps
        return 1 - s, s

    def draw_t(self, count: int, g: torch.Generator) -> Tensor:
        """Training times [count] in 0 .. T, of the distribution that `times` names, then shifted."""
        logit_normal = self.times == "logit_normal"
        s = torch.randn(count, generator=g).sigmoid() if logit_normal else torch.rand(count, generator=g)
        return self.num_timesteps * self.shifted(s)

    def shifted(self, s: Any) -> Any:
        """s after the shift, a number or a tensor."""
        return self.shift * s / (1 + (self.shift - 1) * s)

    def steps(
        self,
        n: int,
        spacing: str | None = None,
        offset: int | None = None,
        final: str | None = None,
        start: float = 1.0,
    ) -> list[Step]:
        """Exactly n steps from s = 1 down to 0, or, with `start`, the last int(start n) of them.

        spacing  "even" (its own): s = 1 - i / n, which trailing is too; leading and linspace (from T down to 1) go
                 through t as on a schedule; then the shift
        final    "clean", the only end that a flow has
        Raises ValueError for n outside 1 .. T, and for a spacing or an end that a flow does not have.
        """
        T, spacing = self.num_timesteps, "even" if spacing is None else spacing
        check_steps(n, T, start)
        times = {
            "even": lambda i: T * (1 - i / n),
            "trailing": lambda i: T * (1 - i / n),
            "leading": lambda i: min((n - 1 - i) * (T // n) + (1 if offset is None else max(offset, 1)), T),
            "linspace": lambda i: T - i * (T - 1) / max(n - 1, 1),
        }
        if spacing not in times:
            raise ValueError(f"spacing={spacing}: a flow takes {', '.join(times)}")
        if final not in (None, "clean"):
            raise ValueError(f"final={final}: a flow ends clean")
        levels = [self.level(T * self.shifted(times[spacing](i) / T)) for i in range(n)]
        return steps_through([*levels, CLEAN], start)


CLEAN = Level(0.0, 1.0, 0.0)


def steps_through(levels: Sequence[Level], start: float = 1.0) -> list[Step]:
    """The steps from each level to the next, or the last int(start n) of these n."""
    n = len(levels) - 1
    steps = [Step(i, n, now, to) for i, (now, to) in enumerate(zip(levels, levels[1:], strict=False))]
    return steps[n - int(start * n) :]


def check_steps(n: int, most: int, start: float) -> None:
    if type(n) is not int or not 1 <= n <= most:
        raise ValueError(f"{n} sampling steps: must be between 1 and the {most} timesteps of the model")
    if not 0 <= start <= 1:
        raise ValueError(f"start={start}: must be a share of the steps, from 0 to 1")


def whole_timesteps(T: int, n: int, spacing: str, offset: int) -> list[int]:
    """n timesteps of T, the noisiest first, by one of TIMESTEP_SPACINGS."""
    if spacing == "leading":
        timesteps = [i * (T // n) for i in reversed(range(n))]
        return [t + min(offset, T - 1 - timesteps[0]) for t in timesteps]
    if spacing == "trailing":
        return [round(T - i * T / n) - 1 for i in range(n)]
    return [round(i * (T - 1) / max(n - 1, 1)) for i in reversed(range(n))]


def karras_ramp(high: float, low: float, share: float) -> float:
    """sigma at a share of the way down, even in sigma ** (1 / rho) (Karras et al. 2022, eq. 5)."""
    return (high ** (1 / RHO) + share * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO


def exponential_ramp(high: float, low: float, share: float) -> float:
    """sigma at a share of the way down, even in log sigma."""
    return high * (low / high) ** share


def add_noise(x_0: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """x_t of clean latents [B, ...]; signal and noise [B] as `at` gives them (Ho et al. 2020, eq. 4)."""
    rows = (len(x_0), *[1] * (x_0.ndim - 1))
    return signal.to(x_0.dtype).reshape(rows) * x_0 + noise.to(x_0.dtype).reshape(rows) * eps


Noise = Callable[[], Tensor]
