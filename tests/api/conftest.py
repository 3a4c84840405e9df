# SPDX-License-Identifier: Apache-2.0
"""A monitor on disk, a registry with three versions, and their API with a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.api_client import TOKEN, Client, versions
from support.page_story import Clock, Story

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_registry import InMemoryModelStore


@pytest.fixture
def manager(tmp_path: Path) -> RetrainingManager:
    return RetrainingManager(store=MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}"))


@pytest.fixture
def store(tmp_path: Path) -> InMemoryModelStore:
    return versions(tmp_path)


@pytest.fixture
def api(manager: RetrainingManager, store: InMemoryModelStore) -> Iterator[Client]:
    server = serve_api(create_trigger_api(manager, store=store, token=TOKEN), port=0)
    assert server is not None
    yield Client(server.port, TOKEN)
    server.close()


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    """Return a registry and a monitor with a history, at a time that stands still."""
    clock = Clock()
    clock.stop(monkeypatch)
    return Story(tmp_path, clock)
