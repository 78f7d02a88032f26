"""Models that are told a class, or nothing: the same loops, guidances and files as under a text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CLASSES, TINY, TOLD, tiny_model
from torch import Tensor

from guidance import ClassifierFree, Guidance, Multistage, Probe, guided
from guidance.edits import record
from ldm import load_model
from ldm.condition import Condition, Unfit
from ldm.config import ModelConfig
from ldm.files import config_files, names
from ldm.files.config_files import to_yaml
from ldm.files.rules import checked
from ldm.files.writing import write_file, write_folder
from ldm.model import LatentDiffusion
from samplers import ImageNoise, Schedule, as_x_0, ddim

X_T = ImageNoise([1, 2], (4, 8, 8))()
STEPS = Schedule().steps(4)


def drawn(model: LatentDiffusion, guidance: Guidance, prompts: list[str], negative: list[str] | None = None) -> Tensor:
    denoise = guided(as_x_0(model.unet, "eps"), guidance, model.conditions(prompts, negative))
    *_, (_, x_t, _) = ddim(denoise, X_T, STEPS)
    return x_t


@pytest.fixture(scope="module", params=["token", "vector"])
def model(request: pytest.FixtureRequest) -> LatentDiffusion:
    return tiny_model(TOLD[request.param])


def test_a_class_is_a_row_of_the_table(model: LatentDiffusion) -> None:
    rows = model.text_encoder.embedding.weight[[1, 0, 4, 5]]  # B, A, 7, and the null class
    told = model.condition(["B", "A", "7", ""])
    words = [[(span.word, span.start, span.stop) for span in row] for row in told.spans]
    if model.config.classes.as_vector:
        assert told.tokens is None and torch.equal(told.vector, rows) and not any(words)
    else:
        assert words == [[("b", 0, 1)], [("a", 0, 1)], [("7", 0, 1)], []]
        assert told.vector is None and torch.equal(told.tokens, rows[:, None])


def test_guidances_by_classes(model: LatentDiffusion) -> None:
    """Classifier-free, negative prompts and stages, against the formulas on the U-Net itself."""
    told = dict(zip(["A", "B", ""], [Condition(**parts(model, row)) for row in (0, 1, 5)], strict=True))

    def by_hand(prompts: list[str], negative: str) -> Tensor:
        x = X_T
        for step, prompt in zip(STEPS, prompts, strict=True):
            c, u = (model.unet(x, step.now.t, told[name]) for name in (prompt, negative))
            eps = u + 3 * (c - u)
            x_0 = (x - step.now.noise * eps) / step.now.signal
            x = step.to.signal * x_0 + step.to.noise * eps
        return x

    for negative in ("", "B"):
        out = drawn(model, ClassifierFree(3), ["A", "A"], [negative] * 2)
        torch.testing.assert_close(out, by_hand(["A"] * 4, negative), rtol=1e-4, atol=1e-4)
    stages = Multistage(({"prompt": "A", "steps": 1}, {"prompt": "B", "steps": 3}), ClassifierFree(3))
    torch.testing.assert_close(drawn(model, stages, ["", ""]), by_hand(["A", "B", "B", "B"], ""), rtol=1e-4, atol=1e-4)


def parts(model: LatentDiffusion, row: int) -> dict[str, Tensor]:
    value = model.text_encoder.embedding.weight[[row, row]]
    return {"vector": value} if model.config.classes.as_vector else {"tokens": value[:, None]}


def test_unknown_classes(model: LatentDiffusion) -> None:
    for name, message in {"light bulbs": "near it are light bulb", "zebra": "there are A, B, a, light bulb, 7"}.items():
        with pytest.raises(Unfit, match=f"no class '{name}': {message}"):
            model.conditions([name])
    assert Multistage(({"prompt": 7, "steps": 4},)).stages[0].prompt == "7"  # as YAML reads it


def test_nothing_is_told() -> None:
    model = tiny_model(TOLD["nothing"])
    plain = drawn(model, ClassifierFree(1), ["", ""])
    x = X_T
    for step in STEPS:
        eps = model.unet(x, step.now.t, Condition())
        x_0 = (x - step.now.noise * eps) / step.now.signal
        x = step.to.signal * x_0 + step.to.noise * eps
    torch.testing.assert_close(plain, x, rtol=1e-4, atol=1e-4)
    looked_at = Probe(ClassifierFree(3), record(lambda site, weights: None), "negative")
    for guidance in (ClassifierFree(3), looked_at):
        with pytest.raises(Unfit, match="told nothing: .*scale=1"):
            drawn(model, guidance, ["", ""])
    with pytest.raises(Unfit, match="told nothing: leave out 'a cat'"):
        model.conditions(["", "a cat"])


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", TOLD.values(), ids=TOLD)
def test_folders_and_files_hold_such_models(config: ModelConfig, tmp_path: Path) -> None:
    model = tiny_model(config)
    write_folder(model, tmp_path / "folder")
    write_file(model, tmp_path / "file.safetensors")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert {"text_encoder", "tokenizer"}.isdisjoint(path.name for path in (tmp_path / "folder").iterdir())
    folder = load_model(tmp_path / "folder")
    for loaded in (folder, load_model(tmp_path / "file.safetensors", config=tmp_path / "config.yaml")):
        assert loaded.config == config
        prompts = ["", ""] if config.condition == "nothing" else ["A", "light bulb"]
        ours, theirs = (drawn(one, ClassifierFree(1), prompts) for one in (model, loaded))
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_diffusers_tells_its_u_net_a_class_likewise() -> None:
    """As a token of cross-attention, and as a vector: its class_embed_type="projection"."""
    from diffusers import UNet2DConditionModel

    config = replace(TINY.unet, vector_width=16)
    ours = tiny_model(replace(TINY, unet=config)).unet
    settings = config_files.to_diffusers(replace(TOLD["token"], unet=config))["unet/config.json"]
    theirs = UNet2DConditionModel(**{key: value for key, value in settings.items() if key != "_class_name"})
    theirs.load_state_dict(
        {names.rename(key, names.DIFFUSERS_CLASS_VECTOR): value for key, value in ours.state_dict().items()}
    )
    table = tiny_model(TOLD["token"]).text_encoder.embedding.weight
    told = Condition(tokens=table[:2, None], vector=table[2:4])
    out = theirs(X_T, 500, told.tokens, class_labels=told.vector).sample
    torch.testing.assert_close(out, ours(X_T, 500, told), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": replace(CLASSES, names=())}, "classes.names is empty"),
        ({"classes": replace(CLASSES, width=8)}, "a class is a token of width 8, .* text_width=16 vector_width=0"),
        ({"classes": replace(CLASSES, as_vector=True)}, "a class is a vector of width 16"),
        ({"condition": "nothing"}, "expects text of width 16, and is told nothing"),
    ],
)
def test_configs_that_contradict_themselves(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(replace(TOLD["token"], **changes), "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["A", "A"]}, "none of them twice"),
        ({"names": ["A", ""]}, "a name of 1 to 200 characters"),
        ({"names": "AB"}, "a list of 0 to 65536 entries"),
        ({"width": 0}, "a whole number from 1"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"names": ["A", "B", "a"]}, r"embedding.weight \[6, 16\] and not \[4, 16\]"),
    ],
)
def test_folders_beyond_us(changes: dict, message: str, tmp_path: Path) -> None:
    write_folder(tiny_model(TOLD["token"]), tmp_path / "folder")
    path = tmp_path / "folder" / "classes" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path / "folder")
    assert "\n" not in str(error.value)


def test_a_text_model_stays_as_it_is(tmp_path: Path) -> None:
    assert load_model(write(tmp_path)).config == TINY


def write(path: Path) -> Path:
    write_folder(tiny_model(), path / "text")
    return path / "text"
