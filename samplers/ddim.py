from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from samplers.schedule import Step


def ddim(
    denoise: Callable[[Tensor, Step], Tensor],
    x_T: Tensor,
    steps: Sequence[Step],
    alpha_bar: Tensor,
    eta: float = 0.0,
    noise: Callable[[], Tensor] | None = None,
    final: float | None = None,
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Denoising diffusion implicit models (Song et al. 2021). Yields (step, x_t, x_0) after every step.

    denoise(x_t, step) -> eps [B, C, h, w], guidance included
    x_T        [B, C, h, w], standard normal
    alpha_bar  [T] in float64
    eta        0: deterministic; 1: as noisy as DDPM
    noise      () -> standard normal [B, C, h, w]; called only in steps that add noise
    final      alpha_bar at the end of the last step; by default alpha_bar[0], as in Stable Diffusion
    """
    end = alpha_bar[0] if final is None else alpha_bar.new_tensor(final)
    x_t = x_T
    for step in steps:
        a_t, a_s = alpha_bar[step.t], end if step.s is None else alpha_bar[step.s]
        sigma = eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()  # eq. 16

        eps = denoise(x_t, step)
        x_0 = (x_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()  # eq. 9
        x_t = a_s.sqrt() * x_0 + (1 - a_s - sigma**2).sqrt() * eps  # eq. 12
        if sigma > 0:
            assert noise is not None, "eta > 0 needs noise"
            x_t = x_t + sigma * noise()
        yield step, x_t, x_0
