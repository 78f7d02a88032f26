"""python -m experiments.ablate -m experiment=NAME: an experiment of conf/experiment, cell by cell (conf/ablate.yaml).

Each cell, one setting of the sweep, is a run folder of experiments.sample with its metrics, or the results of a study:
CELL/cell.json (its values of the axes), metrics/*.json, maps.png and semantics.png, and error.txt if it failed.
The sweep's folder holds sweep.json, what all cells have in common, and, when they are done, report.html.
"""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.files import say, write
from experiments.run import cli
from experiments.sweeps import progress
from experiments.sweeps.cells import measure_cell, written
from experiments.sweeps.entry import enter
from experiments.sweeps.folder import Begun
from experiments.sweeps.page import write_page


def main(cfg: DictConfig) -> None:
    """Raises UserError for what cannot be drawn, and for a folder that holds a sweep of another config."""
    cell = enter(cfg, HydraConfig.get())
    try:
        cell.note()
        measured = measure_cell(cfg, cell.folder)
        if measured is None:
            (cell.folder / "error.txt").unlink(missing_ok=True)
            progress.clear()
            say(f"{cfg.cell}: drawn, but for other shards' pictures: the last of them measures it")
            return
        results, missing = measured
        cell.note(measures=written(cfg, cell.axes), unmeasured=missing)
    except Exception as error:
        write(cell.folder / "error.txt", f"{type(error).__name__}: {error}\n")
        progress.cell_failed()
        raise
    (cell.folder / "error.txt").unlink(missing_ok=True)
    progress.clear()
    print(f"{cfg.cell}: " + ", ".join(f"{name} {r['value']:.4g}" for name, r in results.items()))
    progress.cell_done(cell.sweep, cell.folder)


if __name__ == "__main__":
    try:
        cli.run(main, "ablate")
    finally:  # whatever became of the jobs
        progress.close()
        for folder in Begun.folders:
            if (folder / "sweep.json").exists():
                print(f"the report: {write_page(folder)}")
