# SPDX-License-Identifier: Apache-2.0
"""How often drift rules cry wolf, how long a real shift takes them, and what a check costs.

50 nodes, 10 of them in each check, 200 new rows a node; each node's columns are normal about means
of its own (standard deviation 0, 0.3 or 1). Every rule sees the same rows: ours by way of the
nodes' summaries, the others with all rows in one place, against all nodes' reference rows, as they
are meant to be used. A false alarm is a check that asks for retraining when nothing moved; a delay
is the median number of checks after a shift.

``worlds`` has the same for data as cameras make them: batches that differ, weather, slow changes,
other distributions, nodes that come and go. Baselines are batches, too. Each has 1,000 checks, 200
from each of five seeds, and three delays for 0.5 standard deviations more in all columns of all
nodes after 100 checks. ``--worlds`` runs these alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from scipy.stats import ks_2samp, kstwo

from benchmarks.table import Row, parser, report
from fl_app.client.summary.reference import Reference, new_reference
from fl_app.retraining.drift.check import DriftSettings, check
from fl_app.retraining.drift.state import DriftState
from fl_app.wire.data_summary import DataSummary, read_summary

NODES, TAKING_PART, ROWS, BASELINE = 50, 10, 200, 1000
INTERVAL = 300.0
NEVER, REPEATS = 999, 11
NO_SEASON, SEASON = DriftSettings(season=None), DriftSettings()
RNG = np.random.default_rng(0)
NOTHING = np.array([], np.uint64)


@dataclass(frozen=True)
class Shift:
    """A change of the mean of the first features, from a check on, on some nodes.

    Attributes
    ----------
    size : float
        In standard deviations.
    share : float
        Of the nodes.
    """

    size: float = 0.0
    features: int = 1
    share: float = 1.0
    begin: int = 0


class Federation:
    """Nodes whose references grow, and the rows they draw."""

    def __init__(self, seed: int, features: int, means: float, *, cycle: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.means = means * self.rng.standard_normal((NODES, features))
        self.cycle = cycle
        days = [cycle * np.sin(2 * np.pi * self.rng.random((BASELINE, 1))) for _ in range(NODES)]
        first = [self.draw(node, BASELINE, moved) for node, moved in enumerate(days)]
        self.pooled = np.sort(np.concatenate(first), axis=0)
        nothing = np.array([], np.uint64)
        self.references: list[Reference] = [
            new_reference("", named(rows), nothing) for rows in first
        ]

    def draw(self, node: int, rows: int, moved: float | np.ndarray = 0.0) -> np.ndarray:
        """New rows of a node, shape (rows, features)."""
        shape = (rows, self.means.shape[1])
        return self.means[node] + moved + self.rng.standard_normal(shape)

    def summary(self, node: int, rows: np.ndarray, *, hold: bool) -> dict[str, object]:
        """What the node sends of its new rows."""
        reference = self.references[node].settled(hold=hold)
        reference = reference.with_rows(named(rows), np.array([], np.uint64))
        self.references[node], summary = reference.summarised(str(node), RNG)
        return dict(summary.to_record())


def named(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Columns by name."""
    return {f"x{i}": column for i, column in enumerate(np.ascontiguousarray(rows.T))}


