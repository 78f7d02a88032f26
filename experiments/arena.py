"""python -m experiments.arena: guidances against classifier-free guidance, judged on scenes whose truth is known.

Each method at its defaults and at further values of its main setting, against classifier-free guidance at the same
nominal scale, the same effective scale, as many evaluations, its effective scale step by step, and at the best scale.
OUT/cells/METHOD/SETTING are run folders of experiments.sample, each with the command that draws it again (cell.json);
OUT/verdicts.json holds every value and comparison, OUT/report.html the ranking. The same command goes on where it
stopped, and `only=[NAME]` adds a row. See conf/arena.yaml and experiments/tournament/README.md.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.files import UserError
from experiments.metrics import Bench
from experiments.metrics.estimates import Bootstrap
from experiments.run import build, cli
from experiments.tournament.cells import Arena, begin, metrics_of
from experiments.tournament.page import write_page
from experiments.tournament.plan import methods, plan
from experiments.tournament.references import references


def main(cfg: DictConfig) -> None:
    """Raises UserError for wrong settings, and at the end where cells failed."""
    hydra, out = HydraConfig.get(), Path(cfg.out)
    planned = plan(cfg, dict(hydra.runtime.choices), hydra.searchpath)
    bench = Bench(build.device(cfg.device), 32, Bootstrap(**cfg.bootstrap))
    wanted, failed = methods(cfg), list[str]()
    begin(out, planned, [method.name for method in wanted])
    if cfg.draw:
        true_scenes = references(out, planned, cfg, bench)
        arena = Arena(out, planned, metrics_of(cfg, true_scenes), bench, failed)
        shard, shards = map(int, str(cfg.shard).split("/"))
        by_role = sorted(planned.curve(), key=lambda cell: cell.role)  # so that shards share the dearer of the two
        for cell in by_role[shard::shards]:
            arena.draw(cell)
        for method in wanted[shard::shards]:
            arena.draw_method(method)
        for method in wanted[shard::shards]:  # last, so that all methods can be ranked early
            arena.draw_knob(method)
    print(f"the ranking: {write_page(out, cfg)}")
    if failed:
        raise UserError(f"{len(failed)} cells failed, each for the reason above: {', '.join(failed)}")


if __name__ == "__main__":
    cli.run(main, "arena")
