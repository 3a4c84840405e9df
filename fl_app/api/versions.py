# SPDX-License-Identifier: Apache-2.0
"""The API's routes to the registry: list versions, promote, approve, reject, roll back."""

from __future__ import annotations

from flask import Response

from fl_app.api.endpoint import Change, Context, Get, Post
from fl_app.api.idempotency import Answer, reply
from fl_app.api.schemas import (
    DecisionBody,
    Moved,
    PromotionBody,
    RollbackBody,
    VersionRow,
    VersionsQuery,
)
from fl_registry import Stage


def list_versions(api: Context, query: VersionsQuery) -> Response:
    """List versions of the model, newest first."""
    with api.registry.call() as store:
        rows = store.list_all_versions()
    last = int(query.before or 10**9)
    return reply(200, [row for row in rows if int(row["version"]) < last][: query.limit])


def promote(api: Context, body: PromotionBody, change: Change) -> Answer:
    """Move a version to Production, or to Staging."""
    version = change.version
    with api.registry.call() as store:
        if body.to == "staging":
            store.promote_to_staging(version, actor=body.by, reason=body.note)
            return _moved(version, Stage.STAGING)
        store.promote_to_production(version, actor=body.by, reason=body.note)
    return _moved(version, Stage.PRODUCTION)


def approve(api: Context, body: DecisionBody, change: Change) -> Answer:
    """Move a version that waits for approval to Production."""
    with api.registry.call() as store:
        store.approve_version(change.version, actor=body.by, reason=body.note)
    return _moved(change.version, Stage.PRODUCTION)


def reject(api: Context, body: DecisionBody, change: Change) -> Answer:
    """Archive a version that waits for approval."""
    with api.registry.call() as store:
        store.reject_version(change.version, actor=body.by, reason=body.note)
    return _moved(change.version, Stage.ARCHIVED)


def roll_back(api: Context, body: RollbackBody, _: Change) -> Answer:
    """Bring back a version that was in Production, or what was there on a day or at a moment."""
    with api.registry.call() as store:
        version = store.rollback(body.to or None, actor=body.by, reason=body.note)
    return _moved(version, Stage.PRODUCTION)


def _moved(version: str, stage: Stage) -> Answer:
    return 200, {"version": version, "stage": str(stage)}


VERSION_ENDPOINTS = (
    Get("/versions", list[VersionRow], VersionsQuery, list_versions),
    Post("/versions/<version>/promote", Moved, PromotionBody, promote),
    Post("/versions/<version>/approve", Moved, DecisionBody, approve),
    Post("/versions/<version>/reject", Moved, DecisionBody, reject),
    # Whether an unfinished rollback to "the one before" was done cannot be seen afterwards.
    Post("/rollback", Moved, RollbackBody, roll_back, repeatable=lambda body: bool(body.to)),
)
