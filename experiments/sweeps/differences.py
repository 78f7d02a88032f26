"""The difference of a measure between cells of a sweep that are matched, with its interval, its p, and who wins."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.metrics.estimates import TIE, Estimate, means_of, sign_test, two_way
from experiments.sweeps.folder import Cell

SCENES = ("seed", "count", "layouts", "tinted")  # settings of a study that say which scenes it looks at
NAMED = 4  # cells that a note names; of more it says how many


@dataclass(frozen=True)
class Pooled:
    """Cells that are taken as one: the mean of their scores of each picture, or of their estimates."""

    cells: tuple[Cell, ...]
    weights: tuple[float, ...] = ()  # of the cells; empty: all alike

    @property
    def name(self) -> str:
        return " + ".join(cell.name for cell in self.cells)

    def scores(self, measure: str) -> dict[str, float]:
        rows = [cell.scores(measure) for cell in self.cells]
        common = set.intersection(*map(set, rows)) if rows else set()
        return {file: float(np.average([row[file] for row in rows], weights=self.weights or None)) for file in common}

    def measured_files(self, measure: str) -> set[str]:
        """Returns the pictures that the metric looked at in any of the cells."""
        return set().union(*(cell.measured_files(measure) for cell in self.cells))

    def asked(self) -> dict[str, tuple[Hashable, Hashable]]:
        return {file: asked for cell in reversed(self.cells) for file, asked in cell.asked().items()}

    def estimate(self, measure: str) -> tuple[float, float] | None:
        """Returns the mean and its standard deviation; None where a cell has no interval."""
        found = [cell.estimate(measure) for cell in self.cells]
        if not found or any(e is None or e["low"] is None for e in found):
            return None
        weights = np.array(self.weights or [1.0] * len(found)) / (sum(self.weights) or len(found))
        values = np.array([e["value"] for e in found if e])
        deviations = np.array([(e["high"] - e["low"]) / 3.92 for e in found if e])
        return float(weights @ values), deviation_of_sum(weights * deviations, map(pictures_of, self.cells))


@dataclass(frozen=True)
class Difference:
    """A mean difference, its two-sided p, and what there is to say of it.

    `lacking` says what keeps it from being the whole of what was asked; where it is not empty, no verdict may be given.
    """

    estimate: Estimate | None
    p: float | None = None
    notes: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


Pairs = dict[Hashable, tuple[Pooled, Pooled]]  # the cells here and those there, by the values of all other axes


def difference(pairs: Pairs, measure: str, than: str) -> Difference:
    """Returns the mean over the pairs of `measure` here less `than` there.

    Measures that score single pictures are compared picture by picture, all others by their estimates.
    """
    lacking, whole = unmeasured(pairs, measure, than), list[tuple[Pooled, Pooled]]()
    for here, there in pairs.values():
        if not unmeasured({"": (here, there)}, measure, than):
            whole.append((here, there))
    if not whole:
        return Difference(None, lacking=tuple(lacking))
    if all(here.scores(measure) and there.scores(than) for here, there in whole):
        found = by_pictures(whole, measure, than)
    else:
        found = by_estimates(whole, measure, than)
    return replace(found, lacking=(*lacking, *found.lacking))


def unmeasured(pairs: Pairs, measure: str, than: str) -> list[str]:
    """Returns a line for each measure that some of the cells lack."""
    names: dict[str, dict[str, None]] = {}
    for here, there in pairs.values():
        for wanted, side in ((measure, here), (than, there)):
            for cell in side.cells:
                if cell.estimate(wanted) is None and not cell.scores(wanted):
                    names.setdefault(wanted, {})[cell.name] = None
    return [f"{wanted} was not measured in {some(cells)}" for wanted, cells in names.items()]


def by_pictures(pairs: Sequence[tuple[Pooled, Pooled]], measure: str, than: str) -> Difference:
    """Compares pictures of the same prompt and seed; clusters are as bootstrap.unit says, see conf/ablate.yaml.

    The sign test counts each prompt, or each prompt and seed, once: by the mean over the pairs in which it occurs.
    """
    values, clusters, lacking, means = list[float](), list[tuple[Hashable, Hashable]](), list[str](), {}
    for here, there in pairs:
        ours, theirs, asked = here.scores(measure), there.scores(than), here.asked()
        files = sorted(ours.keys() & theirs.keys())
        alone = here.measured_files(measure) ^ there.measured_files(than)
        if alone:
            lacking.append(f"{len(alone)} pictures of {here.name} and {there.name} were measured in one of them alone")
        if files:
            values += [ours[file] - theirs[file] for file in files]
            clusters += [asked.get(file, (file, file)) for file in files]
            means[here.name] = float(np.mean(values[-len(files) :]))
    if not values:
        return Difference(None, lacking=(*lacking, "no picture has a score on both sides"))
    unit = unit_of(pairs[0][0], measure)
    estimate = clustered(values, clusters, unit)
    notes = [who_wins(values, clusters, unit), *other_way(means, estimate.value)]
    return Difference(Estimate(estimate.value, estimate.low, estimate.high, estimate.count), estimate.p(), tuple(notes),
                      tuple(lacking))  # fmt: skip


def clustered(values: Sequence[float], clusters: Sequence[tuple[Hashable, Hashable]], unit: str) -> Any:
    """Returns the mean with its cluster-robust interval; the clusters are prompts and seeds."""
    if unit == "prompts":
        return two_way(values, [prompt for prompt, _ in clusters], [seed for _, seed in clusters])
    return two_way(values, clusters, clusters)


def unit_of(side: Pooled, measure: str) -> str:
    """Returns the bootstrap's unit with which the cells were measured."""
    bootstrap = side.cells[0].results.get(measure.partition("/")[0], {}).get("bootstrap") or {}
    return str(bootstrap.get("unit", "pictures"))


