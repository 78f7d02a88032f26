"""Scenes in GenEval's format, and its layout of folders."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf
from tiny import Outcome

from experiments.files import CONF
from experiments.run import geneval

COUNTS = {  # of the paper
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
FIRST = [  # of each task in the published list
    "a photo of a bench",
    "a photo of a bench and a sports ball",
    "a photo of two clocks",
    "a photo of a blue fire hydrant",
    "a photo of a dog right of a teddy bear",
    "a photo of a purple wine glass and a black apple",
]


def test_the_published_list() -> None:
    scenes = geneval.scenes(geneval.PUBLISHED)
    assert OmegaConf.load(CONF / "prompts" / "geneval.yaml").geneval_seed == geneval.PUBLISHED
    assert Counter(scene["tag"] for scene in scenes) == COUNTS
    assert len({scene["prompt"] for scene in scenes}) == len(scenes) == 553
    assert [scene["prompt"] for scene in scenes[:6]] == FIRST
    assert [scene["tag"] for scene in geneval.listed(geneval.PUBLISHED)] == [
        tag for tag, count in COUNTS.items() for _ in range(count)
    ]
    assert geneval.scenes(geneval.PUBLISHED) == scenes != geneval.scenes(1)
    assert len(geneval.CLASSES) == len(set(geneval.CLASSES)) == 80
    for scene in scenes:
        assert geneval_prompt(scene) == scene["prompt"]
        named = [thing["class"] for thing in scene["include"]]
        assert set(named) <= set(geneval.CLASSES)
        assert len(set(named)) == len(named)
        assert not any("color" in thing and thing["class"] == "person" for thing in scene["include"])
    rare = {colour for scene in scenes for thing in scene["include"] if (colour := thing.get("color"))}
    assert rare == set(geneval.COLOURS)


def geneval_prompt(scene: geneval.Scene) -> str:
    """The prompt that the metadata says, as the judge reads it."""

    def a(words: str) -> str:
        return ("an " if words[0] in "aeiou" else "a ") + words

    first, *rest = scene["include"]
    if scene["tag"] == "counting":
        assert scene["exclude"] == [{"class": first["class"], "count": first["count"] + 1}]
        number = {2: "two", 3: "three", 4: "four"}[first["count"]]
        return f"a photo of {number} {first['class']}{'es' if first['class'][-1] == 's' else 's'}"
    assert "exclude" not in scene
    assert all(thing["count"] == 1 for thing in scene["include"])
    if scene["tag"] == "position":
        (thing,) = rest
        where, target = thing["position"]
        assert target == 0  # the first of the list
        return f"a photo of {a(thing['class'])} {where} {a(first['class'])}"
    told = [a(" ".join(filter(None, (thing.get("color"), thing["class"])))) for thing in scene["include"]]
    return f"a photo of {' and '.join(told)}"


def test_a_run_in_the_layout_that_its_judge_reads(
    cli: Callable[..., Outcome], tiny_folder: Path, tmp_path: Path
) -> None:
    run, out, places = tmp_path / "run", tmp_path / "out", (0, 80, 179)
    asked = ["model=file", f"model.path={tiny_folder}", "seeds=[3,1]", "sampler.steps=1", f"hydra.run.dir={run}"]
    assert cli("sample", "prompts=geneval", "prompts.count=3", *asked).status == 0
    assert cli("geneval", f"run={run}", f"out={out}").status == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        f"{place:05d}/{name}" for place in places for name in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    ]
    listed = geneval.listed(geneval.PUBLISHED)
    for i, place in enumerate(places):  # the first of three tasks
        assert json.loads((out / f"{place:05d}" / "metadata.jsonl").read_text()) == listed[place]
        for j, seed in enumerate((3, 1)):
            copied, drawn = out / f"{place:05d}/samples/{j:04d}.png", run / f"images/{i:05d}_{seed}.png"
            assert copied.read_bytes() == drawn.read_bytes()
    again = cli("geneval", f"run={run}", f"out={out}")
    assert (again.status, again.err.count("\n")) == (1, 1)
    other = tmp_path / "other"
    assert cli("sample", *asked[:-1], "prompt=x", f"hydra.run.dir={other}").status == 0
    refused = cli("geneval", f"run={other}", f"out={tmp_path / 'new'}")
    assert refused.status == 1
    assert "is not of prompts=geneval" in refused.err


def test_articles_and_plurals() -> None:
    assert geneval.a("orange") == "an orange"
    assert geneval.a("cat") == "a cat"
    assert geneval.plural("bus") == "buses"
