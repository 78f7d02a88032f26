"""Frechet distance of a run's pictures to a reference folder (Heusel et al. 2017), by torch-fidelity."""

from dataclasses import dataclass
from pathlib import Path

from experiments.frechet import frechet_distance, gaussian
from experiments.metrics import Bench, Result, optional
from experiments.metrics.estimates import CENTRED
from experiments.metrics.features import extract, load_extractor, rank_warnings
from experiments.metrics.folders import FinishedRun, open_reference


@dataclass(frozen=True)
class Frechet:
    """The interval is that of the pictures: the reference stays as it is. See `estimates.interval`."""

    reference: str
    features: str | None = None
    weights: str | None = None
    resize: int | None = None
    resamples: int = 100

    def measure(self, run: FinishedRun, bench: Bench) -> Result:
        fidelity = optional("torch_fidelity.metric_fid")
        extractor = load_extractor(self.features, self.weights, run, bench.device)
        reference = open_reference(Path(self.reference))
        ours, theirs = (extract(extractor, p, self.resize, bench) for p in (run.pictures, reference))
        statistics = [fidelity.fid_features_to_statistics(f.values.double()) for f in (ours, theirs)]
        value = fidelity.fid_statistics_to_metric(*statistics, verbose=False)[fidelity.KEY_METRIC_FID]

        target = gaussian(theirs.values)
        estimate = bench.bootstrap.at_most(self.resamples).distance(
            value, lambda i: frechet_distance(gaussian(ours.values[i]), target), run.captions
        )
        warnings = [*extractor.warnings, *rank_warnings(run.pictures, ours), *rank_warnings(reference, theirs)]
        if self.resize is None and reference.sizes.keys() != run.pictures.sizes.keys():
            warnings.append("pictures and reference differ in size, so they are not resized alike: see resize")
        about = {"features": extractor.about, "resize": self.resize, "interval": CENTRED}
        about |= {"reference": reference.described()}
        return Result(estimate, about=about, warnings=[*warnings, *reference.warnings])
