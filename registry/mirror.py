# SPDX-License-Identifier: Apache-2.0
"""The journal's state shown in MLflow: aliases, the tag ``stage`` and MLflow's own stage field.

Nothing is decided here, and doing it twice changes nothing.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from registry.errors import error_code
from registry.journal import Entry, State
from registry.records import Stage

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_RECENT = 3  # entries whose versions are looked at again after each move
_ORDER = (Stage.PRODUCTION, Stage.ARCHIVED, Stage.STAGING, Stage.NONE)


def touched_versions(state: State, entries: Sequence[Entry]) -> list[str]:
    """Return the versions whose mark in MLflow the latest entries may have left undone."""
    recent = entries[-_RECENT:]
    named = [state.production, state.previous, state.staging]
    named += [version for entry in recent for version in (entry.version, entry.displaced)]
    return sorted({version for version in named if version}, key=int)


def show_state(client: MlflowClient, name: str, state: State, *, rows: Sequence[Any]) -> None:
    """Write what differs, in an order that never leaves MLflow without a production version.

    Parameters
    ----------
    client : MlflowClient
        Where to write.
    name : str
        The registered model's name.
    state : State
        What the journal says.
    rows : Sequence[mlflow.entities.model_registry.ModelVersion]
        The versions to look at.
    """
    _show_aliases(client, name, state)
    for row in rows:
        stage = state.stage_of(str(row.version))
        if row.tags.get("stage") != stage and ("stage" in row.tags or stage is not Stage.NONE):
            _again(client.set_model_version_tag, name, str(row.version), "stage", str(stage))
    _show_stages(client, name, state, rows)


def _show_aliases(client: MlflowClient, name: str, state: State) -> None:
    aliases = client.get_registered_model(name).aliases
    wanted = {
        "previous-production": state.previous,
        "production": state.production,
        "staging": state.staging,
    }
    for alias, version in wanted.items():
        if version is not None and str(aliases.get(alias)) != version:
            _again(client.set_registered_model_alias, name, alias, version)
    if state.staging is None and "staging" in aliases:
        _again(client.delete_registered_model_alias, name, "staging")


def _show_stages(client: MlflowClient, name: str, state: State, rows: Sequence[Any]) -> None:
    move = getattr(client, "transition_model_version_stage", None)  # gone in a later MLflow
    if move is None:
        return
    ordered = sorted(rows, key=lambda row: _ORDER.index(state.stage_of(str(row.version))))
    for row in ordered:
        stage = state.stage_of(str(row.version))
        if row.current_stage == stage:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # Archiving the old one in the same call never leaves two, nor none.
            _again(move, name, str(row.version), str(stage), stage is Stage.PRODUCTION)


def _again(write: Callable[..., object], *arguments: object, attempts: int = 5) -> None:
    """Repeat an idempotent write: two first writes of one key make SQLite refuse one of them."""
    from mlflow.exceptions import MlflowException

    for attempt in range(attempts):
        try:
            write(*arguments)
            return
        except MlflowException as error:
            if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
                logger.warning("a version that the journal names was deleted in MLflow: %s", error)
                return
            if "UNIQUE" not in str(error) or attempt + 1 == attempts:
                raise
            time.sleep(0.02 * 2**attempt)
