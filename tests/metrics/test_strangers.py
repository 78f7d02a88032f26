"""A run folder that somebody else made: measuring it runs none of what is in it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from folders import BENCH, make_run, metric

from experiments.metrics.again import check_stored
from experiments.metrics.clip import quiet
from experiments.metrics.measuring import evaluate
from experiments.metrics.word_choice import exchanged

HUBCONF = "from pathlib import Path\n\n\ndef run(): Path(__file__).with_name('was_run').touch()\n"


def hostile(folder: Path, guidance: Any) -> Path:
    """A finished run whose guidance loads a hubconf.py that lies in it."""
    make_run(folder, [{"prompt": "a cat"}], [0])
    (folder / "hubconf.py").write_text(HUBCONF)
    stored = json.loads((folder / "run.json").read_text())
    stored["config"]["guidance"] = guidance
    (folder / "run.json").write_text(json.dumps(stored))
    return folder


@pytest.mark.parametrize("target", ["torch.hub.load", "guidance.branch.torch.hub.load", "samplers.nothing", 7])
@pytest.mark.parametrize("nested", [False, True])
def test_a_run_s_config_makes_guidances_and_samplers_alone(tmp_path: Path, target: Any, nested: bool) -> None:
    call = {"_target_": target, "repo_or_dir": str(tmp_path / "run"), "model": "run", "source": "local"}
    wrapped = {"_target_": "guidance.Multistage", "inner": None, "stages": [{"prompt": "x", "steps": 1, "inner": call}]}
    run = hostile(tmp_path / "run", wrapped if nested else call)
    with pytest.raises(ValueError, match=f"run.json: _target_: {target}: is not of guidance, samplers"):
        evaluate(run, metric("effective_scale"), BENCH)
    assert not (run / "was_run").exists()


def test_a_run_s_config_holds_no_interpolation(tmp_path: Path) -> None:
    run = hostile(tmp_path / "run", "${oc.decode:'{_target_: torch.hub.load}'}")
    with pytest.raises(ValueError, match="an interpolation has no place"):
        evaluate(run, metric("effective_scale"), BENCH)


def test_packages_of_one_s_own_may_be_named(tmp_path: Path) -> None:
    config = {"guidance": {"_target_": "folders.metric"}, "sampler": {"_target_": "samplers.ddim"}}
    with pytest.raises(ValueError, match="folders.metric"):
        check_stored(config, tmp_path, ["guidance", "samplers"])
    check_stored(config, tmp_path, ["folders", "samplers"])


@pytest.mark.parametrize(
    ("prompt", "word", "other", "expected"),
    [
        ("an emojione cat", "emojione", "noto", "a noto cat"),
        ("A noto cat and a noto dog", "noto", "emojione", "An emojione cat and an emojione dog"),
        ("the noto cat", "noto", r"\1", r"the \1 cat"),
        ("a blue noto cat", "noto", "emojione", "a blue emojione cat"),
    ],
)
def test_a_rival_word_takes_its_article_along(prompt: str, word: str, other: str, expected: str) -> None:
    assert exchanged(prompt, word, other) == expected


def test_quiet_leaves_logging_as_it_was() -> None:
    logging.disable(logging.ERROR)
    try:
        with quiet():
            assert logging.root.manager.disable == logging.ERROR
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)
    with quiet():
        assert logging.root.manager.disable == logging.WARNING
    assert logging.root.manager.disable == logging.NOTSET
