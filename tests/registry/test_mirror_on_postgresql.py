# SPDX-License-Identifier: Apache-2.0
"""Stages by way of an MLflow server whose PostgreSQL refuses to archive in the same call."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from fl_registry import Stage
from fl_registry.mlflow.backend import MlflowBackend
from fl_registry.mlflow.connection import Connection


def test_what_the_database_refuses_in_one_call_is_done_in_two(tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = []

    def move(*arguments: object) -> None:
        calls.append(arguments)
        if arguments[-1]:
            raise MlflowException("operator does not exist: integer <> character varying")

    backend = MlflowBackend(Connection(None, tmp_path), "digits")
    assert not backend._moved(move, 3, Stage.STAGING)
    assert calls == [("digits", 3, "Staging", True), ("digits", 3, "Staging", False)]


def test_any_other_error_stays_one(tmp_path: Path) -> None:
    def move(*arguments: object) -> None:
        raise MlflowException("no")

    backend = MlflowBackend(Connection(None, tmp_path), "digits")
    with pytest.raises(MlflowException, match="no"):
        backend._moved(move, 3, Stage.PRODUCTION)
