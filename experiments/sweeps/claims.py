"""Verdicts on the claims that an experiment's yaml names: each holds, does not hold, or cannot be told.

A claim has say, a sentence; measure, as in "judge/both"; expect; and the fields of one of four kinds:

Versus    expect: higher or lower, here: AXES, there: AXES      cells at `here` against those at `there`
Than      expect: higher or lower, here: AXES, than: MEASURE    against another measure of the same cells
OnCurve   expect: higher or lower, here: AXES, curve: AXES,     against the cells of `curve` (classifier-free guidance
          free: [AXIS], at: equal or best                       at some values of AXIS): between the two whose effective
                                                                scales enclose theirs, or against the best of them
Trend     expect: rising or falling, along: AXIS, at: AXES      from each number on the axis to the next

Cells are matched where all other axes agree. `each: AXIS` makes a claim of each value of an axis: for settings that may
differ in sign, where one verdict over all would hide it. A claim of which a part was not measured, or was measured with
other settings, cannot be told, and says what is missing. Intervals are of 95 %; see `differences` and conf/ablate.yaml.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.files import UserError
from experiments.metrics.estimates import HOLDS, LEVEL, NOT, UNTOLD, Estimate, holm
from experiments.sweeps.differences import Difference, Pairs, Pooled, difference, some
from experiments.sweeps.folder import Axes, Cell, Sweep, is_number, with_planned
from experiments.sweeps.provenance import unequal

SIGNS = {"higher": 1, "rising": 1, "lower": -1, "falling": -1}
Groups = dict[Hashable, tuple[Cell, ...]]  # cells by what they have on all other axes


@dataclass(frozen=True)
class ClaimVerdict:
    say: str
    measure: str
    found: str  # the difference, with its 95 % interval
    verdict: str
    note: str
    p: float | None = None  # two-sided, of no difference
    holm: float | None = None  # p, corrected for all claims of the sweep (Holm 1979)


@dataclass(frozen=True)
class Matching:
    """Cells to be compared, what there is to say of the choice, and which cells lack a counterpart."""

    pairs: Pairs
    notes: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    say: str
    measure: str
    expect: str
    each: str | None = None

    def __post_init__(self) -> None:
        if self.expect not in SIGNS or not self.measure or not self.say:
            raise UserError(f"needs say, measure, and expect, one of {', '.join(SIGNS)}")

    @property
    def sign(self) -> int:
        return SIGNS[self.expect]

    def verdict(self, sweep: Sweep) -> ClaimVerdict:
        raise NotImplementedError

    def judged(self, sweep: Sweep, matching: Matching, than: str) -> ClaimVerdict:
        """Returns the verdict on the cells that are matched."""
        cells = [cell for sides in matching.pairs.values() for side in sides for cell in side.cells]
        if mixed := [
            line for measure in dict.fromkeys((self.measure, than)) for line in unequal(sweep, cells, measure)
        ]:
            return self.untold(mixed)
        found = difference(matching.pairs, self.measure, than)
        lacking = [*matching.lacking, *found.lacking]
        if not matching.pairs and not lacking:
            lacking = ["no cells could be compared"]
        notes = [*lacking, *found.notes, *matching.notes]
        if found.estimate is None or lacking:
            return self.untold(notes, found)
        outcome = judged(found, self.sign)
        return ClaimVerdict(self.say, self.measure, interval_text(found.estimate), outcome, "; ".join(notes), found.p)

    def untold(self, notes: Sequence[str], found: Difference | None = None) -> ClaimVerdict:
        text = interval_text(found.estimate) if found is not None and found.estimate is not None else ""
        return ClaimVerdict(self.say, self.measure, text, UNTOLD, "; ".join(dict.fromkeys(notes)))


@dataclass(frozen=True, kw_only=True)
class Versus(Claim):
    """Cells at `here` against those at `there`."""

    here: Axes
    there: Axes

    def verdict(self, sweep: Sweep) -> ClaimVerdict:
        axes = {*self.here, *self.there}
        ours, theirs = grouped(sweep.at(self.here), axes), grouped(sweep.at(self.there), axes)
        lacking = *gaps(ours, self.here), *gaps(theirs, self.there), *alone(ours, theirs)
        return self.judged(sweep, Matching(paired(ours, theirs), lacking=lacking), self.measure)


@dataclass(frozen=True, kw_only=True)
class Than(Claim):
    """A measure against another one of the same cells."""

    here: Axes
    than: str

    def verdict(self, sweep: Sweep) -> ClaimVerdict:
        groups = grouped(sweep.at(self.here), set(self.here))
        pairs: Pairs = {key: (Pooled(cells), Pooled(cells)) for key, cells in groups.items()}
        return self.judged(sweep, Matching(pairs, (f"than {self.than}",), gaps(groups, self.here)), self.than)


@dataclass(frozen=True, kw_only=True)
class OnCurve(Claim):
    """Cells at `here` against a curve of others: at their own effective scale, or at the curve's best."""

    here: Axes
    curve: Axes
    free: list[str]
    at: str = "equal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at not in ("equal", "best"):
            raise UserError(f"at: {self.at}: must be equal or best")

    def verdict(self, sweep: Sweep) -> ClaimVerdict:
        axes = {*self.here, *self.curve, *self.free}
        curves, find = grouped(sweep.at(self.curve), axes), self.best if self.at == "best" else self.enclosing
        ours = grouped(sweep.at(self.here), axes)
        pairs, notes, lacking = Pairs(), list[str](), list(gaps(ours, self.here))
        for key, cells in ours.items():
            for cell in cells:
                other, note = find(curves.get(key, ()), cell)
                if other is None:
                    lacking.append(note)
                else:
                    pairs[key, cell.name] = Pooled((cell,)), other
                    notes.append(note)
        return self.judged(sweep, Matching(pairs, tuple(dict.fromkeys(notes)), tuple(lacking)), self.measure)

    def best(self, curve: Sequence[Cell], cell: Cell) -> tuple[Pooled | None, str]:
        """Returns the curve's best cell, or why it is not known."""
        if unknown := [c.name for c in curve if c.estimate(self.measure) is None]:
            return None, f"{self.measure} was not measured in {some(unknown)}"
        if not curve:
            return None, f"there is no curve for {cell.name}"
        best = max(curve, key=lambda c: self.sign * (c.estimate(self.measure) or {})["value"])
        return Pooled((best,)), f"best: {best.name}"

    def enclosing(self, curve: Sequence[Cell], cell: Cell) -> tuple[Pooled | None, str]:
        """Returns the curve's cells on either side of a cell's effective scale, or why there are none."""
        if unknown := [c.name for c in (cell, *curve) if c.estimate("effective_scale") is None]:
            return None, f"effective_scale was not measured in {some(unknown)}"
        scales = sorted(((c.estimate("effective_scale") or {})["value"], i) for i, c in enumerate(curve))
        g = (cell.estimate("effective_scale") or {})["value"]
        below, above = [s for s in scales if s[0] <= g], [s for s in scales if s[0] > g]
        if not below or not above:
            return None, f"{cell.name}: its effective scale {g:.2f} is outside the curve's"
        (low, i), (high, j) = below[-1], above[0]
        share = (g - low) / (high - low)
        return Pooled((curve[i], curve[j]), (1 - share, share)), f"{cell.name}: effective scale {g:.2f}"


