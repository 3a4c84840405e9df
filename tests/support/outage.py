# SPDX-License-Identifier: Apache-2.0
"""The in-memory store and tracker as they are behind a server that comes and goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fl_registry import InMemoryModelStore, InMemoryTracker, StoreUnavailable

STORE_CALLS = (
    "save_model_version",
    "promote_to_staging",
    "promote_to_production",
    "archive_version",
    "approve_version",
    "reject_version",
    "history",
    "list_all_versions",
    "get_version",
    "get_latest_version",
    "weights_path",
    "set_version_tags",
)
TRACKER_CALLS = (
    "start_run",
    "adopt_run",
    "log_params",
    "log_metrics",
    "log_artifact",
    "set_tags",
    "end_run",
)


class Server:
    """Stands between the app and its store; `away` for good, or `fails` at one call.

    Attributes
    ----------
    away : bool
        Whether no call gets through.
    calls : int
        Calls so far; one within another counts too.
    fails : tuple[int, str] | None
        The number of a call that fails once, ``before`` it did something or ``after`` that.
    failed : str
        The name of the call that `fails` met; empty until then.
    """

    def __init__(self) -> None:
        self.away = False
        self.calls = 0
        self.fails: tuple[int, str] | None = None
        self.failed = ""

    def through(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a call, if it gets through."""
        if self.away:
            raise StoreUnavailable("MLflow does not answer (in a test).")
        self.calls += 1
        mine = self.calls
        if self.fails and self.fails[0] == mine:
            self.failed = call.__name__
        if self.fails == (mine, "before"):
            raise StoreUnavailable(f"call {mine} did not arrive (in a test).")
        result = call(*arguments, **named)
        if self.fails == (mine, "after"):
            raise StoreUnavailable(f"the reply to call {mine} was lost (in a test).")
        return result


def behind(server: Server, store: InMemoryModelStore, tracker: InMemoryTracker) -> None:
    """Put a server between the app and a store and a tracker."""
    for thing, names in ((store, STORE_CALLS), (tracker, TRACKER_CALLS)):
        for name in names:
            setattr(thing, name, _passed(server, getattr(thing, name)))


def _passed(server: Server, call: Callable[..., Any]) -> Callable[..., Any]:
    def passed(*arguments: Any, **named: Any) -> Any:
        return server.through(call, *arguments, **named)

    return passed
