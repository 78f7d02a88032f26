"""Prompt suites and files, seeds that prompts bring, and the subset that stands for many."""

import json
import re
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from tiny import Outcome

import experiments.run.cli
import experiments.subset
from experiments.files import CONF, embedded
from experiments.frechet import frechet_distance, gaussian
from experiments.metrics import subset
from experiments.run import build
from experiments.run.prompts import Prompt, read_prompts, suite


def shipped(name: str, *overrides: str) -> list[Prompt]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.prompts(compose("sample", [f"prompts={name}", *overrides]))


# --- files ------------------------------------------------------------------------------------------------------------

CAT, DOG = Prompt("a cat, sitting"), Prompt("a dog", "blurry", 7)
FILES = {
    "lines.txt": ("a cat, sitting\n\n  a dog \n", [CAT, Prompt("a dog")]),
    "braces.txt": ('{a|b} cat\n["x"]\n', [Prompt("{a|b} cat"), Prompt('["x"]')]),
    "mark.txt": ("\ufeffa cat, sitting\r\n", [CAT]),
    "records.jsonl": (
        '{"prompt": "a cat, sitting"}\n\n{"prompt": "a dog", "negative_prompt": "blurry", "seed": 7, "id": 3}\n',
        [CAT, DOG],
    ),
    "one.jsonl": ('{"prompt": "a dog", "seed": 0, "objects": ["dog"]}', [Prompt("a dog", "", 0, ("dog",))]),
    "separator.txt": ("a\u2028cat\x0c, sitting\n", [Prompt("a\u2028cat\x0c, sitting")]),
    "empty.jsonl": ('{"prompt": "a dog", "negative_prompt": ""}', [Prompt("a dog", "")]),
    "separator.jsonl": ('{"prompt": "a\u2028cat"}\n', [Prompt("a\u2028cat")]),
    "commas.csv": ('prompt,negative_prompt,seed\n"a cat, sitting",,\na dog,blurry,7\n', [CAT, DOG]),
    "erasure.csv": (
        ",case_number,source,prompt,evaluation_seed,coco_id\n"
        '0,4,coco-30k,"a cat, sitting\n",41337,203564\n1,5,coco-30k,a dog,7,179765\n',
        [Prompt("a cat, sitting", "", 41337), Prompt("a dog", "", 7)],
    ),
    "parti.tsv": (
        "Prompt\tCategory\tChallenge\tNote\na cat, sitting\tAnimals\tBasic\t\n"
        '"Cat" is written, he said "so".\tArts\tComplex\tx\n',
        [CAT, Prompt('"Cat" is written, he said "so".')],
    ),
    "captions_val2014.json": (
        json.dumps(
            {
                "info": {"year": 2014},
                "images": [{"id": 1, "file_name": "COCO_val2014_000000000001.jpg"}],
                "annotations": [
                    {"image_id": 2, "id": 9, "caption": "a cat, sitting\n"},
                    {"image_id": 1, "id": 4, "caption": "a dog"},
                ],
            },
            indent=1,
        ),
        [CAT, Prompt("a dog")],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_file(tmp_path: Path, name: str) -> None:
    text, prompts = FILES[name]
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read_prompts(path) == prompts
    assert read_prompts(path, "", 1) == prompts[:1]
    own = '"negative_prompt": ""' in text  # an explicit empty one stays
    negative = [p.negative if own else p.negative or "dark" for p in prompts]
    asked = [Prompt(p.text, n, p.seed, p.objects) for p, n in zip(prompts, negative, strict=True)]
    assert read_prompts(path, "dark") == asked
    # what a file holds is what counts, but for plain text
    if not name.endswith(".txt"):
        assert read_prompts(path.rename(tmp_path / "prompts")) == prompts


BROKEN = {
    "empty.txt": ("\n \n", "holds no prompts"),
    "empty.csv": ("", "holds no prompts"),
    "header.csv": ("prompt,seed\n", "holds no prompts"),
    "latin.txt": (b"caf\xe9", "is not text in UTF-8"),
    "plain": ("a cat\na dog\n", "line 1: must name a column prompt (plain text is read from a file that ends in .txt)"),
    "columns.csv": ("text,seed\na cat,1\n", "line 1: must name a column prompt"),
    "comma.csv": ("prompt\na dog\na cat, sitting\n", "line 3: has more fields than the first line"),
    "gap.csv": ("seed,prompt\n1,a dog\n2\n", "line 3: must have a prompt"),
    "quote.csv": ('prompt\n"a dog\na cat\n', "line 2: unexpected end of data"),
    "seed.csv": ("prompt,seed\na dog,1\na cat,-1\n", "line 3: seed -1: must be a whole number from 0 to 4294967295"),
    "float.csv": ("prompt,evaluation_seed\na dog,1.0\n", "line 2: seed 1.0: must be a whole number"),
    "cut.jsonl": ('{"prompt": "x"}\n{"prompt": ', "line 2: not JSON: Expecting value at column 12"),
    "key.jsonl": ('{"prompt": "x"}\n{"text": "x"}', 'line 2: must be an object with a "prompt"'),
    "list.jsonl": ('["a cat"]', 'line 1: must be an object with a "prompt"'),
    "null.jsonl": ('{"prompt": null}', "line 1: must have a prompt, in words"),
    "blank.jsonl": ('{"prompt": " "}', "line 1: must have a prompt, in words"),
    "seed.jsonl": ('{"prompt": "x", "seed": 4294967296}', "line 1: seed 4294967296"),
    "true.jsonl": ('{"prompt": "x", "seed": true}', "line 1: seed True"),
    "text.jsonl": ('{"prompt": "x", "seed": "7"}', "line 1: seed 7"),
    "objects.jsonl": ('{"prompt": "x", "objects": "cat"}', "line 1: objects must be a list of nouns"),
    "instances.json": ('{"annotations": [{"caption": "x"}, {"bbox": []}]}', 'annotation 2: has no "caption"'),
    "none.json": ('{"annotations": []}', "holds no prompts"),
    "cut.json": ('{"annotations": [{"caption": "x"}, {', "line 1: not JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(tmp_path: Path, name: str) -> None:
    content, said = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError) as raised:
        read_prompts(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_count_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\nbroken')
    assert shipped("file", f"prompts.path={path}", "prompts.count=1") == [Prompt("x")]
    for count in ("0", "-1", "1.5", "true", "few"):
        with pytest.raises(ValueError, match="prompts.count="):
            shipped("file", f"prompts.path={path}", f"prompts.count={count}")


# --- suites -----------------------------------------------------------------------------------------------------------


def test_two_objects() -> None:
    prompts = shipped("two_objects")
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 100
    assert len({frozenset(prompt.objects) for prompt in prompts}) == 100
    for prompt in prompts:
        one, other = prompt.objects
        assert one not in other and other not in one
        for noun in prompt.objects:
            assert len(re.findall(rf"\b{noun}\b", prompt.text)) == 1, prompt
    assert shipped("two_objects", "prompts.count=3") == prompts[:3]


@pytest.mark.parametrize("kind", ["one", "one_coloured", "two", "two_coloured"])
def test_emoji_suite(kind: str) -> None:
    prompts = shipped(f"emoji_{kind}")
    world = OmegaConf.load(CONF / "world" / f"{embedded('world')}.yaml")
    assert len(prompts) == 500
    assert len({prompt.text for prompt in prompts}) > (150 if kind.startswith("one") else 400)
    assert [prompt.seed for prompt in prompts] == list(range(len(prompts)))
    assert shipped(f"emoji_{kind}", "prompts.count=5") == prompts[:5]
    assert shipped(f"emoji_{kind}", "prompts.count=5", "prompts.scenes_seed=1") != prompts[:5]
    for prompt in prompts:
        words = re.findall(r"\w+", prompt.text.split(" background")[0].rsplit(" ", 1)[0])  # without the background's
        assert len(prompt.objects) == (1 if kind.startswith("one") else 2)
        assert set(prompt.objects) <= set(world.concepts)
        assert all(noun in prompt.text for noun in prompt.objects)
        assert sum(word in world.styles for word in words) == len(prompt.objects)
        assert sum(word in world.colours for word in words) == len(prompt.objects) * kind.endswith("coloured")


def test_the_strict_suite_shows_no_combination_of_training() -> None:
    from experiments.emoji.world import EmojiScenes, World, combinations, is_held_out

    world = World(**OmegaConf.to_container(OmegaConf.load(CONF / "world" / "emoji_sixteen.yaml")))
    prompts = shipped("emoji_two_strict", "prompts.world=emoji_sixteen", "prompts.count=100")
    scenes = EmojiScenes(world, {}, "strict", 0, layouts=("beside", "above"), tinted=True)
    assert [prompt.text for prompt in prompts] == [scenes.caption(i)[0] for i in range(100)]
    plans = [scenes.plan(i)[2:] for i in range(100)]
    assert all(is_held_out(world, c) for looks, background in plans for c in combinations(looks, background))
    assert len({prompt.text for prompt in prompts}) > 90


def test_alike_objects_come_in_24_pairs_and_96_captions() -> None:
    world = OmegaConf.load(CONF / "world" / "emoji_sixteen.yaml")
    concepts = list(world.concepts)
    alike = [pair for i in range(0, 16, 4) for pair in combinations(concepts[i : i + 4], 2)]
    assert set(OmegaConf.load(CONF / "world" / "emoji_small.yaml").concepts) < set(concepts)
    pairs = OmegaConf.load(CONF / "pairs" / "twenty_four.yaml")
    four = OmegaConf.load(CONF / "pairs" / "four.yaml")
    assert [tuple(pair.objects) for pair in pairs.emoji.values()] == alike
    assert list(pairs.photo) == list(pairs.emoji)
    assert all(pairs[kind][name] == pair for kind in four for name, pair in four[kind].items())
    for pair in (*pairs.emoji.values(), *pairs.photo.values()):
        assert pair.joint == f"{pair.one} and {pair.two}"
        assert all(noun in pair.joint for noun in pair.objects)
    captions = shipped("emoji_pairs")
    assert [captions[i].objects for i in range(0, 96, 4)] == alike
    assert {caption.text for caption in captions} == {
        f"{pair.one} {between} {pair.two}"
        for pair in pairs.emoji.values()
        for between in ("and", "next to", "to the left of", "above")
    }


def test_emoji_captions_are_those_of_the_scenes() -> None:
    from experiments.emoji.world import EmojiScenes, World

    world = World(**OmegaConf.to_container(OmegaConf.load(CONF / "world" / f"{embedded('world')}.yaml")))
    scenes = EmojiScenes(world, {}, "held_out", 0, layouts=("beside", "above"), tinted=True)
    assert [p.text for p in shipped("emoji_two_coloured", "prompts.count=20")] == [
        scenes.caption(i)[0] for i in range(20)
    ]


def test_a_layout_that_the_world_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="must be some of one, beside, above"):
        shipped("emoji_one", "prompts.layouts=[three]")


# --- seeds that prompts bring -----------------------------------------------------------------------------------------


def test_own_seeds_in_a_run(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    records = [{"prompt": "a cat", "seed": 0}, {"prompt": "a dog", "objects": ["dog"]}, {"prompt": "a fish", "seed": 9}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = ("model=file", f"model.path={tiny_folder}", "sampler.steps=1", f"hydra.run.dir={tmp_path / 'run'}")
    outcome = cli("sample", *asked, "prompts=file", f"prompts.path={path}", "seeds=[3,4]")
    assert outcome.status == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(line["prompt_index"], line["seed"]) for line in lines] == [(0, 0), (1, 3), (1, 4), (2, 9)]
    assert [line.get("objects") for line in lines] == [None, ["dog"], ["dog"], None]
    assert "objects" not in Image.open(tmp_path / "run" / lines[1]["file"]).text["ldm-guidance"]


def test_grid_of_prompts_with_their_own_seeds(cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path) -> None:
    asked = ("model=file", f"model.path={tiny_folder}", "sampler.steps=1", "batch_size=35", "prompts=emoji_two")
    widths = {}
    for count in (70, 3):
        out = tmp_path / str(count)
        outcome = cli("sample", *asked, f"prompts.count={count}", f"hydra.run.dir={out}")
        assert outcome.status == 0, outcome.err
        widths[count] = Image.open(out / "grid.png").size
    assert widths[70][0] == widths[3][0]
    assert (widths[70][1] - 6) == 8 * (widths[3][1] - 6)  # 64 pictures in 8 rows


# --- the subset -------------------------------------------------------------------------------------------------------


def exact(mean: np.ndarray, root: np.ndarray) -> torch.Tensor:
    """2 D samples whose mean and covariance, root^T root, are exactly these."""
    x = np.concatenate([root, -root]) * np.sqrt((2 * len(mean) - 1) / 2)
    return torch.from_numpy(mean + x)


def test_frechet_distance_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    m, a = rng.normal(size=(2, 6)), rng.normal(size=(2, 6, 6))
    p, q = (gaussian(exact(mean, root)) for mean, root in zip(m, a, strict=True))
    c, d = (root.T @ root for root in a)
    overlap = np.sqrt(np.linalg.eigvals(c @ d).real).sum()  # tr (C D)^(1/2)
    assert frechet_distance(p, q) == pytest.approx(((m[0] - m[1]) ** 2).sum() + np.trace(c + d) - 2 * overlap, rel=1e-9)
    s, t = np.arange(1.0, 7.0), np.full(6, 2.0)
    diagonal = frechet_distance(gaussian(exact(m[0], np.diag(s))), gaussian(exact(m[1], np.diag(t))))
    assert diagonal == pytest.approx(((m[0] - m[1]) ** 2).sum() + ((s - t) ** 2).sum(), rel=1e-9)


def test_distance_curve() -> None:
    x = torch.randn(500, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curve = subset.distance_curve(x, repeats=4, seed=0)
    assert list(curve) == [8, 16, 32, 64, 128, 256, 500]
    assert all(len(distances) == 4 for distances in curve.values())
    assert curve[500] == pytest.approx([0] * 4, abs=1e-12)  # a subset of all is the whole
    means = [np.mean(distances) for distances in curve.values()]
    assert means == sorted(means, reverse=True)
    assert curve == subset.distance_curve(x, repeats=4, seed=0)
    assert curve[8] != subset.distance_curve(x, repeats=4, seed=1)[8]
    # already the error of the mean, drawn without replacement from D = 20 unit variances
    assert means[4] > 20 / 128 * (1 - 128 / 500)
    order = subset.shuffled(500, 0, 2)[:64]
    assert curve[64][2] == pytest.approx(frechet_distance(gaussian(x[order]), gaussian(x)))
    # prompts that say all the same are at no distance
    same = subset.distance_curve(torch.ones(40, 5, dtype=torch.float64), repeats=2, seed=0)
    assert all(distances == pytest.approx([0, 0], abs=1e-12) for distances in same.values())


def test_where_the_curve_is_flat() -> None:
    curve = {8: [9.0, 7.0], 16: [4.0, 4.0], 32: [1.0, 3.0], 64: [1.0, 1.0], 100: [0.0, 0.0]}
    assert subset.flat_from(curve, 5) == 8
    assert subset.flat_from(curve, 4) == 16  # a gain of 4 is not less than 4
    assert subset.flat_from(curve, 2) == 32
    assert subset.flat_from(curve, 1) == 100
    assert subset.flat_from({8: [1.0], 16: [1.0], 32: [0.2], 64: [0.1]}, 0.5) == 32  # flat from there on, not for once


def test_bands() -> None:
    assert subset.bands(101, [10, 50, 90], 3) == {10: range(9, 12), 50: range(49, 52), 90: range(89, 92)}
    assert subset.bands(20, [0, 100], 4) == {0: range(4), 100: range(16, 20)}
    assert subset.bands(3, [0, 50, 100], 1) == {0: range(1), 50: range(1, 2), 100: range(2, 3)}
    for total, percentiles, around, said in [
        (20, [40, 60], 6, "would share some"),
        (20, [50, 50], 1, "would share some"),
        (20, [50], 21, "around=21: must be a whole number from 1 to 20"),
        (20, [], 1, "percentiles="),
        (20, [101], 1, "percentiles="),
    ]:
        with pytest.raises(ValueError, match=said):
            subset.bands(total, percentiles, around)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in open_clip's layout, smaller than the embedded one."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    network = CLIP(12, CLIPVisionCfg(**vision), CLIPTextCfg(**text))
    save_file(
        {key: value.half() for key, value in network.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    config = {"model_cfg": {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def choose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clip_folder: Path, tmp_path: Path
) -> Callable[..., Outcome]:
    """choose(overrides...): the verb, in this process, into tmp_path/out; of the captions of two objects."""

    def run(*overrides: str) -> Outcome:
        settings = (
            "prompts=two_objects",
            f"clip.model={clip_folder}",
            "repeats=3",
            "around=2",
            f"hydra.run.dir={tmp_path / 'out'}",
        )
        given = {o.partition("=")[0] for o in overrides}
        settings = tuple(s for s in settings if s.partition("=")[0] not in given)
        monkeypatch.setattr(sys, "argv", ["experiments/subset.py", *settings, *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        capsys.readouterr()
        status = 0
        try:
            experiments.run.cli.run(experiments.subset.main, "subset")
        except SystemExit as stop:
            status = stop.code
        return Outcome(status, *capsys.readouterr())

    return run


def finished_run(
    folder: Path, prompts: list[Prompt], value: Callable[[int], float], by: tuple[str, ...] = ("file",)
) -> Path:
    """What `subset` reads of an evaluated run of two seeds; a prompt's two scores are its value -1 and +1.

    `by` are the fields of a picture's record that stand beside its score.
    """
    (folder / "metrics").mkdir(parents=True)
    keys = [(p, seed) for p in range(len(prompts)) for seed in (0, 1)]
    lines = [{"prompt_index": p, "prompt": prompts[p].text, "seed": s, "file": f"{p:05d}_{s}.png"} for p, s in keys]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({"config": {"guidance": {"_target_": "guidance.ClassifierFree"}}}))
    scores = [
        {key: line[key] for key in by} | {"value": value(p) + 2 * seed - 1}
        for (p, seed), line in zip(keys, lines, strict=True)
    ]
    (folder / "metrics" / "clip_score.json").write_text(json.dumps({"per_image": scores}))
    return folder


def test_subset(choose: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = choose("tolerance=0.1")
    assert outcome.status == 0, outcome.err
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"subset.json", "subset.jsonl", "subset.png"}
    found = json.loads((out / "subset.json").read_text())
    assert found["prompts"] == 100
    assert [point["size"] for point in found["curve"]] == [8, 16, 32, 64, 100]
    assert found["size"] in (16, 32, 64)
    assert f"{found['size']} of 100 prompts stand for all" in outcome.out
    whole, part = shipped("two_objects"), read_prompts(out / "subset.jsonl")
    assert part == [whole[i] for i in found["subset"]]
    assert len(part) == found["size"]
    assert Image.open(out / "subset.png").size[0] > 500
    first = (out / "subset.jsonl").read_bytes(), (out / "subset.json").read_bytes()
    assert choose("tolerance=0.1").status == 0
    assert ((out / "subset.jsonl").read_bytes(), (out / "subset.json").read_bytes()) == first
    # where doubling always gains enough, all prompts are taken, and that is said
    outcome = choose("tolerance=0")
    assert "100 of 100 prompts" in outcome.out
    assert outcome.err.startswith("warning: ")


@pytest.mark.parametrize("of", ["all", "subset"])
def test_subset_by_scores(choose: Callable[..., Outcome], tmp_path: Path, of: str) -> None:
    choose("tolerance=0.1")
    out, whole = tmp_path / "out", shipped("two_objects")
    places = json.loads((out / "subset.json").read_text())["subset"]
    drawn = whole if of == "all" else [whole[i] for i in places]
    value = {prompt.text: float(-len(prompt.text)) - i / 1000 for i, prompt in enumerate(whole)}
    by = ("file",) if of == "all" else ("prompt_index", "seed")
    run = finished_run(tmp_path / "run", drawn, lambda p: value[drawn[p].text], by)
    outcome = choose("tolerance=0.1", f"run={run}", "percentiles=[0,50,100]")
    assert outcome.status == 0, outcome.err
    lines = [json.loads(line) for line in (out / "subset.jsonl").read_text().splitlines()]
    ranked = sorted((value[whole[i].text], i) for i in places)
    ranks = subset.bands(len(places), [0, 50, 100], 2)
    assert [line["percentile"] for line in lines] == [0, 0, 50, 50, 100, 100]
    assert [line["position"] for line in lines] == [ranked[rank][1] for band in ranks.values() for rank in band]
    assert [line["score"] for line in lines] == pytest.approx([value[line["prompt"]] for line in lines])
    assert [line["objects"] for line in lines] == [list(whole[line["position"]].objects) for line in lines]


def test_own_seed_0_is_kept(choose: Callable[..., Outcome], tmp_path: Path) -> None:
    assert choose("prompts=emoji_one", "prompts.count=20", "tolerance=0").status == 0
    assert [prompt.seed for prompt in read_prompts(tmp_path / "out" / "subset.jsonl")] == list(range(20))


SUBSET_BAD = {
    "few": (["prompts.count=15"], "15 prompts: a curve needs at least 16"),
    "repeats": (["repeats=0"], "repeats=0"),
    "tolerance": (["tolerance=-1"], "tolerance=-1"),
    "clip": (["clip.model=/no/clip"], "model=/no/clip"),
    "no run": (["run=/no/run"], "run=/no/run: holds no pictures"),
    "not evaluated": (["run={run}", "score=pick_score"], "metrics=[pick_score]` makes it"),
    "other run": (["run={other}"], "prompts have no score, the first: "),
    "nan": (["run={nan}"], "prompts have no score, the first: "),
    "other layout": (["run={layout}"], "clip_score.json: does not hold scores per_image of this run: KeyError"),
    "overlap": (["run={run}", "percentiles=[50,51]"], "would share some"),
}


@pytest.mark.parametrize("case", SUBSET_BAD)
def test_bad_subset(choose: Callable[..., Outcome], tmp_path: Path, case: str) -> None:
    overrides, said = SUBSET_BAD[case]
    prompts = shipped("two_objects")
    runs = {
        "run": finished_run(tmp_path / "run", prompts, float),
        "other": finished_run(tmp_path / "other", [Prompt("a cat")], float),
        "nan": finished_run(tmp_path / "nan", prompts, lambda p: float("nan")),
        "layout": finished_run(tmp_path / "layout", prompts, float),
    }
    (runs["layout"] / "metrics" / "clip_score.json").write_text('{"value": 1}')
    for name, run in runs.items():
        overrides = [override.replace(f"{{{name}}}", str(run)) for override in overrides]
    outcome = choose("tolerance=0.1", *overrides)
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert said in outcome.err
    assert not (tmp_path / "out" / "subset.json").exists()


def test_run_of_another_guidance_is_told(choose: Callable[..., Outcome], tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", shipped("two_objects"), float)
    (run / "run.json").write_text(json.dumps({"config": {"guidance": {"_target_": "guidance.Multistage"}}}))
    outcome = choose("tolerance=0.1", f"run={run}")
    assert outcome.status == 0
    assert "was drawn with guidance.Multistage" in outcome.err


def test_suite_needs_no_negative_prompt() -> None:
    assert suite(OmegaConf.create({"lines": ["a cat", 42]})) == [Prompt("a cat"), Prompt("42")]
