# SPDX-License-Identifier: Apache-2.0
"""Replies that get lost after an MLflow server did what it was asked: nothing is there twice."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.registry_servers import Proxy

from fl_registry import ModelManager

MakeWeights = Callable[[float], Path]
NIGHTLY = settings.get_current_profile_name() == "nightly"
pytestmark = [pytest.mark.slow, pytest.mark.chaos]

CREATES = (
    "/experiments/create",
    "/runs/create",
    "/registered-models/create",
    "/mlflow/logged-models",
    "/model-versions/create",
    "/runs/log-parameter",
)
# How often MLflow's own client repeats a call, and how many replies get lost.
CASES = [(0, 1), (3, 2)] + ([(0, 2), (3, 1)] if NIGHTLY else [])


@pytest.fixture
def proxy(served_mlflow: str) -> Proxy:
    return Proxy(served_mlflow)


@pytest.fixture
def address(
    request: pytest.FixtureRequest, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Yield the proxy's address; MLflow's own client repeats calls, or does not."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(getattr(request, "param", 3)))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with proxy.running() as address:
        yield address


@pytest.mark.parametrize(("address", "times"), CASES, indirect=["address"])
@pytest.mark.parametrize("path", CREATES)
def test_a_create_whose_reply_is_lost_leaves_one(  # noqa: PLR0917 - fixtures come by name
    address: str, proxy: Proxy, home: Path, weights: MakeWeights, path: str, times: int
) -> None:
    name = f"lost-{uuid.uuid4().hex[:8]}"
    manager = ModelManager(address, name, home=home, experiment_name=name)
    proxy.drop[path] = times
    version = manager.save_model_version(weights(1), metrics={"m": 0.5})
    manager.promote_to_production(version)
    # A second reply can get lost only where something is asked a second time without a look first.
    assert proxy.dropped in ([path] * times, [path])
    assert manager.save_model_version(weights(1), metrics={"m": 0.5}) == version
    manager.reconcile()
    client = manager.client
    rows = client.search_model_versions(f"name = '{name}'")
    assert [(str(row.version), row.tags["stage"]) for row in rows] == [("1", "Production")]
    experiment = client.get_experiment_by_name(name).experiment_id
    assert len(client.search_logged_models([experiment])) == 1
    journals = client.get_experiment_by_name("fl-app-journal").experiment_id
    runs = client.search_runs([journals], f"tags.journal_for = '{name}'")
    assert len(runs) == 1
    assert [entry.op for entry in manager.history()] == ["promote"]
    assert str(client.get_registered_model(name).aliases["production"]) == "1"


def test_a_reply_lost_anywhere_in_a_promotion_changes_nothing(
    address: str, proxy: Proxy, home: Path, weights: MakeWeights
) -> None:
    name = f"lost-{uuid.uuid4().hex[:8]}"
    manager = ModelManager(address, name, home=home, experiment_name=name)
    for number in (1, 2):
        manager.save_model_version(weights(number))
    paths = ("/registered-models/alias", "/model-versions/set-tag", "/transition-stage")
    for path in paths:
        proxy.drop[path] = 1
    manager.promote_to_production("1")
    for path in paths:
        proxy.drop[path] = 1
    manager.promote_to_production("2")
    assert len(manager.history()) == 2
    assert manager.drift() == ()
    assert [row["stage"] for row in manager.list_all_versions()] == ["Production", "Archived"]
