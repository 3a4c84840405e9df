# SPDX-License-Identifier: Apache-2.0
"""The scores of a session: of its rounds, and of the registered versions that they must beat."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from flwr.app import ArrayRecord, MetricRecord

from fl_app.strategy.checkpoints.arrays_file import load_round
from fl_app.strategy.checkpoints.record import Checkpoint
from fl_app.strategy.checkpoints.round_store import RoundStore
from fl_app.strategy.errors import CheckpointError
from fl_app.strategy.finish.evaluation import EvaluateFn, Scored, ScoredRecord, evaluate, scored_by
from fl_app.strategy.finish.provenance import read_node_scores
from fl_app.strategy.finish.score_sources import metric_source, registered_score
from fl_app.strategy.records import CLIENTS, TRAINING
from fl_app.wire.arrays import Schema, difference, schema_of
from fl_registry import ModelStore


class Scores:
    """Takes each score once a session.

    Parameters
    ----------
    store : ModelStore
        Registry of the versions.
    rounds : RoundStore
        The session's rounds.
    evaluate_fn : EvaluateFn | None
        Scores the holdout.
    schema : Schema
        The arrays of the session's model; empty until a server without a model has one.
    metric, mode : str | None, "max" | "min"
        The metric that is compared, and whether more or less of it is better.

    Attributes
    ----------
    central : dict[int, MetricRecord]
        What ``evaluate_fn`` returned, by round.
    """

    def __init__(  # noqa: PLR0917
        self,
        store: ModelStore,
        rounds: RoundStore,
        evaluate_fn: EvaluateFn | None,
        schema: Schema,
        metric: str | None,
        mode: Literal["max", "min"],
    ) -> None:
        record = rounds.folder.record
        self.evaluate_fn = evaluate_fn
        self.schema = schema
        self.source = metric_source(metric, record.source)
        self.is_central = record.source != CLIENTS
        self.by_nodes = self.source in (CLIENTS, TRAINING)
        self.central: dict[int, MetricRecord] = {}
        self._store = store
        self._rounds = rounds
        self._metric, self._mode = metric, mode
        self._of_rounds: dict[int, Scored] = {}
        self._of_versions: dict[str, Scored] = {}
        self._differs: dict[str, str] = {}
        self._saved: set[int] = set()

    def of_round(self, waiting: Checkpoint) -> Scored:
        """Return the score of a closed round on the holdout, evaluated now if it is not on disk."""
        number = waiting.closed.round
        if number not in self._of_rounds:
            record, whole = self._rounds.files.score(number)
            if whole or self.evaluate_fn is None:
                scored = scored_by(record)
            else:
                scored = evaluate(self.evaluate_fn, number, self._rounds.arrays_of(waiting))
            self._of_rounds[number] = scored
            if scored.record is not None:
                self.central[number] = scored.record
        return self._of_rounds[number]

    def forget_round(self, number: int) -> None:
        """Drop the score of a round that is finished, with its results per example."""
        self._of_rounds.pop(number, None)

    def save(self) -> None:
        """Write the scores of waiting rounds to disk, as far as there is room."""
        with suppress(CheckpointError):
            for number in self._of_rounds.keys() - self._saved:
                record = self._of_rounds[number].record
                if record is not None:
                    whole = not isinstance(record, ScoredRecord)
                    self._rounds.files.save_score(number, record, whole=whole)
                self._saved.add(number)

    def add(self, version: str, scored: Scored) -> None:
        """Use this score of a registered version, which is not evaluated again."""
        if not scored.nodes:
            nodes = read_node_scores(self._store.get_version(version).tags)
            scored = replace(scored, nodes=nodes)
        self._of_versions[version] = scored

    def arrays_of(self, version: str) -> ArrayRecord:
        """Return the arrays of a registered version."""
        arrays = load_round(self._store.weights_path(version))
        if self.schema:
            self._differs[version] = difference(schema_of(arrays), self.schema)
        return arrays

    def of_version(self, version: str | None) -> Scored | None:
        """Return the score of a registered version that is compared with the session's rounds.

        It is taken on the same holdout, or by the nodes before round 1. If neither is possible,
        the score that it was registered with is used, if it is of the same source. None if there
        is no such version.
        """
        if version is None:
            return None
        if version not in self._of_versions:
            self.add(version, self._score(version))
        return self._of_versions[version]

    def better(self, best: Scored | None, version: str | None) -> Scored | None:
        """Return the better score: the session's best so far, or that of another's version."""
        if self._metric is None or version is None or not self.schema:
            return best
        if self._store.get_version(version).run_id == self._rounds.folder.record.run_id:
            return best
        scored = self.of_version(version)
        theirs = math.nan if scored is None else scored.metrics.get(self._metric, math.nan)
        ours = math.nan if best is None else best.metrics.get(self._metric, math.nan)
        beats = theirs > ours if self._mode == "max" else theirs < ours
        return scored if math.isfinite(theirs) and (beats or not math.isfinite(ours)) else best

    def _score(self, version: str) -> Scored:
        # The arrays were read already if the nodes were to evaluate the version.
        evaluates = self.evaluate_fn is not None and not self.by_nodes
        arrays = None
        if evaluates or version not in self._differs:
            arrays = self.arrays_of(version)
        differs, scored, record = self._differs.get(version, ""), Scored({}), None
        if self.source == CLIENTS:
            record = self._store.get_version(version)
            if record.run_id == self._rounds.folder.record.run_id:
                scored = Scored(record.metrics)  # the nodes evaluated it in its round
            why = "no node evaluated it in this session"
        elif arrays is None or not evaluates or differs:
            why = "it is not evaluated in this session"
        else:
            scored = evaluate(self.evaluate_fn, 0, arrays)
            why = f"evaluate_fn returned no {self._metric} for it"
        if self._metric is not None and self._metric not in scored.metrics:
            why = f"its arrays are not this session's: {differs}" if differs else why
            record = record or self._store.get_version(version)
            scored = registered_score(record, self._metric, self.source, why)
        return scored
