# SPDX-License-Identifier: Apache-2.0
"""The status page's routes: pages to look at, and forms that change something.

The pages need no script; one makes times local and shows what is new. Each form is sent to a route
under ``/page/``, which answers with a redirect to the page and leaves one sentence for it.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Literal

from flask import Blueprint, Flask, Response, g, redirect, request, session
from pydantic import Field
from werkzeug.wrappers import Response as AnyResponse

from fl_app.api.downloads import PageDownloadQuery, download_weights
from fl_app.api.endpoint import Answer, Context, acting
from fl_app.api.guard import FORM, SAFE_METHODS, Guard, is_secret, read_body, require_decide
from fl_app.api.page.api_docs import routes_of
from fl_app.api.page.forms import FORMS, HINTS, SignedForms, TriggerForm
from fl_app.api.page.overview import RegistryReader, mark_of, overview
from fl_app.api.page.script import SCRIPT
from fl_app.api.page.sign_in import SignIns
from fl_app.api.page.style import STYLE
from fl_app.api.page.templates import ICON, render
from fl_app.api.page.versions import (
    ComparePageQuery,
    ListQuery,
    PictureQuery,
    VersionPageQuery,
    compare_values,
    list_values,
    picture_of,
    version_values,
)
from fl_app.api.parsing import ApiError, Query, parse
from fl_app.api.people import Person
from fl_app.versions.card import model_card
from fl_registry.redaction import printable

FILES = (
    ("style.css", STYLE, "text/css"),
    ("icon.svg", ICON, "image/svg+xml"),
    ("live.js", SCRIPT, "text/javascript"),
)
"""What the page loads, open to all."""
FILE_ROUTES = frozenset(f"page.{path.replace('.', '_')}" for path, _, _ in FILES)
CHART_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""For the chart, whose SVG has styles inside; it can load nothing."""
STALE = "That form is older than this server, or the browser takes no cookies; send it again."
SENT = "That form was sent before with other content; look at what it did."
NOT_SIGNED_IN = Person("", "read")
SIGNED_OUT = "You are signed out, after 8 hours or a restart of the server; sign in again."


class PageQuery(Query):
    """What the page shows."""

    metric: str = ""


class ChartQuery(Query):
    """What the chart shows, in which colours, and of which reading."""

    metric: str = ""
    theme: Literal["light", "dark"] = "light"
    view: str = Field("", max_length=32)


PAGE_QUERIES: dict[str, type[Query]] = {
    "page.show": PageQuery,
    "page.chart": ChartQuery,
    "page.version": VersionPageQuery,
    "page.card": VersionPageQuery,
    "page.compare": ComparePageQuery,
    "page.versions": ListQuery,
    "page.picture": PictureQuery,
    "page.weights": PageDownloadQuery,
}
"""The queries of the page's routes by Flask's names."""


def page_routes(app: Flask, context: Context, document: Mapping[str, Any]) -> Blueprint:
    """Make the page's routes.

    Parameters
    ----------
    app : Flask
        The app, whose cookies sign people in.
    context : Context
        What the routes work with.
    document : Mapping[str, Any]
        The API's description.
    """
    page = Blueprint("page", __name__)
    signs, reader = SignIns(app, context.guard), RegistryReader(context)
    app.extensions["fl_app_reader"] = reader
    model = context.manager.store.model
    can = can_of(context)
    page.before_request(lambda: _check_form(signs, context.guard))

    def of_signed_in(view: Callable[[], Response | str]) -> Callable[[], AnyResponse | str]:
        """Send a visitor who is not signed in to the page, where that can be done."""

        @functools.wraps(view)
        def checked() -> AnyResponse | str:
            return view() if signs.signed_in else redirect("/", 303)

        return checked

    @page.get("/")
    def show() -> str:
        values = {"model": model, "message": session.pop("message", None)}
        if not signs.signed_in:
            return render("sign_in", **values)
        values |= {"can_sign_out": signs.needed, "now": context.now(), **can}
        return render("page", **values, **overview(context, reader, g.query.metric))

    @page.get("/page/live")
    @of_signed_in
    def live() -> str:
        registry = reader.mark() if context.store is not None else ""
        values = {"live": context.live(), "now": context.now()}
        return render("live", model=model, mark=mark_of(context, registry), **values)

    @page.get("/page/chart.svg")
    def chart() -> Response:
        if not signs.signed_in:
            raise ApiError(403, "Sign in on the page first.")
        registry = reader.of_page(g.query.view)
        data = registry.chart(g.query.metric)
        if data is None:
            raise ApiError(404, registry.problem or "There is nothing to draw yet.")
        return _file(reader.picture(data, g.query.theme), "image/svg+xml", CHART_POLICY)

    @page.get("/page/weights")
    def weights() -> Response:
        if not signs.signed_in:
            raise ApiError(403, "Sign in on the page first.")
        return download_weights(context, g.query, g.query.version)

    for path, view in _details(context, document, signs).items():
        page.add_url_rule(path, view.__name__, of_signed_in(view))

    for path, content, kind in FILES:
        give = functools.partial(Response, content, mimetype=kind)
        page.add_url_rule(f"/page/{path}", path.replace(".", "_"), give)

    @page.post("/page/sign-in")
    def sign_in() -> AnyResponse:
        person = context.guard.person_of(g.form.get("token", "").strip())
        if person is None:
            context.guard.count_failure(request)
            return _back("refused", "That is no token of this server.")
        signs.begin(person)
        return redirect("/", 303)

    @page.post("/page/sign-out")
    def sign_out() -> AnyResponse:
        signs.end()
        return _back("done", "You are signed out.")

    for path, form in FORMS.items():
        if context.store is not None or form is TriggerForm:
            send = functools.partial(_do, context, form)
            page.add_url_rule(path, form.__name__, send, methods=["POST"])
    return page


