# SPDX-License-Identifier: Apache-2.0
"""The commands that a person may type after a session, as they must be typed here."""

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

USUAL_NAME = DEFAULT_MODEL_NAME


def next_commands(reports: Sequence[RoundReport], store: ModelStore, home: Path) -> str:
    """What to type now, a command a line.

    Parameters
    ----------
    reports : Sequence[RoundReport]
        The session's rounds.
    store : ModelStore
        Where its versions are; only those in MLflow can be asked about by commands.
    home : Path
        The app's home, named where it is not the one that commands look into by themselves.
    """
    if not isinstance(store, ModelManager):
        return "these versions are kept in memory, and go with this process"
    lines = ["versions"]
    waiting = [report.version for report in reports if report.approval == "pending"]
    if waiting:
        production = store.get_latest_version(Stage.PRODUCTION)
        lines += [f"compare {production} {waiting[-1]}"] if production else []
        lines += [f"approve {waiting[-1]} --note 'why'"]
    name = store.registered_model_name
    named = "" if name == USUAL_NAME else f" --name {shlex.quote(name)}"
    kept = _tracking_uri(store, home)
    typed = [f"{_start(home)} {line}{named}{kept}" for line in (*lines, "serve")]
    return "\n  ".join(["next:", *typed, f"{_start(home)} ui{kept}"])


def _start(home: Path) -> str:
    """The command itself, by uv where uv started this, with the home where it is another."""
    usual = Path(os.environ.get("FL_APP_HOME") or "~/.fl-app").expanduser().resolve()
    given = "" if home == usual else f"FL_APP_HOME={shlex.quote(str(home))} "
    return f"{given}{'uv run ' if 'UV' in os.environ else ''}fl-app"


def _tracking_uri(store: ModelManager, home: Path) -> str:
    uri = store.tracking_uri
    if uri == absolute_address(None, home):
        return ""
    return f" --tracking-uri {shlex.quote(redact(uri, uri))}"
