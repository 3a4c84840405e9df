# SPDX-License-Identifier: Apache-2.0
"""Stages by way of an MLflow server whose PostgreSQL refuses to archive in the same call."""

from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException

from fl_registry import Stage
from fl_registry.mlflow.backend import MlflowBackend


def test_what_the_database_refuses_in_one_call_is_done_in_two() -> None:
    calls: list[tuple[object, ...]] = []

    def move(*arguments: object) -> None:
        calls.append(arguments)
        if arguments[-1]:
            raise MlflowException("operator does not exist: integer <> character varying")

    assert not MlflowBackend._moved(move, 3, Stage.STAGING)
    assert calls == [(3, "Staging", True), (3, "Staging", False)]


def test_any_other_error_stays_one() -> None:
    def move(*arguments: object) -> None:
        raise MlflowException("no")

    with pytest.raises(MlflowException, match="no"):
        MlflowBackend._moved(move, 3, Stage.PRODUCTION)
