"""python -m experiments.raters action=ACTION study=FOLDER: a study with human raters, from pictures to figures."""

import csv
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from experiments.files import UserError, say
from experiments.rating import analyse as analysing
from experiments.rating import export as exporting
from experiments.rating import make as making
from experiments.rating import static as folders
from experiments.rating.store import Store
from experiments.rating.study import open_study
from experiments.run import cli


def make(cfg: DictConfig) -> None:
    study, made = making.study(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))
    making.write(Path(cfg.study), study, made)
    print(making.described(study))


def links(cfg: DictConfig) -> None:
    where = address(cfg)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["rater", "group", "link"])
    store = opened(cfg)
    groups = {rater.slot: rater.group for rater in store.raters()}
    for slot, token in store.new_tokens(cfg.renew).items():
        rows.writerow([slot, groups[slot], f"{where.url}/join/{token}"])
    print(table.getvalue(), end="")
    say("These links are told once. Who got which is for you to keep apart, and to delete at the end.")


def serve(cfg: DictConfig) -> None:
    from experiments.rating import server

    where = address(cfg)
    store = opened(cfg)
    listening = server.listening(where)
    print(f"serving {store.study.title!r} on {where.host}:{where.port} as {where.url}; Ctrl-C ends it", flush=True)
    if cfg.public and not where.secure:
        say("warning: others can read what is sent: put a reverse proxy with TLS before it, and say url=https://...")
    server.server(server.app(Path(cfg.study), store.study, store, where, server.Rate())).run(sockets=[listening])


def static(cfg: DictConfig) -> None:
    study, name = open_study(Path(cfg.study))
    out = folders.write(Path(cfg.study), study, name)
    print(f"{out}: raters open index.html in it with their number, 1 to {len(study.slots)}")


def merge(cfg: DictConfig) -> None:
    added, doubles = folders.merge(opened(cfg), [Path(path) for path in cfg["from"]])
    print(f"{added} answers are new, {doubles} were there already")


def status(cfg: DictConfig) -> None:
    store = opened(cfg)
    print("rater  group         consent    answered  of")
    for rater in store.raters():
        total = len(store.study.slots[rater.slot - 1].plan)
        print(f"{rater.slot:5}  {rater.group:12}  {rater.consent or '-':9}  {store.next(rater.slot):8}  {total}")


def export(cfg: DictConfig) -> None:
    print(exporting.export(opened(cfg), home(cfg)))


def analyse(cfg: DictConfig) -> None:
    if (home(cfg) / "answers.sqlite").exists():
        exporting.export(opened(cfg), home(cfg))
    print(analysing.analyse(Path(cfg.study), home(cfg) / "answers.jsonl", home(cfg)))


def withdraw(cfg: DictConfig) -> None:
    store = opened(cfg)
    print(f"{store.withdraw(cfg.slots)} answers are deleted")
    if (home(cfg) / "answers.jsonl").exists():
        print(f"made anew: {exporting.export(store, home(cfg))}")
    for path in sorted(home(cfg).glob("analysis.*")):
        path.unlink()
        print(f"deleted, as it tells of them: {path}; action=analyse makes it anew")


def simulate(cfg: DictConfig) -> None:
    address(cfg)
    from experiments.rating import bots

    store = bots.simulate(Path(cfg.study), cfg.by, bots.Taste(**cfg.taste), cfg.seed)
    home = Path(cfg.study) / "simulated"
    print(f"{store.count()} simulated answers, of {cfg.by}, not of people: {exporting.export(store, home)}")


def home(cfg: DictConfig) -> Path:
    """Returns where answers lie: the study's folder, or that of the simulated raters in it."""
    return Path(cfg.study) / "simulated" if cfg.simulated else Path(cfg.study)


def opened(cfg: DictConfig) -> Store:
    study, name = open_study(Path(cfg.study))
    return Store(home(cfg) / "answers.sqlite", study, name, cfg.simulated)


def address(cfg: DictConfig) -> Any:
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise UserError(f"action={cfg.action}: needs the extra raters: pip install -e '.[raters]'")
    from experiments.rating import server

    return server.address(cfg.host, cfg.port, cfg.public, cfg.url)


ACTIONS: dict[str, Callable[[DictConfig], None]] = {
    "make": make,
    "links": links,
    "serve": serve,
    "static": static,
    "import": merge,
    "status": status,
    "export": export,
    "analyse": analyse,
    "withdraw": withdraw,
    "simulate": simulate,
}


def main(cfg: DictConfig) -> None:
    if cfg.action not in ACTIONS:
        raise UserError(f"action={cfg.action}: must be one of {', '.join(ACTIONS)}")
    ACTIONS[cfg.action](cfg)


if __name__ == "__main__":
    cli.run(main, "raters")
