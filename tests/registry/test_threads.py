# SPDX-License-Identifier: Apache-2.0
"""One store object in many threads: what another thread keeps does not mislead this one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_registry import InMemoryModelStore, ModelManager
from fl_registry.mlflow.journal import MlflowJournal
from fl_registry.store import ModelStore, _Snapshot

MakeWeights = Callable[[float], Path]


class Overtaken:
    """An attribute in whose place another thread always puts what it read at the beginning."""

    def __init__(self, older: object) -> None:
        self.older = older

    def __get__(self, owner: object, kind: type) -> Any:
        return self.older

    def __set__(self, owner: object, value: object) -> None:
        """Overtaken at once."""


class OvertakenMemory(InMemoryModelStore):
    _last = Overtaken(_Snapshot())  # type: ignore[assignment]


class OvertakenManager(ModelManager):
    _last = Overtaken(_Snapshot())  # type: ignore[assignment]


@pytest.fixture(params=["memory", "mlflow"])
def store(
    request: pytest.FixtureRequest, mlflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> ModelStore:
    if request.param == "memory":
        return OvertakenMemory()
    manager = OvertakenManager(home=mlflow_home)
    here = manager.backend.journal.ensure()
    monkeypatch.setattr(MlflowJournal, "_here", Overtaken(here), raising=False)
    return manager


def test_no_move_is_left_out_since_another_thread_kept_an_older_reading(
    store: ModelStore, weights: MakeWeights
) -> None:
    for number in (1, 2):
        store.save_model_version(weights(number), metrics={"m": 0.5})
    for version in "121":
        store.promote_to_production(version)
    assert [entry.version for entry in store.history()] == ["1", "2", "1"]
    assert [entry.version for entry in store.history(after=1)] == ["2", "1"]
