# SPDX-License-Identifier: Apache-2.0
"""What runs around every route: checks before it, headers after it, errors as answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flask import Flask, Response, g, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from fl_app.api.guard import SAFE_METHODS, Guard, read_body
from fl_app.api.idempotency import reply
from fl_app.api.page.routes import problem
from fl_app.api.page.sign_in import on_page
from fl_app.api.parsing import MAX_BODY, ApiError, error_answer, json_object, parse
from fl_app.api.schemas import Query
from fl_registry.redaction import trace

logger = logging.getLogger("flwr.fl_app")

HTTP_ERRORS = {
    404: "There is nothing here; GET /openapi.json lists what there is.",
    405: "This method cannot be used here; see the header Allow.",
    413: f"The body is larger than {MAX_BODY // 1024} KiB; send a shorter one.",
}
# The page needs no script, so that none may run: not even one in a text from outside that escaping
# had missed.
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""What a browser may load for the page: its own style and images, and nothing else."""


def add_middleware(app: Flask, guard: Guard, queries: Mapping[str, type[Query]]) -> None:
    """Check each request, secure each answer and answer each error of an app.

    Parameters
    ----------
    app : Flask
        The app.
    guard : Guard
        Who may send requests.
    queries : Mapping[str, type[Query]]
        Types of the queries by Flask's names of the routes; other routes take none.
    """

    @app.before_request
    def check() -> None:
        guard.admit(request, bearer=not on_page())  # people sign in on the page instead
        if request.routing_exception is not None:
            raise request.routing_exception
        if any(len(values) > 1 for _, values in request.args.lists()):
            raise ApiError(400, "A query parameter is there twice; send it once.")
        kind = queries.get(request.endpoint or "", Query)
        g.query = parse(kind, request.args.to_dict(), part="query parameter")
        if request.method not in SAFE_METHODS and not on_page():
            g.body = json_object(read_body(request))

    @app.after_request
    def secure(response: Response) -> Response:
        policy = PAGE_POLICY if on_page() else "default-src 'none'"
        response.headers.setdefault("Content-Security-Policy", policy)
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        # Browsers would send the Origin "null" with "no-referrer", which the guard rejects.
        response.headers["Referrer-Policy"] = "same-origin"
        return response

    @app.errorhandler(ApiError)
    def rejected(error: ApiError) -> Response:
        return _error(error.status, error.detail, error.headers)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        detail = HTTP_ERRORS.get(status, "The request cannot be read; check address and headers.")
        headers = {k: v for k, v in error.get_headers() if k in ("Allow", "Retry-After")}
        return _error(status, detail, headers)

    @app.errorhandler(SQLAlchemyError)
    def no_database(error: SQLAlchemyError) -> Response:
        logger.warning("the monitor's database did not answer the API: %s", type(error).__name__)
        detail = "The monitor's database does not answer; the request may not be done, try again."
        return _error(503, detail, {"Retry-After": "1"})

    @app.errorhandler(Exception)
    def bug(error: Exception) -> Response:
        logger.error("the API failed on %s: %s", request.endpoint, trace(error, guard.token or ""))
        return _error(500, "Something went wrong here; the server's log has the error.", {})


def _error(status: int, detail: str, headers: Mapping[str, str]) -> Response:
    """Return an error: a page for people on the page, JSON elsewhere."""
    if on_page():
        return problem(status, detail, headers)
    return reply(status, error_answer(status, detail), headers)
