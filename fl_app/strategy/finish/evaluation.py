# SPDX-License-Identifier: Apache-2.0
"""From what ``evaluate_fn`` returns to plain metrics, and where a score comes from."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from flwr.app import ArrayRecord, MetricRecord

from fl_app.strategy.errors import MetricError
from fl_app.strategy.records import CLIENTS, HOLDOUT, TRAINING, DataUsed, Scored, ShadowReport
from fl_app.strategy.round.state import ClosedRound
from fl_registry import ExampleScores, ModelVersion, Results

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
"""Flower's. Gates can pair the results per example if the record has a list
``per-example/<metric>`` (one number per example, always in the same order, whose mean is the
metric), or is a `ScoredRecord`. A list ``per-example/group`` numbers the group of each example,
such as its clip, patient or site."""

PER_EXAMPLE = "per-example/"
GROUP = "group"
"""What is no metric among the lists per example: the number of each example's group."""
SCORE_SOURCE = "score_source"
"""Tag of a version: the source of its score."""
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


def plain_metrics(record: MetricRecord | None, *, prefix: str = "") -> dict[str, float]:
    """Return the scalars of a MetricRecord as floats; lists are left out."""
    items = (record or {}).items()
    return {f"{prefix}{k}": float(v) for k, v in items if isinstance(v, int | float)}


def scored_by(record: MetricRecord | None) -> Scored:
    """Return what ``evaluate_fn`` returned as metrics, and as results per example if it has any.

    Raises
    ------
    MetricError
        There is not one group for each example.
    """
    if isinstance(record, ScoredRecord):
        return Scored(plain_metrics(record), record.results, record=record)
    lists = {
        key.removeprefix(PER_EXAMPLE): value
        for key, value in (record or {}).items()
        if key.startswith(PER_EXAMPLE) and isinstance(value, list)
    }
    groups = lists.pop(GROUP, None)
    try:
        results = ExampleScores(lists, groups) if lists else None
    except ValueError as error:
        raise MetricError(
            f"evaluate_fn returned a list {PER_EXAMPLE}{GROUP} that cannot be used: {error}"
        ) from None
    return Scored(plain_metrics(record), results, record=record)


def score_source(evaluate_fn: EvaluateFn | None, holdout: DataUsed | None) -> str:
    """Return the source of the metrics with plain names: ``clients``, or the holdout's digest."""
    if evaluate_fn is None:
        return CLIENTS
    return f"{HOLDOUT} {holdout.digest}" if holdout is not None else HOLDOUT


def metric_source(metric: str | None, plain: str) -> str:
    """Return the source of one metric, in a session whose plain names have the source ``plain``."""
    prefix, slash, _ = (metric or "").partition("/")
    return {"train/": TRAINING, "client/": CLIENTS}.get(prefix + slash, plain)


def registered_score(version: ModelVersion, metric: str, source: str, why: str) -> Scored:
    """Return the registered score of a version, if it is of the same source.

    Parameters
    ----------
    version : ModelVersion
        The version.
    metric : str
        The metric that is compared.
    source : str
        The source of the session's own scores.
    why : str
        Why the version is not evaluated now.

    Returns
    -------
    Scored
        Its metrics and a note; no metrics if they cannot be compared, and the note says why.
    """
    theirs = version.tags.get(SCORE_SOURCE, "")
    if metric not in version.metrics:
        problem = f"it has no registered {metric}"
    elif source == theirs == HOLDOUT:
        problem = (
            "its registered score is of a holdout without a digest (name it with "
            "ModelCard(holdout=…))"
        )
    elif source != theirs:
        problem = f"its registered score is of {theirs or 'an unknown source'}, not of {source}"
    else:
        return Scored(
            version.metrics, note=f"the registered score of version {version.version}, since {why}"
        )
    return Scored({}, note=f"version {version.version} cannot be compared: {why}, and {problem}")


def shadow_metrics(report: ShadowReport) -> dict[str, float]:
    """Return the metrics of a shadow round: its means, and the evidence of all rounds so far."""
    means = {f"shadow/{arm}/{report.metric}": mean for arm, mean in report.scores.items()}
    numbers = {
        "shadow/difference": report.test.mean_difference,
        "shadow/evidence-better": report.test.evidence_better,
        "shadow/evidence-worse": report.test.evidence_worse,
        "shadow/extra-bytes": float(report.extra_bytes),
    }
    return finite(means | numbers)


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that a registry can store: neither NaN nor infinity."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def missing_metric(
    metric: str, metrics: Mapping[str, float], closed: ClosedRound | None = None
) -> MetricError:
    """Return the error that a metric is missing among those that there are.

    ``closed`` is the round, if the nodes were to report it.
    """
    names, more = sorted(metrics)[:MAX_NAMES], len(metrics) - MAX_NAMES
    there = f"{names}{f' and {more} more' if more > 0 else ''}"
    if closed is not None and closed.node_scores:
        return MetricError(
            f"Nodes reported the metric {metric!r}, and the strategy's average does not have it, "
            f"but {there}: let its evaluate_metrics_aggr_fn return it, or set `metric` to one of "
            "these."
        )
    why = [bad.reason for bad in closed.rejected if bad.phase == "evaluate"] if closed else []
    others = f" ({len(why)} replies were rejected: {why[0]})" if why else ""
    return MetricError(
        f"Nobody reported the metric {metric!r}; reported were {there}{others}: set `metric` to "
        "one of them."
    )


KEPT = 64
"""Models whose scores are cached; the least recently used go first."""


class RememberedScores:
    """An ``evaluate_fn`` that evaluates each model once.

    A session evaluates the version that it starts with, which an earlier session of this process
    has mostly evaluated as a candidate. Only for functions that always score the same arrays the
    same.

    Parameters
    ----------
    evaluate_fn : EvaluateFn
        Scores a model that is not in the cache.
    size : int
        How many models' scores are cached.
    """

    def __init__(self, evaluate_fn: EvaluateFn, *, size: int = KEPT) -> None:
        self._evaluate = evaluate_fn
        self._size = size
        self._known: OrderedDict[object, MetricRecord | None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Return the scores of the arrays; the record is shared and must not be changed."""
        # The hash of bytes is kept in the object, so that the same ones are not read again.
        model = tuple((n, a.dtype, tuple(a.shape), hash(a.data)) for n, a in arrays.items())
        with self._lock:
            if model in self._known:
                self._known.move_to_end(model)
                return self._known[model]
        record = self._evaluate(server_round, arrays)
        with self._lock:
            self._known[model] = record
            while len(self._known) > self._size:
                self._known.popitem(last=False)
        return record
