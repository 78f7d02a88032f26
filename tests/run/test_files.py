"""Files that several processes write, locks among them, and which errors are the user's."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from experiments import files
from experiments.run import cli

WRITER = """
import sys
from pathlib import Path
from experiments.files import write
for i in range(int(sys.argv[2])):
    write(Path(sys.argv[1]), sys.argv[3] * 3000)
"""
COUNTER = """
import sys
from pathlib import Path
from experiments.files import locked
folder = Path(sys.argv[1])
for i in range(int(sys.argv[2])):
    with locked(folder):
        (folder / "count").write_text(str(int((folder / "count").read_text()) + 1))
"""


def side_by_side(program: str, *arguments: list[str]) -> None:
    """Runs a program once for each list of arguments, all at the same time."""
    running = [
        subprocess.Popen([sys.executable, "-c", program, *a], stderr=subprocess.PIPE, text=True) for a in arguments
    ]
    for process in running:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err


def test_two_processes_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    side_by_side(WRITER, *([str(path), "1000", letter] for letter in "ab"))
    assert path.read_text() in ("a" * 3000, "b" * 3000)
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_keeps_processes_apart(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    side_by_side(COUNTER, *[[str(tmp_path), "300"]] * 2)
    assert (tmp_path / "count").read_text() == "600"


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write(path, "old")
    with pytest.raises(RuntimeError), files.atomically(path) as part:
        part.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def strict_zip() -> None:
    list(zip([1], [1, 2], strict=True))


def shapes() -> None:
    np.zeros(2) + np.zeros(3)


def typo() -> None:
    raise files.UserError("scale=high: must be a number")


@pytest.fixture
def framed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[], None]], None]:
    """Runs a function as a verb's main."""

    def run(function: Callable[[], None]) -> None:
        def main(cfg: DictConfig) -> None:
            function()

        monkeypatch.setattr(sys, "argv", ["experiments/report.py", "sweep=x"])
        monkeypatch.chdir(tmp_path)
        cli.run(main, "report")

    return run


def test_the_newest_version_is_told_by_numbers() -> None:
    packages = [Path(f"source-sans-3-{version}.tgz") for version in ("1.2.9", "1.2.10", "1.2.10-beta.3", "1.1.11")]
    assert files.newest(packages) == packages[1]
    assert files.newest([Path("a-1.0.0.tgz"), Path("a-1.0.0")]) == files.newest([Path("a-1.0.0"), Path("a-1.0.0.tgz")])
    assert files.newest([]) is None


@pytest.mark.parametrize("bug", [strict_zip, shapes])
def test_a_bug_shows_its_traceback(framed: Callable, bug: Callable[[], None]) -> None:
    with pytest.raises(ValueError, match="zip|broadcast"):
        framed(bug)


def test_a_user_error_is_one_line(framed: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        framed(typo)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: scale=high: must be a number\n"


def test_refusals_of_the_rooms_below_name_the_setting() -> None:
    with pytest.raises(files.UserError, match="^sampler: too many$"), files.as_user_error("sampler: "):
        raise ValueError("too many")
