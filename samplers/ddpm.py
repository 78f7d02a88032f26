from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from samplers.schedule import Step


def ddpm(
    denoise: Callable[[Tensor, Step], Tensor],
    x_T: Tensor,
    steps: Sequence[Step],
    alpha_bar: Tensor,
    noise: Callable[[], Tensor],
    final: float = 1.0,
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over any steps t -> s, with the smaller of the paper's two
    variances, that of the posterior. Yields (step, x_t, x_0) after every step.

    denoise(x_t, step) -> eps [B, C, h, w], guidance included
    x_T        [B, C, h, w], standard normal
    alpha_bar  [T] in float64
    noise      () -> standard normal [B, C, h, w]; called only in steps that add noise
    final      alpha_bar at the end of the last step; 1: no noise is left
    """
    end = alpha_bar.new_tensor(final)
    x_t = x_T
    for step in steps:
        a_t, a_s = alpha_bar[step.t], end if step.s is None else alpha_bar[step.s]
        beta = 1 - a_t / a_s
        sigma = ((1 - a_s) / (1 - a_t) * beta).sqrt()  # eq. 7

        eps = denoise(x_t, step)
        x_0 = (x_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()  # eq. 15
        x_t = a_s.sqrt() * beta / (1 - a_t) * x_0 + (1 - beta).sqrt() * (1 - a_s) / (1 - a_t) * x_t  # eq. 7
        if sigma > 0:
            x_t = x_t + sigma * noise()
        yield step, x_t, x_0
