# SPDX-License-Identifier: Apache-2.0
"""From global arrays to plain metrics, through a function of Flower's ``evaluate_fn`` shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from flwr.app import ArrayRecord, MetricRecord

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class MetricError(ValueError):
    """The metric that the gates look at is not among those that were reported."""


def plain_metrics(record: MetricRecord | None, *, prefix: str = "") -> dict[str, float]:
    """Scalars of a MetricRecord as floats; lists are left out."""
    if record is None:
        return {}
    scalars = {k: v for k, v in record.items() if isinstance(v, int | float)}
    return {f"{prefix}{key}": float(value) for key, value in scalars.items()}


def evaluate(fn: EvaluateFn | None, server_round: int, arrays: ArrayRecord) -> dict[str, float]:
    """Metrics of ``arrays`` on the server's holdout; empty without a holdout."""
    return plain_metrics(fn(server_round, arrays)) if fn is not None else {}


def round_metrics(
    holdout: Mapping[str, float],
    train: MetricRecord | None,
    clients: MetricRecord | None,
) -> dict[str, float]:
    """All metrics of a round, each under one name.

    The holdout's have plain names. The clients' are named ``client/…``, those of local training
    ``train/…``. Without a holdout the clients' weighted metrics are the metrics.
    """
    plain_clients = not holdout
    return {
        **plain_metrics(train, prefix="train/"),
        **plain_metrics(clients, prefix="" if plain_clients else "client/"),
        **holdout,
    }


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Only the metrics that a registry can keep: a NaN or an infinity is no value."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def holdout_record(metrics: Mapping[str, float]) -> MetricRecord:
    """The holdout's share of ``round_metrics``, as Flower's Result keeps it."""
    record = MetricRecord()
    for name, value in metrics.items():
        if not name.startswith(("client/", "train/")):
            record[name] = value
    return record


def require_metric(metric: str | None, seen: Mapping[str, float]) -> None:
    """Raise MetricError with the names that were seen if ``metric`` is not among them."""
    if metric is not None and metric not in seen:
        raise MetricError(
            f"Nobody reported the metric {metric!r}; reported were {sorted(seen)}: "
            "set `metric` to one of them."
        )
