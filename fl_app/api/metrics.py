# SPDX-License-Identifier: Apache-2.0
"""The monitor's metrics, as JSON and for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fl_app.retraining.manager import RetrainingManager

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_DESCRIPTIONS = {
    "best_accuracy": "Best score since the baseline was set.",
    "current_accuracy": "Last score.",
    "accuracy_threshold": "Lasting fall of the score that triggers retraining.",
    "monitoring": "1 while the monitor runs.",
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
    """The same for Prometheus; unknown numbers are left out.

    Parameters
    ----------
    manager : RetrainingManager
        The monitor.
    """

    def __init__(self, manager: RetrainingManager) -> None:
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        """Read the numbers now."""
        metrics = monitor_metrics(self._manager)
        for name, text in _DESCRIPTIONS.items():
            if metrics[name] is not None:  # Prometheus has no null
                yield GaugeMetricFamily(f"fl_app_{name}", text, value=float(metrics[name]))
        requests = GaugeMetricFamily(
            "fl_app_retrain_requests",
            "Requests for retraining by outcome.",
            labels=["outcome"],
        )
        for outcome, count in metrics["requests"].items():
            requests.add_metric([outcome], count)
        yield requests


def all_metrics(
    manager: RetrainingManager, collectors: Iterable[Collector] = ()
) -> CollectorRegistry:
    """Return Prometheus' registry of the monitor's metrics and those of other collectors."""
    registry = CollectorRegistry()
    for collector in (MonitorCollector(manager), *collectors):
        registry.register(collector)
    return registry