def who_wins(values: Sequence[float], clusters: Sequence[tuple[Hashable, Hashable]], unit: str) -> str:
    means = means_of(values, [prompt for prompt, _ in clusters] if unit == "prompts" else clusters)
    wins, losses = sum(mean > TIE for mean in means), sum(mean < -TIE for mean in means)
    what = "prompts" if unit == "prompts" else "prompts and seeds"
    of = f" {len(means)} {what}," if len(means) < len(values) else ""
    if not wins + losses:
        return f"of{of} none differs" if of else "no picture differs"
    p = f"sign test p = {sign_test(wins, losses):.2g}"
    return f"{f'of{of} ' if of else ''}higher in {wins} of {wins + losses} that differ, {p}"


def other_way(means: dict[str, float], whole: float) -> list[str]:
    """Names the pairs whose own difference has the opposite sign."""
    against = {name: None for name, mean in means.items() if abs(mean) > TIE and mean * whole < 0}
    return [f"the other way in {some(against)}"] if against else []


def by_estimates(pairs: Sequence[tuple[Pooled, Pooled]], measure: str, than: str) -> Difference:
    """Compares estimates, taken as normal; here and there as independent, but for two measures of one cell.

    Of those it is not known how they hang together: their deviations are added, as if one rose where the other falls.
    """
    values, deviations, lacking, means = [], [], list[str](), {}
    for here, there in pairs:
        ours, theirs = here.estimate(measure), there.estimate(than)
        if ours is None or theirs is None:
            lacking.append(f"there is no interval in {here.name if ours is None else there.name}")
            continue
        values.append(ours[0] - theirs[0])
        of_one = here.cells == there.cells
        deviations.append(ours[1] + theirs[1] if of_one else math.hypot(ours[1], theirs[1]))
        means[here.name] = values[-1]
    if lacking:
        return Difference(None, lacking=tuple(lacking))
    value = float(np.mean(values))
    deviation = deviation_of_sum(deviations, (pictures_of(here.cells[0]) for here, _ in pairs)) / len(values)
    p = math.erfc(abs(value) / deviation / math.sqrt(2)) if deviation else float(value == 0)
    estimate = Estimate(value, value - 1.96 * deviation, value + 1.96 * deviation, len(values))
    return Difference(estimate, p, tuple(other_way(means, value)))


def pictures_of(cell: Cell) -> Hashable:
    """Returns the prompts and seeds of a cell's pictures, or what a study's scenes depend on; of any other, itself."""
    settings = [result.get("settings") or {} for result in cell.results.values()]
    scenes = frozenset(repr([some.get(key) for key in SCENES]) for some in settings if "layouts" in some)
    return frozenset(cell.asked().values()) or scenes or cell.folder


def deviation_of_sum(deviations: Iterable[float], clusters: Iterable[Hashable]) -> float:
    """Returns the standard deviation of a sum: errors on the same pictures add up, independent ones in squares."""
    together: dict[Hashable, float] = {}
    for deviation, cluster in zip(deviations, clusters, strict=True):
        together[cluster] = together.get(cluster, 0.0) + deviation
    return math.hypot(*together.values())


def some(names: Iterable[str]) -> str:
    """Lists names, of many the first few and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more
