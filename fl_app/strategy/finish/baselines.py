# SPDX-License-Identifier: Apache-2.0
"""The registered versions that a session must beat, evaluated by the nodes before round 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord

from fl_app.strategy.finish.evaluation import Scored, plain_metrics
from fl_app.strategy.finish.provenance import node_scores
from fl_app.strategy.round.aggregate import state_of
from fl_app.strategy.shadow.messages import NodeEvaluation, carries, with_arrays


def score_on_nodes(
    evaluation: NodeEvaluation, models: Mapping[str, ArrayRecord], metric: str, *, prefix: str
) -> dict[str, Scored]:
    """Have the nodes evaluate models of registered versions, each on the same nodes.

    The inner strategy samples the nodes, once, and averages the metrics, as in any round. Its
    state and the session's config are as before afterwards.

    Parameters
    ----------
    evaluation : NodeEvaluation
        How nodes evaluate.
    models : Mapping[str, ArrayRecord]
        The models, by version.
    metric : str
        The metric that the nodes report.
    prefix : str
        What the names of their metrics begin with in this session.

    Returns
    -------
    dict[str, Scored]
        Versions for which the metric was reported; empty where no node is to evaluate.
    """
    if not models:
        return {}
    strategy, (first, *_) = evaluation.strategy, models
    config = ConfigRecord(dict(evaluation.config or {}))  # strategies write into it
    evaluation = replace(evaluation, config=config, metric=metric)
    put_back = state_of(strategy)
    try:
        messages = evaluation.messages(models[first])
        if not all(carries(message, models[first]) for message in messages):
            return {}  # they hold something else, in whose place no other model can be put
        sent = {
            version: [with_arrays(message, models[first], arrays) for message in messages]
            for version, arrays in models.items()
        }
        replies = evaluation.send([m for several in sent.values() for m in several])
        scores = {}
        for version, several in sent.items():
            ids = {message.metadata.message_id for message in several}
            answers = [r for r in replies if r.metadata.reply_to_message_id in ids]
            record, screened = evaluation.aggregate(answers, what=f"version {version}")
            nodes = node_scores(screened.replies, metric.removeprefix(prefix))
            scores[version] = Scored(
                plain_metrics(record, prefix=prefix), nodes={n.key: n.score for n in nodes}
            )
    finally:
        put_back()
    return {version: scored for version, scored in scores.items() if metric in scored.metrics}
