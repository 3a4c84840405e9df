# SPDX-License-Identifier: Apache-2.0
"""The API's routes to the registry: list versions, promote, approve, reject, roll back."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, g, request

from fl_app.api.idempotency import Answer, Once, reply
from fl_app.api.inputs import ApiError, checked_fields, number_argument, text_field
from fl_app.api.page.overview import Look
from fl_registry import (
    ArtifactError,
    InvalidName,
    JournalError,
    ModelStore,
    RegistryError,
    Stage,
    StageError,
    StoreUnavailable,
    UnknownVersion,
)
from fl_registry.journal.entries import as_moment

AT_ONCE = 4
"""Calls to the registry at once; an MLflow that is slow must not hold all of the API's threads."""
MAX_NAME = 100
STATUSES: Mapping[type[RegistryError], int] = {
    UnknownVersion: 404,
    StageError: 409,
    ArtifactError: 409,
    InvalidName: 400,
    StoreUnavailable: 503,
}
"""HTTP status of the registry's errors; 500 for all others."""

_DATE = re.compile(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]{1,20}(Z|[+-][0-9:]{2,6})?)?\Z")


def add_version_routes(app: Flask, versions: Versions, once: Once) -> None:
    """Add the routes to an app."""

    @app.get("/versions")
    def list_versions() -> Response:
        limit = number_argument(request.args, "limit", 100, 1000)
        before = request.args.get("before")
        return reply(
            200, versions.rows(limit, before if before is None else version_number(before))
        )

    @app.post("/versions/<version>/promote")
    def promote(version: str) -> Response:
        number, by, to = version_number(version), _by(to=str), g.body.get("to", "production")
        if to not in ("production", "staging"):
            raise ApiError(400, "The field 'to' must be 'production' or 'staging'.")
        return once(lambda _: versions.promote(number, to, by))

    @app.post("/versions/<version>/approve")
    def approve(version: str) -> Response:
        number, by = version_number(version), _by()
        return once(lambda _: versions.approve(number, by))

    @app.post("/versions/<version>/reject")
    def reject(version: str) -> Response:
        number, by = version_number(version), _by()
        return once(lambda _: versions.reject(number, by))

    @app.post("/rollback")
    def roll_back() -> Response:
        by, to = _by(to=str), g.body.get("to")
        goal = None if to is None else _goal(to)
        return once(lambda _: versions.roll_back(goal, by), repeatable=goal is not None)


@dataclass(frozen=True)
class By:
    """Who decides, and why."""

    actor: str
    reason: str


@dataclass(frozen=True)
class Versions:
    """The registry, with its errors as the API's."""

    store: ModelStore
    places: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(AT_ONCE)
    )

    def rows(self, limit: int, before: str | None) -> list[dict[str, Any]]:
        """Newest first."""
        with self.asked():
            rows = self.store.list_all_versions()
        older = [row for row in rows if before is None or int(row["version"]) < int(before)]
        return older[:limit]

    def look(self) -> Look:
        """All versions and the journal, for the page; a journal that breaks off is told."""
        with self.asked():
            try:
                entries = self.store.history()
                return Look(tuple(self.store.list_all_versions()), entries)
            except JournalError as error:
                return Look((), error.before, str(error))

    def promote(self, version: str, to: str, by: By) -> Answer:
        with self.asked():
            if to == "staging":
                self.store.promote_to_staging(version, actor=by.actor, reason=by.reason)
                return 200, {"version": version, "stage": str(Stage.STAGING)}
            self.store.promote_to_production(version, actor=by.actor, reason=by.reason)
        return 200, {"version": version, "stage": str(Stage.PRODUCTION)}

    def approve(self, version: str, by: By) -> Answer:
        """Like a promotion, of a version that waits for it."""
        with self.asked():
            self.store.approve_version(version, actor=by.actor, reason=by.reason)
        return 200, {"version": version, "stage": str(Stage.PRODUCTION)}

    def reject(self, version: str, by: By) -> Answer:
        with self.asked():
            self.store.reject_version(version, actor=by.actor, reason=by.reason)
        return 200, {"version": version, "stage": str(Stage.ARCHIVED)}

    def roll_back(self, to: str | None, by: By) -> Answer:
        with self.asked():
            version = self.store.rollback(to, actor=by.actor, reason=by.reason)
        return 200, {"version": version, "stage": str(Stage.PRODUCTION)}

    @contextmanager
    def asked(self) -> Iterator[None]:
        """The time of a call to the registry, with its errors as the API's; few at once."""
        if not self.places.acquire(blocking=False):
            raise ApiError(503, "The registry is busy; try again.", Retry_After="1")
        try:
            yield
        except RegistryError as error:
            raise ApiError(STATUSES.get(type(error), 500), str(error)) from error
        finally:
            self.places.release()


def _goal(text: str) -> str:
    """Return what a rollback may go to: a version, or a day or moment as ISO-8601 has it."""
    if not _DATE.match(text):
        return version_number(text)
    try:
        as_moment(text)
    except InvalidName as error:
        raise ApiError(404, str(error)) from error
    return text


def version_number(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text, re.ASCII):
        raise ApiError(404, "That is not a version; versions are numbers such as 3.")
    return text


def _by(**more: type) -> By:
    """Read who decides and why from the body, and refuse fields beyond these and ``more``."""
    checked_fields(g.body, by=str, note=str, **more)
    actor = text_field(g.body, "by", "api", MAX_NAME)
    return By(actor, text_field(g.body, "note"))
