"""From what a network predicts to the clean estimate, in float32 whatever the network's dtype."""

import pytest
import torch
from reference import ALPHA_BAR, DIFFUSERS_PREDICTION, relative
from torch import Tensor

from samplers import Flow, ImageNoise, Level, Schedule, add_noise, as_x_0
from samplers.predict import target

SHAPE = (4, 8, 8)
X_0, EPS = ImageNoise([0, 1], SHAPE)(), ImageNoise([2, 3], SHAPE)()


@pytest.mark.parametrize(
    ("level", "predictions"),
    [
        (Schedule().level(400), ("eps", "v", "x0", "flow")),
        (Flow().level(700), ("eps", "v", "x0", "flow")),
        (Schedule(zero_terminal_snr=True).level(999), ("v", "x0", "flow")),  # where x_t is eps alone
        (Flow().level(1000), ("v", "x0", "flow")),
    ],
)
def test_every_prediction_gives_the_same_x_0(level: Level, predictions: tuple[str, ...]) -> None:
    a, b = level.signal, level.noise
    x_t = a * X_0 + b * EPS
    outputs = {"eps": EPS, "v": a * EPS - b * X_0, "x0": X_0, "flow": EPS - X_0}
    for prediction in predictions:
        predict = as_x_0(lambda *_, out=outputs[prediction]: out, prediction)
        assert relative(predict(x_t, level, None), X_0) < 1e-5


def test_eps_says_nothing_where_no_signal_is_left() -> None:
    predict = as_x_0(lambda *_: EPS, "eps")
    with pytest.raises(ValueError, match="at t=1000 no signal is left"):
        predict(EPS, Flow().level(1000), None)


def test_unknown_predictions_are_named() -> None:
    with pytest.raises(ValueError, match="prediction 'score' is none of eps, v, x0, flow"):
        as_x_0(lambda *_: EPS, "score")


def test_what_a_network_learns_is_what_it_is_taken_to_predict() -> None:
    for process, t in [(Schedule(), torch.tensor([400, 10])), (Flow(), torch.tensor([400.0, 10.0]))]:
        signal, noise = process.at(t)
        x_t = add_noise(X_0, EPS, signal, noise)
        for prediction in DIFFUSERS_PREDICTION:
            learnt = target(prediction, X_0, EPS, signal, noise)
            for row in range(2):  # of a level each
                predict = as_x_0(lambda *_, out=learnt[row : row + 1]: out, prediction)
                found = predict(x_t[row : row + 1], process.level(t[row].item()), None)
                assert relative(found, X_0[row : row + 1]) < 1e-5


def test_noised_rows_have_a_level_each() -> None:
    schedule = Schedule()
    x_t = add_noise(X_0, EPS, *schedule.at(torch.tensor([400, 10])))
    for row, t in enumerate((400, 10)):
        expected = ALPHA_BAR[t] ** 0.5 * X_0[row] + (1 - ALPHA_BAR[t]) ** 0.5 * EPS[row]
        torch.testing.assert_close(x_t[row], expected)
    flat = add_noise(X_0.flatten(1), EPS.flatten(1), *schedule.at(torch.tensor([400, 10])))  # vectors [B, d]
    assert torch.equal(flat, x_t.flatten(1))
    assert torch.equal(
        target("v", X_0.flatten(1), EPS.flatten(1), *schedule.at(torch.tensor([400, 10]))),
        target("v", X_0, EPS, *schedule.at(torch.tensor([400, 10]))).flatten(1),
    )


@pytest.mark.parametrize("t", [999, 801, 501, 101])
def test_v_of_a_16_bit_network_is_more_exact_than_diffusers(t: int) -> None:
    """The network's own rounding is all that is lost; its x_t is not rounded before it is used."""
    a, b = ALPHA_BAR[t] ** 0.5, (1 - ALPHA_BAR[t]) ** 0.5
    x_t, v = a * X_0 + b * EPS, a * EPS - b * X_0
    ours = as_x_0(lambda *_: v.bfloat16(), "v")(x_t, Schedule().level(t), None)
    diffusers = a * x_t.bfloat16() - b * v.bfloat16()  # latents in the network's dtype, as in its pipelines
    assert ours.dtype == torch.float32
    assert relative(ours, X_0) < 0.002 < relative(diffusers.float(), X_0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_number_takes_the_network_s_dtype(dtype: torch.dtype) -> None:
    """801.3 would be 800 in bfloat16: the network is told the number itself, or one per row in float32."""
    told = []

    def network(x_t: Tensor, t: float | Tensor, condition: object, edits: object) -> Tensor:
        told.append(t)
        return EPS.to(dtype)

    level = Schedule().level(801.3)
    predict = as_x_0(network, "v")
    rows = torch.tensor([801.3, 5.7])
    by_formula = level.signal * X_0.double() - level.noise * EPS.to(dtype).double()
    assert relative(predict(X_0, level, None), by_formula) < 1e-6
    predict(X_0, level, None, (), 5.7)
    predict(X_0, level, None, (), rows)
    assert told[:2] == [801.3, 5.7] and told[2] is rows
    assert predict(X_0.double(), level, None).dtype == torch.float64
