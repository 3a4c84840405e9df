# SPDX-License-Identifier: Apache-2.0
"""Nodes that draw rows and summarise them, for tests of the server's side of drift."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fl_app.client.summary.reference import Reference, count_rows, new_reference
from fl_app.retraining.drift.check import DriftSettings, check
from fl_app.retraining.drift.state import DriftCheck, DriftState
from fl_app.wire.data_summary import DataSummary

NO_SEASON = DriftSettings(season=None)
MINUTES = 300.0
NOTHING = np.array([], np.uint64)


class Nodes:
    """As many nodes, each with columns of normal values about means of its own."""

    def __init__(
        self,
        count: int = 4,
        columns: int = 4,
        *,
        means: float = 1.0,
        rows: int = 200,
        baseline: int = 600,
        seed: int = 0,
        variance: float = 0.0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.rows, self.count = rows, count
        self.means = means * self.rng.standard_normal((count, columns))
        self.references: list[Reference] = [
            new_reference(
                "",
                self.draw(node, baseline, 0.0),
                NOTHING,
                variance=variance,
                noise=self.rng,
            )
            for node in range(count)
        ]

    def draw(self, node: int, rows: int, moved: float | np.ndarray) -> dict[str, np.ndarray]:
        shape = (rows, self.means.shape[1])
        values = self.means[node] + moved + self.rng.standard_normal(shape)
        return {f"x{i}": column for i, column in enumerate(values.T)}

    def summaries(
        self, moved: float | np.ndarray = 0.0, *, share: float = 1.0, hold: bool = False
    ) -> list[DataSummary]:
        """Summaries of all nodes; the first ``share`` of them have moved."""
        summaries = []
        for node in range(self.count):
            columns = self.draw(node, self.rows, moved if node < share * self.count else 0.0)
            reference = self.references[node].settled(hold=hold).with_rows(columns, NOTHING)
            self.references[node], summary = reference.summarised(str(node), self.rng)
            summaries.append(summary)
        return summaries

    def bare(self, moved: float = 0.0, reference: str = "") -> list[DataSummary]:
        """Summaries of nodes without a disk, on the bins of the first node."""
        summaries = []
        for node in range(self.count):
            columns = self.references[0].columns
            counts = count_rows(columns, self.draw(node, self.rows, moved), 64)[:, None]
            features = tuple(f for column in columns for f in column.features)
            summaries.append(DataSummary(str(node), reference, features, counts, (0.0,)))
        return summaries


def run(
    nodes: Nodes,
    checks: int,
    settings: DriftSettings = NO_SEASON,
    *,
    moved: float | np.ndarray = 0.0,
    share: float = 1.0,
    begin: int = 0,
    state: DriftState | None = None,
    interval: float = MINUTES,
) -> tuple[DriftState, list[DriftCheck | None]]:
    """So many checks, with a shift from the check ``begin`` on; stops at the first alarm."""
    state, results = state or DriftState(), list[DriftCheck | None]()
    for number in range(checks):
        summaries = nodes.summaries(moved if number >= begin else 0.0, share=share, hold=state.hold)
        summaries = [replace(summary, reference=state.reference) for summary in summaries]
        time = interval * (number + state.checks - len(results))
        state, verdict = check(state, summaries, time, settings)
        results.append(verdict)
        if verdict is not None and verdict.is_alarm:
            break
    return state, results


def last_alarm(results: list[DriftCheck | None]) -> DriftCheck | None:
    """The alarm at the end, if there was one."""
    last = results[-1]
    return last if last is not None and last.is_alarm else None
