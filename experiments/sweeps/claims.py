"""What a sweep says of the claims that its experiment names: each holds, does not hold, or cannot be told.

A claim is a record of the experiment's yaml: say, a sentence; measure, as in "judge/both"; expect; and one of

expect: higher or lower, here: AXES, there: AXES        cells at `here` against those at `there`
expect: higher or lower, here: AXES, than: MEASURE      against another measure of the same cells
expect: higher or lower, here: AXES, curve: AXES        against the cells of `curve` (classifier-free guidance at some
        free: [AXIS], at: equal                         values of AXIS), between the two whose effective scales enclose
        at: best                                        theirs; or against the best of them
expect: rising or falling, along: AXIS, at: AXES        from each number on the axis to the next

Cells are matched where all other axes agree. Measures with a score for each picture are compared picture by picture,
same prompt and seed, with a sign test of who wins; the others by their estimates, taken as independent and normal.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.files import UserError
from experiments.metrics.estimates import Bootstrap, Estimate, compare
from experiments.sweeps.folder import Cell, Sweep, is_number

HOLDS, NOT, UNTOLD = "holds", "does not hold", "cannot be told"
SIGNS = {"higher": 1, "rising": 1, "lower": -1, "falling": -1}


@dataclass(frozen=True)
class Verdict:
    say: str
    measure: str
    found: str  # the difference, with its 95 % interval
    verdict: str
    note: str


@dataclass(frozen=True)
class Group:
    """Cells that are taken as one: the mean of their scores of each picture, or of their estimates."""

    cells: tuple[Cell, ...]
    weights: tuple[float, ...] = ()  # of the cells; empty: all alike

    def scores(self, measure: str) -> dict[str, float]:
        rows = [cell.scores(measure) for cell in self.cells]
        common = set.intersection(*map(set, rows)) if rows else set()
        return {file: float(np.average([row[file] for row in rows], weights=self.weights or None)) for file in common}

    def estimate(self, measure: str) -> tuple[float, float] | None:
        """Mean and standard deviation."""
        found = [cell.estimate(measure) for cell in self.cells]
        if not found or any(e is None or e["low"] is None for e in found):
            return None
        weights = np.array(self.weights or [1.0] * len(found)) / (sum(self.weights) or len(found))
        values = np.array([e["value"] for e in found if e])
        deviations = np.array([(e["high"] - e["low"]) / 3.92 for e in found if e])
        return float(weights @ values), float(np.sqrt((weights**2) @ (deviations**2)))


Pairs = dict[Hashable, tuple[Group, Group]]  # what all other axes have, by it: the cells here, and those there


def verdicts(sweep: Sweep) -> list[Verdict]:
    """Raises UserError for a claim that is not written as the module says."""
    return [verdict(sweep, claim) for claim in sweep.claims]


def verdict(sweep: Sweep, claim: dict[str, Any]) -> Verdict:
    say, measure, expect = (claim.get(key) for key in ("say", "measure", "expect"))
    if expect not in SIGNS or not measure or not say:
        raise UserError(f"claim {claim}: needs say, measure, and expect, one of {', '.join(SIGNS)}")
    if "along" in claim:
        return trend(sweep, claim)
    pairs, note = matched(sweep, claim)
    found, wins = difference(pairs, measure, claim.get("than", measure))
    if found is None:
        return Verdict(say, measure, "", UNTOLD, note or "not measured in cells that could be compared")
    return Verdict(say, measure, told(found), judged(found, SIGNS[expect]), "; ".join(filter(None, [wins, note])))


def matched(sweep: Sweep, claim: dict[str, Any]) -> tuple[Pairs, str]:
    """The cells to compare, and what is to be said of the choice."""
    here, there, curve = claim["here"], claim.get("there"), claim.get("curve", {})
    axes = {*here, *(there or {}), *curve, *claim.get("free", [])}
    groups = grouped(sweep.at(here), axes)
    if "than" in claim:
        return {key: (Group(cells), Group(cells)) for key, cells in groups.items()}, f"than {claim['than']}"
    if there is not None:
        others = grouped(sweep.at(there), axes)
        return {key: (Group(cells), Group(others[key])) for key, cells in groups.items() if key in others}, ""
    curves = grouped(sweep.at(curve), axes)
    pairs, notes = Pairs(), []
    for key, cells in groups.items():
        for cell in cells:
            other, note = on_curve(curves.get(key, ()), cell, claim)
            notes.append(note)
            if other is not None:
                pairs[key, cell.name] = Group((cell,)), other
    return pairs, "; ".join(dict.fromkeys(filter(None, notes)))


def on_curve(curve: Sequence[Cell], cell: Cell, claim: dict[str, Any]) -> tuple[Group | None, str]:
    """What of the curve a cell is compared with."""
    measure = claim["measure"]
    if claim.get("at", "equal") == "best":
        sign = SIGNS[claim["expect"]]
        known = [(e["value"], i) for i, c in enumerate(curve) if (e := c.estimate(measure)) is not None]
        if not known:
            return None, ""
        best = curve[max(known, key=lambda pair: sign * pair[0])[1]]
        return Group((best,)), f"best: {best.name}"
    scale = cell.estimate("effective_scale")
    scales = sorted((e["value"], i) for i, c in enumerate(curve) if (e := c.estimate("effective_scale")) is not None)
    if scale is None or not scales:
        return None, "effective scales were not measured"
    g = scale["value"]
    below, above = [s for s in scales if s[0] <= g], [s for s in scales if s[0] > g]
    if not below or not above:
        return None, f"{cell.name}: its effective scale {g:.2f} is outside the curve's"
    (low, i), (high, j) = below[-1], above[0]
    share = (g - low) / (high - low)
    return Group((curve[i], curve[j]), (1 - share, share)), f"{cell.name}: effective scale {g:.2f}"


def trend(sweep: Sweep, claim: dict[str, Any]) -> Verdict:
    """From each number on an axis to the next, and from the first to the last."""
    say, measure, axis, sign = claim["say"], claim["measure"], claim["along"], SIGNS[claim["expect"]]
    cells = [cell for cell in sweep.at(claim.get("at", {})) if is_number(cell.axes.get(axis))]
    values = sorted({cell.axes[axis] for cell in cells})

    def between(one: float, two: float) -> Estimate | None:
        first, second = (grouped([c for c in cells if c.axes[axis] == v], {axis}) for v in (one, two))
        return difference({k: (Group(second[k]), Group(first[k])) for k in first if k in second}, measure, measure)[0]

    whole = between(values[0], values[-1]) if len(values) > 1 else None
    if whole is None:
        return Verdict(say, measure, "", UNTOLD, "not measured along the axis")
    steps = [(f"{a} to {b}", between(a, b)) for a, b in zip(values, values[1:], strict=False)]
    against = [name for name, found in steps if found is not None and judged(found, sign) == NOT]
    outcome = NOT if against else judged(whole, sign)
    note = f"the other way from {', '.join(against)}" if against else "no step goes the other way beyond its interval"
    return Verdict(say, measure, f"{told(whole)} from {values[0]} to {values[-1]}", outcome, note)


def grouped(cells: Sequence[Cell], axes: set[str]) -> dict[Hashable, tuple[Cell, ...]]:
    """Cells by what they have of all other axes."""
    found: dict[Hashable, tuple[Cell, ...]] = {}
    for cell in cells:
        key = tuple(sorted((name, str(value)) for name, value in cell.axes.items() if name not in axes))
        found[key] = (*found.get(key, ()), cell)
    return found


def difference(pairs: Pairs, measure: str, than: str) -> tuple[Estimate | None, str]:
    """A measure here less that or another there, the mean over pairs of groups; and who wins, picture by picture.

    None if something was not measured.
    """
    paired, estimates = list[tuple[float, float]](), []
    for one, other in pairs.values():
        ours, theirs = one.scores(measure), other.scores(than)
        paired += [(ours[file], theirs[file]) for file in sorted(ours.keys() & theirs.keys())]
        estimates.append((one.estimate(measure), other.estimate(than)))
    if paired:
        found = compare([a for a, _ in paired], [b for _, b in paired], range(len(paired)), Bootstrap())
        played = found["wins"] + found["losses"]
        wins = f"higher in {found['wins']} of {played} that differ, sign test p = {found['p']:.2g}"
        return found["difference"], wins if played else "no picture differs"
    known = [(a[0] - b[0], np.hypot(a[1], b[1])) for a, b in estimates if a is not None and b is not None]
    if not known or len(known) < len(estimates):
        return None, ""
    mean = float(np.mean([value for value, _ in known]))
    margin = 1.96 * float(np.sqrt(np.sum([deviation**2 for _, deviation in known]))) / len(known)
    return Estimate(mean, mean - margin, mean + margin, len(known)), ""


def judged(found: Estimate, sign: int) -> str:
    """Of a difference that should have this sign."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return UNTOLD
    return HOLDS if sign * found.value > 0 else NOT


def told(found: Estimate) -> str:
    interval = "" if found.low is None else f" ({found.low:+.3g} to {found.high:+.3g})"
    return f"{found.value:+.3g}{interval}, {found.count} pair{'s' * (found.count != 1)}"
