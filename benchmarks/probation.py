# SPDX-License-Identifier: Apache-2.0
"""How often a probation rolls back without a reason, and how soon it does with one.

Reports of accuracy around 0.8. A false rollback is one in 1,000 reports without a fall; a delay is
the median number of reports after a fall of 0.2, of those that are found within 100. The noise is

- independent and normal, with some standard deviation;
- autoregressive, so that each report is like the one before: 0.8 of a deviation stays;
- of counts: each report is the share of right answers among 20 or 50 predictions.

The rule sees 20 or 100 reports before the promotion, or none, so that the version's own first 10
are its baseline. The peer is the rule that an alarm on a metric has by default: one report below
the level by 0.1.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np

from benchmarks.table import Row, parser, report
from fl_app.retraining import ProbationSettings, ProductionReport
from fl_app.retraining.probation.state import FEWEST, RECENT, ProbationState
from fl_registry import Tenure

LEVEL, DROP, FALL = 0.8, 0.1, 0.2
TRIALS, LONG, AFTER = 1000, 1000, 100
GOAL_FALSE, GOAL_DELAY = 10, 5
SETTINGS = ProbationSettings(drop=DROP)
STAYS = [
    Tenure(version, number, version, datetime(2026, 1, number, tzinfo=UTC), returned=False)
    for number, version in ((1, "1"), (2, "2"))
]
Random = np.random.Generator
Noise = Callable[[Random, float, int], np.ndarray]


def normal(deviation: float) -> Noise:
    """Reports that do not depend on each other."""
    return lambda random, level, count: np.clip(random.normal(level, deviation, count), 0, 1)


def alike(deviation: float, stays: float) -> Noise:
    """Reports of which each is like the one before."""

    def draw(random: Random, level: float, count: int) -> np.ndarray:
        new = random.normal(0, deviation * np.sqrt(1 - stays**2), count)
        values = [random.normal(0, deviation)]
        for step in new[1:]:
            values.append(stays * values[-1] + step)
        return np.clip(level + np.array(values), 0, 1)

    return draw


def counted(predictions: int) -> Noise:
    """Reports of few predictions, with the share of right ones."""
    return lambda random, level, count: random.binomial(predictions, level, count) / predictions


NOISES: dict[str, Noise] = {
    "noise 0.02": normal(0.02),
    "noise 0.05": normal(0.05),
    "noise 0.1": normal(0.1),
    "noise 0.02, AR 0.8": alike(0.02, 0.8),
    "noise 0.05, AR 0.5": alike(0.05, 0.5),
    "noise 0.05, AR 0.8": alike(0.05, 0.8),
    "20 predictions": counted(20),
    "50 predictions": counted(50),
}
DELAYS = {"noise 0.02", "noise 0.05", "50 predictions"}
"""For which the delay has a goal, if there are 100 reports before."""


def first_in_a_row(low: np.ndarray, in_a_row: int) -> int:
    """Number of the last of so many true values in a row, from 1; 0 if there are none."""
    run = 0
    for number, is_low in enumerate(low, start=1):
        run = run + 1 if is_low else 0
        if run == in_a_row:
            return number
    return 0


def on_probation(before: np.ndarray) -> ProbationState:
    """Version 2 on probation, after these reports on version 1."""
    state = ProbationState().follow(STAYS[:1], ProbationSettings(watch=()))
    return fed(state, before)[0].follow(STAYS, SETTINGS)


def fed(state: ProbationState, reports: np.ndarray) -> tuple[ProbationState, int]:
    """Give reports to the rule; return the number of the one that rolls back, 0 if none does."""
    for number, accuracy in enumerate(reports, start=1):
        trial = state.trial
        if trial is not None and trial.baseline is not None:
            learned = len(trial.before) + len(trial.own) >= RECENT
            if learned and not trial.in_a_row:  # the limit stays as it is
                rest = reports[number - 1 :] < trial.baseline.limit
                at = first_in_a_row(rest, SETTINGS.in_a_row)
                return state, at and number - 1 + at
        state = state.with_report(ProductionReport(float(accuracy)), STAYS[0].since, SETTINGS)
        if state.failure is not None:
            return state, number
    return state, 0


def figures(noise: Noise, before: int) -> dict[str, tuple[float, float, float]]:
    """False rollbacks per 1,000 probations, delay and share found, ours and the peer's."""
    random = np.random.default_rng(0)
    false, late = {"ours": 0, "peer": 0}, {"ours": list[int](), "peer": list[int]()}
    for _ in range(TRIALS):
        known = before or FEWEST
        drawn = noise(random, LEVEL, known + LONG)
        fallen = noise(random, LEVEL - FALL, AFTER)
        state, first = on_probation(drawn[:before]), drawn[before:known]
        state = fed(state, first)[0]
        level = statistics.median(drawn[:known]) - DROP
        false["ours"] += bool(fed(state, drawn[known:])[1])
        false["peer"] += bool((drawn[known:] < level).any())
        late["ours"].append(fed(state, fallen)[1])
        late["peer"].append(first_in_a_row(fallen < level, 1))
    return {
        name: (
            false[name] * 1000 / TRIALS,
            statistics.median([n for n in late[name] if n] or [AFTER]),
            sum(map(bool, late[name])) / TRIALS,
        )
        for name in false
    }


def row(name: str, before: int) -> Iterator[Row]:
    """One row, and below it what is known of both."""
    found = figures(NOISES[name], before)
    whose = f"{before} before" if before else f"its own first {FEWEST}"
    false, delay, share = found["ours"]
    late = name in DELAYS and before == RECENT and (delay > GOAL_DELAY or share < 1)
    title = f"false rollbacks per 1,000 probations, {name}, baseline of {whose}"
    peer = "one report below the level by the drop"
    met = false <= GOAL_FALSE and not late
    yield Row(title, false, peer, found["peer"][0], GOAL_FALSE, met=met)
    for side, label in (("ours", "three in a row (ours)"), ("peer", "one report below")):
        false, delay, share = found[side]
        print(f"  {label:24}{false:7.1f} / 1,000   delay {delay:g}, {share:.0%} found", flush=True)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    given = parser(__doc__).parse_args()
    report(
        (each for before in (RECENT, 20, 0) for name in NOISES for each in row(name, before)),
        given.json,
    )


if __name__ == "__main__":
    main()
