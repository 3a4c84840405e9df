# SPDX-License-Identifier: Apache-2.0
"""How often a probation rolls back without a reason, and how soon it does with one.

Reports of accuracy around 0.8 with noise. A false rollback is one in 1,000 reports without a fall;
a delay is the median number of reports after a fall of 0.2 (and the share found within 100). The
peer is the rule that an alarm on a metric has by default: one report below the level by 0.1.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.table import Row, parser, report
from fl_app.retraining import ProbationSettings, ProductionReport
from fl_app.retraining.probation.state import FEWEST, RECENT, Baseline, ProbationState
from fl_registry import Tenure

LEVEL, DROP, FALL = 0.8, 0.1, 0.2
TRIALS, LONG, AFTER = 1000, 1000, 100
NOISES = (0.02, 0.05, 0.1)
GOAL_FALSE, GOAL_DELAY = 10, 5
SETTINGS = ProbationSettings(drop=DROP)
STAYS = [
    Tenure(version, number, version, datetime(2026, 1, number, tzinfo=UTC), returned=False)
    for number, version in ((1, "1"), (2, "2"))
]


def baseline_of(reports: Sequence[float], *, own: bool) -> Baseline:
    """What the rule makes of reports: those under the version before, or the first own ones."""
    first = SETTINGS if own else ProbationSettings(watch=())  # version 1 is not what is judged
    state = ProbationState().follow(STAYS if own else STAYS[:1], first)
    for accuracy in reports:
        state = state.with_report(ProductionReport(float(accuracy)), STAYS[0].since, SETTINGS)
    trial = state.follow(STAYS, SETTINGS).trial
    if trial is None or trial.baseline is None:
        raise RuntimeError("The rule made no baseline of enough reports.")
    return trial.baseline


def first_rollback(reports: np.ndarray, limit: float, in_a_row: int) -> int:
    """Number of the report that rolls back, from 1; 0 if none does."""
    run = 0
    for number, low in enumerate(reports < limit, start=1):
        run = run + 1 if low else 0
        if run == in_a_row:
            return number
    return 0


def figures(noise: float, *, own: bool) -> dict[str, Any]:
    """False rollbacks per 1,000 probations, the delay and the share found, ours and the peer's."""
    random, count = np.random.default_rng(0), FEWEST if own else RECENT
    false, late = {"ours": 0, "peer": 0}, {"ours": list[int](), "peer": list[int]()}
    for _ in range(TRIALS):
        before = np.clip(random.normal(LEVEL, noise, count), 0, 1)
        baseline = baseline_of(before, own=own)
        quiet = np.clip(random.normal(LEVEL, noise, LONG), 0, 1)
        fallen = np.clip(random.normal(LEVEL - FALL, noise, AFTER), 0, 1)
        rules = {
            "ours": (baseline.limit, SETTINGS.in_a_row),
            "peer": (statistics.median(before) - DROP, 1),
        }
        for name, rule in rules.items():
            false[name] += bool(first_rollback(quiet, *rule))
            late[name].append(first_rollback(fallen, *rule))
    return {
        name: {
            "false": false[name] * 1000 / TRIALS,
            "delay": statistics.median([n for n in late[name] if n] or [AFTER]),
            "found": sum(map(bool, late[name])) / TRIALS,
        }
        for name in false
    }


def row(noise: float, *, own: bool) -> Iterator[Row]:
    """One row, and below it what is known of both."""
    found = figures(noise, own=own)
    whose = f"its own first {FEWEST}" if own else f"{RECENT} before"
    met = found["ours"]["false"] <= GOAL_FALSE and (
        noise > DROP / 2 or found["ours"]["delay"] <= GOAL_DELAY
    )
    name = f"false rollbacks per 1,000 probations, noise {noise:g}, baseline of {whose}"
    ours, peer = found["ours"]["false"], found["peer"]["false"]
    yield Row(name, ours, "one report below the level by the drop", peer, GOAL_FALSE, met=met)
    for side, label in (("ours", "three in a row (ours)"), ("peer", "one report below")):
        words = "{false:7.1f} false rollbacks / 1,000   delay {delay:g}, {found:.0%} found"
        print(f"  {label:24}{words.format(**found[side])}")


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    given = parser(__doc__).parse_args()
    report(
        (each for own in (False, True) for noise in NOISES for each in row(noise, own=own)),
        given.json,
    )


if __name__ == "__main__":
    main()
