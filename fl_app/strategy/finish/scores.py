# SPDX-License-Identifier: Apache-2.0
"""The scores of a session: of its rounds, and of the registered versions that they must beat."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fl_app.strategy.checkpoints.record import Checkpoint
from fl_app.strategy.checkpoints.round_store import RoundStore, load_array_record
from fl_app.strategy.finish.evaluation import (
    EvaluateFn,
    metric_source,
    missing_metric,
    plain_metrics,
    registered_score,
    scored_by,
)
from fl_app.strategy.records import CLIENTS, TRAINING, Scored
from fl_app.strategy.round.inner_strategy import random_states_restored, snapshot
from fl_app.strategy.round.state import ClosedRound, node_scores
from fl_app.strategy.setup import Setup
from fl_app.strategy.shadow.messages import NodeEvaluation, carries, with_arrays
from fl_app.versions.tags import read_node_scores
from fl_app.wire.arrays import difference, fits, schema_of, viewed
from fl_registry import Evidence, Gone, RegistryError, Stage, UnknownVersion

logger = logging.getLogger("flwr.fl_app")


class Scores:
    """Takes each score once a session.

    Parameters
    ----------
    setup : Setup
        What the user gave: the registry, and the metric that is compared.
    rounds : RoundStore
        The session's rounds.
    evaluate_fn : EvaluateFn | None
        Scores the holdout.

    Attributes
    ----------
    schema : Schema
        The arrays of the session's model; empty until a server without a model has one.
    central : dict[int, MetricRecord]
        What ``evaluate_fn`` returned, by round.
    reported : bool
        Whether a round has reported the metric.
    computing : bool
        Whether ``evaluate_fn`` runs at the moment.
    """

    def __init__(self, setup: Setup, rounds: RoundStore, evaluate_fn: EvaluateFn | None) -> None:
        record = rounds.folder.record
        self.evaluate_fn = evaluate_fn
        self.schema = schema_of(rounds.newest_arrays)
        self.source = metric_source(setup.metric, record.source)
        self.is_central = record.source != CLIENTS
        self.by_nodes = self.source in (CLIENTS, TRAINING)
        self.central: dict[int, MetricRecord] = {}
        self.reported = self.computing = False
        self._setup, self._store, self._rounds = setup, setup.store, rounds
        self._of_rounds: dict[int, Scored] = {}
        self._of_versions: dict[str, Scored] = {}

    def before_first_round(self, nodes: NodeEvaluation, staging: str | None) -> Scored | None:
        """Score what the session starts with, and what it must beat: Production and ``staging``.

        Returns
        -------
        Scored | None
            The score of the version in Staging, which is the best so far; None if there is none.
        """
        metric, monitor, folder = self._setup.metric, self._setup.monitor, self._rounds.folder
        parent = folder.record.origin.parent_version
        first = self.evaluate(0, self._rounds.newest_arrays)
        if self.is_central:
            logger.info("Initial global evaluation results: %s", first.record)
        if first.record is not None:
            self.central[0] = first.record
        if first.metrics:
            if metric is not None and not self.by_nodes and metric not in first.metrics:
                raise missing_metric(metric, first.metrics)
            if parent is not None:
                self.add(parent, first)
        start = best = None
        with random_states_restored():
            baselines = self._by_nodes(nodes, parent, staging)
            for version, scored in baselines.items():
                self.add(version, scored)
            if self.schema:  # without a model yet, versions are compared after the first round
                start, best = self.of_version(parent), self.of_version(staging)
                self._compare_production()
        if best is not None and staging is not None:
            baselines[staging] = best
        metrics = first.metrics or (start.metrics if start is not None and not start.note else {})
        score = metrics.get(metric or "") if self.schema else None
        if monitor is not None and parent is not None and score is not None:
            monitor.start_from(parent, score)
        plain = {
            version: Scored(dict(scored.metrics), nodes=dict(scored.nodes), note=scored.note)
            for version, scored in baselines.items()
        }
        folder.note(first_metrics=dict(metrics), staging=staging, baselines=plain)
        return best

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> Scored:
        """Score arrays on the server's holdout."""
        if self.evaluate_fn is None:
            return Scored({})
        self.computing = True
        try:
            return scored_by(self.evaluate_fn(server_round, viewed(arrays)))
        finally:
            self.computing = False

    def of_round(self, waiting: Checkpoint) -> Scored:
        """Return the score of a closed round on the holdout, or the one that is on disk."""
        number = waiting.closed.round
        if number not in self._of_rounds:
            scored = scored_by(waiting.closed.central)
            if self.evaluate_fn is not None:  # the record on disk has no results per example
                scored = self.evaluate(number, self._rounds.arrays_of(waiting))
            self._of_rounds[number] = scored
            if scored.record is not None:
                self.central[number] = scored.record
        return self._of_rounds[number]

    def evidence(self, closed: ClosedRound, holdout: Scored, best: Scored | None) -> Evidence:
        """Return the evidence for gates on a round, with all its metrics.

        The version in Production is scored on the same data. Nodes are paired if both models had
        the same data there.

        Raises
        ------
        MetricError
            If the metric that gates look at is missing; the error names those that there are.
        """
        metric, nodes, champion = self._setup.metric or "", closed.node_scores, None
        if self._setup.policy:
            champion = self.of_version(self._store.get_latest_version(Stage.PRODUCTION))
        old = champion or Scored({})
        return Evidence(
            metrics=self._metrics_of(closed, holdout),
            champion=champion.metrics if champion is not None else None,
            champion_note=old.note,
            best=best.metrics if best is not None else None,
            best_note=best.note if best is not None else "",
            results=holdout.results,
            champion_results=old.results,
            nodes={n.node_id: {metric: n.score} for n in nodes},
            champion_nodes={
                n.node_id: {metric: old.nodes[n.key]} for n in nodes if n.key in old.nodes
            },
            looks=self._rounds.folder.record.num_rounds,
        )

    def _metrics_of(self, closed: ClosedRound, holdout: Scored) -> dict[str, float]:
        """Return all metrics of a round; each name has the same source in every round.

        Those of local training are named ``train/…``. In a session with an ``evaluate_fn`` its
        metrics have plain names and the clients' are ``client/…``, also in rounds in which it
        returns nothing. In one without, the clients' weighted metrics have the plain names.

        The metric that gates look at is NaN, which stages nothing, if it was reported before, if
        all values of it were rejected, and until the first evaluate reply is accepted. If it is
        missing otherwise, this raises MetricError.
        """
        metric, first = self._setup.metric, self._rounds.folder.record.first_metrics
        clients = plain_metrics(closed.clients, prefix="client/" if self.is_central else "")
        metrics = plain_metrics(closed.train, prefix="train/") | clients | dict(holdout.metrics)
        if metric is None or not (self.by_nodes or holdout.metrics):
            return metrics
        known = self.reported or metric in (first or {})
        rejected = self.by_nodes and bool(closed.unscored)
        self.reported |= metric in metrics or rejected
        if metric not in metrics:
            if rejected:
                logger.warning("round %d has no %s: %s", closed.round, metric, closed.unscored)
            elif not known and (self.source != CLIENTS or closed.clients is not None):
                raise missing_metric(metric, metrics, closed if self.by_nodes else None)
            metrics[metric] = math.nan
        return metrics

    def forget_round(self, number: int) -> None:
        """Drop the score of a round that is finished, with its results per example."""
        self._of_rounds.pop(number, None)

    def add(self, version: str, scored: Scored) -> None:
        """Use this score of a registered version, which is not evaluated again."""
        if not scored.nodes:
            nodes = read_node_scores(self._store.get_version(version).tags)
            scored = replace(scored, nodes=nodes)
        self._of_versions[version] = scored

    def of_version(self, version: str | None) -> Scored | None:
        """Return the score of a registered version that is compared with the session's rounds.

        It is taken on the same holdout, or by the nodes before round 1. If neither is possible,
        the score that it was registered with is used, if it is of the same source. None if there
        is no such version, or if somebody has deleted it.

        Raises
        ------
        Gone
            The version in Production was deleted in MLflow.
        """
        if version is None:
            return None
        if version not in self._of_versions:
            if self._is_deleted(version):
                return None
            self._of_versions[version] = self._score(version)
        return self._of_versions[version]

    def _is_deleted(self, version: str) -> bool:
        """Whether somebody has deleted a version in MLflow, but for the one in Production."""
        try:
            self._store.get_version(version)
        except (Gone, UnknownVersion) as error:
            if version == self._store.get_latest_version(Stage.PRODUCTION):
                raise  # nothing else says how good a model has to be
            logger.warning("version %s is not compared: %s", version, error)
            return True
        return False

    def better(self, best: Scored | None, version: str | None) -> Scored | None:
        """Return the better score: the session's best so far, or that of another's version."""
        metric = self._setup.metric
        if metric is None or version is None or not self.schema or self._is_deleted(version):
            return best
        if self._store.get_version(version).run_id == self._rounds.folder.record.run_id:
            return best
        scored = self.of_version(version) or Scored({})
        theirs = scored.metrics.get(metric, math.nan)
        ours = math.nan if best is None else best.metrics.get(metric, math.nan)
        beats = theirs > ours if self._setup.mode == "max" else theirs < ours
        return scored if math.isfinite(theirs) and (beats or not math.isfinite(ours)) else best

    def _score(self, version: str) -> Scored:
        metric, scored, record = self._setup.metric, Scored({}), self._store.get_version(version)
        path = self._store.weights_path(version)
        arrays, differs = load_array_record(path), self._setup.model.other_classes(path)
        if self.schema and not differs:
            differs = difference(schema_of(arrays), self.schema)
        if self.source == CLIENTS:
            if record.run_id == self._rounds.folder.record.run_id:
                scored = Scored(record.metrics)  # the nodes evaluated it in its round
            why = "no node evaluated it in this session"
        elif self.evaluate_fn is None or self.by_nodes or differs:
            why = "it is not evaluated in this session"
        else:
            scored = self.evaluate(0, arrays)
            why = f"evaluate_fn returned no {metric} for it"
        if metric is not None and metric not in scored.metrics:
            why = f"it is not this session's model: {differs}" if differs else why
            scored = registered_score(record, metric, self.source, why)
        return replace(scored, nodes=read_node_scores(record.tags))

    def _by_nodes(
        self, nodes: NodeEvaluation, parent: str | None, staging: str | None
    ) -> dict[str, Scored]:
        """Have the nodes evaluate these versions and Production, if scores are theirs.

        The inner strategy samples the nodes, once for all versions, and averages the metrics, as in
        any round. Its state and the session's config are restored afterwards. Versions for which no
        node reports the metric are left out.
        """
        metric, prefix = self._setup.metric, "client/" if self.is_central else ""
        if metric is None or self.source != CLIENTS:
            return {}
        models: dict[str, ArrayRecord] = {}
        compared = (parent, self._store.get_latest_version(Stage.PRODUCTION), staging)
        for version in filter(None, dict.fromkeys(compared)):
            if self._is_deleted(version):
                continue
            path = self._store.weights_path(version)
            arrays, other = load_array_record(path), self._setup.model.other_classes(path)
            if not other and (not self.schema or fits(arrays, self.schema)):
                models[version] = arrays
        if not models:
            return {}
        first, scores = next(iter(models.values())), dict[str, Scored]()
        # Strategies write into the config.
        nodes = replace(nodes, config=ConfigRecord(dict(nodes.config)))
        restore = snapshot(self._setup.strategy)
        try:
            messages = nodes.messages(first)
            if not all(carries(message, first) for message in messages):
                return {}  # other arrays than the model, which no other model can replace
            sent = {
                version: [with_arrays(message, first, arrays) for message in messages]
                for version, arrays in models.items()
            }
            replies = nodes.send([m for several in sent.values() for m in several])
            for version, several in sent.items():
                ids = {message.metadata.message_id for message in several}
                answers = [r for r in replies if r.metadata.reply_to_message_id in ids]
                record, screened = nodes.aggregate(answers, what=f"version {version}")
                metrics = plain_metrics(record, prefix=prefix)
                by_node = node_scores(screened.replies, metric.removeprefix(prefix))
                if metric in metrics:
                    scores[version] = Scored(metrics, nodes={n.key: n.score for n in by_node})
                    logger.info(
                        "before round 1: version %s has %s %.4f", version, metric, metrics[metric]
                    )
        finally:
            restore()
        return scores

    def _compare_production(self) -> None:
        """Report the scores of the version on probation and of the one before it to the watch.

        Nothing if there is no such version, or no holdout. A rival that cannot be scored is left
        out.
        """
        watch = self._setup.probation
        pair = None if watch is None else watch.to_compare()
        if watch is None or pair is None or self.evaluate_fn is None:
            return
        mine, theirs = map(self._fresh, pair)
        evidence = Evidence(
            metrics=mine.metrics,
            champion=theirs.metrics or None,
            results=mine.results,
            champion_results=theirs.results,
        )
        watch.update_production(pair[0], evidence, rival=pair[1])

    def _fresh(self, version: str | None) -> Scored:
        """Return a score that was taken now; a registered score says nothing about today."""
        try:
            scored = self.of_version(version)
        except RegistryError as error:
            logger.warning("version %s cannot be scored: %s", version, error)
            return Scored({})
        return Scored({}) if scored is None or scored.note else scored
