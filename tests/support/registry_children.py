# SPDX-License-Identifier: Apache-2.0
"""What the registry's tests do in other processes, which are forked from one that is warmed up."""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - what takes seconds is imported once

from fl_registry import LeaseLost, ModelManager
from support.registry_faults import told

FIRST_SERVER = "the first server"


def promote(  # noqa: PLR0917 - a process gets them by place
    address: str, home: Path, names: list[str], version: str, barrier: Any, results: Any
) -> None:
    """Promote a version of each model when all are ready; tell the errors if there are any."""

    def act(manager: ModelManager) -> str:
        manager.promote_to_production(version, actor=f"process {version}")
        return ""

    results.put((version, [_at_once(address, home, name, version, barrier, act) for name in names]))


def begin(  # noqa: PLR0917 - a process gets them by place
    address: str, home: Path, names: list[str], version: str, barrier: Any, results: Any
) -> None:
    """Archive a version of each model when all are ready, and tell which journal it went to."""

    def act(manager: ModelManager) -> str:
        manager.archive_version(version)
        return manager.backend.journal.ensure().run_id

    results.put((version, [_at_once(address, home, name, version, barrier, act) for name in names]))


def _at_once(  # noqa: PLR0917 - the same ones again
    address: str,
    home: Path,
    name: str,
    version: str,
    barrier: Any,
    act: Callable[[ModelManager], str],
) -> str:
    """Do something to a model when all are ready; return what it says, or its error."""
    faulthandler.dump_traceback_later(90, exit=True)  # a process that hangs says where
    try:
        manager = ModelManager(address, name, home=home)
        manager.get_version(version)
        barrier.wait(120)
        return act(manager)
    except BaseException:  # noqa: BLE001 - whatever it is, the parent tells of it
        return traceback.format_exc()


def killed(address: str, home: Path, name: str, failpoint: str) -> None:
    """Promote version 2, and die as a process does that is killed, where `failpoint` says.

    The fail point is ``<n>:<before|after>``: the n-th call to MLflow of the promotion. It is in
    the environment too, as it would be for a process that was started by hand.
    """
    os.environ["FAILPOINT"] = failpoint
    manager = ModelManager(address, name, home=home)
    manager.get_version("2")
    calls, within, wanted = 0, [0], os.environ["FAILPOINT"]

    def die(_: str, when: str) -> None:
        nonlocal calls
        if when == "before":
            calls += 1
            within.append(calls)
        if wanted == f"{within[-1]}:{when}":
            os.kill(os.getpid(), signal.SIGKILL)
        if when == "after":
            within.pop()  # one call of the client may make another

    told(manager.backend.connection, die)
    manager.promote_to_production("2")


def serve(  # noqa: PLR0917 - a process gets them by place
    address: str, home: Path, name: str, file: Path, lasts: float, ready: Any, results: Any
) -> None:
    """Write to a model under a lease, version after version, until another server has taken over.

    Tells its epoch first, and in the end what ended it and which versions it saved.
    """
    faulthandler.dump_traceback_later(120, exit=True)
    os.environ["PGAPPNAME"] = FIRST_SERVER  # PostgreSQL lists its connections under this name
    # In a shared database the default experiment has its files in the home of another test.
    manager = ModelManager(address, name, home=home, experiment_name=f"{name} of the first")
    saved: list[str] = []
    try:
        with manager.writer("the first", lasts=lasts) as writer:
            assert writer.lease is not None
            results.put(writer.lease.epoch)
            ready.set()
            for number in range(10_000):
                writer.check()
                tags = {"round": str(number), "epoch": str(writer.lease.epoch)}
                saved.append(manager.save_model_version(file, metrics={"m": 0.5}, tags=tags))
                move = (manager.promote_to_staging, manager.promote_to_production)[number % 2]
                move(saved[-1], actor="policy", lease=writer.lease)
    except LeaseLost as error:
        results.put((str(error), saved))
    except BaseException:  # noqa: BLE001 - whatever it is, the parent tells of it
        results.put((traceback.format_exc(), saved))
