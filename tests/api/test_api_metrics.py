# SPDX-License-Identifier: Apache-2.0
"""GET /metrics for Prometheus: the monitor's numbers and a hook's, together and readable."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.api_client import Client

from fl_app.api import create_trigger_api, serve_api
from fl_app.events import RoundReport, SessionStarted
from fl_app.hooks import PrometheusMetrics
from fl_app.retraining import RetrainingManager


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics()


@pytest.fixture
def both(manager: RetrainingManager, metrics: PrometheusMetrics) -> Iterator[Client]:
    server = serve_api(create_trigger_api(manager, collectors=[metrics]), port=0)
    assert server is not None
    yield Client(server.port)
    server.close()


def read(client: Client) -> dict[tuple[str, str], float]:
    """Every sample, by its name and its labels' values."""
    text = client.get("/metrics?format=prometheus").body.decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = {(s.name, ",".join(s.labels.values())): s.value for s in samples}
    assert len(found) == len(samples)
    return found


def test_the_hook_s_numbers_and_the_monitor_s_come_together(
    both: Client, manager: RetrainingManager, metrics: PrometheusMetrics
) -> None:
    manager.manual_trigger("new pictures")
    metrics(SessionStarted("ab", 1, 3, production="7"))
    metrics(RoundReport(1, 3, {"mAP50": 0.5, "client/mAP50": 0.25}, "8", seconds=2.0))
    found = read(both)
    assert found["fl_app_retrain_requests", "pending"] == 1
    assert found["fl_app_accuracy_threshold", ""] == manager.accuracy_threshold
    assert found["fl_app_metric", "mAP50"] == 0.5
    assert found["fl_app_version", "production"] == 7
    assert ("fl_app_version", "staging") not in found
    assert found["fl_app_round_seconds_sum", ""] == 2
    assert found["fl_app_rounds_total", "failed"] == 0


def test_names_that_clients_chose_break_nothing(both: Client, metrics: PrometheusMetrics) -> None:
    strange = 'a"b\\c\nfl_app_best_accuracy 99'
    metrics(RoundReport(1, 1, {strange: 1.0, "nan": float("nan")}))
    found = read(both)
    assert found["fl_app_metric", strange] == 1
    assert found["fl_app_metric", "nan"] != found["fl_app_metric", "nan"]
    assert ("fl_app_best_accuracy", "") not in found


def test_json_stays_as_it_is(both: Client, metrics: PrometheusMetrics) -> None:
    metrics(RoundReport(1, 1, {"mAP50": 0.5}))
    assert set(both.get("/metrics").json) == {
        "best_accuracy",
        "current_accuracy",
        "accuracy_threshold",
        "monitoring",
        "requests",
    }
