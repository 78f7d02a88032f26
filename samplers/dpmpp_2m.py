from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from samplers.schedule import Step


def dpmpp_2m(
    denoise: Callable[[Tensor, Step], Tensor],
    x_T: Tensor,
    steps: Sequence[Step],
    alpha_bar: Tensor,
    noise: Callable[[], Tensor] | None = None,
    final: float = 1.0,
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): DDIM with a second-order x_0, hence fewer steps
    for the same picture. Yields (step, x_t, x_0) after every step.

    denoise(x_t, step) -> eps [B, C, h, w], guidance included
    x_T        [B, C, h, w], standard normal
    alpha_bar  [T] in float64
    noise      never called: the solver is deterministic
    final      alpha_bar at the end of the last step; 1: no noise is left. That step is of first order.
    """
    end = alpha_bar.new_tensor(final)
    x_t, before = x_T, None
    for step in steps:
        a_t, a_s = alpha_bar[step.t], end if step.s is None else alpha_bar[step.s]
        h = ((a_s / (1 - a_s)) / (a_t / (1 - a_t))).log() / 2  # lambda_s - lambda_t, lambda = log(sqrt(a) / sigma)

        eps = denoise(x_t, step)
        x_0 = (x_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()
        D = x_0
        if before is not None and step.s is not None:
            x_0_before, h_before = before
            D = x_0 + (x_0 - x_0_before) * h / (2 * h_before)
        x_t = ((1 - a_s) / (1 - a_t)).sqrt() * x_t - a_s.sqrt() * (-h).expm1() * D
        before = x_0, h
        yield step, x_t, x_0