@dataclass(frozen=True, kw_only=True)
class Trend(Claim):
    """From each number on an axis to the next, and from the first to the last.

    It does not hold where some step goes the other way, by a p that is corrected for the number of steps (Holm).
    """

    along: str
    at: Axes = field(default_factory=dict)

    def verdict(self, sweep: Sweep) -> ClaimVerdict:
        cells = [cell for cell in sweep.at(self.at) if is_number(cell.axes.get(self.along))]
        if mixed := unequal(sweep, cells, self.measure):
            return self.untold(mixed)
        values = sorted({cell.axes[self.along] for cell in cells})
        if len(values) < 2:
            return self.untold(["not measured along the axis"])
        whole = self.between(cells, values[-1], values[0])
        steps = {f"{a} to {b}": self.between(cells, b, a) for a, b in zip(values, values[1:], strict=False)}
        if lacking := list(dict.fromkeys(line for found in (whole, *steps.values()) for line in found.lacking)):
            return self.untold(lacking)
        if whole.estimate is None:
            return self.untold(["not measured along the axis"])
        corrected = holm([found.p if self.back(found) else 1.0 for found in steps.values()])
        against = {name: p for name, p in zip(steps, corrected, strict=True) if p is not None and p < LEVEL}
        text = f"{interval_text(whole.estimate)} from {values[0]} to {values[-1]}"
        if against:
            note = f"the other way from {', '.join(against)}, which p is of"
            return ClaimVerdict(self.say, self.measure, text, NOT, note, min(against.values()))
        note = "no step goes the other way beyond chance"
        return ClaimVerdict(self.say, self.measure, text, judged(whole, self.sign), note, whole.p)

    def back(self, found: Difference) -> bool:
        """Whether a step goes the other way, be it by chance."""
        return found.estimate is not None and self.sign * found.estimate.value < 0

    def between(self, cells: Sequence[Cell], here: float, there: float) -> Difference:
        ours, theirs = (grouped([c for c in cells if c.axes[self.along] == v], {self.along}) for v in (here, there))
        found = difference(paired(ours, theirs), self.measure, self.measure)
        return replace(found, lacking=(*alone(ours, theirs), *found.lacking))


KINDS: dict[str, type[Claim]] = {"there": Versus, "than": Than, "curve": OnCurve, "along": Trend}


def verdicts(sweep: Sweep) -> list[ClaimVerdict]:
    """Raises UserError for a claim that is not written as the module says."""
    sweep = with_planned(sweep)
    found = [claim.verdict(sweep) for record in sweep.claims for claim in claims_of(record, sweep)]
    corrected = holm([verdict.p for verdict in found])
    return [replace(verdict, holm=p) for verdict, p in zip(found, corrected, strict=True)]


