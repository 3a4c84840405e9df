# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that commands of `fl-app` share, and what they open."""

from __future__ import annotations

import getpass
import sys
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import click
import typer

from fl_app.cli.output import fail
from fl_registry import ModelManager, Stage, StoreUnavailable, app_home
from fl_registry.mlflow.connection import MLFLOW_VARIABLE

if TYPE_CHECKING:
    from fl_app.retraining import MonitorStore

MAX_NAMED = 10
"""Models that an error names; more are counted."""


def account(name: str = "") -> str:
    """Return the name, else that of this account."""
    return name.strip() or getpass.getuser()


def choice(*words: str) -> click.Choice[str]:
    """Return the type of an option with these values, in any case."""
    return click.Choice(words, case_sensitive=False)


STAGES = choice(*map(str, Stage))
Version = Annotated[str, typer.Argument(help="A version's number.", show_default=False)]
VersionThatWaits = Annotated[
    str, typer.Argument(help="A version's number; default: the one that waits.")
]
VersionOrStage = Annotated[
    str,
    typer.Argument(help="A version's number, or a stage such as Production.", show_default=False),
]
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
    require_model(manager)
    return manager


def require_model(manager: ModelManager) -> None:
    """End the command if there is no such model, and others are there."""
    if missing := missing_model(manager):
        fail(missing)


def missing_model(manager: ModelManager) -> str:
    """Return a sentence if a store has other models only; empty if the model may be used."""
    if manager.list_versions(limit=1):
        return ""
    name, names = manager.registered_model_name, manager.model_names()
    if not names or name in names:
        return ""
    near = get_close_matches(name, names, MAX_NAMED)
    ordered = [*near, *(each for each in names if each not in near)]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return (
        f"There is no model {name!r} in {manager.backend.connection.place}; give one of these "
        f"with --name: {', '.join(ordered[:MAX_NAMED])}{more}."
    )


def open_monitor(url: str, name: str) -> MonitorStore:
    """Return the monitor's memory."""
    from fl_app.retraining.memory.store import MonitorStore, default_url

    return MonitorStore(url or default_url(app_home()), name)


def open_requests(url: str, name: str) -> MonitorStore:
    """Return the monitor's memory, unless it never heard of the model and neither did MLflow."""
    memory = open_monitor(url, name)
    if not memory.requests.history(1):
        with suppress(StoreUnavailable):  # requests wait on this machine meanwhile
            require_model(ModelManager(None, name))
    return memory
