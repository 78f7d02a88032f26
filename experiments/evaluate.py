"""python -m experiments.evaluate run=FOLDER metrics=[...]: measures of a finished run. See conf/evaluate.yaml."""

from pathlib import Path

from omegaconf import DictConfig

from experiments.files import UserError, say
from experiments.metrics import Bench
from experiments.metrics.estimates import Bootstrap
from experiments.metrics.measuring import evaluate, results_table
from experiments.run import build, cli


def main(cfg: DictConfig) -> None:
    if not cfg.get("metrics"):
        raise UserError("metrics: at least one, as in metrics=[judge,clip_score]")
    bench = Bench(build.device(cfg.device), cfg.batch_size, Bootstrap(**cfg.bootstrap))
    results = evaluate(Path(cfg.run), cfg.metrics, bench, None if cfg.against is None else Path(cfg.against))
    print(results_table(results))
    for name, result in results.items():
        for warning in result["warnings"]:
            say(f"warning: {name}: {warning}")


if __name__ == "__main__":
    cli.run(main, "evaluate")
