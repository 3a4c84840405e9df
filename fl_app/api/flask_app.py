# SPDX-License-Identifier: Apache-2.0
"""The Flask app: the routes, and what runs around each: checks before, headers after, errors."""

from __future__ import annotations

import functools
import logging
from typing import Any

from flask import Flask, Response, g, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from fl_app.api.endpoint import Answer, Context, Endpoint, openapi_document, reply
from fl_app.api.guard import SAFE_METHODS, read_body
from fl_app.api.monitor import MONITOR_ENDPOINTS
from fl_app.api.page.routes import PAGE_QUERIES, page_routes
from fl_app.api.page.sign_in import on_page
from fl_app.api.page.templates import render
from fl_app.api.parsing import MAX_BODY, ApiError, Query, json_object, parse
from fl_app.api.registry import REGISTRY_ENDPOINTS
from fl_registry.redaction import trace

logger = logging.getLogger("flwr.fl_app")

# Scripts come from the server's own file alone: none in a text from outside, which escaping might
# have missed, can run.
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What a browser may load for the page: its own style, script and images, and nothing else."""


def flask_app(context: Context) -> Flask:
    """Make the app with all routes that there are for a context."""

    def openapi(_: Context, __: Query) -> Answer:
        """Return this description."""
        return document

    endpoints = [
        *MONITOR_ENDPOINTS,
        Endpoint("GET", "/openapi.json", Query, dict[str, Any], openapi),
    ]
    if context.store is not None:
        endpoints += REGISTRY_ENDPOINTS
    document = openapi_document(endpoints, token=context.guard.needs_token)
    app = Flask("fl_app", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # the description names every method
    # One byte more than the limit, so that `read_body` rejects and does not get a cut body.
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY + 1
    app.url_map.merge_slashes = False  # else //x is answered by a redirect
    app.extensions["fl_app"] = context.guard
    for endpoint in endpoints:
        name, view = endpoint.handle.__name__, functools.partial(endpoint.view, context)
        app.add_url_rule(endpoint.path, name, view, methods=[endpoint.method])
    app.register_blueprint(page_routes(app, context, document))
    queries = {e.handle.__name__: e.takes for e in endpoints if e.method == "GET"} | PAGE_QUERIES

    @app.before_request
    def check() -> None:
        # People sign in on the page instead; who that is, its routes find out.
        g.person = context.guard.admit(request, bearer=not on_page())
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
        if on_page():  # a page for people
            page = render("problem", status=error.status, detail=error.detail)
            return Response(page, error.status, error.headers)
        return reply(error.status, error.answer, error.headers)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        headers = {k: v for k, v in error.get_headers() if k in ("Allow", "Retry-After")}
        return rejected(ApiError(error.code or 500, **headers))

    @app.errorhandler(SQLAlchemyError)
    def no_database(error: SQLAlchemyError) -> Response:
        logger.warning("the monitor's database did not answer the API: %s", type(error).__name__)
        detail = "The monitor's database does not answer; the request may not be done, try again."
        return rejected(ApiError(503, detail, Retry_After="1"))

    @app.errorhandler(Exception)
    def bug(error: Exception) -> Response:
        known = trace(error, context.guard.token or "")
        logger.error("the API failed on %s: %s", request.endpoint, known)
        return rejected(ApiError(500))

    return app
