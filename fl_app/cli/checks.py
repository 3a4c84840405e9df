# SPDX-License-Identifier: Apache-2.0
"""`fl-app doctor`: is what the app keeps there, whole and in agreement with itself?

What it looks at on the machine is in `fl_app.cli.machine_checks`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from fl_app.cli.machine_checks import (
    LEFT,
    Check,
    check_clock,
    check_disk,
    check_leftovers,
    check_superlink,
    check_versions,
    newest_file,
)
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.errors import MonitorStoreError, memory_errors
from fl_registry import ModelManager, RegistryError, Stage, app_home
from fl_registry.files.atomic import remove_unfinished
from fl_registry.journal.entries import as_moment
from fl_registry.mlflow.address import server_time
from fl_registry.production_stays import tenures

NAMED = 3
"""Damaged versions that are named; more are counted."""


def examine(
    manager: ModelManager, open_memory: Callable[[], MonitorStore], *, deep: bool = False
) -> list[Check]:
    """Look at everything; nothing is changed.

    Parameters
    ----------
    manager : ModelManager
        The registry to look at.
    open_memory : Callable[[], MonitorStore]
        Opens the monitor's memory.
    deep : bool
        Look at the files of all versions, and not only of those in Staging and of those that are
        or have been in Production.
    """
    home, now = app_home(), datetime.now(UTC)
    checks = [
        check_versions(),
        check_disk(home),
        check_leftovers(home, now),
        check_superlink(),
        _memory(open_memory),
    ]
    try:
        manager.ping()
    except RegistryError as error:
        return [*checks, check_clock(now, _past(None), None), Check("store", False, str(error))]
    return [
        *checks,
        check_clock(now, _past(manager), server_time(manager.tracking_uri)),
        Check("store", True, f"{manager.registered_model_name} can be read"),
        _looked("ledger", lambda: f"{manager.verify()} entries follow one another"),
        _drift(manager),
        _artifacts(manager, deep=deep),
    ]


def mend(manager: ModelManager) -> list[Check]:
    """Do what can be done without a person: remove leftovers, bring aliases and stages in line.

    Returns what was done, and what could not be.
    """
    home = app_home()
    gone = remove_unfinished(home, older_than=LEFT, now=datetime.now(UTC))
    done = [Check("repair", True, f"{len(gone)} leftovers removed")] if gone else []
    try:
        moved = len(manager.drift())
        manager.reconcile()
    except RegistryError as error:
        return [*done, Check("repair", False, str(error))]
    return [*done, Check("repair", True, f"aliases and stages are in line, {moved} were not")]


def _past(manager: ModelManager | None) -> dict[str, datetime]:
    """Moments that have passed."""
    newest = newest_file(app_home())
    past = {"the newest file of the app's folder": newest} if newest is not None else {}
    try:
        entries = manager.history() if manager is not None else ()
    except RegistryError:  # the check of the ledger tells
        return past
    return past | ({"the ledger's last entry": as_moment(entries[-1].time)} if entries else {})


def _memory(open_memory: Callable[[], MonitorStore]) -> Check:
    try:
        return Check("monitor", True, f"{len(open_memory().requests.history())} requests on record")
    except MonitorStoreError as error:
        return Check("monitor", False, str(error))
    except memory_errors() as error:
        return Check("monitor", False, f"its memory cannot be read ({type(error).__name__})")


def _drift(manager: ModelManager) -> Check:
    try:
        moved = manager.drift()
    except RegistryError as error:
        return Check("aliases", False, str(error))
    told = "; ".join(str(one) for one in moved)
    return Check("aliases", not moved, f"{told}; --repair" if moved else "as the ledger says")


def _artifacts(manager: ModelManager, *, deep: bool) -> Check:
    """Whether the weights of versions that count are there and whole."""
    try:
        wanted = _wanted(manager, deep=deep)
    except RegistryError as error:
        return Check("artifacts", False, str(error))
    broken, whole = [], 0
    for version in wanted:
        try:
            manager.weights_path(version)
            whole += 1
        except RegistryError as error:
            broken.append(str(error))
    if broken:
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        return Check("artifacts", False, " ".join(broken[:NAMED]) + more)
    which = "all versions" if deep else "Staging and all that were in Production"
    return Check("artifacts", True, f"the weights of {whole} versions are whole ({which})")


def _wanted(manager: ModelManager, *, deep: bool) -> list[str]:
    """The versions whose files are looked at, newest first; those of other tools have no digest."""
    served = {stay.version for stay in tenures(manager.history())}
    staged = {manager.get_latest_version(stage) for stage in (Stage.PRODUCTION, Stage.STAGING)}
    rows = manager.list_all_versions()
    ours = {row["version"] for row in rows if row["tags"].get("sha256")}
    counted = (served | staged) if not deep else {row["version"] for row in rows} & ours
    return sorted({version for version in counted if version is not None}, key=int, reverse=True)


def _looked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except RegistryError as error:
        return Check(name, False, str(error))
