"""python -m experiments.rating.intervals: how often intervals and tests of simulated preferences are wrong.

Of studies without an effect (34.5 % wins, 31 % ties) the share that shows one, and of studies of 60 % wins, 21 % ties
and 19 % losses the share whose interval holds the truth; answers deviate as in `power`. Prints a table in Markdown.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from experiments.metrics.estimates import Estimate, sign_test, two_way
from experiments.rating.power import Design, dealt, preference, preferred
from experiments.rating.statistics import pigeonhole, share

DESIGNS = (Design(30, 10, 5), Design(50, 20, 5), Design(50, 20, 20), Design(100, 20, 5), Design(150, 20, 5))


@dataclass(frozen=True)
class Study:
    """Answers 1, 0, -1 for the first, neither and the second, with their prompts and raters."""

    answers: np.ndarray
    prompts: list[int]
    raters: list[int]


def simulated(design: Design, win: float, loss: float, studies: int, seed: int = 0) -> Iterator[Study]:
    """Yields studies of one plan with these shares of wins and losses."""
    rng, model = np.random.default_rng(seed), preference()
    effect = preferred(win, loss, model.spread)
    p, r = dealt(design, seed)
    for _ in range(studies):
        deviations = model.prompt * rng.normal(size=design.prompts)[p] + model.rater * rng.normal(size=design.raters)[r]
        yield Study(effect(deviations + model.own * rng.normal(size=len(p))), p.tolist(), r.tolist())


def holds(found: Estimate, truth: float) -> bool:
    assert found.low is not None and found.high is not None
    return found.low <= truth <= found.high


def sign_p(answers: np.ndarray) -> float:
    return sign_test(int((answers > 0).sum()), int((answers < 0).sum()))


Analyses = dict[str, Callable[[Study], bool]]
ALARMS: Analyses = {  # whether an effect is shown
    "two-way": lambda s: not holds(two_way(s.answers, s.prompts, s.raters), 0),
    "pigeonhole": lambda s: not holds(pigeonhole(s.answers, s.prompts, s.raters, resamples=400), 0),
    "sign test, prompts": lambda s: sign_p(np.bincount(s.prompts, s.answers)) < 0.05,  # of their majorities
    "sign test, answers": lambda s: sign_p(s.answers) < 0.05,
}
COVERED: Analyses = {  # whether the interval holds the truth of 60 % wins and 19 % losses
    "net, two-way": lambda s: holds(two_way(s.answers, s.prompts, s.raters), 0.41),
    "net, pigeonhole": lambda s: holds(pigeonhole(s.answers, s.prompts, s.raters, resamples=400), 0.41),
    "share of wins": lambda s: holds(share(s.answers > 0, s.prompts, s.raters), 0.6),
}


def rates(analyses: Analyses, studies: Iterable[Study]) -> dict[str, float]:
    """Returns the share of the studies for which each analysis says so."""
    found = [[analysis(study) for analysis in analyses.values()] for study in studies]
    return dict(zip(analyses, np.mean(found, axis=0).tolist(), strict=True))


def main(studies: int) -> None:
    print(f"| {' | '.join(['prompts x raters, answers to each', *ALARMS, *COVERED])} |")
    print("| --- |" + " ---: |" * (len(ALARMS) + len(COVERED)))
    for design in DESIGNS:
        alarms = rates(ALARMS, simulated(design, 0.345, 0.345, studies))
        covered = rates(COVERED, simulated(design, 0.6, 0.19, studies))
        print(f"| {design} | " + " | ".join(f"{100 * v:.1f}" for v in (*alarms.values(), *covered.values())) + " |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
