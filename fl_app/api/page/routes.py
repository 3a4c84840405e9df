# SPDX-License-Identifier: Apache-2.0
"""The status page's routes: one page to look at, and forms that change something.

It needs no script. Each form is sent to a route under ``/page/``, which answers with a redirect to
the page and leaves one sentence for it.
"""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from flask import Blueprint, Flask, Response, g, redirect, request, session
from pydantic import AfterValidator, Field, StringConstraints

from fl_app.api.endpoint import Change, Context
from fl_app.api.guard import FORM, SAFE_METHODS, read_body
from fl_app.api.page.chart import chart_of, svg
from fl_app.api.page.overview import overview, read_registry
from fl_app.api.page.sign_in import SignIns, form_token, is_own_form
from fl_app.api.page.style import STYLE
from fl_app.api.page.templates import ICON, render
from fl_app.api.parsing import ApiError, parse
from fl_app.api.schemas import Body, DecisionBody, Query, RollbackBody, Text, Version
from fl_app.api.versions import approve, reject, roll_back
from fl_registry.redaction import printable

if TYPE_CHECKING:
    from werkzeug.wrappers import Response as AnyResponse

CHART_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""For the chart, whose SVG has styles inside; it can load nothing."""
STALE = "That form is older than this server, or the browser takes no cookies; send it again."
SENT = "That form was sent before with other content; look at what it did."
SIGNED_OUT = "You are signed out, after 8 hours or a restart of the server; sign in again."

Line = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500),
    AfterValidator(printable),
]


class PageQuery(Query):
    """What the page and its chart show."""

    metric: str = ""
    theme: Literal["light", "dark"] = "light"


class SignInForm(Body):
    """The token; the form to sign out has nothing."""

    token: str = ""


class SignedForm(Body):
    """A form of somebody with a name."""

    by: Annotated[Line, Field(max_length=100)]


class TriggerForm(SignedForm):
    """A request for retraining."""

    reason: Line


class DecisionForm(SignedForm):
    """Whether a version goes to Production."""

    # One form with a choice: Enter in the note would press the first of two buttons.

    version: Version
    decision: Literal["approve", "reject"]
    note: Text = ""


class RollbackForm(SignedForm):
    """Which version comes back."""

    version: Version
    confirmed: Literal["yes"]
    note: Text = ""


PAGE_QUERIES = {"page.show": PageQuery, "page.chart": PageQuery}
"""The queries of the page's routes by Flask's names."""
HINTS = {
    "by": "Write your name in at most 100 characters; the ledger records it.",
    "reason": "Write why it should be trained again, in at most 500 characters.",
    "note": "Write a note of at most 500 characters.",
    "version": "That is not a version; versions are numbers such as 3.",
    "decision": "Choose to approve or to reject.",
    "confirmed": "Tick the box to roll back.",
}


def page_routes(app: Flask, context: Context, now: Callable[[], datetime]) -> Blueprint:
    """Make the page's routes.

    Parameters
    ----------
    app : Flask
        The app, whose cookies sign people in.
    context : Context
        What the routes work with.
    now : Callable[[], datetime]
        The wall clock, in UTC.
    """
    page = Blueprint("page", __name__)
    signs = SignIns(app, needed=context.guard.token is not None)
    page.before_request(lambda: _check_form(signs))

    @page.get("/")
    def show() -> str:
        shared = {
            "form": form_token(),
            "model": context.manager.store.model,
            "message": session.pop("message", None),
        }
        if not signs.signed_in:
            return render("sign_in", **shared)
        return render(
            "page",
            **shared,
            **overview(context, g.query.metric, now()),
            name=session.get("name", ""),
            signs=signs.needed,
            once=lambda: uuid.uuid4().hex,
        )

    @page.get("/page/chart.svg")
    def chart() -> Response:
        if not signs.signed_in:
            raise ApiError(403, "Sign in on the page first.")
        snapshot = read_registry(context.registry)
        data = chart_of(snapshot.rows, snapshot.entries, g.query.metric)
        if data is None:
            raise ApiError(404, snapshot.problem or "There is nothing to draw yet.")
        response = Response(svg(data, g.query.theme), mimetype="image/svg+xml")
        response.headers["Content-Security-Policy"] = CHART_POLICY
        return response

    @page.get("/page/style.css")
    def style() -> Response:
        return Response(STYLE, mimetype="text/css")

    @page.get("/page/icon.svg")
    def icon() -> Response:
        return Response(ICON, mimetype="image/svg+xml")

    @page.post("/page/sign-in")
    def sign_in() -> AnyResponse:
        if not context.guard.is_token(g.form.get("token", "").strip()):
            return _back("refused", "That is not this server's token.")
        signs.begin()
        return redirect("/", 303)

    @page.post("/page/sign-out")
    def sign_out() -> AnyResponse:
        signs.end()
        return _back("done", "You are signed out.")

    for path, (kind, work) in FORMS.items():
        if context.registry.exists or kind is TriggerForm:
            view = functools.partial(_do, context, kind, work)
            page.add_url_rule(path, kind.__name__, view, methods=["POST"])
    return page


def problem(status: int, detail: str, headers: Mapping[str, str]) -> Response:
    """Return an error as a page of its own."""
    response = Response(render("problem", status=status, detail=detail), status)
    for name, value in headers.items():
        response.headers[name.replace("_", "-")] = value
    return response


def _trigger(context: Context, form: TriggerForm, new_id: str) -> str:
    reason = f"{form.reason} (requested by {form.by})"
    pending = context.manager.manual_trigger(reason, request_id=new_id)
    joined = " It joins the pending request." if pending != new_id else ""
    return f"Retraining is requested.{joined}"


def _decide(context: Context, form: DecisionForm, new_id: str) -> str:
    body = DecisionBody(by=form.by, note=form.note)
    change = Change(new_id, form.version)
    if form.decision == "approve":
        approve(context, body, change)
        return f"Version {form.version} is approved and in Production now."
    reject(context, body, change)
    return f"Version {form.version} is rejected and archived."


def _roll_back(context: Context, form: RollbackForm, new_id: str) -> str:
    body = RollbackBody(by=form.by, note=form.note, to=form.version)
    roll_back(context, body, Change(new_id, form.version))
    return f"Version {form.version} is back in Production."


Work = Callable[[Context, Any, str], str]
FORMS: dict[str, tuple[type[Body], Work]] = {
    "/page/trigger": (TriggerForm, _trigger),
    "/page/decide": (DecisionForm, _decide),
    "/page/rollback": (RollbackForm, _roll_back),
}
"""The forms of those who are signed in: their fields and what they do, by path."""


def _do(context: Context, kind: type[Body], work: Work) -> AnyResponse:
    """Do what a form requests, once also where it is sent twice, and go back to the page."""
    try:
        key = g.form.pop("once", "")
        form = parse(kind, {k: v for k, v in g.form.items() if k != "form"}, hints=HINTS)
        session["name"] = form.by  # filled in for this visitor's next form
        if not re.fullmatch(r"[0-9a-f]{32}", key, re.ASCII):
            raise ApiError(400, STALE)
        try:
            status, answer, _ = context.once(
                f"page-{key}",
                request.path,
                g.form,
                lambda new_id: (200, {"detail": work(context, form, new_id)}),
            )
        except ApiError as error:
            # The key is the form's own, so that a conflict is another content of the same form.
            raise error if error.status >= 500 else ApiError(error.status, SENT) from None
        return _back("done" if status < 400 else "refused", answer["detail"])
    except ApiError as error:
        return _back("refused", error.detail)


def _check_form(signs: SignIns) -> AnyResponse | None:
    """Read a form, and send a visitor who may not send it back to the page."""
    if request.method in SAFE_METHODS:
        return None
    read_body(request, FORM)
    g.form = {name: values[0] for name, values in request.form.lists() if len(values) == 1}
    kind, _ = FORMS.get(request.path, (SignInForm, None))
    known = {"form", "once", *kind.model_fields}
    if set(request.form) - known or len(g.form) < len(request.form):
        raise ApiError(400, "The form has an unknown field, or one twice; load it again.")
    if not is_own_form(g.form.get("form", "")):
        return _back("refused", STALE)
    if request.endpoint != "page.sign_in" and not signs.signed_in:
        return _back("refused", SIGNED_OUT)
    return None


def _back(kind: str, sentence: str) -> AnyResponse:
    session.permanent = True
    session["message"] = [kind, printable(sentence)[:600]]
    return redirect("/", 303)
