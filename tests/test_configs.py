"""Every yaml composes, and what it makes is what its class makes of the same arguments."""

import inspect
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import samplers
from experiments.files import CONF
from experiments.run import build, draw
from ldm.classifier import ClassifierConfig, LatentClassifier
from ldm.config import ScheduleConfig
from ldm.files.classifiers import write_classifier
from ldm.files.reading import EMBEDDED


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("sample", list(overrides))


REQUIRED = {
    "multistage": ["guidance.stages=[{prompt: x, steps: 1.0}]"],
    "composable": ["guidance.others=[{prompt: x, weight: 1.0}]"],
    "perp_neg": ["guidance.negatives=[{prompt: x, weight: 1.0}]"],
}


@lru_cache
def classifier() -> str:
    """The override that names a classifier, which is in a folder."""
    folder = Path(tempfile.mkdtemp()) / "classifier"
    write_classifier(LatentClassifier(ClassifierConfig(("fish",), channels=(8,))), folder)
    return f"guidance.classifier.path={folder}"


def required(name: str) -> list[str]:
    return [classifier()] if name == "classifier" else REQUIRED.get(name, [])


@pytest.mark.parametrize("name", names("guidance"))
def test_guidance_yaml_mirrors_its_constructor(name: str) -> None:
    cfg = composed(f"guidance={name}", *required(name)).guidance
    guidance = build.guidance(cfg)
    fields = inspect.signature(type(guidance)).parameters
    assert set(fields) == set(cfg) - {"_target_"}
    for field, parameter in fields.items():
        default = parameter.default
        if isinstance(default, int | float | str) and name != "interval":  # whose defaults are the whole of sampling
            assert cfg[field] == default, field


@pytest.mark.parametrize("name", names("guidance"))
def test_guidance_composes_inside_every_other(name: str) -> None:
    for outer in ("rescale", "interval", "multistage"):
        needed = required(outer) + [r.replace("guidance.", "guidance.inner.", 1) for r in required(name)]
        cfg = composed(f"guidance={outer}", f"guidance@guidance.inner={name}", *needed).guidance
        steps = samplers.Schedule().steps(10)
        inner = build.guidance(cfg).inner
        assert type(inner).__name__ == cfg.inner._target_.removeprefix("guidance.")
        assert sum(stage.steps for stage in build.stages(build.guidance(cfg), steps)) == 10


@pytest.mark.parametrize("name", names("sampler"))
def test_sampler_yaml_mirrors_its_function(name: str) -> None:
    cfg = composed(f"sampler={name}").sampler
    function = getattr(samplers, name)
    theirs = set(inspect.signature(function).parameters) - {"denoise", "x_T", "steps", "noise"}
    assert set(cfg) - {"_target_", "steps", "spacing", "final"} == theirs
    assert build.sampler(cfg).func is function
    assert len(build.steps(cfg, ScheduleConfig())) == cfg.steps


@pytest.mark.parametrize("name", names("model"))
def test_model_yaml_has_the_loader_s_fields(name: str) -> None:
    cfg = composed(f"model={name}").model
    assert list(cfg) == ["name", "path", "config", "prediction", "ema", "subject"]
    assert OmegaConf.is_missing(cfg, "path") == (name not in EMBEDDED)
    assert cfg.prediction == {"sd21": "v", "sd21_base": "eps"}.get(name)


@pytest.mark.parametrize("name", sorted(set(names("prompts")) - {"file"}))
def test_suite_is_text(name: str) -> None:
    lines = build.prompts(composed(f"prompts={name}"), classes=("A", "B"))
    assert all(line.text and line.text == line.text.strip() for line in lines)
    assert len({(line.text, line.seed) for line in lines}) == len(lines)


def test_no_config_inherits_another() -> None:
    """A defaults list names groups to hold, and never a sibling in its own group to start from.

    Experiments and the papers' studies start from the verb's config, and launchers from the plugin's that they set up.
    """
    for path in Path(CONF).rglob("*.yaml"):
        if path.parent == CONF or path.parent.name in ("experiment", "raters", "launcher"):
            continue
        for entry in OmegaConf.load(path).get("defaults", []):
            assert entry == "_self_" or all("@" in str(key) for key in entry), path


@pytest.mark.parametrize(("name", "plugin"), [("slurm", "submitit"), ("ray_cluster", "ray")])
def test_launcher_composes_with_its_plugin(name: str, plugin: str) -> None:
    """The plugin's own config refuses a setting that it does not know."""
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("ablate", ["experiment=segfree_a", f"hydra/launcher={name}"], return_hydra_config=True)
    assert set(OmegaConf.load(CONF / "hydra" / "launcher" / f"{name}.yaml")) - {"defaults"} <= set(cfg.hydra.launcher)
    assert cfg.hydra.launcher._target_.startswith(f"hydra_plugins.hydra_{plugin}_launcher.")


def test_wandb_sweep_varies_axes_of_its_experiment() -> None:
    sweep = OmegaConf.load(CONF / "wandb_sweep.yaml")
    (experiment,) = [word for word in OmegaConf.to_container(sweep)["command"] if word.startswith("experiment=")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("ablate", [experiment], return_hydra_config=True)
    for name, told in sweep.parameters.items():
        assert ",".join(map(str, told["values"])) == cfg.hydra.sweeper.params[name]


NEED_ANOTHER = {"multistage", "composable", "perp_neg", "autoguidance", "classifier", "clip"}  # prompt, or network


@pytest.mark.parametrize("name", sorted(set(names("guidance")) - NEED_ANOTHER))
def test_guidance_draws_on_the_embedded_model_as_it_stands(name: str) -> None:
    asked = ["model=emoji", "prompt='a red fish next to a blue heart'", "sampler.steps=4", "seeds=[3]"]
    drawn = []
    for guidance in dict.fromkeys((name, "cfg")):
        job = draw.prepare(composed(*asked, f"guidance={guidance}"))
        drawn.append(draw.draw_batch(job.machine, draw.batch_of(job, 0, 1), lambda: None))
    assert drawn[0].images.isfinite().all() and drawn[0].images.std() > 0.02
    assert len(drawn) == 1 or not torch.equal(drawn[0].x_0, drawn[1].x_0)
