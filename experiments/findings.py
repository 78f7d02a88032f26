"""python -m experiments.findings sweeps=FOLDER: what finished sweeps say, in files small enough to be committed."""

import json
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from experiments.files import UserError, say, write
from experiments.run import cli
from experiments.sweeps.claims import ClaimVerdict, together, verdicts
from experiments.sweeps.folder import Sweep, open_sweep, with_planned
from experiments.sweeps.provenance import not_alike
from experiments.sweeps.tables import claims_table, panels, side_by_side, summary_of, values_table, with_table


def main(cfg: DictConfig) -> None:
    """Raises UserError where there is no sweep, or one that is unfinished."""
    folders = sorted(path.parent for path in Path(cfg.sweeps).glob("*/sweep.json"))
    if not folders:
        raise UserError(f"sweeps={cfg.sweeps}: holds no folder of a sweep of experiments.ablate")
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    for sweep in map(finished, folders):
        found = verdicts(sweep)
        summary, other = summary_of(sweep, found), of_second(cfg.second, sweep)
        if other is not None:
            summary |= {"second": summary_of(*other), "together": together(found, other[1])}
        write(out / f"{sweep.name}.json", json.dumps(summary, indent=1) + "\n")
        if drawn := panels(sweep):
            write(out / f"{sweep.name}.svg", side_by_side(drawn))
        if (out / "RESULTS.md").exists():
            text = (out / "RESULTS.md").read_text(encoding="utf-8")
            text = with_table(text, sweep.name, claims_table(found, other and other[1]))
            values = "\n\n".join(values_table(sweep, asked) for asked in sweep.page.get("tables", []))
            write(out / "RESULTS.md", with_table(text, f"{sweep.name} values", values))
        for line in [line for one in (sweep, *(other or ())[:1]) for line in not_alike(one)]:
            say(f"warning: {sweep.name}: {line}")
        print(f"{sweep.name}: {len(sweep.cells)} cells, {len(found)} claims{', two models' if other else ''}")


def finished(folder: Path) -> Sweep:
    """Raises UserError for a sweep that is unfinished."""
    sweep = open_sweep(folder)
    if broken := [cell.name for cell in with_planned(sweep).cells if cell.error or not cell.results]:
        raise UserError(f"{sweep.folder}: unfinished: {', '.join(broken)}")
    return sweep


def of_second(folder: str | None, first: Sweep) -> tuple[Sweep, list[ClaimVerdict]] | None:
    """Returns the second model's sweep of the same folder name, with its verdicts on the first's claims; or None."""
    if folder is None or not (Path(folder) / first.folder.name / "sweep.json").is_file():
        return None
    sweep = replace(finished(Path(folder) / first.folder.name), claims=first.claims)
    return sweep, verdicts(sweep)


if __name__ == "__main__":
    cli.run(main, "findings")
