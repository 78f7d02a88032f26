"""Inception Score (Salimans et al. 2016), by torch-fidelity."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from experiments.metrics import Bench, Result, Unmeasurable, optional
from experiments.metrics.estimates import CENTRED
from experiments.metrics.features import extract, load_extractor
from experiments.metrics.folders import FinishedRun


@dataclass(frozen=True)
class InceptionScore:
    """exp E KL(p(class | picture) || p(class)), the mean over `splits` parts of the shuffled pictures."""

    splits: int = 10
    features: str | None = None
    weights: str | None = None
    resize: int | None = None
    resamples: int = 100

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        fidelity = optional("torch_fidelity.metric_isc")
        if len(run.records) < 2 * self.splits:
            raise Unmeasurable(
                f"{len(run.records)} pictures make no {self.splits} splits of at least 2: say fewer splits"
            )
        extractor = load_extractor(self.features, self.weights, run, bench.device)
        logits = extract(extractor, run.pictures, self.resize, bench).logits
        if not logits.shape[1]:
            raise Unmeasurable(f"features={self.features} name no classes: take inception or judge")
        score = partial(fidelity.isc_features_to_metric, splits=self.splits)

        def mean(some: Tensor) -> float:
            return score(some)[fidelity.KEY_METRIC_ISC_MEAN]

        bootstrap = bench.bootstrap.at_most(self.resamples)
        estimate = bootstrap.distance(mean(logits), lambda i: mean(logits[i]), run.captions, least=1)
        about = {"features": extractor.about, "resize": self.resize, "interval": CENTRED}
        return Result(estimate, about=about, warnings=[*extractor.warnings])
