"""Every experiment of conf/experiment composes, for models of emoji and of photographs, and says what it measures."""

import itertools
import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import experiments.run.cli  # noqa: F401 (which registers the resolvers)
from experiments.files import CONF
from experiments.run import build
from experiments.sweeps import folder as sweeps
from experiments.sweeps.cells import chosen, drawn_keys
from experiments.sweeps.claims import SIGNS
from experiments.sweeps.entry import resolved
from samplers import Denoised, Schedule, Step

NAMES = sorted({path.stem for path in (CONF / "experiment").glob("*.yaml")} - {"grid"})  # which has no axes of its own
MODELS = {"emoji": ["model=emoji"], "photo": ["model=sd15", "model.path=x"]}


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(name: str, subject: str, *overrides: str) -> DictConfig:
    return compose("ablate", [f"experiment={name}", *MODELS[subject], *overrides], return_hydra_config=True)


def cells(name: str) -> list[list[str]]:
    """Overrides in which each value of each axis comes once."""
    params = OmegaConf.to_container(composed(name, "emoji").hydra.sweeper.params)
    parsed = sweeps.overrides(params, [])
    axes = [[f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] for o in parsed]
    first = [values[0] for values in axes]
    return [first] + [[*first[:i], v, *first[i + 1 :]] for i, values in enumerate(axes) for v in values[1:]]


