"""python -m experiments.findings sweeps=FOLDER: what finished sweeps say, in files small enough to be committed."""

import json
from pathlib import Path

from omegaconf import DictConfig

from experiments.files import UserError, say, write
from experiments.run import cli
from experiments.sweeps.claims import verdicts
from experiments.sweeps.folder import open_sweep, with_planned
from experiments.sweeps.provenance import not_alike
from experiments.sweeps.tables import claims_table, panels, side_by_side, summary_of, values_table, with_table


def main(cfg: DictConfig) -> None:
    """Raises UserError where there is no sweep, or one that is unfinished."""
    folders = sorted(path.parent for path in Path(cfg.sweeps).glob("*/sweep.json"))
    if not folders:
        raise UserError(f"sweeps={cfg.sweeps}: holds no folder of a sweep of experiments.ablate")
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    for sweep in map(open_sweep, folders):
        if broken := [cell.name for cell in with_planned(sweep).cells if cell.error or not cell.results]:
            raise UserError(f"{sweep.folder}: unfinished: {', '.join(broken)}")
        found = verdicts(sweep)
        write(out / f"{sweep.name}.json", json.dumps(summary_of(sweep, found), indent=1) + "\n")
        if drawn := panels(sweep):
            write(out / f"{sweep.name}.svg", side_by_side(drawn))
        if (out / "RESULTS.md").exists():
            text = (out / "RESULTS.md").read_text(encoding="utf-8")
            text = with_table(text, sweep.name, claims_table(found))
            values = "\n\n".join(values_table(sweep, asked) for asked in sweep.page.get("tables", []))
            write(out / "RESULTS.md", with_table(text, f"{sweep.name} values", values))
        for line in not_alike(sweep):
            say(f"warning: {sweep.name}: {line}")
        print(f"{sweep.name}: {len(sweep.cells)} cells, {len(found)} claims")


if __name__ == "__main__":
    cli.run(main, "findings")
