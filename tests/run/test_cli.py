"""The command line: help without torch, wrong settings in one line, and nothing written for them."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from tiny import Outcome

from experiments.files import CONF, UserError
from experiments.run import help, settings
from guidance import ClassifierFree, Interval, Multistage

ROOT = CONF.parent
BENCHMARKS = [f"benchmark.{name}" for name in ("growth", "loading", "overhead", "training")]
VERBS = sorted(  # by their modules: every config of a verb is named by its module's last part
    ".".join(path.relative_to(ROOT / "experiments").with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if path.parent.name in ("experiments", "data") and (CONF / f"{path.stem}.yaml").is_file()
)


def test_verbs() -> None:
    known = {
        "ablate",
        "convert",
        "data.drawings",
        "data.reference",
        "demo",
        "evaluate",
        "findings",
        "gallery",
        "report",
        "sample",
    }
    assert {*known, "scorecard", "subset", "train", "visualize"} <= set(VERBS)


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which whoever imports torch fails."""
    folder = tmp_path_factory.mktemp("no_torch")
    (folder / "torch.py").write_text("raise AssertionError('torch is imported')\n")
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}


@pytest.mark.parametrize(
    "verb", [*VERBS, "benchmark", "benchmark.growth", "benchmark.loading", "benchmark.overhead", "benchmark.training"]
)
def test_help_needs_neither_torch_nor_a_group(verb: str, no_torch: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"experiments.{verb}", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=no_torch, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m experiments.{verb}" in done.stdout.splitlines()[0]
    assert "powered by" not in done.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_help_tells_every_setting_and_choice(verb: str) -> None:
    page = help.page(verb)
    config = yaml.safe_load((CONF / f"{verb.rpartition('.')[2]}.yaml").read_text())
    for name in config.keys() - {"defaults", "hydra"}:
        assert f"  {name}" in page
    for group, choice in help.defaults(CONF / f"{verb.rpartition('.')[2]}.yaml"):
        assert all(name in page for name in help.choices(group)), choice


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_of_a_verb_is_explained(verb: str) -> None:
    unexplained = [s.name for s in help.settings(CONF / f"{verb.rpartition('.')[2]}.yaml") if not s.comment]
    assert not unexplained


def test_help_shows_the_chosen_guidance() -> None:
    page = help.page("sample", ["guidance=rescale", "seeds=[1]"])
    assert "guidance=rescale" in page
    assert "guidance.phi=0.7                0: off; 1: wholly" in page
    assert "guidance@guidance.inner=cfg" in page


# --- kinds of settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted({verb.rpartition(".")[2] for verb in VERBS} - {"ablate", "train", "subset"}))
def test_defaults_are_of_their_kinds(verb: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings.check(compose(verb))


def test_what_sample_takes_has_a_kind() -> None:
    config = yaml.safe_load((CONF / "sample.yaml").read_text())
    assert config.keys() - {"defaults", "hydra"} <= settings.SETTINGS.keys()


def test_settings_follow_the_annotations_of_their_constructor() -> None:
    def refusal(target: type, **given: object) -> str:
        try:
            settings.check_arguments({"_target_": f"guidance.{target.__name__}", **given}, "guidance")
        except UserError as error:
            return str(error)
        return ""

    cfg = {"_target_": "guidance.ClassifierFree", "scale": 2}
    assert refusal(ClassifierFree, scale=2) == refusal(Interval, inner=cfg, stop=1, sigma_hi=float("inf")) == ""
    assert refusal(Multistage, inner=cfg, stages=[{"prompt": None, "steps": 0.5}]) == ""
    assert refusal(ClassifierFree, scale=True) == "guidance.scale=true: must be a number"
    assert refusal(Interval, inner=None) == "guidance.inner=null: must be a Guidance: settings with a _target_"
    assert refusal(Interval, inner={**cfg, "scale": "x"}) == "guidance.inner.scale=x: must be a number"
    assert refusal(Multistage, inner=cfg, stages="a cat").startswith("guidance.stages=a cat: must be a list")


WRONG_SETTINGS = [
    # prompts and seeds
    (["prompt=''"], "prompt=: must be text with something in it"),
    (["prompt=' '"], "prompt= : must be text with something in it"),
    (["prompt=[a,b]"], "prompt=['a', 'b']: must be text"),
    (["prompt={a:b}"], "prompt={'a': 'b'}: must be text"),
    (["prompt=true"], "prompt=true: must be text"),
    (["negative_prompt=[1,2]"], "negative_prompt=[1, 2]: must be text"),
    (["negative_prompt=null"], "negative_prompt=null: must be text"),
    (["seeds=abc"], "seeds=abc: must be a list"),
    (["seeds=1.5"], "seeds=1.5: must be a list"),
    (["seeds=null"], "seeds=[]: at least one"),
    (["seeds=true"], "seeds=true: must be a list"),
    (["seeds=[1,a]"], "seeds=[1, 'a']: must be a list"),
    (["seeds=[-1]"], "seeds=[-1]: must be a list"),
    (["seeds=[4294967296]"], "seeds=[4294967296]: must be a list"),
    (["seeds=[1,1]"], "none of them twice"),
    (["seeds=[]"], "at least one"),
    (["prompts=nowhere"], "Could not find 'prompts/nowhere'"),
    (["prompts=emoji"], "both prompt and prompts"),
    (["~prompt", "prompts=emoji_one"], "prompt"),
    # sizes
    (["height=abc"], "height=abc: must be a whole number of at least 1, or null"),
    (["height=64.0"], "height=64.0: must be a whole number"),
    (["height=0"], "height=0: must be a whole number"),
    (["height=-16"], "height=-16: must be a whole number"),
    (["height=true"], "height=true: must be a whole number"),
    (["height=18"], "height=18 width=16: both must be multiples of 4"),
    (["width=[16]"], "width=[16]: must be a whole number"),
    (["height=1000000", "width=1000000"], "at once would take about"),
    (["height=1000000", "width=10000"], "GB of memory, and there are"),
    (["batch_size=0"], "batch_size=0: must be a whole number of at least 1"),
    (["batch_size=2.5"], "batch_size=2.5"),
    (["batch_size=null"], "batch_size=null"),
    (["max_batch=0"], "max_batch=0"),
    (["max_batch=abc"], "max_batch=abc"),
    (["shard=1"], "shard=1: must be i/n"),
    (["shard=2/2"], "shard=2/2: must be i/n"),
    (["shard=null"], "shard=null: must be i/n"),
    # flags and names
    (["save_latents=7"], "save_latents=7: must be true or false"),
    (["save_latents=null"], "save_latents=null: must be true or false"),
    (["deterministic=abc"], "deterministic=abc: must be true or false"),
    (["compile=1"], "compile=1: must be true or false"),
    (["model.ema=maybe"], "model.ema=maybe: must be true or false"),
    (["device=cpu:7"], "device=cpu:7: there is one cpu"),
    (["device=abacus"], "device=abacus is not available here"),
    (["device=7"], "device=7"),
    (["device=meta"], "device=meta: holds no numbers"),
    (["device=null"], "device=null"),
    (["dtype=int8"], "dtype=int8: must be float32, bfloat16 or float16"),
    (["dtype=null"], "dtype=null"),
    (["noise=[a]"], "noise=['a']: must be text"),
    (["noise=/nowhere"], "noise=/nowhere: there is no such file"),
    (["logger=paper"], "Could not find 'logger/paper'"),
    (["logger=wandb", "logger.mode=fast"], "logger.mode=fast: must be online, offline or disabled"),
    (["logger=wandb", "logger.timeout=soon"], "logger.timeout=soon: must be a finite number"),
    (["model.prediction=x1"], "model.prediction=x1"),
    (["model.path=/nowhere"], "/nowhere"),
    (["model.path=[a]"], "model.path=['a']: must be text"),
    (["model=nothing"], "Could not find 'model/nothing'"),
    (["networks.weak=/nowhere"], "/nowhere"),
    (["+networks.main=emoji"], "networks.main: is the name of the model's own"),
    (["+networks.aside=emoji"], "networks.aside: is the name of the model's own"),
    (
        ["guidance=pag", "guidance.layers=[nosuch]"],
        "layers=nosuch of PerturbedAttention: attention is in down_",
    ),
    (["networks=abc"], "networks=abc: must be a group of settings"),
    # prompts
    (["prompt=null", "prompts=5"], "must be a string or a list. Got int"),
    (["prompt=null", "prompts=file", "prompts.path=null"], "prompts.path=null: must be text"),
    (["prompt=null", "prompts=file", "prompts.path=5"], "prompts.path=5: there is no such file"),
    (["prompt=null", "prompts=two_objects", "prompts.file=null"], "prompts.file=null: must be text"),
    (["prompt=null", "prompts=classes", "prompts.classes=cat"], "prompts.classes=cat: must be a list"),
    (["prompt=null", "prompts=emoji", "prompts.lines=5"], "prompts.lines=5: must be a list"),
    (["prompt=null", "prompts=emoji", "prompts.lines=[]"], "prompts.lines=[]: must be at least one prompt"),
    (["prompt=null", "prompts=emoji_one", "prompts.layouts=5"], "prompts.layouts=5: must be a list"),
    (["prompt=null", "prompts=emoji_one", "prompts.tinted=7"], "prompts.tinted=7: must be true or false, or null"),
    (["prompt=null", "prompts=emoji_one", "prompts.scenes_seed=abc"], "prompts.scenes_seed=abc: must be a whole"),
    (["prompt=null", "prompts=emoji_one", "prompts.world=mars"], "prompts.world=mars: there is no such world"),
    (["prompt=null", "prompts=emoji_one", "+prompts.split=all"], "prompts.split=all: must be train, held_out"),
    (["prompt=null", "prompts=emoji_arena", "prompts.kinds.one=5"], "groups, each with layouts (a list"),
    (["prompt=null", "prompts=emoji_arena", "prompts.kinds.one.layouts=5"], "groups, each with layouts (a list"),
    (["prompt=null", "prompts=geneval", "prompts.geneval_seed=-1"], "prompts.geneval_seed=-1: must be a whole number"),
    # samplers
    (["sampler.steps=0"], "0 sampling steps"),
    (["sampler.steps=1001"], "1001 sampling steps"),
    (["sampler.steps=2.5"], "sampler.steps=2.5: must be a whole number"),
    (["sampler.steps=null"], "sampler.steps=null: must be a whole number"),
    (["sampler.steps=abc"], "sampler.steps=abc: must be a whole number"),
    (["sampler.eta=abc"], "sampler.eta=abc: must be a number"),
    (["sampler.eta=null"], "sampler.eta=null: must be a number"),
    (["sampler.eta=2"], "sampler: eta=2: must be between 0 and 1"),
    (["sampler.eta=-1"], "sampler: eta=-1: must be between 0 and 1"),
    (["sampler.eta=nan"], "sampler: eta=nan: must be between 0 and 1"),
    (["sampler=heun", "+sampler.eta=0.5"], "sampler.eta: samplers.heun has no such setting; it has denoise, x_T"),
    (["sampler._target_=samplers.noise"], "sampler._target_=samplers.noise: is a module"),
    (["sampler.spacing=even"], "sampler: spacing 'even' is none of"),
    (["sampler.spacing=[1]"], "sampler: spacing '[1]' is none of"),
    (["sampler.final=7"], "sampler: final=7"),
    (["sampler.final=abc"], "sampler: final=abc"),
    (["sampler=ddpm", "sampler.final=half"], "sampler: final=half"),
    (["sampler=magic"], "Could not find 'sampler/magic'"),
    (["sampler.etta=1"], "etta"),
    # guidances
    (["guidance.scale=high"], "guidance.scale=high: must be a number"),
    (["guidance.scale=null"], "guidance.scale=null: must be a number"),
    (["guidance.scale=[2]"], "guidance.scale=[2]: must be a number"),
    (["guidance.scale=-2"], "scale=-2"),
    (["guidance.scale=nan"], "scale=nan"),
    (["guidance=rescale", "guidance.inner=null"], "guidance.inner=null: must be a Guidance"),
    (["guidance=rescale", "guidance.inner=3"], "guidance.inner=3: must be a Guidance"),
    (["guidance=rescale", "guidance.phi=2"], "phi=2"),
    (["guidance=interval", "guidance.start=0.9"], "start=0.9, stop=0.8"),
    (["guidance=interval", "guidance.start=early"], "guidance.start=early: must be a number"),
    (["guidance=multistage"], "guidance.stages"),
    (["guidance=multistage", "guidance.stages=[]"], "stages is empty"),
    (["guidance=multistage", "guidance.stages=abc"], "guidance.stages=abc: must be a list"),
    (["guidance=multistage", "guidance.stages=[{prompt: x, steps: many}]"], "stage steps=many"),
    (["guidance=multistage", "guidance.stages=[{prompt: x, steps: 3}]"], "sum to 3, but the sampler takes 4 steps"),
    (["guidance=segmentation_free", "guidance.argmax=none"], "argmax='none'"),
    (["guidance=segmentation_free", "guidance.cfg_steps=abc"], "guidance.cfg_steps=abc"),
    (["guidance=magic"], "Could not find 'guidance/magic': there is apg, attend_and_excite, "),
    (["guidance=null"], "must be a string or a list. Got NoneType"),
    (["guidance._target_=foo.bar"], "guidance._target_=foo.bar: there is no such class or function"),
    (["guidance._target_=null"], "guidance._target_=null: must name a class"),
    (["guidance.mix._target_=guidance.Foo"], "guidance.mix._target_=guidance.Foo: there is no such class"),
    (["hight=16"], "hight"),
    (["prompt=a 'quoted' (text"], "mismatched input"),
]


@pytest.mark.parametrize(("overrides", "said"), WRONG_SETTINGS, ids=[" ".join(o) for o, _ in WRONG_SETTINGS])
def test_a_wrong_setting_is_one_line(
    cli: Callable[..., Outcome],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    given = ["model=file", f"model.path={tiny_folder}", "sampler.steps=4", "prompt=x", f"hydra.run.dir={out}"]
    names = {override.lstrip("~").partition("=")[0] for override in overrides}
    outcome = cli("sample", *(g for g in given if g.partition("=")[0] not in names), *overrides)
    assert outcome.status == 1
    first, *others = outcome.err.splitlines()
    assert first.startswith("error: ")
    assert said in first
    assert not others or "Could not" in first or "mismatched" in first  # Hydra lists what there is to choose
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("verb", "overrides", "said"),
    [
        ("visualize", ["prompt=x", "height=0"], "height=0: must be a whole number"),
        ("visualize", ["prompt=x", "columns=many"], "columns=many: must be a whole number"),
        ("evaluate", ["run=x", "batch_size=0"], "batch_size=0"),
        ("evaluate", ["run=x", "bootstrap.unit=cells"], "bootstrap.unit=cells: must be pictures or prompts"),
        ("convert", ["model.path=x", "out=y", "format=gguf"], "format=gguf: must be diffusers or compvis"),
        ("report", ["sweep=x", "pictures=all"], "pictures=all"),
        ("data.reference", ["out=x", "split=test"], "split=test: must be train or held_out"),
        ("subset", ["prompts=two_objects", "repeats=0"], "repeats=0"),
        ("train", ["part=small/clip", "seed=-1"], "seed=-1"),
        ("train", ["part=small/clip", "part.micro=0"], "part.micro=0: must be a whole number of at least 1"),
        ("train", ["part=small/clip", "bf16=yes please"], "bf16=yes please: must be true or false"),
        ("demo", ["n=few"], "n=few"),
        ("raters", ["action=make", "study=x", "seed=-1"], "seed=-1"),
        ("scorecard", ["scales=[a]"], "scales=['a']: must be a list"),
        ("ablate", ["experiment=grid", "n=few"], "n=few: must be a whole number"),
        (
            "ablate",
            ["experiment=grid", "claims=[{say: x, measure: m, expect: more}]"],
            "needs say, measure, and expect",
        ),
    ],
)
def test_wrong_settings_of_other_verbs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    overrides: list[str],
    said: str,
) -> None:
    from experiments.run import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", *overrides])
    with pytest.raises(SystemExit) as stop:
        cli.run(vars(importlib.import_module(f"experiments.{verb}")).get("main"), verb.rpartition(".")[2])
    err = capsys.readouterr().err
    assert stop.value.code == 1
    assert err.startswith("error: ") and said in err and err.count("\n") == 1, err
    assert not any(tmp_path.rglob("*.json"))


def test_jobs_bear_the_verb_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.hydra_config import HydraConfig

    from experiments.run import cli

    names = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", "sweep=x"])
    cli.run(lambda cfg: names.append(HydraConfig.get().job.name), "report")
    assert names == ["report"]
