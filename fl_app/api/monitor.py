# SPDX-License-Identifier: Apache-2.0
"""The API's Flask app: the monitor's routes, and all errors as JSON."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import yaml
from flask import Flask, Response, current_app, g, request
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from fl_app.api.guard import SAFE_METHODS, Guard, read_body
from fl_app.api.idempotency import Answer, Once, reply
from fl_app.api.inputs import (
    MAX_BODY,
    ApiError,
    checked_fields,
    error_answer,
    json_object,
    number_argument,
    text_field,
    wants_prometheus,
)
from fl_app.api.metrics import PROMETHEUS, all_metrics, monitor_metrics, prometheus_text
from fl_app.api.page.routes import POLICY, page_routes, problem
from fl_app.api.page.sign_in import SignIns, on_page
from fl_app.api.production import add_production_routes, probation_status
from fl_app.api.versions import Versions, add_version_routes
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.probation.probation import Probation
from fl_app.retraining.requests import Outcome
from fl_app.strategy.session.backlog import Backlog
from fl_registry import ModelStore
from fl_registry.redaction import trace

logger = logging.getLogger("flwr.fl_app")

OPENAPI = Path(__file__).with_name("openapi.yaml")
QUERIES = {
    "metrics": {"format"},
    "trigger_history": {"limit", "before"},
    "list_versions": {"limit", "before"},
    "page.show": {"metric"},
}
"""What may stand behind the question mark, by route."""
STATUSES = {
    Outcome.JOINED: "joined",
    Outcome.SUPPRESSED: "suppressed",
    Outcome.SUGGESTED: "suggested",
}
"""How a request is answered; all others are accepted."""


def make_app(
    manager: RetrainingManager,
    store: ModelStore | None,
    guard: Guard,
    collectors: Iterable[Collector] = (),
    *,
    probation: Probation | None = None,
    waiting: Callable[[], Backlog] | None = None,
) -> Flask:
    """Put the app together."""
    app = Flask("fl_app", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY + 1
    app.url_map.merge_slashes = False
    app.extensions["fl_app"] = guard
    app.before_request(lambda: _before(guard))
    app.after_request(_after)
    app.register_error_handler(ApiError, _refused)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(SQLAlchemyError, _no_memory)
    app.register_error_handler(Exception, _bug)
    once = Once(manager.store)
    versions = None if store is None else Versions(store)
    watch = probation or (None if store is None else Probation(store, manager))
    _add_monitor_routes(app, manager, once)
    _add_health_route(app, manager, waiting)
    _add_status_route(app, manager, watch, versions)
    _add_metrics_route(app, manager, all_metrics(manager, collectors))
    if versions is not None and watch is not None:
        add_version_routes(app, versions, once)
        add_production_routes(app, watch, versions, once)
    signs = SignIns(app, needed=guard.token is not None)
    app.register_blueprint(
        page_routes(
            manager,
            versions,
            once,
            signs=signs,
            guard=guard,
            stands=lambda: probation_status(watch, versions),
        )
    )
    _add_description(app, guard, versions=store is not None)
    return app


def _before(guard: Guard) -> None:
    """All checks that do not depend on the route, in front of it."""
    guard.admit(request)
    if not on_page():  # where people sign in with the token instead
        guard.admit_bearer(request)
    if request.routing_exception is not None:
        raise request.routing_exception
    unknown = set(request.args) - QUERIES.get(request.endpoint or "", set())
    if unknown:
        raise ApiError(400, f"?{sorted(unknown)[0][:80]}= is not known here; leave it out.")
    if any(len(values) > 1 for _, values in request.args.lists()):
        raise ApiError(400, "A query parameter is there twice; send it once.")
    if request.method not in SAFE_METHODS and not on_page():
        g.body = json_object(read_body(request))


def _after(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = POLICY if on_page() else "default-src 'none'"
    response.headers["Referrer-Policy"] = "same-origin"  # browsers name no origin to "no-referrer"
    return response


def _add_monitor_routes(app: Flask, manager: RetrainingManager, once: Once) -> None:
    requests = manager.store.requests

    @app.post("/trigger_retrain")
    def trigger_retrain() -> Response:
        checked_fields(g.body, reason=str, force=bool)
        reason = text_field(g.body, "reason")
        return once(lambda new_id: _trigger(manager, reason, g.body.get("force", True), new_id))

    @app.get("/trigger_history")
    def trigger_history() -> Response:
        limit = number_argument(request.args, "limit", 100, 1000)
        before = request.args.get("before")
        if before is not None and not re.fullmatch(r"[0-9a-f]{32}", before, re.ASCII):
            raise ApiError(400, "?before= must be the id of a request.")
        if before is not None and requests.get(before) is None:
            raise ApiError(404, "There is no request with that id.")
        return reply(200, requests.history(limit, before or ""))


def _add_health_route(
    app: Flask, manager: RetrainingManager, waiting: Callable[[], Backlog] | None
) -> None:
    @app.get("/health")
    def health() -> Response:
        known = waiting() if waiting is not None else None
        # What hands rounds over may be another process, which tells of it on disk.
        away = {"registry"} if known is not None and known.trouble else set()
        failing = sorted({*manager.health.failing, *away})
        told: dict[str, object] = {"status": "degraded" if failing else "ok"}
        if failing:
            told["failing"] = failing
        if known is not None:
            told["backlog"] = known.rounds
        return reply(200, told)


def _add_status_route(
    app: Flask, manager: RetrainingManager, watch: Probation | None, versions: Versions | None
) -> None:
    requests = manager.store.requests

    @app.get("/status")
    def status() -> Response:
        found = {str(o): requests.find(o) for o in (Outcome.RUNNING, Outcome.PENDING)}
        rows = {name: r if r is None else requests.get(r.id) for name, r in found.items()}
        stands = probation_status(watch, versions)
        known = {"probation": stands, "failing": manager.health.failing}
        return reply(200, {"monitoring": manager.monitoring, **rows, **known})


def _add_metrics_route(app: Flask, manager: RetrainingManager, registry: CollectorRegistry) -> None:
    @app.get("/metrics")
    def metrics() -> Response:
        if wants_prometheus(request.headers.get("Accept", ""), request.args.get("format")):
            response = Response(prometheus_text(registry), content_type=PROMETHEUS)
        else:
            response = reply(200, monitor_metrics(manager))
        response.headers["Vary"] = "Accept"
        return response


def _trigger(manager: RetrainingManager, reason: str, force: bool, new_id: str) -> Answer:
    """Put a request into the mailbox; it is written down when this returns."""
    request_id = manager.manual_trigger(reason, force=force, request_id=new_id)
    row = manager.store.requests.get(new_id) or {}
    status = STATUSES.get(Outcome(row["outcome"]), "accepted")
    why = {"why": row["why"]} if row["why"] else {}
    return 202, {"status": status, "request_id": request_id, "reason": row["reason"], **why}


def _add_description(app: Flask, guard: Guard, *, versions: bool) -> None:
    description = yaml.safe_load(OPENAPI.read_text("utf-8"))
    if not versions:
        paths = description["paths"]
        ours = {rule.rule.replace("<", "{").replace(">", "}") for rule in app.url_map.iter_rules()}
        description["paths"] = {k: v for k, v in paths.items() if k in {*ours, "/openapi.json"}}
    if guard.token is None:
        del description["security"]

    @app.get("/openapi.json")
    def openapi() -> Response:
        return reply(200, description)


def _problem(status: int, answer: Mapping[str, str], **headers: str) -> Response:
    """An error as JSON, or for people where it is the page's."""
    if on_page():
        return problem(status, answer["detail"], headers)
    return reply(status, answer, **headers)


def _refused(error: ApiError) -> Response:
    return _problem(error.status, error.answer, **error.headers)


def _http_error(error: HTTPException) -> Response:
    details = {
        404: "There is nothing here; GET /openapi.json tells what there is.",
        405: f"{request.method[:20]} cannot be used here; see the header Allow.",
        413: f"The body is larger than {MAX_BODY // 1024} KiB; send a shorter one.",
    }
    status = error.code or 500
    detail = details.get(status, "The request cannot be read; check its address and headers.")
    headers = {k: v for k, v in error.get_headers() if k in ("Allow", "Retry-After")}
    return _problem(status, error_answer(status, detail), **headers)


def _no_memory(error: SQLAlchemyError) -> Response:
    logger.warning("the monitor's memory did not answer the API: %s", type(error).__name__)
    detail = "The monitor's memory does not answer; nothing is known to be done, try again."
    return _problem(503, error_answer(503, detail), Retry_After="1")


def _bug(error: Exception) -> Response:
    guard: Guard = current_app.extensions["fl_app"]
    logger.error("the API failed on %s: %s", request.endpoint, trace(error, guard.token or ""))
    return _problem(
        500, error_answer(500, "Something went wrong here; the server's log tells more.")
    )
