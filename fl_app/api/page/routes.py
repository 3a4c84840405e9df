# SPDX-License-Identifier: Apache-2.0
"""The status page's routes: one page to look at, and forms that change something.

It needs no script. Each form is sent to a route under ``/page/``, which answers with a redirect to
the page and leaves one sentence for it.
"""

from __future__ import annotations

import functools
import re
import secrets
from typing import Annotated, Literal

from flask import Blueprint, Flask, Response, g, redirect, request, session
from pydantic import AfterValidator, Field, StringConstraints
from werkzeug.wrappers import Response as AnyResponse

from fl_app.api.downloads import PageDownloadQuery, download_weights
from fl_app.api.endpoint import Answer, Context
from fl_app.api.guard import FORM, SAFE_METHODS, Guard, is_secret, read_body
from fl_app.api.page.chart import svg
from fl_app.api.page.overview import overview, read_registry
from fl_app.api.page.sign_in import SignIns
from fl_app.api.page.style import STYLE
from fl_app.api.page.templates import ICON, render
from fl_app.api.parsing import ApiError, Body, Query, Text, Version, parse
from fl_registry.redaction import printable

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


class SignedForm(Body):
    """A form of somebody with a name; ``send`` does what it requests and returns a sentence."""

    by: Annotated[Line, Field(max_length=100)]


class TriggerForm(SignedForm):
    """A request for retraining."""

    reason: Line

    def send(self, context: Context, new_id: str) -> str:
        """Request it."""
        reason = f"{self.reason} (requested by {self.by})"
        pending = context.manager.manual_trigger(reason, request_id=new_id)
        joined = " It joins the pending request." if pending != new_id else ""
        return f"Retraining is requested.{joined}"


class DecisionForm(SignedForm):
    """Whether a version goes to Production."""

    # One form with a choice: Enter in the note would press the first of two buttons.

    version: Version
    decision: Literal["approve", "reject"]
    note: Text = ""

    def send(self, context: Context, _: str) -> str:
        """Move the version."""
        with context.registry() as store:
            if self.decision == "approve":
                store.approve_version(self.version, actor=self.by, reason=self.note)
                return f"Version {self.version} is approved and in Production now."
            store.reject_version(self.version, actor=self.by, reason=self.note)
            return f"Version {self.version} is rejected and archived."


class RollbackForm(SignedForm):
    """Which version comes back."""

    version: Version
    confirmed: Literal["yes"]
    note: Text = ""

    def send(self, context: Context, _: str) -> str:
        """Bring it back."""
        with context.registry() as store:
            store.rollback(self.version, actor=self.by, reason=self.note)
        return f"Version {self.version} is back in Production."


SignedForms = type[TriggerForm] | type[DecisionForm] | type[RollbackForm]
FORMS: dict[str, SignedForms] = {
    "/page/trigger": TriggerForm,
    "/page/decide": DecisionForm,
    "/page/rollback": RollbackForm,
}
"""The forms of those who are signed in, by path."""
PAGE_QUERIES: dict[str, type[Query]] = {
    "page.show": PageQuery,
    "page.chart": PageQuery,
    "page.weights": PageDownloadQuery,
}
"""The queries of the page's routes by Flask's names."""
HINTS = {
    "by": "Write your name in at most 100 characters; the ledger records it.",
    "reason": "Write why it should be trained again, in at most 500 characters.",
    "note": "Write a note of at most 500 characters.",
    "version": "That is not a version; versions are numbers such as 3.",
    "decision": "Choose to approve or to reject.",
    "confirmed": "Tick the box to roll back.",
}


def page_routes(app: Flask, context: Context) -> Blueprint:
    """Make the page's routes.

    Parameters
    ----------
    app : Flask
        The app, whose cookies sign people in.
    context : Context
        What the routes work with.
    """
    page = Blueprint("page", __name__)
    signs = SignIns(app, needed=context.guard.token is not None)
    page.before_request(lambda: _check_form(signs, context.guard))

    @page.get("/")
    def show() -> str:
        # SameSite alone is not enough: pages on other ports of this host are of the same site.
        if "form" not in session:
            session.permanent = True
            session["form"] = secrets.token_hex(16)
        values = {"model": context.manager.store.model, "message": session.pop("message", None)}
        if not signs.signed_in:
            return render("sign_in", **values)
        can = {"can_sign_out": signs.needed, "can_export": context.checkpoint is not None}
        return render("page", **values, **overview(context, g.query.metric), **can)

    @page.get("/page/chart.svg")
    def chart() -> Response:
        if not signs.signed_in:
            raise ApiError(403, "Sign in on the page first.")
        registry = read_registry(context)
        data = registry.chart(g.query.metric)
        if data is None:
            raise ApiError(404, registry.problem or "There is nothing to draw yet.")
        headers = {"Content-Security-Policy": CHART_POLICY}
        return Response(svg(data, g.query.theme), headers=headers, mimetype="image/svg+xml")

    @page.get("/page/weights")
    def weights() -> Response:
        if not signs.signed_in:
            raise ApiError(403, "Sign in on the page first.")
        return download_weights(context, g.query, g.query.version)

    page.add_url_rule("/page/style.css", "style", lambda: Response(STYLE, mimetype="text/css"))
    page.add_url_rule("/page/icon.svg", "icon", lambda: Response(ICON, mimetype="image/svg+xml"))

    @page.post("/page/sign-in")
    def sign_in() -> AnyResponse:
        if not is_secret(g.form.get("token", "").strip(), context.guard.token):
            context.guard.count_failure(request)
            return _back("refused", "That is not this server's token.")
        signs.begin()
        return redirect("/", 303)

    @page.post("/page/sign-out")
    def sign_out() -> AnyResponse:
        signs.end()
        return _back("done", "You are signed out.")

    for path, kind in FORMS.items():
        if context.store is not None or kind is TriggerForm:
            view = functools.partial(_do, context, kind)
            page.add_url_rule(path, kind.__name__, view, methods=["POST"])
    return page


def _do(context: Context, kind: SignedForms) -> AnyResponse:
    """Do what a form requests, once also where it is sent twice, and go back to the page."""
    key = g.form.pop("once", "")

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
    """Read a form, and send a visitor who may not send it back to the page."""
    if request.method in SAFE_METHODS:
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
        return None
    if not signs.signed_in:
        guard.count_failure(request)
    return _back("refused", SIGNED_OUT if is_ours else STALE)


def _back(kind: str, sentence: str) -> AnyResponse:
    session.permanent = True
    session["message"] = [kind, printable(sentence)[:600]]
    return redirect("/", 303)
