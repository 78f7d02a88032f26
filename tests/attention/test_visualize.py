"""Attention maps of words and the owners of patches, against loops; and the verb that draws them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny import Outcome, tiny_model
from torch import Tensor

from experiments.attention.maps import Recorder, average, owner_map, word_maps, word_votes
from guidance import ClassifierFree, Guidance, Interval, Multistage, Probe, SegmentationFree, guided
from guidance.edits import record
from ldm.attention import Site
from ldm.text import Span, Tokenizer
from samplers import ImageNoise, Schedule, as_x_0, ddim

SITE = Site("x", "cross", 2, 3)  # not square
WORDS = (Span("a", 1, 2), Span("xylophonist", 2, 6), Span("a", 6, 7), Span("cat", 7, 8))


def random_weights(heads: int = 3) -> Tensor:
    weights = 2 * torch.randn(heads, 6, 77, generator=torch.Generator().manual_seed(0))
    weights[..., 0] += 4  # BOS gets the most, and owns nothing
    return weights.softmax(dim=-1)


def test_a_word_is_the_sum_of_its_tokens() -> None:
    assert Tokenizer(49407)(["A xylophonist, a cat"]).spans[0] == (
        *WORDS[:2], Span(",", 6, 7), Span("a", 7, 8), Span("cat", 8, 9)
    )  # fmt: skip
    weights = random_weights()
    maps = word_maps(weights, WORDS, SITE)
    assert maps.shape == (4, 2, 3)
    for w, word in enumerate(WORDS):
        for p in range(6):
            expected = sum(weights[h, p, k] for h in range(3) for k in range(word.start, word.stop)) / 3
            torch.testing.assert_close(maps[w, p // 3, p % 3], expected)
    assert not torch.allclose(maps[0], maps[2])  # two words "a"


@pytest.mark.parametrize("argmax", ["head", "mean"])
@pytest.mark.parametrize("candidates", ["all_but_bos", "words"])
def test_owners_are_the_words_of_the_strongest_tokens(argmax: str, candidates: str) -> None:
    weights = random_weights()
    owned = {k: w for w, word in enumerate(WORDS) for k in range(word.start, word.stop)}
    allowed = range(1, 77) if candidates == "all_but_bos" else list(owned)
    votes = torch.zeros(5, 6)
    for p in range(6):
        for head in weights if argmax == "head" else [weights.mean(dim=0)]:
            votes[owned.get(max(allowed, key=lambda k: head[p, k]), 4), p] += 1  # noqa: B023
    votes /= votes.sum(dim=0)
    got = word_votes(weights, WORDS, SITE, argmax, candidates)
    torch.testing.assert_close(got, votes.reshape(5, 2, 3))
    assert torch.equal(owner_map(got), votes.argmax(dim=0).reshape(2, 3))


def test_owner_map_by_hand() -> None:
    weights = torch.zeros(1, 6, 77)
    weights[..., 0] = 0.5
    for p, k in enumerate([1, 2, 5, 7, 9, 6]):  # 9 is of no word
        weights[0, p, k] = 0.2
    expected = torch.tensor([[0, 1, 1], [3, 4, 2]])
    assert torch.equal(owner_map(word_votes(weights, WORDS, SITE, "head", "all_but_bos")), expected)


def test_layers_are_averaged_on_the_finest_grid() -> None:
    fine, coarse = torch.rand(3, 4, 6), torch.rand(3, 2, 3)
    expected = (fine + coarse.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)) / 2
    torch.testing.assert_close(average([coarse, fine]), expected)


@pytest.mark.parametrize(
    "guidance",
    [ClassifierFree(3), ClassifierFree(1), SegmentationFree(3, cfg_steps=2), Interval(ClassifierFree(3), 0.2, 0.6)],
)
def test_recording_changes_nothing(guidance: Guidance) -> None:
    model, schedule = tiny_model(), Schedule()
    conditions, x_T = model.conditions(["a xylophonist and a cat"]), ImageNoise([7], (4, 8, 12))()
    predict = as_x_0(model.unet, "eps")

    def sample(guidance: Guidance) -> Tensor:
        *_, (_, x_t, _) = ddim(guided(predict, guidance, conditions), x_T, schedule.steps(6))
        return x_t

    raw: list[tuple[Site, Tensor]] = []
    recorder = Recorder(guidance, candidates="all_but_bos")
    plain, recorded = sample(guidance), sample(recorder)
    assert torch.equal(plain, recorded)
    assert torch.equal(plain, sample(Probe(guidance, record(lambda site, weights: raw.append((site, weights))))))
    layers = len(raw) // 6
    assert list(recorder.steps) == list(range(6))
    for i, seen in recorder.steps.items():
        assert seen.words == conditions.cond.spans[0]
        assert len(seen.maps) == len(seen.votes) == layers
        for site, weights in raw[i * layers :][:layers]:
            assert torch.equal(seen.maps[site.name], word_maps(weights[0], seen.words, site))
            assert seen.votes[site.name].shape == (len(seen.words) + 1, site.height, site.width)


def test_chosen_layers_and_the_words_of_the_stage_that_rules() -> None:
    model, schedule = tiny_model(), Schedule()
    stages = Multistage([{"prompt": "a dragon", "steps": 1}, {"prompt": None, "steps": 2}], ClassifierFree(3))
    recorder = Recorder(stages, layers=["mid_block", "up_blocks.1"])
    predict = as_x_0(model.unet, "eps")
    denoise = guided(predict, recorder, model.conditions(["two fish"]))
    list(ddim(denoise, ImageNoise([7], (4, 8, 12))(), schedule.steps(3)))
    words = [" ".join(span.word for span in seen.words) for seen in recorder.steps.values()]
    assert words == ["a dragon", "two fish", "two fish"]
    for seen in recorder.steps.values():
        assert {name.split(".attentions")[0] for name in seen.maps} == {"mid_block", "up_blocks.1"}


@pytest.fixture
def visualize(cli: Callable[..., Outcome], tiny_folder: Path) -> Callable[..., Outcome]:
    def run(out: Path, *overrides: str) -> Outcome:
        settings = ["model=file", f"model.path={tiny_folder}", "sampler.steps=5", "columns=2", f"hydra.run.dir={out}"]
        return cli("visualize", *settings, *overrides)

    return run


def read_maps(out: Path) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    with safe_open(out / "maps.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["words"])  # noqa: SIM118


def test_folder(visualize: Callable, cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> None:
    asked = ["prompt='a xylophonist, a cat'", "width=24", "guidance.scale=3", "negative_prompt=dark"]
    out = tmp_path / "run"
    outcome = visualize(out, "seed=3", *asked)
    assert outcome.status == 0, outcome.err
    assert {path.name for path in out.iterdir()} == {
        ".hydra", "maps.png", "maps.safetensors", "picture.png", "run.json", "semantics.png", "steps.gif"
    }  # fmt: skip
    with Image.open(out / "steps.gif") as film:
        assert film.n_frames == 5
    tensors, words = read_maps(out)
    assert words == {f"00{i}": ["a", "xylophonist", ",", "a (2)", "cat"] for i in range(5)}
    layers = {key.split("/")[2] for key in tensors}
    assert set(tensors) == {f"{kind}/00{i}/{name}" for kind in ("maps", "owners") for i in range(5) for name in layers}
    shapes = {(tuple(tensors[f"maps/000/{name}"].shape), tuple(tensors[f"owners/000/{name}"].shape)) for name in layers}
    assert shapes == {((5, 8, 12), (8, 12)), ((5, 4, 6), (4, 6))}
    about = json.loads((out / "run.json").read_text())
    assert about["config"]["guidance"]["scale"] == 3
    assert {"commit", "versions", "device"} <= set(about)

    same = ["seeds=[3]", "sampler.steps=5", *asked, "model=file", f"model.path={tiny_folder}"]
    assert cli("sample", *same, f"hydra.run.dir={tmp_path / 'sample'}").status == 0
    pictures = [tmp_path / "sample/images/00000_3.png", out / "picture.png"]
    a, b = (torch.tensor(list(Image.open(path).tobytes())) for path in pictures)
    assert (a - b).abs().max() <= 1


def test_stages_of_segmentation_free(visualize: Callable, tmp_path: Path) -> None:
    stages = "guidance.stages=[{prompt: a Chinese dragon, steps: 2}, {prompt: two fish, steps: 3}]"
    inner = ["guidance@guidance.inner=segmentation_free", "guidance.inner.candidates=words"]
    outcome = visualize(
        tmp_path / "run", "guidance=multistage", stages, *inner, "argmax=mean", "candidates=all_but_bos"
    )
    assert outcome.status == 0, outcome.err
    tensors, words = read_maps(tmp_path / "run")
    dragon, fish = ["a", "chinese", "dragon"], ["two", "fish"]
    assert list(words.values()) == [dragon, dragon, fish, fish, fish]
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert [len(tensors[f"maps/00{i}/{layer}"]) for i in range(5)] == [3, 3, 2, 2, 2]
    with Image.open(tmp_path / "run" / "steps.gif") as film:
        assert film.n_frames == 5


BAD = {
    "no prompt": ([], "nothing to draw: give prompt='...'"),
    "no words": (["prompt=''"], "prompt=: must be text with something in it"),
    "layers": (["prompt=x", "layers=[up_blocks.1,nowhere]"], "layers=nowhere: no cross-attention layer begins so"),
    "argmax": (["prompt=x", "argmax=max"], "argmax=max: must be head or mean"),
    "candidates": (["prompt=x", "candidates=all"], "candidates=all: must be"),
    "columns": (["prompt=x", "columns=0"], "columns=0"),
    "seed": (["prompt=x", "seed=-1"], "seed=-1"),
    "not finite": (["prompt=x", "guidance.scale=1e38"], "latents are not finite after step"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(visualize: Callable, tmp_path: Path, case: str) -> None:
    overrides, said = BAD[case]
    outcome = visualize(tmp_path / "run", *overrides)
    assert outcome.status == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert said in line
    assert outcome.err.endswith(line + "\n")
    assert not (tmp_path / "run" / "maps.png").exists()


def test_long_prompt_is_cut_and_says_so(visualize: Callable, tmp_path: Path) -> None:
    outcome = visualize(tmp_path / "run", f"prompt='{'cat ' * 80}'", "sampler.steps=1")
    assert outcome.status == 0
    assert outcome.err.startswith("warning: a prompt is longer than 77 tokens; cut off: 'cat cat")
    assert len(read_maps(tmp_path / "run")[1]["000"]) == 75
