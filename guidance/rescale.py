from dataclasses import dataclass

from torch import Tensor

from guidance.branch import Wrapper, check_number, combined
from guidance.mix import check_space
from samplers.predict import Denoised, output_of, prediction_in, x_0_of
from samplers.schedule import Step

LEAST = 1e-5  # of the conditional's deviation: less is rounding


@dataclass(frozen=True)
class Rescale(Wrapper):
    """Gives the guided output the standard deviation of the conditional one (Lin et al. 2023, eq. 15-16).

    phi       0: off; 1: wholly; 0.7 is the paper's. The deviation is taken per image, over channels and space.
    rescales  "output", what the network predicts, as diffusers does it: eps in most networks of Stable Diffusion, v in
              those of the paper, for which it was made; or "eps" or "x_0", whatever the network. They differ: a v of
              too large a deviation may hide in an eps of the right one, above all where little signal is left
    signal x_0 + noise eps stays as `inner` leaves it. Nothing changes where `inner` leaves no deviation to scale, nor,
    in eps, where no signal is left, since it is x_t in every pass.
    """

    phi: float = 0.7
    rescales: str = "output"

    def __post_init__(self) -> None:
        check_number("phi", self.phi, most=1)
        check_space("rescales", self.rescales)

    def combine(self, x_0: dict[str, Tensor], x_t: Tensor, step: Step) -> Denoised:
        guided, now, prediction = combined(self.inner, x_0, x_t, step), step.now, prediction_in(self.rescales, step)
        if not self.phi or (prediction == "eps" and not now.signal):
            return guided
        joined = now.x_t(*guided)
        out = output_of(guided.x_0, prediction, joined, now)
        wanted, own = std(output_of(x_0["cond"], prediction, x_t, now)), std(out)
        factor = (wanted / own).where(own > LEAST * wanted, 1)
        rescaled = x_0_of((self.phi * factor + 1 - self.phi) * out, prediction, joined, now)
        return Denoised(rescaled, now.eps(joined, rescaled))


def std(values: Tensor) -> Tensor:
    """[B, 1, ...] of [B, ...]."""
    return values.flatten(1).std(dim=1).reshape(-1, *[1] * (values.ndim - 1))
