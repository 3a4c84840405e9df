# SPDX-License-Identifier: Apache-2.0
"""Options that commands of `fl-app` share, and what they open."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fl_registry import ModelManager, app_home
from fl_registry.mlflow.connection import MLFLOW_VARIABLE

if TYPE_CHECKING:
    from fl_app.retraining import MonitorStore


def account(name: str = "") -> str:
    """Return the name, else that of this account."""
    return name or getpass.getuser()


Uri = Annotated[
    str,
    typer.Option(
        "--tracking-uri",
        help="MLflow to use; default: FL_APP_MLFLOW_TRACKING_URI, else MLFLOW_TRACKING_URI, else "
        "SQLite in FL_APP_HOME.",
    ),
]
Name = Annotated[str, typer.Option("--name", help="Name in the model registry.")]
By = Annotated[
    str,
    typer.Option("--by", help="Who decides; default: the account's name.", callback=account),
]
Note = Annotated[str, typer.Option("--note", help="Why; stored with the decision.")]
Monitor = Annotated[
    str,
    typer.Option("--monitor", help="SQLAlchemy URL of the monitor's database; default: SQLite."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def open_registry(uri: str, name: str) -> ModelManager:
    """Return the registry, once MLflow has answered."""
    manager = ModelManager(uri or None, name)
    if manager.backend.connection.chosen_by == MLFLOW_VARIABLE:
        # Beside the answer, which programs may read.
        sys.stderr.write(f"Using {manager.backend.connection.place}.\n")
    manager.ping()
    return manager


def open_monitor(url: str, name: str) -> MonitorStore:
    """Return the monitor's memory."""
    from fl_app.retraining.memory.store import MonitorStore, default_url

    return MonitorStore(url or default_url(app_home()), name)
