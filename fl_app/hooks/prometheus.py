# SPDX-License-Identifier: Apache-2.0
"""A hook that counts events as metrics for Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fl_app.events import (
    Event,
    RetrainingRequested,
    RoundReport,
    SessionEnded,
    SessionStarted,
    StageMoved,
)

MAX_METRICS = 100
"""Most metrics of a round that are exported; clients name them, so their number has no bound."""

_COUNTERS = (  # key in the counts, name, description, labels
    ("rounds", "fl_app_rounds", "Rounds.", ["result"]),
    ("sessions", "fl_app_sessions", "Sessions that ended.", ["status"]),
    ("moves", "fl_app_stage_moves", "Entries of the journal.", ["op"]),
    (
        "requests",
        "fl_app_retrain_asked",
        "Requests for retraining that this process recorded.",
        ["kind", "outcome"],
    ),
)


class PrometheusMetrics(Collector):
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
        self._lock = threading.Lock()
        self._metrics: Mapping[str, float] = {}
        self._versions: Mapping[str, str | None] = {}
        self._seconds = 0.0
        self._counts = Counter[tuple[str, ...]]({("rounds", "ok"): 0, ("rounds", "failed"): 0})
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        with self._lock:
            match event:
                case RoundReport():
                    self._counts["rounds", "failed" if event.failed else "ok"] += 1
                    if not event.failed:
                        self._metrics = event.metrics
                        self._seconds += event.seconds
                case SessionEnded():
                    self._counts["sessions", event.status] += 1
                case StageMoved():
                    self._counts["moves", event.op] += 1
                case RetrainingRequested():
                    self._counts["requests", event.kind, event.outcome] += 1
            if isinstance(event, SessionStarted | StageMoved):
                self._versions = {"production": event.production, "staging": event.staging}

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics; those without a value yet are left out."""
        with self._lock:
            counts, seconds = dict(self._counts), self._seconds
            values, stages = self._metrics, self._versions
        metrics = GaugeMetricFamily("fl_app_metric", "Metrics of the last round.", labels=["name"])
        for name in sorted(values, key=lambda n: (n.count("/"), n))[:MAX_METRICS]:
            metrics.add_metric([name], values[name])
        yield metrics
        versions = GaugeMetricFamily(
            "fl_app_version", "Registered version by stage.", labels=["stage"]
        )
        for stage, version in stages.items():
            if version is not None and version.isdecimal():
                versions.add_metric([stage], float(version))
        yield versions
        yield SummaryMetricFamily(
            "fl_app_round_seconds",
            "Wall time of rounds with a new model.",
            count_value=counts["rounds", "ok"],
            sum_value=seconds,
        )
        for key, name, description, labels in _COUNTERS:
            counter = CounterMetricFamily(name, description, labels=labels)
            for (kind, *label_values), count in sorted(counts.items()):
                if kind == key:
                    counter.add_metric(label_values, count)
            yield counter
