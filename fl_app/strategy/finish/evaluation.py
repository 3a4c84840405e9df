# SPDX-License-Identifier: Apache-2.0
"""From global arrays to plain metrics, through Flower's ``evaluate_fn``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, MetricRecord

from fl_app.strategy.errors import MetricError
from fl_app.strategy.records import CLIENTS, TRAINING, ShadowReport
from fl_app.strategy.round.state import ClosedRound, NodeScore
from fl_app.wire.arrays import viewed
from fl_registry import Evidence, ExampleScores, Results

logger = logging.getLogger("flwr.fl_app")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
"""Flower's. Gates can pair the results per example if the record has a list
``per-example/<metric>`` (one number per example, always in the same order, whose mean is the
metric), or is a `ScoredRecord`."""

PER_EXAMPLE = "per-example/"
MAX_NAMES = 20
"""Metrics that an error names."""


class ScoredRecord(MetricRecord):
    """Metrics with results per example, from which a metric that is no mean can be recomputed.

    Parameters
    ----------
    metrics : Mapping[str, float]
        The metrics.
    results : Results
        The results on each example.
    """

    def __init__(self, metrics: Mapping[str, float], results: Results) -> None:
        super().__init__(dict(metrics))
        self.results = results


@dataclass(frozen=True)
class Scored:
    """How good a model is.

    Attributes
    ----------
    metrics : Mapping[str, float]
        Its metrics on the holdout; empty without one.
    results : Results | None
        Its results on each example, if they are reported.
    nodes : Mapping[str, float]
        The metric on each node that evaluated it, by `NodeScore.key`.
    record : MetricRecord | None
        What ``evaluate_fn`` returned.
    note : str
        Where the metrics come from, or why there are none, if the model was not evaluated now.
    """

    metrics: Mapping[str, float]
    results: Results | None = None
    nodes: Mapping[str, float] = field(default_factory=dict)
    record: MetricRecord | None = None
    note: str = ""


def plain_metrics(record: MetricRecord | None, *, prefix: str = "") -> dict[str, float]:
    """Return the scalars of a MetricRecord as floats; lists are left out."""
    if record is None:
        return {}
    scalars = {k: v for k, v in record.items() if isinstance(v, int | float)}
    return {f"{prefix}{key}": float(value) for key, value in scalars.items()}


def evaluate(fn: EvaluateFn | None, server_round: int, arrays: ArrayRecord) -> Scored:
    """Score ``arrays`` on the server's holdout."""
    return scored_by(fn(server_round, viewed(arrays)) if fn is not None else None)


def scored_by(record: MetricRecord | None) -> Scored:
    """Return what ``evaluate_fn`` returned as metrics, and as results per example if it has any."""
    if isinstance(record, ScoredRecord):
        return Scored(plain_metrics(record), record.results, record=record)
    lists = {
        key.removeprefix(PER_EXAMPLE): value
        for key, value in (record or {}).items()
        if key.startswith(PER_EXAMPLE) and isinstance(value, list)
    }
    return Scored(plain_metrics(record), ExampleScores(lists) if lists else None, record=record)


def gather_evidence(
    metrics: Mapping[str, float],
    holdout: Scored,
    nodes: Sequence[NodeScore],
    metric: str | None,
    *,
    champion: Scored | None,
    best: Scored | None,
    looks: int,
) -> Evidence:
    """Return the evidence for gates; nodes are paired if both had the same data."""
    name, old = metric or "", champion or Scored({})
    return Evidence(
        metrics=metrics,
        champion=champion.metrics if champion is not None else None,
        champion_note=old.note,
        best=best.metrics if best is not None else None,
        best_note=best.note if best is not None else "",
        results=holdout.results,
        champion_results=old.results,
        nodes={n.node_id: {name: n.score} for n in nodes},
        champion_nodes={n.node_id: {name: old.nodes[n.key]} for n in nodes if n.key in old.nodes},
        looks=looks,
    )


def round_metrics(
    holdout: Mapping[str, float],
    train: MetricRecord | None,
    clients: MetricRecord | None,
    *,
    central: bool,
) -> dict[str, float]:
    """Return all metrics of a round; each name has the same source in every round.

    Those of local training are named ``train/…``. In a session with an ``evaluate_fn``
    (``central``) its metrics have plain names and the clients' are ``client/…``, also in rounds in
    which it returns nothing. In one without, the clients' weighted metrics have the plain names.
    """
    return {
        **plain_metrics(train, prefix="train/"),
        **plain_metrics(clients, prefix="client/" if central else ""),
        **holdout,
    }


def shadow_metrics(report: ShadowReport) -> dict[str, float]:
    """Return the metrics of a shadow round: its means, and the evidence of all rounds so far."""
    means = {f"shadow/{arm}/{report.metric}": mean for arm, mean in report.scores.items()}
    test = report.test
    return finite(
        {
            **means,
            "shadow/difference": test.mean_difference,
            "shadow/evidence-better": test.evidence_better,
            "shadow/evidence-worse": test.evidence_worse,
            "shadow/extra-bytes": float(report.extra_bytes),
        }
    )


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that a registry can store: neither NaN nor infinity."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def require_metric(
    metric: str, metrics: dict[str, float], closed: ClosedRound, source: str, *, known: bool
) -> bool:
    """Require the metric that gates look at among the metrics of a round, or set it to NaN.

    It may be missing if it was reported before (``known``), if all values of it were rejected, and
    until the first evaluate reply is accepted. NaN stages nothing.

    Returns
    -------
    bool
        Whether it was reported in this round.

    Raises
    ------
    MetricError
        If it is missing otherwise; the error names the metrics that there are.
    """
    if metric in metrics:
        return True
    by_nodes = source in (CLIENTS, TRAINING)
    rejected = by_nodes and bool(closed.unscored)
    if rejected:
        logger.warning("round %d has no %s: %s", closed.round, metric, closed.unscored)
    if not (known or rejected or (source == CLIENTS and closed.clients is None)):
        raise missing_metric(
            metric,
            metrics,
            on_nodes=by_nodes and bool(closed.node_scores),
            rejected=[bad.reason for bad in closed.rejected if bad.phase == "evaluate"],
        )
    metrics[metric] = math.nan
    return rejected


def missing_metric(
    metric: str,
    metrics: Mapping[str, float],
    *,
    on_nodes: bool = False,
    rejected: Sequence[str] = (),
) -> MetricError:
    """Return the error that the metric is missing among the metrics that there are.

    Parameters
    ----------
    metric : str
        The metric that gates look at.
    metrics : Mapping[str, float]
        The metrics that there are.
    on_nodes : bool
        Whether nodes reported it, and the strategy's average lacks it.
    rejected : Sequence[str]
        Why evaluate replies were rejected.
    """
    names, more = sorted(metrics)[:MAX_NAMES], len(metrics) - MAX_NAMES
    there = f"{names}{f' and {more} more' if more > 0 else ''}"
    if on_nodes:
        return MetricError(
            f"Nodes reported the metric {metric!r}, and the strategy's average does not have it, "
            f"but {there}: let its evaluate_metrics_aggr_fn return it, or set `metric` to one of "
            "these."
        )
    others = f" ({len(rejected)} replies were rejected: {rejected[0]})" if rejected else ""
    return MetricError(
        f"Nobody reported the metric {metric!r}; reported were {there}{others}: set `metric` to "
        "one of them."
    )
