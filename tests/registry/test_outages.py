# SPDX-License-Identifier: Apache-2.0
"""A real MLflow server that fails in six ways in the middle of a session, through a proxy."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.outages import FAULTS, Outage, OutageProxy, proxied, session

NIGHTLY = settings.get_current_profile_name() == "nightly"
ROUNDS = 20 if NIGHTLY else 3
ADDED, DRAINED = 1.0, 60.0
"""Seconds that the 95th percentile of rounds may take longer, and until all is handed over."""
pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module")
def proxy(served_mlflow: str) -> Iterator[OutageProxy]:
    with proxied(served_mlflow) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def well(proxy: OutageProxy, tmp_path_factory: pytest.TempPathFactory) -> Outage:
    """The same session while nothing fails."""
    return session(proxy, tmp_path_factory.mktemp("well"), name(), fault="well", rounds=ROUNDS)


def name() -> str:
    return f"model-{uuid.uuid4().hex[:12]}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_session_outlives_a_registry_that_fails(
    proxy: OutageProxy, well: Outage, home: Path, fault: str
) -> None:
    # The registry is well again once the last round is closed, so all but the first end without it.
    seen = session(proxy, home, name(), fault=fault, rounds=ROUNDS)
    assert seen.rounds == list(range(1, ROUNDS + 1))
    assert seen.steps == list(range(ROUNDS + 1))
    assert seen.status == "FINISHED"
    assert list((home / "checkpoints").glob("[!.]*")) == []
    if NIGHTLY:
        added = percentile(seen.seconds[1:], 0.95) - percentile(well.seconds[1:], 0.5)
        assert added <= ADDED, seen.seconds
        assert seen.drained <= DRAINED


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all are not above."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
