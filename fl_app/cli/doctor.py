# SPDX-License-Identifier: Apache-2.0
"""`fl-app doctor`: is what the app stores complete, and does it agree with itself?

The checks of this machine are in `fl_app.cli.machine_checks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from fl_app.cli.machine_checks import (
    ABANDONED_AFTER,
    Check,
    check_clock,
    check_disk,
    check_leftovers,
    check_superlink,
    check_versions,
    newest_file,
)
from fl_app.cli.options import Json, Monitor, Name, Uri, open_monitor
from fl_app.cli.output import console, escape, print_json, table
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.errors import MonitorStoreError, memory_errors
from fl_registry import ModelManager, RegistryError, Stage, app_home
from fl_registry.files.atomic import remove_unfinished
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.journal.entries import as_moment, tenures
from fl_registry.mlflow.address import server_time

MAX_NAMED = 3
"""Damaged versions that are named; more are counted."""


def doctor(
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="First remove leftovers and set aliases right.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Check the weights of all versions.")
    ] = False,
    uri: Uri = "",
    monitor: Monitor = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """Check store, ledger, weights, disk, clock and versions; ends with 1 if something is wrong."""
    manager = ModelManager(uri or None, name)
    checks = repaired(manager) if repair else []
    checks += examine(manager, lambda: open_monitor(monitor, name), deep=deep)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        shown = table()
        for check in checks:
            shown.add_row("ok" if check.ok else "WRONG", check.name, escape(check.detail))
        console.print(shown)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def examine(
    manager: ModelManager, open_memory: Callable[[], MonitorStore], *, deep: bool = False
) -> list[Check]:
    """Check everything and change nothing.

    Parameters
    ----------
    manager : ModelManager
        The registry.
    open_memory : Callable[[], MonitorStore]
        Opens the monitor's memory.
    deep : bool
        Check the files of all versions, and not only of those in Staging and of those that are or
        were in Production.
    """
    home, now = app_home(), datetime.now(UTC)
    newest = newest_file(home)
    past = {"the newest file of the app's folder": newest} if newest is not None else {}
    checks = [
        check_versions(),
        check_disk(home),
        check_leftovers(home, now),
        check_superlink(),
        _check_memory(open_memory),
    ]
    try:
        manager.ping()
    except RegistryError as error:
        return [*checks, check_clock(now, past, None), Check("store", False, str(error))]
    return [
        *checks,
        check_clock(now, past | _last_entry(manager), server_time(manager.tracking_uri)),
        Check("store", True, f"{manager.registered_model_name} can be read"),
        _checked("ledger", lambda: (True, f"{manager.verify()} entries follow one another")),
        _checked("aliases", lambda: _check_aliases(manager)),
        _checked("artifacts", lambda: _check_artifacts(manager, deep=deep)),
    ]


def repaired(manager: ModelManager) -> list[Check]:
    """Remove leftovers and set aliases and stages right; return what was done and what failed."""
    removed = remove_unfinished(app_home(), older_than=ABANDONED_AFTER, now=datetime.now(UTC))
    done = [Check("repair", True, f"{len(removed)} leftovers removed")] if removed else []

    def reconcile() -> tuple[bool, str]:
        moved = len(manager.drift())
        manager.reconcile()
        return True, f"aliases and stages are in line, {moved} were not"

    return [*done, _checked("repair", reconcile)]


def _checked(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    """Return the result of a check; an error of the registry is its failure."""
    try:
        return Check(name, *check())
    except RegistryError as error:
        return Check(name, False, str(error))


def _last_entry(manager: ModelManager) -> dict[str, datetime]:
    try:
        entries = manager.history()
    except RegistryError:  # the check of the ledger reports it
        return {}
    return {"the ledger's last entry": as_moment(entries[-1].time)} if entries else {}


def _check_memory(open_memory: Callable[[], MonitorStore]) -> Check:
    try:
        return Check("monitor", True, f"{len(open_memory().requests.history())} requests on record")
    except MonitorStoreError as error:
        return Check("monitor", False, str(error))
    except memory_errors() as error:
        return Check("monitor", False, f"its database cannot be read ({type(error).__name__})")


def _check_aliases(manager: ModelManager) -> tuple[bool, str]:
    moved = "; ".join(str(each) for each in manager.drift())
    return not moved, f"{moved}; --repair" if moved else "as the ledger says"


def _check_artifacts(manager: ModelManager, *, deep: bool) -> tuple[bool, str]:
    """Check that the weights of versions are complete and unchanged."""
    versions = _with_digests(manager) if deep else _served_or_staged(manager)
    errors = []
    for version in sorted(versions, key=int, reverse=True):
        try:
            manager.weights_path(version)
        except RegistryError as error:
            errors.append(str(error))
    if errors:
        more = f"; and {len(errors) - MAX_NAMED} more" if len(errors) > MAX_NAMED else ""
        return False, " ".join(errors[:MAX_NAMED]) + more
    which = "all versions" if deep else "Staging and all that were in Production"
    return True, f"the weights of {len(versions)} versions are whole ({which})"


def _with_digests(manager: ModelManager) -> set[str]:
    """Return all versions but those that other tools have registered, which have no digest."""
    return {row["version"] for row in manager.list_all_versions() if row["tags"].get("sha256")}


def _served_or_staged(manager: ModelManager) -> set[str]:
    """Return the versions in Staging and all that are or were in Production."""
    present = {manager.get_latest_version(stage) for stage in (Stage.PRODUCTION, Stage.STAGING)}
    served = {stay.version for stay in tenures(manager.history())}
    return served | {version for version in present if version is not None}
