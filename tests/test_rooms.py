"""Who may import whom, and how large the networks may be."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "ldm": {"ldm"},
    "samplers": {"samplers"},
    "guidance": {"guidance", "ldm", "samplers"},
    "experiments": {"experiments", "guidance", "ldm", "samplers"},
}
PEERS = {"diffusers", "transformers"}
LIBRARIES = {
    "samplers": {"torch"},
    "guidance": {"torch"},
    "ldm": {"torch", "einops", "safetensors", "huggingface_hub", "yaml"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            yield node.module or ""


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        found = {name.split(".")[0] for name in imports(path)}
        assert not found & ((set(ALLOWED) | {"tests", "notebooks"}) - ALLOWED[room]), path
        if room != "experiments" or path.name in ("sample.py", "drawing.py", "build.py"):
            assert not found & PEERS, path
        if room in LIBRARIES:
            assert found <= ALLOWED[room] | LIBRARIES[room] | sys.stdlib_module_names, path


@pytest.mark.parametrize("room", ["ldm", "samplers", "guidance"])
def test_no_keyword_soup(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                assert node.args.kwarg is None, f"{path}:{node.lineno}"


def test_networks_stay_small() -> None:
    files = [ROOT / "ldm" / f"{name}.py" for name in ("unet", "attention", "autoencoder", "text", "layers")]
    lines = [line for path in files for line in path.read_text().splitlines()]
    assert sum(bool(line.strip()) for line in lines) <= 600


def test_the_model_imports_no_reader() -> None:
    for path in (ROOT / "ldm").glob("*.py"):
        assert path.name == "__init__.py" or not any(name.startswith("ldm.files") for name in imports(path)), path


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m"])
def test_a_sampler_is_one_function_of_at_most_30_lines(name: str) -> None:
    tree = ast.parse((ROOT / "samplers" / f"{name}.py").read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    body = function.body[1:]  # beside the docstring
    assert function.name == name
    assert body[-1].end_lineno - body[0].lineno + 1 <= 30


def test_nothing_in_git_is_too_large() -> None:
    for path in (ROOT / "ldm" / "weights").rglob("*"):
        assert not path.is_file() or path.stat().st_size <= 15_000_000, path
