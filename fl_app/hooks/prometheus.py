# SPDX-License-Identifier: Apache-2.0
"""A hook that counts events as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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

Counts = Mapping[tuple[str, ...], int]


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
        self._seen = _Seen()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        self._seen = _after(self._seen, event)

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics; those without a value yet are left out."""
        seen = self._seen
        metrics = GaugeMetricFamily("fl_app_metric", "Metrics of the last round.", labels=["name"])
        for name in sorted(seen.metrics, key=lambda n: (n.count("/"), n))[:MAX_METRICS]:
            metrics.add_metric([name], seen.metrics[name])
        yield metrics
        versions = GaugeMetricFamily(
            "fl_app_version", "Registered version by stage.", labels=["stage"]
        )
        for stage, version in seen.versions.items():
            if version is not None and version.isdecimal():
                versions.add_metric([stage], float(version))
        yield versions
        yield SummaryMetricFamily(
            "fl_app_round_seconds",
            "Wall time of rounds with a new model.",
            count_value=seen.rounds.get(("ok",), 0),
            sum_value=seen.seconds,
        )
        yield _counter("fl_app_rounds", "Rounds.", ["result"], seen.rounds)
        yield _counter("fl_app_sessions", "Sessions that ended.", ["status"], seen.sessions)
        yield _counter("fl_app_stage_moves", "Entries of the journal.", ["op"], seen.moves)
        yield _counter(
            "fl_app_retrain_asked",
            "Requests for retraining that this process recorded.",
            ["kind", "outcome"],
            seen.asked,
        )


@dataclass(frozen=True)
class _Seen:
    """Totals of the events so far."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    seconds: float = 0.0
    rounds: Counts = field(default_factory=lambda: {("ok",): 0, ("failed",): 0})
    sessions: Counts = field(default_factory=dict)
    moves: Counts = field(default_factory=dict)
    asked: Counts = field(default_factory=dict)


def _after(seen: _Seen, event: Event) -> _Seen:
    changes: dict[str, Any] = {}
    match event:
        case RoundReport():
            changes["rounds"] = _more(seen.rounds, "failed" if event.failed else "ok")
            if not event.failed:
                changes |= {"metrics": event.metrics, "seconds": seen.seconds + event.seconds}
        case SessionStarted():
            changes["versions"] = _versions(event)
        case SessionEnded():
            changes["sessions"] = _more(seen.sessions, event.status)
        case StageMoved():
            changes["versions"] = _versions(event)
            changes["moves"] = _more(seen.moves, event.op)
        case RetrainingRequested():
            changes["asked"] = _more(seen.asked, event.kind, event.outcome)
    return replace(seen, **changes)


def _versions(event: SessionStarted | StageMoved) -> dict[str, str | None]:
    return {"production": event.production, "staging": event.staging}


def _more(counts: Counts, *labels: str) -> Counts:
    return {**counts, labels: counts.get(labels, 0) + 1}


def _counter(name: str, description: str, labels: list[str], counts: Counts) -> Metric:
    family = CounterMetricFamily(name, description, labels=labels)
    for values, count in sorted(counts.items()):
        family.add_metric(list(values), count)
    return family
