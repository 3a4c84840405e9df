# SPDX-License-Identifier: Apache-2.0
"""The journal's state shown in MLflow: aliases, the tag ``stage`` and MLflow's own stage field.

Nothing is decided here, and doing it twice changes nothing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fl_registry.errors import error_code
from fl_registry.mlflow.retries import again
from fl_registry.stages import Stage, State

if TYPE_CHECKING:
    from mlflow.tracking._model_registry.client import ModelRegistryClient

logger = logging.getLogger(__name__)

_ORDER = (Stage.PRODUCTION, Stage.STAGING, Stage.ARCHIVED, Stage.NONE)
_ALONE = (Stage.PRODUCTION, Stage.STAGING)  # one version at most


def show_aliases(
    client: ModelRegistryClient, name: str, state: State, *, now: Mapping[str, str | None]
) -> None:
    """Write the aliases that differ from `now`, so that there is a production one at all times."""
    for alias, version in state.aliases.items():
        if version is not None and now.get(alias) != version:
            _write(client.set_registered_model_alias, name, alias, version)
    if state.staging is None and now.get("staging") is not None:
        _write(client.delete_registered_model_alias, name, "staging")


def show_marks(
    client: ModelRegistryClient, name: str, state: State, *, rows: Sequence[Any]
) -> None:
    """Write the tag and the stage field where they differ; rows are MLflow's own records."""
    for row in rows:
        stage = state.stage_of(str(row.version))
        if row.tags.get("stage") != stage and ("stage" in row.tags or stage is not Stage.NONE):
            _write(client.set_model_version_tag, name, str(row.version), "stage", str(stage))
    now = {str(row.version): str(row.current_stage) for row in rows}
    _show_stages(client, name, state, now=now)


def show_move(
    client: ModelRegistryClient, name: str, state: State, *, versions: Sequence[str], before: State
) -> None:
    """Write what a move from `before` to `state` changed, without reading anything first."""
    show_aliases(client, name, state, now=before.aliases)
    for version in versions:
        _write(client.set_model_version_tag, name, version, "stage", str(state.stage_of(version)))
    now = {version: str(before.stage_of(version)) for version in versions}
    _show_stages(client, name, state, now=now)


def _show_stages(
    client: ModelRegistryClient, name: str, state: State, *, now: Mapping[str, str]
) -> None:
    move = getattr(client, "transition_model_version_stage", None)  # gone in a later MLflow
    if move is None:
        return
    emptied: set[str] = set()
    for version in sorted(now, key=lambda version: _ORDER.index(state.stage_of(version))):
        stage = state.stage_of(version)
        if now[version] == stage or (stage is Stage.ARCHIVED and now[version] in emptied):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # Archiving the old one in the same call never leaves two, nor none. A number, since
            # MLflow compares it with a column of numbers, which PostgreSQL refuses for a text.
            alone = _moved(move, name, int(version), stage)
        if alone:
            emptied.add(str(stage))


def _moved(move: Callable[..., object], name: str, version: int, stage: Stage) -> bool:
    """Show a version's stage; return whether MLflow archived what was in it before."""
    from mlflow.exceptions import MlflowException

    alone = stage in _ALONE
    try:
        _write(move, name, version, str(stage), alone)
    except MlflowException as error:
        # Over HTTP the number is a text again, and the server's own PostgreSQL refuses it.
        if not alone or "operator does not exist" not in str(error):
            raise
        _write(move, name, version, str(stage), False)
        return False
    return alone


def _write(call: Callable[..., object], *arguments: object) -> None:
    from mlflow.exceptions import MlflowException

    try:
        again(call, *arguments)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        logger.warning("a version that the journal names was deleted in MLflow: %s", error)
