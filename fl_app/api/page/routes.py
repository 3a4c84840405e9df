# SPDX-License-Identifier: Apache-2.0
"""The status page's routes: one page to look at, and forms that change something.

It needs no script. Each form is sent to a route under ``/page/``, which answers with a redirect to
the page and leaves one sentence for it. What the page shows is in `fl_app.api.page`.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, g, redirect, request, session

from fl_app.api.guard import FORM, SAFE_METHODS, Guard, read_body
from fl_app.api.idempotency import Answer, Once
from fl_app.api.inputs import ApiError, text_field
from fl_app.api.page.overview import overview
from fl_app.api.page.sign_in import SignIns, form_token, is_own_form
from fl_app.api.page.style import STYLE
from fl_app.api.page.templates import ICON, render
from fl_app.api.versions import MAX_NAME, By, Versions, version_number
from fl_app.retraining.manager import RetrainingManager
from fl_registry.redaction import printable

if TYPE_CHECKING:
    from werkzeug.wrappers import Response as AnyResponse

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""What a browser may load for the page: its own style and icon, and nothing else."""
FIELDS = {
    "page.sign_in": {"token"},
    "page.sign_out": set[str](),
    "page.decide": {"once", "version", "decision", "by", "note"},
    "page.roll_back": {"once", "version", "confirmed", "by", "note"},
    "page.trigger": {"once", "reason", "by"},
}
"""The fields of each form, beside ``form``, the token that all of them bear."""
STALE = "That form is older than this server, or the browser takes no cookies; send it again."
SENT = "That form was sent before, with something else in it; look at what it did."
SIGNED_OUT = (
    "You are signed out, since 8 hours have passed or the server began anew; sign in again."
)


def page_routes(
    manager: RetrainingManager,
    versions: Versions | None,
    once: Once,
    *,
    signs: SignIns,
    guard: Guard,
    stands: Callable[[], Mapping[str, Any] | None],
) -> Blueprint:
    """Make the page's routes; ``stands`` tells where the version in production stands."""
    page = Blueprint("page", __name__)
    page.before_request(lambda: _check_form(signs))

    @page.get("/")
    def show() -> str:
        shared = {"form": form_token(), "model": manager.store.model, "said": _take_message()}
        if not signs.signed_in:
            return render("sign_in", **shared)
        look = None if versions is None else versions.look
        metric = request.args.get("metric", "")
        seen = overview(manager, look, metric, probation=stands)
        return render(
            "page",
            **shared,
            page=seen,
            name=session.get("name", ""),
            signs=signs.needed,
            once=lambda: uuid.uuid4().hex,
        )

    @page.post("/page/sign-in")
    def sign_in() -> AnyResponse:
        if not guard.is_token(g.form.get("token", "").strip()):
            return _back("refused", "That is not this server's token.")
        signs.begin()
        return redirect("/", 303)

    @page.post("/page/sign-out")
    def sign_out() -> AnyResponse:
        signs.end()
        return _back("done", "You are signed out.")

    @page.post("/page/trigger")
    def trigger() -> AnyResponse:
        def work() -> str:
            by = _who("reason")
            if not by.reason:
                raise ApiError(400, "Write why it should be trained again.")
            reason = f"{by.reason} (asked by {by.actor})"
            answer = _once(once, lambda new_id: _ask(manager, reason, new_id))
            joined = "It joins the request that waits already." if answer["joined"] else ""
            return f"Retraining is asked for. {joined}".strip()

        return _told(work)

    if versions is not None:
        _add_moves(page, versions, once)

    @page.get("/page/style.css")
    def style() -> Response:
        return Response(STYLE, mimetype="text/css")

    @page.get("/page/icon.svg")
    def icon() -> Response:
        return Response(ICON, mimetype="image/svg+xml")

    return page


def problem(status: int, detail: str, headers: Mapping[str, str]) -> Response:
    """An error as a page of its own."""
    response = Response(render("problem", status=status, detail=detail), status)
    for name, value in headers.items():
        response.headers[name.replace("_", "-")] = value
    return response


def _add_moves(page: Blueprint, versions: Versions, once: Once) -> None:
    @page.post("/page/decide")
    def decide() -> AnyResponse:
        def work() -> str:
            version, by, decision = (
                version_number(g.form.get("version", "")),
                _who(),
                g.form.get("decision"),
            )
            if decision not in ("approve", "reject"):
                raise ApiError(400, "Choose to approve or to reject.")
            approves = decision == "approve"
            move = versions.approve if approves else versions.reject
            _once(once, lambda _: move(version, by))
            said = "approved and in Production now" if approves else "rejected and archived"
            return f"Version {version} is {said}."

        return _told(work)

    @page.post("/page/rollback")
    def roll_back() -> AnyResponse:
        def work() -> str:
            version, by = version_number(g.form.get("version", "")), _who()
            if g.form.get("confirmed") != "yes":
                raise ApiError(400, "Tick the box to roll back.")
            _once(once, lambda _: versions.roll_back(version, by))
            return f"Version {version} is back in Production."

        return _told(work)


def _check_form(signs: SignIns) -> AnyResponse | None:
    """Read a form, and send whoever may not send it back to the page."""
    if request.method in SAFE_METHODS:
        return None
    read_body(request, FORM)
    g.form = {name: values[0] for name, values in request.form.lists() if len(values) == 1}
    unknown = set(request.form) - FIELDS[request.endpoint or ""] - {"form"}
    if unknown or len(g.form) < len(request.form):
        raise ApiError(400, "The form has a field that is not known, or one twice; load it again.")
    if not is_own_form(g.form.get("form", "")):
        return _back("refused", STALE)
    if request.endpoint != "page.sign_in" and not signs.signed_in:
        return _back("refused", SIGNED_OUT)
    return None


def _who(reason: str = "note") -> By:
    """Read who decides, and why; the name is kept for this visitor's next form."""
    by = By(text_field(g.form, "by", limit=MAX_NAME).strip(), text_field(g.form, reason).strip())
    if not by.actor:
        raise ApiError(400, "Write your name, which the ledger keeps.")
    session["name"] = by.actor
    return by


def _once(once: Once, work: Callable[[str], Answer]) -> Mapping[str, object]:
    """Do what a form asks once, also where it is sent twice; return the answer.

    Raises
    ------
    ApiError
        If it was refused, now or the first time.
    """
    key = g.form.get("once", "")
    if not re.fullmatch(r"[0-9a-f]{32}", key, re.ASCII):
        raise ApiError(400, STALE)
    asked = json.dumps([request.path, sorted(g.form.items())])
    try:
        status, answer, _ = once.under(f"page-{key}", asked, work)
    except ApiError as error:
        raise error if error.status >= 500 else ApiError(error.status, SENT) from None
    if status >= 400:
        raise ApiError(status, str(answer["detail"]))
    return answer


def _ask(manager: RetrainingManager, reason: str, new_id: str) -> Answer:
    waiting = manager.manual_trigger(reason, request_id=new_id)
    return 202, {"joined": waiting != new_id}


def _told(work: Callable[[], str]) -> AnyResponse:
    """Go back to the page with what the work returned, or why it was refused."""
    try:
        return _back("done", work())
    except ApiError as error:
        return _back("refused", error.detail)


def _back(kind: str, sentence: str) -> AnyResponse:
    session.permanent = True
    session["said"] = [kind, printable(sentence)[:600]]
    return redirect("/", 303)


def _take_message() -> list[str] | None:
    """The sentence that the last form left, once."""
    said: list[str] | None = session.pop("said", None)
    return said
