# SPDX-License-Identifier: Apache-2.0
"""A hook that counts events as metrics for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from fl_app.events import (
    Event,
    RetrainingRequested,
    RoundReport,
    SessionEnded,
    SessionStarted,
    StageMoved,
)
from fl_registry.errors import require

if TYPE_CHECKING:
    from prometheus_client import Gauge
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

MAX_METRICS = 100
"""Most metrics of a round that are exported; clients name them, so their number has no bound."""


class PrometheusMetrics:
    """Metrics of this process's events, as Prometheus collects them.

    ``create_trigger_api(collectors=[…])`` serves it at ``GET /metrics``. Elsewhere
    ``prometheus_client.start_http_server(9000, registry=metrics.registry)`` does, or
    ``prometheus_client.make_wsgi_app(metrics.registry)``.

    Attributes
    ----------
    registry : CollectorRegistry
        A registry with this collector only.
    """

    def __init__(self) -> None:
        require("PrometheusMetrics", "prometheus_client")
        from prometheus_client import CollectorRegistry, Counter, Gauge, Summary

        self._lock = threading.Lock()
        self._parts = CollectorRegistry()
        ours: dict[str, Any] = {"namespace": "fl_app", "registry": self._parts}
        self._metrics = Gauge("metric", "Metrics of the last round.", ["name"], **ours)
        self._versions = Gauge("version", "Registered version by stage.", ["stage"], **ours)
        self._seconds = Summary("round_seconds", "Wall time of rounds with a new model.", **ours)
        self._rounds = Counter("rounds", "Rounds.", ["result"], **ours)
        self._sessions = Counter("sessions", "Sessions that ended.", ["status"], **ours)
        self._moves = Counter("stage_moves", "Entries of the journal.", ["op"], **ours)
        asked = "Requests for retraining that this process recorded."
        self._requests = Counter("retrain_asked", asked, ["kind", "outcome"], **ours)
        for result in ("ok", "failed"):
            self._rounds.labels(result)
        self.registry = CollectorRegistry()
        self.registry.register(cast("Collector", self))

    def __call__(self, event: Event) -> None:
        """Count an event."""
        with self._lock:
            match event:
                case RoundReport(failed=True):
                    self._rounds.labels("failed").inc()
                case RoundReport():
                    self._rounds.labels("ok").inc()
                    self._seconds.observe(event.seconds)
                    names = sorted(event.metrics, key=lambda n: (n.count("/"), n))[:MAX_METRICS]
                    _replace(self._metrics, {name: event.metrics[name] for name in names})
                case SessionEnded():
                    self._sessions.labels(event.status).inc()
                case StageMoved():
                    self._moves.labels(event.op).inc()
                case RetrainingRequested():
                    self._requests.labels(event.kind, event.outcome).inc()
            if isinstance(event, SessionStarted | StageMoved):
                stages = {"production": event.production, "staging": event.staging}
                known = {stage: float(v) for stage, v in stages.items() if v and v.isdecimal()}
                _replace(self._versions, known)

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics; those without a value yet are left out."""
        with self._lock:
            metrics = list(self._parts.collect())
        for metric in metrics:
            # All series begin with the process; the library would repeat that for each.
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
            yield metric


def _replace(gauge: Gauge, values: dict[str, float]) -> None:
    gauge.clear()
    for label, value in values.items():
        gauge.labels(label).set(value)