@pytest.mark.parametrize("subject", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_composes(name: str, subject: str) -> None:
    names = set()
    for overrides in cells(name):
        cfg = composed(name, subject, *overrides)
        assert cfg.cell not in names
        assert not set(cfg.cell) & set(" :*?")
        names.add(cfg.cell)
        assert cfg.name == name
        assert cfg.claim
        if cfg.study is None:
            guidance = build.guidance(cfg.guidance)
            build.stages(guidance, Schedule().steps(cfg.sampler.steps))
            drawn = OmegaConf.create({key: resolved(cfg.get(key)) for key in drawn_keys()})
            assert build.seeds(drawn)
            suite = resolved(cfg.suite)[subject]
            assert suite is None or (CONF / "prompts" / f"{suite}.yaml").is_file()
            for metric, settings in chosen(cfg).items():
                assert callable(build.create(settings, metric).measure)
        else:
            assert callable(build.create(cfg.study, "study").measure)


@pytest.mark.parametrize("name", NAMES)
def test_page_and_claims_speak_of_what_is_swept_and_measured(name: str) -> None:
    cfg = composed(name, "emoji")
    axes = set(OmegaConf.to_container(cfg.hydra.sweeper.params))
    measured = {name} if cfg.study is not None else {*cfg.measures.emoji, *cfg.measures.photo, *cfg.measures.drawing}
    page, claims = resolved(cfg.page), resolved(cfg.claims)
    assert {page["x"], page["by"]} - {None} <= axes
    spoken = [measure for curve in page["curves"] for measure in curve["measures"]] + page.get("frontier", [])
    spoken += [claim[key] for claim in claims for key in ("measure", "than") if key in claim]
    assert spoken
    assert {measure.split("/")[0] for measure in spoken} <= measured
    for claim in claims:
        assert claim["expect"] in SIGNS
        for where in ("here", "there", "curve", "at"):
            assert set(claim.get(where, {}) if where != "at" or "along" in claim else {}) <= axes


def test_experiments_are_listed_in_the_readme() -> None:
    readme = (Path(CONF).parent / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in NAMES)


def test_the_captions_of_table_3_are_those_of_the_suite() -> None:
    """Four wordings of each of 24 pairs, in as many cells."""
    cfg, asked = composed("multistage_captions", "emoji"), set()
    params = resolved(cfg.hydra.sweeper.params)
    for pair, drawn in itertools.product(params["pair"].split(","), params["drawn"].split(",")[:4]):
        asked.add(OmegaConf.merge(cfg, {"pair": pair, "drawn": drawn}).guidance.stages[0].prompt)
    suite = (CONF / "prompts" / "emoji_pairs.jsonl").read_text().splitlines()
    assert asked == {json.loads(line)["prompt"] for line in suite}
    assert list(cfg.seeds) == list(range(100, 140))


def test_all_sweeps_of_results_compose_and_the_second_model_s_are_parts_of_the_first_s() -> None:
    """By what `make -n` prints: every cell of the second model is one of the first, and each claim can be compared."""
    make = ["make", "-n", "-f", "experiments/results/sweeps.mk", "SECOND=FOLDER", "OUT=outputs/nothing"]
    printed = subprocess.run(make, cwd=CONF.parent, capture_output=True, text=True, check=True).stdout
    commands = [shlex.split(line)[4:] for line in printed.splitlines() if "experiments.ablate" in line]
    kept: dict[str, tuple[DictConfig, list[str]]] = {}
    drawn: dict[str, dict[str, list[dict[str, str]]]] = {"first": {}, "second": {}}
    for words in commands:
        told = dict(word.split("=", 1) for word in words)
        name, folder = told["experiment"], Path(told["out"])
        if folder.parent.name == "second":  # the same settings, and then the model and the cells
            same = len(kept[name][1]) - 1
            assert words[:same] == kept[name][1][:same] and words[same + 1] == "model.path=FOLDER"
        elif name not in kept:  # what follows it is a further part of the same sweep
            swept = [word for word in words if "," in word and "[" not in word]
            kept[name] = compose("ablate", [w for w in words if w not in swept], return_hydra_config=True), words
        params = resolved(kept[name][0].hydra.sweeper.params)
        cells = sweeps.planned(params, [word for word in words if word.partition("=")[0] in params])
        drawn[folder.parent.name].setdefault(name, []).extend({k: str(v) for k, v in cell.items()} for cell in cells)
    assert kept.keys() == {name for name in NAMES if not name.startswith("vectors")} - {
        "task_model",
        "classifier_guidance",
        "flow_steps",
    }
    for name, (cfg, _) in kept.items():
        first, second = (cells[name] for cells in drawn.values())
        assert all(axes in first for axes in second), name
        for claim in resolved(cfg.claims):
            for where in (claim[side] for side in ("here", "there", "curve") if side in claim):
                values = [value if isinstance(value, list) else [value] for value in where.values()]
                for wanted in itertools.product(*values):
                    at = {key: str(value) for key, value in zip(where, wanted, strict=True)}
                    assert any(at.items() <= axes.items() for axes in second), (name, claim["say"], at)


BUDGETS = OmegaConf.load(CONF / "samplers" / "every.yaml")


@pytest.mark.parametrize("method", BUDGETS)
def test_a_sampler_keeps_to_its_budget_of_evaluations(method: str) -> None:
    """And one step more would not."""
    for budget in (5, 10, 20):
        cfg = OmegaConf.create({"samplers": BUDGETS, "evaluations": budget, "spacing": "karras"})
        settings = cfg.samplers[method]
        taken = [evaluations(settings, settings.steps + more) for more in (0, 1)]
        assert taken[0] <= budget < taken[1]


def evaluations(settings: DictConfig, n: int) -> int:
    asked = list[Step]()

    def denoise(x_t: Tensor, step: Step) -> Denoised:
        asked.append(step)
        return Denoised(x_t, x_t)

    steps, nothing = Schedule().steps(n, settings.spacing, final="clean"), torch.zeros(1)
    for _ in build.sampler(settings)(denoise, nothing, steps, noise=lambda: nothing):
        pass
    return len(asked)


def test_every_sampler_is_in_the_experiment() -> None:
    swept = resolved(composed("samplers", "emoji").hydra.sweeper.params.method).split(",")
    assert swept == list(BUDGETS)
    functions = {settings["_target_"] for settings in OmegaConf.to_container(BUDGETS, resolve=False).values()}
    assert functions == {f"samplers.{path.stem}" for path in (CONF / "sampler").glob("*.yaml")}
