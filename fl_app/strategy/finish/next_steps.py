# SPDX-License-Identifier: Apache-2.0
"""The commands to type after a session, with the options that they need here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from fl_app.events import RoundReport
from fl_registry import ModelManager, ModelStore, Stage
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.mlflow.address import absolute_address
from fl_registry.redaction import redact


def next_commands(reports: Sequence[RoundReport], store: ModelStore, home: Path) -> str:
    """Return the commands to type next, one a line.

    Parameters
    ----------
    reports : Sequence[RoundReport]
        The session's rounds.
    store : ModelStore
        Where its versions are; commands read only those in MLflow.
    home : Path
        The app's home, named if it is not the default of the commands.
    """
    if not isinstance(store, ModelManager):
        return "these versions are in memory only, and are lost when this process ends"
    lines = ["versions"]
    waiting = [report.version for report in reports if report.approval == "pending"]
    if waiting:
        production = store.get_latest_version(Stage.PRODUCTION)
        lines += [f"compare {production} {waiting[-1]}"] if production else []
        lines += [f"approve {waiting[-1]} --note 'why'"]
    name = store.registered_model_name
    named = "" if name == DEFAULT_MODEL_NAME else f" --name {shlex.quote(name)}"
    address = _tracking_uri(store, home)
    typed = [f"{_start(home)} {line}{named}{address}" for line in (*lines, "serve")]
    return "\n  ".join(["next:", *typed, f"{_start(home)} ui{address}"])


def _start(home: Path) -> str:
    """Return the start of each command, with uv and the home if it needs them."""
    usual = Path(os.environ.get("FL_APP_HOME") or "~/.fl-app").expanduser().resolve()
    given = "" if home == usual else f"FL_APP_HOME={shlex.quote(str(home))} "
    return f"{given}{'uv run ' if 'UV' in os.environ else ''}fl-app"


def _tracking_uri(store: ModelManager, home: Path) -> str:
    uri = store.tracking_uri
    if uri == absolute_address(None, home):
        return ""
    return f" --tracking-uri {shlex.quote(redact(uri, uri))}"
