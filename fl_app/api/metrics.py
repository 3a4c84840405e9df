# SPDX-License-Identifier: Apache-2.0
"""The monitor's numbers, as JSON and as Prometheus collects them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fl_app.retraining.manager import RetrainingManager

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_TOLD = {
    "best_accuracy": "Best score since the baseline was set.",
    "current_accuracy": "Last score.",
    "accuracy_threshold": "Lasting fall of the score that asks for retraining.",
    "monitoring": "1 while the monitor looks at its schedules.",
}


def monitor_metrics(manager: RetrainingManager) -> dict[str, Any]:
    """Return the scores, and how many requests have each outcome."""
    rule, _ = manager.snapshot()
    return {
        "best_accuracy": rule.best,
        "current_accuracy": rule.current,
        "accuracy_threshold": rule.threshold,
        "monitoring": manager.monitoring,
        "requests": {str(outcome): n for outcome, n in manager.store.requests.counts().items()},
    }


class MonitorCollector(Collector):
    """The same for Prometheus; what is not known is left out.

    Parameters
    ----------
    manager : RetrainingManager
        The monitor that is asked each time.
    """

    def __init__(self, manager: RetrainingManager) -> None:
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        """The numbers of this moment."""
        found = monitor_metrics(self._manager)
        for name, told in _TOLD.items():
            if found[name] is not None:
                yield GaugeMetricFamily(f"fl_app_{name}", told, value=float(found[name]))
        requests = GaugeMetricFamily(
            "fl_app_retrain_requests",
            "Requests for retraining by what became of them.",
            labels=["outcome"],
        )
        for outcome, count in found["requests"].items():
            requests.add_metric([outcome], count)
        yield requests


def all_metrics(
    manager: RetrainingManager, collectors: Iterable[Collector] = ()
) -> CollectorRegistry:
    """Return a registry of the monitor's numbers and of those that others collect."""
    registry = CollectorRegistry()
    for collector in (MonitorCollector(manager), *collectors):
        registry.register(collector)
    return registry


def prometheus_text(registry: CollectorRegistry) -> bytes:
    """Return all numbers in Prometheus' text format, version 0.0.4."""
    return generate_latest(registry)
