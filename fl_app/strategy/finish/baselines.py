# SPDX-License-Identifier: Apache-2.0
"""The scores before round 1: of what a session starts with, and of the versions it must beat."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord

from fl_app.strategy.checkpoints.record import Baseline
from fl_app.strategy.checkpoints.round_store import RoundStore
from fl_app.strategy.finish.evaluation import Scored, evaluate, missing_metric, plain_metrics
from fl_app.strategy.finish.scores import Scores
from fl_app.strategy.records import CLIENTS, ProductionWatch
from fl_app.strategy.round.inner_state import random_states_restored, snapshot
from fl_app.strategy.round.state import node_scores
from fl_app.strategy.setup import Setup
from fl_app.strategy.shadow.messages import NodeEvaluation, carries, with_arrays
from fl_app.wire.arrays import fits
from fl_registry import Evidence, RegistryError, Stage

logger = logging.getLogger("flwr.fl_app")


def score_before_first_round(
    setup: Setup,
    rounds: RoundStore,
    scores: Scores,
    nodes: NodeEvaluation,
    staging: str | None,
) -> Scored | None:
    """Score what the session starts with, and what it must beat: Production and ``staging``.

    Returns
    -------
    Scored | None
        The score of the version in Staging, which is the best so far; None if there is none.
    """
    metric, record = setup.metric, rounds.folder.record
    parent = record.origin.parent_version
    first = evaluate(scores.evaluate_fn, 0, rounds.newest_arrays)
    if scores.is_central:
        logger.info("Initial global evaluation results: %s", first.record)
    if first.record is not None:
        scores.central[0] = first.record
    if first.metrics:
        if metric is not None and not scores.by_nodes and metric not in first.metrics:
            raise missing_metric(metric, first.metrics)
        if parent is not None:
            scores.add(parent, first)
    with random_states_restored():
        baselines = _scored_by_nodes(setup, scores, nodes, [parent, staging])
        for version, scored in baselines.items():
            scores.add(version, scored)
        start = best = None
        if scores.schema:  # without a model yet, versions are compared after the first round
            start, best = scores.of_version(parent), scores.of_version(staging)
            _compare_production(setup.probation, scores)
    if best is not None and staging is not None:
        baselines[staging] = best
    metrics = first.metrics or (start.metrics if start is not None and not start.note else {})
    score = metrics.get(metric or "") if scores.schema else None
    if setup.monitor is not None and parent is not None and score is not None:
        setup.monitor.start_from(parent, score)
    rounds.folder.note(
        first_metrics=dict(metrics),
        staging=staging,
        baselines={
            version: Baseline(dict(scored.metrics), dict(scored.nodes), scored.note)
            for version, scored in baselines.items()
        },
    )
    return best


def _scored_by_nodes(
    setup: Setup, scores: Scores, nodes: NodeEvaluation, versions: list[str | None]
) -> dict[str, Scored]:
    """Have the nodes evaluate these versions and Production, if the session's scores are theirs."""
    metric = setup.metric
    if metric is None or scores.source != CLIENTS:
        return {}
    models = {}
    versions.insert(1, setup.store.get_latest_version(Stage.PRODUCTION))
    for version in filter(None, dict.fromkeys(versions)):
        arrays = scores.arrays_of(version)
        if not scores.schema or fits(arrays, scores.schema):
            models[version] = arrays
    prefix = "client/" if scores.is_central else ""
    scored = score_on_nodes(nodes, models, metric, prefix=prefix)
    for version, score in scored.items():
        logger.info(
            "before round 1: version %s has %s %.4f", version, metric, score.metrics[metric]
        )
    return scored


def score_on_nodes(
    evaluation: NodeEvaluation, models: Mapping[str, ArrayRecord], metric: str, *, prefix: str
) -> dict[str, Scored]:
    """Have the nodes evaluate models of registered versions, each on the same nodes.

    The inner strategy samples the nodes, once, and averages the metrics, as in any round. Its
    state and the session's config are restored afterwards.

    Parameters
    ----------
    evaluation : NodeEvaluation
        How nodes evaluate.
    models : Mapping[str, ArrayRecord]
        The models, by version.
    metric : str
        The metric that the nodes report.
    prefix : str
        Prefix of the names of their metrics in this session.

    Returns
    -------
    dict[str, Scored]
        Versions for which the metric was reported; empty if no node is to evaluate.
    """
    if not models:
        return {}
    first = next(iter(models.values()))
    config = ConfigRecord(dict(evaluation.config or {}))  # strategies write into it
    evaluation = replace(evaluation, config=config, metric=metric)
    restore = snapshot(evaluation.strategy)
    try:
        messages = evaluation.messages(first)
        if not all(carries(message, first) for message in messages):
            return {}  # other arrays than the model, which no other model can replace
        sent = {
            version: [with_arrays(message, first, arrays) for message in messages]
            for version, arrays in models.items()
        }
        replies = evaluation.send([m for several in sent.values() for m in several])
        scores = {}
        for version, several in sent.items():
            ids = {message.metadata.message_id for message in several}
            answers = [r for r in replies if r.metadata.reply_to_message_id in ids]
            record, screened = evaluation.aggregate(answers, what=f"version {version}")
            by_node = node_scores(screened.replies, metric.removeprefix(prefix))
            scores[version] = Scored(
                plain_metrics(record, prefix=prefix), nodes={n.key: n.score for n in by_node}
            )
    finally:
        restore()
    return {version: scored for version, scored in scores.items() if metric in scored.metrics}


def _compare_production(watch: ProductionWatch | None, scores: Scores) -> None:
    """Report the scores of the version on probation and of the one before it to the watch.

    Nothing if there is no such version, or no holdout. A rival that cannot be scored is left out.
    """
    pair = None if watch is None else watch.to_compare()
    if watch is None or pair is None or scores.evaluate_fn is None:
        return
    version, rival = pair
    mine, theirs = _fresh(scores, version), _fresh(scores, rival)
    evidence = Evidence(
        metrics=mine.metrics,
        champion=theirs.metrics or None,
        results=mine.results,
        champion_results=theirs.results,
    )
    watch.update_production(version, evidence, rival=rival)


def _fresh(scores: Scores, version: str | None) -> Scored:
    """Return a score that was taken now; a registered score says nothing about today."""
    try:
        scored = scores.of_version(version)
    except RegistryError as error:
        logger.warning("version %s cannot be scored: %s", version, error)
        return Scored({})
    return Scored({}) if scored is None or scored.note else scored
