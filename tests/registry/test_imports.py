# SPDX-License-Identifier: Apache-2.0
"""The garbage collector while large packages are imported."""

from __future__ import annotations

import gc
from pathlib import Path

import mlflow
import pytest

from fl_registry import ModelManager
from fl_registry.imports import uncollected


def test_it_is_paused_and_goes_on_after_an_error() -> None:
    @uncollected()
    def imports() -> None:
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
        raise ImportError

    with pytest.raises(ImportError):
        imports()
    assert gc.isenabled()


def test_it_is_paused_while_mlflow_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    class Client(mlflow.MlflowClient):
        def __init__(self, *addresses: str) -> None:
            seen.append(gc.isenabled())
            super().__init__(*addresses)

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    assert isinstance(ModelManager(home=tmp_path).client, Client)
    assert seen == [False]
    assert gc.isenabled()