def together(first: Sequence[ClaimVerdict], second: Sequence[ClaimVerdict]) -> list[str]:
    """Returns what two models say of each of the first's claims, which are matched by sentence and measure."""
    found = {(verdict.say, verdict.measure): verdict for verdict in second}
    return [joint(one, found.get((one.say, one.measure))) for one in first]


def joint(first: ClaimVerdict, second: ClaimVerdict | None) -> str:
    """Returns the reading of a claim on two models, each verdict counting where it outlasts Holm's correction."""
    if second is None:
        return "one model"
    one, other = (corrected_outcome(verdict) for verdict in (first, second))
    return reading(one, other, "holds on neither" if one == NOT else f"{one} on both")


def reading(one: str, other: str, both: str) -> str:
    """Returns what the outcomes on two models amount to; `both` where they are one and the same and can be told."""
    if one == other:
        return UNTOLD if one == UNTOLD else both
    if UNTOLD not in (one, other):
        return "opposite"
    told, where = (other, "second") if one == UNTOLD else (one, "first")
    return f"{told} on the {where} alone"


def corrected_outcome(found: ClaimVerdict) -> str:
    return UNTOLD if found.holm is not None and found.holm >= LEVEL else found.verdict


def claims_of(record: dict[str, Any], sweep: Sweep) -> list[Claim]:
    """Returns the claim of a yaml's record; with `each`, one of each value of its axis."""
    claim, axis = claim_of(record), record.get("each")
    if axis is None:
        return [claim]
    among = {axis: record["here"][axis]} if axis in record.get("here", {}) else {}
    values = [value for value in sweep.values(axis) if any(cell.axes[axis] == value for cell in sweep.at(among))]
    return [claim_of(at_value(record, axis, value)) for value in values]


def claim_of(record: dict[str, Any]) -> Claim:
    """Returns a claim of the kind that its fields tell. Raises UserError for one that is none."""
    try:
        kinds = [kind for key, kind in KINDS.items() if key in record]
        if len(kinds) > 1 or (not kinds and "here" in record):
            raise UserError(f"needs one of {', '.join(KINDS)}")
        return (kinds or [Claim])[0](**record)
    except (TypeError, ValueError) as error:
        raise UserError(f"claim {record}: {str(error).replace('.__init__()', '')}") from error


def at_value(record: dict[str, Any], axis: str, value: Any) -> dict[str, Any]:
    """Returns a claim's record, of one value of an axis alone."""
    sides = {key: record[key] for key in ("here", "there", "curve", "at") if isinstance(record.get(key), dict)}
    narrowed = {key: {axis: value, **where} for key, where in (sides or {"at": {}}).items()}
    if "here" in narrowed:
        narrowed["here"] = {**narrowed["here"], axis: value}
    return {**record, **narrowed, "say": f"{record['say']} ({value})"}


def grouped(cells: Sequence[Cell], axes: set[str]) -> Groups:
    """Returns the cells by the values that they have on all other axes."""
    found: Groups = {}
    for cell in cells:
        key = tuple(sorted((name, str(value)) for name, value in cell.axes.items() if name not in axes))
        found[key] = (*found.get(key, ()), cell)
    return found


def paired(ours: Groups, theirs: Groups) -> Pairs:
    return {key: (Pooled(ours[key]), Pooled(theirs[key])) for key in ours if key in theirs}


def alone(ours: Groups, theirs: Groups) -> tuple[str, ...]:
    """Names the cells that have no counterpart."""
    names = [cell.name for key in ours.keys() ^ theirs.keys() for cell in ours.get(key) or theirs[key]]
    return (f"there is no counterpart of {some(sorted(names))}",) if names else ()


def gaps(groups: Groups, where: Axes) -> tuple[str, ...]:
    """Names the values that a claim lists and that some group of cells lacks."""
    listed = {axis: values if isinstance(values, list) else [values] for axis, values in where.items()}
    missing = {
        f"{axis} {value}": None
        for cells in groups.values() or [()]
        for axis, values in listed.items()
        for value in values
        if all(cell.axes.get(axis) != value for cell in cells)
    }
    return (f"some cells are missing at {some(missing)}",) if missing else ()


def judged(found: Difference, sign: int) -> str:
    """Returns the outcome for a difference that should have this sign: told by its interval, and by its p."""
    one = found.estimate
    if one is None or one.low is None or one.high is None or one.low <= 0 <= one.high:
        return UNTOLD
    if found.p is not None and found.p >= LEVEL:
        return UNTOLD
    return HOLDS if sign * one.value > 0 else NOT


def p_text(p: float | None) -> str:
    """Returns a p in words; those that arithmetic cannot tell from 0 are only bounded."""
    return "" if p is None else f"{p:.2g}" if p >= 1e-9 else "< 1e-9"


def interval_text(found: Estimate) -> str:
    interval = "" if found.low is None else f" ({found.low:+.3g} to {found.high:+.3g})"
    return f"{found.value:+.3g}{interval}, {found.count} pair{'s' * (found.count != 1)}"
