# SPDX-License-Identifier: Apache-2.0
"""`fl-app doctor`: is what the app keeps there, whole and in agreement with itself?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed
from typing import Any

from fl_app.retraining import MonitorStore
from registry import ModelManager, RegistryError, Stage, app_home

MIN_FREE = 1 << 30
"""Bytes on the disk of the app's home below which a session may not find room for its rounds."""
TESTED = {"flwr": "1.41", "mlflow": "3.17"}
"""Versions that this release was tested with."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what it is, whether it is well, and what was seen."""

    name: str
    ok: bool
    detail: str

    def as_row(self) -> dict[str, Any]:
        """Return it as a plain dictionary."""
        return asdict(self)


def examine(manager: ModelManager, open_memory: Callable[[], MonitorStore]) -> list[Check]:
    """Look at everything; nothing is changed.

    Parameters
    ----------
    manager : ModelManager
        The registry to look at.
    open_memory : Callable[[], MonitorStore]
        Opens the monitor's memory.
    """
    checks = [_versions(), _disk(), _memory(open_memory)]
    try:
        manager.ping()
    except RegistryError as error:
        return [*checks, Check("store", False, str(error))]
    return [
        *checks,
        Check("store", True, f"{manager.registered_model_name} can be read"),
        _looked("ledger", lambda: f"{manager.verify()} entries follow one another"),
        _drift(manager),
        *(_artifact(manager, stage) for stage in (Stage.PRODUCTION, Stage.STAGING)),
    ]


def _versions() -> Check:
    found = {name: installed(name) for name in TESTED}
    strange = [
        f"{name} {found[name]}" for name, v in TESTED.items() if not found[name].startswith(f"{v}.")
    ]
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    wanted = ", ".join(f"{name} {number}" for name, number in TESTED.items())
    detail = f"{', '.join(strange)}: tested with {wanted}" if strange else told
    return Check("versions", not strange, detail)


def _disk() -> Check:
    folder = app_home()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    return Check("disk", free >= MIN_FREE, f"{free / (1 << 30):.1f} GiB free in {folder}")


def _memory(open_memory: Callable[[], MonitorStore]) -> Check:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return Check("monitor", True, f"{len(open_memory().history())} requests on record")
    except (SQLAlchemyError, OSError) as error:
        return Check("monitor", False, f"its memory cannot be read ({type(error).__name__})")


def _drift(manager: ModelManager) -> Check:
    try:
        moved = manager.drift()
    except RegistryError as error:
        return Check("aliases", False, str(error))
    told = "; ".join(str(one) for one in moved)
    return Check("aliases", not moved, told or "as the ledger says")


def _artifact(manager: ModelManager, stage: Stage) -> Check:
    def look() -> str:
        version = manager.get_latest_version(stage)
        if version is None:
            return "there is none"
        manager.weights_path(version)
        return f"the weights of version {version} are whole"

    return _looked(str(stage), look)


def _looked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except RegistryError as error:
        return Check(name, False, str(error))