def _details(
    context: Context, document: Mapping[str, Any], signs: SignIns
) -> dict[str, Callable[[], Response | str]]:
    """Return the pages beside the main one, by path."""
    model = context.manager.store.model
    can = can_of(context)

    def version() -> str:
        return render("version", model=model, **version_values(context, g.query.version), **can)

    def compare() -> str:
        query = g.query
        values = compare_values(context, query.first, query.second)
        return render("compare", model=model, **values)

    def versions() -> str:
        return render("list", model=model, **list_values(context, g.query), **can)

    def picture() -> Response:
        return _file(*picture_of(context, g.query))

    def card() -> Response:
        version = g.query.version
        with context.registry() as store:
            text = model_card(store, version, model_name=model)
        reply = _file(text, "text/markdown")
        reply.headers["Content-Disposition"] = f"inline; filename=version-{version}.md"
        return reply

    def models() -> str:
        with context.registry() as store:
            return render("models", model=model, models=store.models())

    def docs() -> str:
        routes = routes_of(document, request.host_url.rstrip("/"))
        values = {"document": document, "routes": routes, "base": request.host_url.rstrip("/")}
        return render("api", model=model, token=signs.needed, **values)

    return {
        "/page/version": version,
        "/page/compare": compare,
        "/page/versions": versions,
        "/page/picture": picture,
        "/page/card": card,
        "/page/models": models,
        "/docs": docs,
    }


def can_of(context: Context) -> dict[str, bool]:
    """Return what a server can make of a version besides its weights."""
    return {"can_export": context.checkpoint is not None}


def _file(content: bytes | str, kind: str, policy: str = "default-src 'none'") -> Response:
    headers = {"Content-Security-Policy": policy}
    return Response(content, headers=headers, mimetype=kind)


def _do(context: Context, kind: SignedForms) -> AnyResponse:
    """Do what a form requests, once also where it is sent twice, and go back to the page."""
    key = g.form.pop("once", "")
    if g.person.name:
        g.form["by"] = acting(g.form.get("by", ""))

    def work(new_id: str) -> Answer:
        return {"detail": form.send(context, new_id)}

    try:
        form = parse(kind, g.form, hints=HINTS)
        session["name"] = form.by  # filled in for this visitor's next form
        if not re.fullmatch(r"[0-9a-f]{32}", key, re.ASCII):
            raise ApiError(400, STALE)
        status, answer, _ = context.once(f"page-{key}", g.form, work)
    except ApiError as error:
        # The key is the form's own, so that a conflict is another content of the same form.
        return _back("refused", SENT if error.status in (409, 422) else error.detail)
    return _back("done" if status < 400 else "refused", answer["detail"])


def _check_form(signs: SignIns, guard: Guard) -> AnyResponse | None:
    """Find out who visits, read a form, and send back a visitor who may not send it."""
    g.person = signs.person or NOT_SIGNED_IN
    if request.method in SAFE_METHODS:
        # SameSite alone is not enough: pages on other ports of this host are of the same site.
        if "form" not in session and request.endpoint not in FILE_ROUTES:
            session.permanent = True
            session["form"] = secrets.token_hex(16)
        return None
    if signs.signed_in:
        guard.count_change(request)
    read_body(request, FORM)
    g.form = {name: values[0] for name, values in request.form.lists() if len(values) == 1}
    fields = FORMS[request.path].model_fields if request.path in FORMS else ("token",)
    if set(request.form) - {"form", "once", *fields} or len(g.form) < len(request.form):
        raise ApiError(400, "The form has an unknown field, or one twice; load it again.")
    is_ours = is_secret(g.form.pop("form", ""), session.get("form"))
    if is_ours and (signs.signed_in or request.endpoint == "page.sign_in"):
        if request.path in FORMS:
            require_decide(g.person)
        return None
    if not signs.signed_in:
        guard.count_failure(request)
    return _back("refused", SIGNED_OUT if is_ours else STALE)


def _back(kind: str, sentence: str) -> AnyResponse:
    session.permanent = True
    session["message"] = [kind, printable(sentence)[:600]]
    return redirect("/", 303)
