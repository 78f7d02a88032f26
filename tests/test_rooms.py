"""Who may import whom, and how large the networks may be."""

import ast
import sys
from collections.abc import Iterable, Iterator
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
    "ldm": {"torch", "einops", "safetensors", "huggingface_hub", "yaml", "svgelements"},
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
        if room != "experiments" or path.parent.name == "run" or path.name == "sample.py":
            assert not found & PEERS, path
        if room in LIBRARIES:
            assert found <= ALLOWED[room] | LIBRARIES[room] | sys.stdlib_module_names, path


def modules(room: str) -> dict[str, Path]:
    """Dotted names of a room's files; a package goes by its own name."""
    paths = sorted((ROOT / room).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path, among: Iterable[str]) -> set[str]:
    """Those of the modules that a file imports, be it by `from package import module`."""
    names, known = set[str](), set(among)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            names |= modules if len(modules) == len(node.names) else {*modules, node.module or ""}
    return names & known


ORDER = (  # of the rooms of experiments: each imports from itself and from those before it
    {"files"},
    {"pictures", "frechet"},
    {"emoji"},
    {"vectors"},
    {"run"},
    {"attention", "metrics", "training"},
    {"studies", "sweeps", "rating", "benchmark"},
    {"tournament"},
)


def place(module: str) -> int:
    """The room's position in ORDER; verbs come last."""
    parts = module.split(".")
    return next((i for i, rooms in enumerate(ORDER) if len(parts) > 1 and parts[1] in rooms), len(ORDER))


def test_rooms_of_experiments_import_only_those_before_them() -> None:
    found = modules("experiments")
    for name, path in found.items():
        for target in imported(path, found):
            same_room = target.split(".")[:2] == name.split(".")[:2]
            assert target == "experiments" or same_room or place(target) < place(name), f"{name} imports {target}"


def test_no_metric_imports_a_metric() -> None:
    metrics = {path.stem for path in (ROOT / "conf" / "metrics").glob("*.yaml")}
    names = {f"experiments.metrics.{metric}" for metric in metrics}
    for name in names:
        assert not imported(modules("experiments")[name], names), name


@pytest.mark.parametrize("room", ["ldm", "samplers", "guidance", "experiments"])
def test_files_import_each_other_in_no_circle(room: str) -> None:
    found = modules(room)
    arrows = {name: imported(path, found) - {name} for name, path in found.items()}
    while arrows:
        free = [name for name, targets in arrows.items() if not targets & arrows.keys()]
        assert free, f"a circle among {', '.join(sorted(arrows))}"
        arrows = {name: targets for name, targets in arrows.items() if name not in free}


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


SAMPLERS = sorted({path.stem for path in (ROOT / "conf" / "sampler").glob("*.yaml")} | {"ddim_inverse"})


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_one_function_of_at_most_30_lines(name: str) -> None:
    tree = ast.parse((ROOT / "samplers" / f"{name}.py").read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    body = function.body[1:]  # beside the docstring
    assert function.name == name
    assert body[-1].end_lineno - body[0].lineno + 1 <= 30


def test_nothing_in_git_is_too_large() -> None:
    for path in (ROOT / "ldm" / "weights").rglob("*"):
        assert not path.is_file() or path.stat().st_size <= 15_000_000, path


def test_experiments_raise_user_errors() -> None:
    """A plain ValueError would be taken for a bug, and show its traceback (experiments/run/cli.py)."""
    for path in (ROOT / "experiments").rglob("*.py"):
        assert "raise ValueError" not in path.read_text(), path
