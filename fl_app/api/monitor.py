# SPDX-License-Identifier: Apache-2.0
"""The API's routes to the monitor: trigger, history, metrics, status and health."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from flask import Response, request
from prometheus_client import generate_latest

from fl_app.api.endpoint import Change, Context, Get, Post
from fl_app.api.idempotency import Answer, reply
from fl_app.api.metrics import PROMETHEUS, monitor_metrics
from fl_app.api.parsing import ApiError
from fl_app.api.production import probation_status
from fl_app.api.schemas import (
    Health,
    HistoryQuery,
    Metrics,
    MetricsQuery,
    Query,
    RequestRow,
    Status,
    TriggerBody,
    Triggered,
)
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.requests import Outcome

STATUSES = {
    Outcome.JOINED: "joined",
    Outcome.SUPPRESSED: "suppressed",
    Outcome.SUGGESTED: "suggested",
}
"""How a request is answered; all others are accepted."""


def trigger_retrain(api: Context, body: TriggerBody, change: Change) -> Answer:
    """Request a retraining session. It is written down when the answer comes.

    At most one request is pending; more join it.
    """
    manager = api.manager
    request_id = manager.manual_trigger(body.reason, force=body.force, request_id=change.id)
    row = manager.store.requests.get(change.id) or {}
    status = STATUSES.get(Outcome(row["outcome"]), "accepted")
    why = {"why": row["why"]} if row["why"] else {}
    return 202, {"status": status, "request_id": request_id, "reason": row["reason"], **why}


def trigger_history(api: Context, query: HistoryQuery) -> Response:
    """List requests with their outcome, newest last."""
    memory, before = api.manager.store.requests, query.before
    if before is not None and memory.get(before) is None:
        raise ApiError(404, "There is no request with that id.")
    return reply(200, memory.history(query.limit, before or ""))


def requests_now(manager: RetrainingManager) -> dict[str, Any]:
    """Return the running and the pending request, None where there is none."""
    memory = manager.store.requests
    requests = {str(o): memory.find(o) for o in (Outcome.RUNNING, Outcome.PENDING)}
    return {name: r if r is None else memory.get(r.id) for name, r in requests.items()}


def status(api: Context, _: Query) -> Response:
    """Tell whether the monitor runs, which requests run or wait, and what fails."""
    answer = {
        "monitoring": api.manager.monitoring,
        **requests_now(api.manager),
        "probation": probation_status(api),
        "failing": api.manager.health.failing,
    }
    return reply(200, answer)


def health(api: Context, _: Query) -> Response:
    """Tell whether the API answers, and what else fails while the run goes on. Needs no token.

    The log and `/status` tell why something fails.
    """
    backlog = None if api.backlog is None else api.backlog()
    # Another process may hand over the rounds, and reports its trouble on disk only.
    elsewhere = {"registry"} if backlog is not None and backlog.trouble else set()
    failing = sorted({*api.manager.health.failing, *elsewhere})
    answer: dict[str, object] = {"status": "degraded" if failing else "ok"}
    if failing:
        answer["failing"] = failing
    if backlog is not None:
        answer["backlog"] = backlog.rounds
    # 200 also if degraded: a probe that fails would have the server killed, for a full disk say.
    return reply(200, answer)


def metrics(api: Context, query: MetricsQuery) -> Response:
    """Return scores and counts, as JSON or as Prometheus text.

    The text also has what the server counted of rounds, sessions and stage moves.
    """
    if query.format == "prometheus" or (query.format is None and _accepts_text_rather()):
        response = Response(generate_latest(api.metrics), content_type=PROMETHEUS)
    else:
        response = reply(200, monitor_metrics(api.manager))
    response.headers["Vary"] = "Accept"
    return response


def _accepts_text_rather() -> bool:
    """Return whether the Accept header gives text a higher weight than JSON; ``*/*`` is neither."""
    weights: dict[str, float] = defaultdict(float)
    for kind, weight in request.accept_mimetypes:
        name = kind.partition(";")[0].lower()
        weights[name] = max(weights[name], weight)
    text = max(weights["text/plain"], weights["application/openmetrics-text"])
    return text > weights["application/json"]


MONITOR_ENDPOINTS = (
    Post("/trigger_retrain", Triggered, TriggerBody, trigger_retrain, status=202),
    Get("/trigger_history", list[RequestRow], HistoryQuery, trigger_history),
    Get("/metrics", Metrics, MetricsQuery, metrics),
    Get("/status", Status, Query, status),
    Get("/health", Health, Query, health),
)
