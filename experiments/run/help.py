"""What `python -m experiments.VERB --help` prints: the verb's docstring, and its settings with the yaml's own comments.

Imports nothing heavy, composes nothing, and so needs no mandatory group: the yaml files are read as text.
"""

import ast
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from experiments.files import embedded

ROOT = Path(__file__).resolve().parent.parent.parent
CONF = ROOT / "conf"
COLUMN = 34  # at which explanations begin

HYDRA = """\
Hydra's own:
  -m, --multirun                  runs every combination of values with commas between them: guidance.scale=2,4
  hydra.run.dir=FOLDER            where Hydra lets a run write; of a sweep: hydra.sweep.dir, hydra.sweep.subdir
  --cfg job                       prints the composed settings and runs nothing; --info tells how they were composed
  --hydra-help                    lists further flags: config folders of your own, tab completion for the shell
  HYDRA_FULL_ERROR=1              in the environment: shows the traceback of any error

A value with spaces, commas, brackets or an equals sign needs quotes of its own, inside the shell's:
  "prompt='a dragon, ink (1920s)'\""""


@dataclass(frozen=True)
class Setting:
    """A setting's dotted name, its default as it is written, and what the comment beside it says."""

    name: str
    default: str
    comment: str


def answer(module: str, arguments: Sequence[str]) -> None:
    """Prints the help of a verb, named by its module, and exits; does nothing if the module is no verb of Hydra's."""
    name = module.removeprefix("experiments.")
    if (CONF / f"{name.rpartition('.')[2]}.yaml").is_file() and source_of(name).is_file():
        try:
            print(page(name, arguments), flush=True)
        except BrokenPipeError:  # of `--help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit()


def source_of(verb: str) -> Path:
    return ROOT / "experiments" / f"{verb.replace('.', '/')}.py"


def page(verb: str, arguments: Sequence[str] = ()) -> str:
    """Returns the help of a verb. Groups chosen in the arguments, such as guidance=rescale, are shown as chosen."""
    config = CONF / f"{verb.rpartition('.')[2]}.yaml"
    about = ast.get_docstring(ast.parse(source_of(verb).read_text(encoding="utf-8"))) or ""
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    blocks = [
        "\n".join([about, *header(config)[1:]]),
        f"Usage: python -m experiments.{verb} [-m] [SETTING=VALUE ...] [GROUP=CHOICE ...]",
        "\n".join(["Settings, with their defaults:", *map(line, settings(config))]),
    ]
    if groups := defaults(config):
        head = "Groups, each with the settings of its choice (--help GROUP=CHOICE shows another's):"
        blocks.append("\n".join([head, *(row for group, choice in groups for row in described(group, choice, chosen))]))
    return "\n\n".join([*blocks, HYDRA])


def header(path: Path) -> list[str]:
    """The comment with which a yaml file begins; its first line says the same as the verb's docstring."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").removeprefix(" ") for line in takewhile(lambda line: line.startswith("#"), lines)]


def described(group: str, choice: Any, chosen: dict[str, str]) -> Iterator[str]:
    """The lines of a group: what there is to choose, and the settings of what is chosen."""
    choice = chosen.get(group, "null" if choice is None else choice)
    names = choice if isinstance(choice, list) else str(choice).strip("[]").split(",")
    shown = f"[{','.join(names)}]" if isinstance(choice, list) else choice
    yield line(Setting(group, shown, "of: " + ", ".join(choices(group))))
    for name in names:
        path = CONF / group / f"{name}.yaml"
        if path.is_file():
            yield from (textwrap.indent(row, "  ") for row in map(line, settings(path, f"{group}.")))
            yield from (
                line(Setting(f"  {nested.lstrip('/')}", str(inner), "another one inside, chosen so; of the same"))
                for nested, inner in in_package(path, group)
            )


def in_package(path: Path, group: str) -> Iterator[tuple[str, Any]]:
    """The groups that a choice nests, as they are named on the command line: guidance@guidance.inner."""
    for nested, inner in defaults(path):
        kind, _, package = nested.lstrip("/").partition("@")
        if package:
            yield f"{kind}@{group}.{package}", inner


def choices(group: str) -> list[str]:
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def defaults(path: Path) -> list[tuple[str, Any]]:
    """The groups of a config's defaults list, less Hydra's own, with what each holds."""
    entries = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return [(group, with_embedded(choice)) for group, choice in pairs if "override" not in group.split()]


def with_embedded(choice: Any) -> Any:
    """Returns a choice, ${embedded:KEY} being what conf/embedded.yaml says."""
    return re.sub(r"\$\{embedded:(\w+)\}", lambda m: embedded(m[1]), choice) if isinstance(choice, str) else choice


def settings(path: Path, prefix: str = "") -> list[Setting]:
    """The settings in a yaml file, in its order, with the comments beside them."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text)
    found = list(leaves(root, text, prefix)) if isinstance(root, yaml.MappingNode) else []
    own = [(s.name.removeprefix(prefix).partition(".")[0], s) for s in found]
    return [s for first, s in own if first not in ("defaults", "hydra") and "_target_" not in s.name]


def leaves(node: yaml.MappingNode, text: str, prefix: str) -> Iterator[Setting]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        written, comment = text[value.start_mark.index : value.end_mark.index], comment_at(text, key.end_mark.index + 1)
        if isinstance(value, yaml.ScalarNode) or value.flow_style:
            yield Setting(name, " ".join(written.split()), comment_at(text, value.end_mark.index))
        elif isinstance(value, yaml.MappingNode) and (comment or "#" in written):
            if comment:
                yield Setting(name, "{...}", comment)
            yield from leaves(value, text, f"{name}.")
        else:  # a block without comments is one setting
            yield Setting(name, "{...}" if isinstance(value, yaml.MappingNode) else "[...]", "")


def comment_at(text: str, index: int) -> str:
    """The comment that follows on the same line, without its mark."""
    rest = text[index:].partition("\n")[0].strip()
    return rest.lstrip("# ") if rest.startswith("#") else ""


def line(setting: Setting) -> str:
    """A setting in its column and its explanation in another, wrapped to the terminal."""
    width = min(max(shutil.get_terminal_size((120, 24)).columns, 80), 140)
    left = f"  {setting.name}={setting.default}"
    rows = textwrap.wrap(setting.comment, width - COLUMN, break_long_words=False, break_on_hyphens=False)
    first, *others = rows or [""]
    head = [f"{left:<{COLUMN}}{first}"] if len(left) < COLUMN else [left, " " * COLUMN + first]
    return "\n".join(row.rstrip() for row in [*head, *(" " * COLUMN + other for other in others)] if row.strip())