def peers_say(rows: np.ndarray, pooled: np.ndarray) -> dict[str, bool]:
    """What the peers say of one check; both arrays of shape (rows, features), ``pooled`` sorted."""
    n, m = len(rows), len(pooled)
    p, psi, wasserstein = [], [], []
    for column, past in zip(np.sort(rows, axis=0).T, np.ascontiguousarray(pooled.T), strict=True):
        place = np.searchsorted(past, column, "right") / m
        left = np.searchsorted(past, column, "left") / m
        d = max((np.arange(1, n + 1) / n - place).max(), (left - np.arange(n) / n).max())
        p.append(kstwo.sf(d, round(n * m / (n + m))))
        now = np.diff(
            np.searchsorted(column, past[np.arange(1, 10) * m // 10]), prepend=0, append=n
        )
        share = np.maximum(now / n, 1e-4)
        psi.append(((share - 0.1) * np.log(share / 0.1)).sum())
        quantiles = past[((np.arange(n) + 0.5) / n * m).astype(int)]
        wasserstein.append(np.abs(column - quantiles).mean() / past.std())
    ps = np.array(p)
    return {
        "guide: any p < 0.05": bool((ps < 0.05).any()),
        "Bonferroni": bool((ps < 0.05 / len(ps)).any()),
        "Evidently: half of W1 >= 0.1": bool((np.array(wasserstein) >= 0.1).mean() >= 0.5),
        "any PSI >= 0.2": bool((np.array(psi) >= 0.2).any()),
    }


def alarms(
    federation: Federation,
    checks: int,
    settings: DriftSettings,
    *,
    shift: Shift | None = None,
    rows: int = ROWS,
    peers: bool = True,
    stop: bool = False,
) -> dict[str, list[int]]:
    """Checks in which each rule asks; ours as the server would run it."""
    shift = shift or Shift()
    moving = federation.rng.permutation(NODES)[: round(NODES * shift.share)]
    found: dict[str, list[int]] = {"ours": []}
    state = DriftState()
    for number in range(checks):
        records, drawn = {}, []
        for node in federation.rng.permutation(NODES)[:TAKING_PART].tolist():
            moved = np.full(
                federation.means.shape[1], federation.cycle * np.sin(2 * np.pi * number / 288)
            )
            if number >= shift.begin and node in moving:
                moved[: shift.features] += shift.size
            drawn.append(federation.draw(node, rows, moved))
            records[node] = federation.summary(node, drawn[-1], hold=state.hold)
        summaries = [read_summary(record, str(node)) for node, record in records.items()]
        state, verdict = check(state, summaries, number * INTERVAL, settings)
        said = peers_say(np.concatenate(drawn), federation.pooled) if peers else {}
        said["ours"] = verdict is not None and verdict.is_alarm
        for name, rings in said.items():
            found.setdefault(name, []).extend([number] if rings else [])
        if stop and said["ours"] and number >= shift.begin:
            break
    return found


def false_alarms(checks: int = 1000) -> Iterator[Row]:
    """No drift at all, with more and more features and differing nodes."""
    for features in (3, 10, 100):
        for means in (0.0, 0.3, 1.0):
            label = f"false alarms in {checks:,} checks, {features} features, means {means:g} sd"
            found = alarms(Federation(1, features, means), checks, NO_SEASON)
            yield from row(label, {name: len(rung) for name, rung in found.items()}, 0)


def delays() -> Iterator[Row]:
    """Checks from a shift to the alarm, with nodes whose means differ by 0.3 sd."""
    kinds = {
        "+0.2 sd in one of 10 features": (Shift(0.2, begin=20), 5),
        "+0.5 sd in one of 10 features on 20 % of the nodes": (Shift(0.5, share=0.2, begin=20), 3),
        "+0.5 sd in 10 of 10 features on 20 % of the nodes": (Shift(0.5, 10, 0.2, 20), 3),
    }
    for label, (shift, goal) in kinds.items():
        late = [
            delay(alarms(Federation(10 + seed, 10, 0.3), 60, NO_SEASON, shift=shift), shift)
            for seed in range(REPEATS)
        ]
        yield from row(f"delay in checks without a season, {label}", medians(late), goal)
        later = replace(shift, begin=300)
        late = []
        for seed in range(3):
            nodes = Federation(10 + seed, 10, 0.3)
            late.append(
                delay(alarms(nodes, 800, SEASON, shift=later, peers=False, stop=True), later)
            )
        yield from row(f"delay in checks with a season of 24 h, {label}", medians(late), None)


def delay(found: dict[str, list[int]], shift: Shift) -> dict[str, int]:
    """Checks from the shift to each rule's first alarm after it, both counted."""
    begin = shift.begin
    return {
        name: next((number - begin + 1 for number in rung if number >= begin), NEVER)
        for name, rung in found.items()
    }


def medians(late: Sequence[dict[str, int]]) -> dict[str, float]:
    """The median of each rule."""
    return {name: statistics.median(one[name] for one in late) for name in late[0]}


def quiet() -> Iterator[Row]:
    """Shifts that are none, or too small to matter."""
    tiny = Shift(0.02, features=10)
    found = alarms(Federation(3, 10, 0.0), 200, NO_SEASON, shift=tiny, rows=5000)
    label = "false alarms in 200 checks, a shift of 0.02 sd at 50,000 rows a check"
    yield from row(label, {name: len(rung) for name, rung in found.items()}, 0)
    found = alarms(Federation(4, 5, 0.3, cycle=0.3), 2880, SEASON)
    label = "false alarms in 10 days, a daily cycle of 0.3 sd, season of 24 h"
    yield from row(label, {name: len(rung) for name, rung in found.items()}, 0)


@dataclass(frozen=True)
class World:
    """How data vary although nothing moves.

    Attributes
    ----------
    batch : float
        Standard deviation of each batch's mean, in those of the rows.
    weather : float
        That of what all nodes share in a check.
    slow : float
        That of the nodes' means, which follow an autoregression with 0.95 from check to check.
    churn : float
        Share of checks in which a node is replaced by a new one.
    draw : Callable
        Rows of a shape about a mean of 0.
    """

    batch: float = 0.0
    weather: float = 0.0
    slow: float = 0.0
    churn: float = 0.0
    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray] = lambda rng, shape: (
        rng.standard_normal(shape)
    )
    rounded: bool = False


WORLDS = {
    "independent rows": World(),
    "batch effects of 0.1 sd": World(batch=0.1),
    "batch effects of 0.4 sd": World(batch=0.4),
    "common weather of 0.2 sd": World(weather=0.2),
    "node means AR 0.95, 0.3 sd": World(slow=0.3),
    "Cauchy": World(draw=lambda rng, shape: rng.standard_cauchy(shape)),
    "ordinal, five levels": World(rounded=True),
    "churn, a new node in every second check": World(churn=0.5),
}
CORRELATION = 0.95


class Fleet:
    """Nodes in a world; 10 of 50 take part in a check."""

    def __init__(self, world: World, seed: int, columns: int = 4) -> None:
        self.world, self.rng = world, np.random.default_rng(seed)
        self.means = 0.3 * self.rng.standard_normal((NODES, columns))
        self.slow = world.slow * self.rng.standard_normal((NODES, columns))
        self.weather = world.weather * self.rng.standard_normal(columns)
        self.references = [self.first(node) for node in range(NODES)]

    def first(self, node: int, moved: float = 0.0) -> Reference:
        """A reference of one batch."""
        return new_reference("", named(self.draw(node, BASELINE, moved)), NOTHING)

    def draw(self, node: int, rows: int, moved: float) -> np.ndarray:
        """A batch of rows, shape (rows, columns)."""
        world, columns = self.world, self.means.shape[1]
        mean = self.means[node] + self.slow[node] + self.weather + moved
        mean = mean + world.batch * self.rng.standard_normal(columns)
        values = mean + world.draw(self.rng, (rows, columns))
        return np.clip(np.round(values), -2, 2) if world.rounded else values

    def check(self, moved: float, *, hold: bool) -> list[DataSummary]:
        """The summaries of the next check."""
        world, summaries = self.world, []
        fresh = self.rng.standard_normal(self.slow.shape)
        self.slow = CORRELATION * self.slow + world.slow * np.sqrt(1 - CORRELATION**2) * fresh
        self.weather = world.weather * self.rng.standard_normal(len(self.weather))
        if self.rng.random() < world.churn:
            new = int(self.rng.integers(NODES))
            self.means[new] = 0.3 * self.rng.standard_normal(len(self.weather))
            self.references[new] = self.first(new, moved)
        for node in self.rng.permutation(NODES)[:TAKING_PART].tolist():
            rows = named(self.draw(node, ROWS, moved))
            reference = self.references[node].settled(hold=hold).with_rows(rows, NOTHING)
            self.references[node], summary = reference.summarised(str(node), self.rng)
            summaries.append(summary)
        return summaries


def worlds() -> Iterator[Row]:
    """False alarms and delays where rows are not independent, or not normal."""
    for name, world in WORLDS.items():
        alarms = sum(len(rings(world, seed, 200)) for seed in range(5))
        label = f"false alarms in 1,000 checks, 5 seeds, without a season: {name}"
        yield from row(label, {"ours": alarms}, 0)
        late = []
        for seed in range(10, 13):
            rung = rings(world, seed, 160, begin=100)
            late.append(rung[0] - 99 if rung and rung[0] >= 100 else NEVER)
        label = f"delay in checks after 100 quiet ones, +0.5 sd on all nodes: {name}"
        yield from row(label, {"ours": statistics.median(late)}, None)


def rings(world: World, seed: int, checks: int, begin: int | None = None) -> list[int]:
    """Checks with an alarm; from ``begin`` on all data have moved, and the first alarm ends it."""
    fleet, state, found = Fleet(world, seed), DriftState(), []
    for number in range(checks):
        moved = 0.5 if begin is not None and number >= begin else 0.0
        summaries = fleet.check(moved, hold=state.hold)
        state, result = check(state, summaries, number * INTERVAL, NO_SEASON)
        if result is not None and result.is_alarm:
            found.append(number)
            if begin is not None:
                break
    return found


def speed(rows: int = 10_000, features: int = 100) -> Iterator[Row]:
    """A node's summary and the server's check, against a loop over `ks_2samp`, in turn."""
    rng = np.random.default_rng(5)
    past, now = rng.standard_normal((2, rows, features))
    nothing = np.array([], np.uint64)
    reference = new_reference("", named(past), nothing)
    seconds: dict[str, list[float]] = {"ours": [], "loop over scipy.stats.ks_2samp": []}
    for _ in range(5):
        begun = time.perf_counter()
        _, sent = reference.with_rows(named(now), nothing).summarised("1", RNG)
        check(DriftState(), [read_summary(sent.to_record(), "1")], 0.0, SEASON)
        ours = time.perf_counter()
        for column in range(features):
            ks_2samp(now[:, column], past[:, column])
        seconds["ours"].append(ours - begun)
        seconds["loop over scipy.stats.ks_2samp"].append(time.perf_counter() - ours)
    ms = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    mine, peer = ms.values()
    label = f"ms for {rows:,} rows x {features} features: summary, wire and check"
    yield from row(label, ms, 20, ratio=peer / mine, met=peer >= 20 * mine)


def row(
    label: str,
    values: dict[str, float],
    goal: float | None,
    *,
    ratio: float | None = None,
    met: bool | None = None,
) -> Iterator[Row]:
    """A row and below it all values; unless told, met if ours is at most ``goal``."""
    mine, peer = values["ours"], next((name for name in values if name != "ours"), None)
    if met is None and goal is not None:
        met = mine <= goal
    yield Row(label, mine, peer, values.get(peer or ""), goal, ratio=ratio, met=met)
    for name, value in values.items():
        print(f"  {name:32} {value:8.4g}", flush=True)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    arguments = parser(__doc__)
    arguments.add_argument("--worlds", action="store_true", help="only these")
    given = arguments.parse_args()
    parts = (worlds,) if given.worlds else (speed, delays, quiet, false_alarms, worlds)
    report(chain.from_iterable(part() for part in parts), given.json)


if __name__ == "__main__":
    main()
