# SPDX-License-Identifier: Apache-2.0
"""Calls of MLflow's client that are told of, so that tests can act before and after each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fl_registry.mlflow.connection import Connection

Hook = Callable[[str, str], None]

CALLS = (
    "create_experiment",
    "create_logged_model",
    "create_model_version",
    "create_registered_model",
    "create_run",
    "delete_logged_model",
    "delete_model_version",
    "delete_registered_model_alias",
    "delete_run",
    "finalize_logged_model",
    "get_experiment",
    "get_experiment_by_name",
    "get_logged_model",
    "get_model_version",
    "get_registered_model",
    "get_run",
    "log_batch",
    "log_model_artifacts",
    "log_param",
    "restore_run",
    "search_experiments",
    "search_logged_models",
    "search_model_versions",
    "search_registered_models",
    "search_runs",
    "set_model_version_tag",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "transition_model_version_stage",
)


def told(connection: Connection, hook: Hook) -> None:
    """Make a connection tell `hook(name, "before" | "after")` of each of its calls to MLflow."""
    for client in (connection.client, connection.marker):
        for name in CALLS:
            if hasattr(client, name):
                setattr(client, name, _telling(getattr(client, name), name, hook))


def _telling(call: Callable[..., Any], name: str, hook: Hook) -> Callable[..., Any]:
    def telling(*arguments: Any, **named: Any) -> Any:
        hook(name, "before")
        result = call(*arguments, **named)
        hook(name, "after")
        return result

    return telling
