# SPDX-License-Identifier: Apache-2.0
"""Signing in on the page: a signed cookie that expires, and a token in each form."""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import timedelta

from flask import Flask, Response, request, session
from flask.sessions import SecureCookieSessionInterface, SessionMixin

from fl_app.api.guard import Guard
from fl_app.api.people import Person

SIGNED_IN_FOR = timedelta(hours=8)


class PageSessions(SecureCookieSessionInterface):
    """Flask's signed cookie, with a name for each port, and for HTTPS only where HTTPS was used.

    Browsers send a host's cookies to all its ports, so two servers on one machine need two names.
    """

    # The cookie is of another kind than the token: it holds no secret and opens the page only.
    # The API takes the token only, so that no form of another site can act on it.
    salt = "fl-app page"
    digest_method = staticmethod(hashlib.sha256)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        if on_page():  # the rest of the API has no cookies
            super().save_session(app, session, response)

    def get_cookie_name(self, app: Flask) -> str:
        port = request.environ.get("HTTP_HOST", "").rpartition(":")[2]
        return f"fl_app_{port}" if port.isascii() and port.isdigit() else "fl_app"

    def get_cookie_secure(self, app: Flask) -> bool:
        return bool(session.get("https"))


class SignIns:
    """Signs visitors in and out. The key is drawn for this process and never stored.

    Parameters
    ----------
    app : Flask
        The app whose cookies it signs.
    guard : Guard
        Knows whose token it is. Where none is needed, everybody is signed in.
    """

    def __init__(self, app: Flask, guard: Guard) -> None:
        self._guard = guard
        self._until: dict[str, tuple[float, Person]] = {}
        """Who each signed-in session is, and when it ends in seconds of the wall clock."""
        app.secret_key = secrets.token_bytes(32)
        app.session_interface = PageSessions()
        app.config["PERMANENT_SESSION_LIFETIME"] = SIGNED_IN_FOR
        app.config["SESSION_COOKIE_SAMESITE"] = "Strict"
        app.config["SESSION_REFRESH_EACH_REQUEST"] = False

    @property
    def needed(self) -> bool:
        """Whether there is anything to sign in with."""
        return self._guard.needs_token

    @property
    def person(self) -> Person | None:
        """Who this visitor is; None for one who is not signed in."""
        if not self.needed:
            return Person()
        until, person = self._until.get(session.get("id", ""), (0.0, None))
        if person is None or time.time() >= until:
            return None
        return person if self._guard.still_knows(person) else None

    @property
    def signed_in(self) -> bool:
        """Whether this visitor may see anything."""
        return self.person is not None

    def begin(self, person: Person) -> None:
        """Sign the visitor in as a person, under a new id."""
        now = time.time()
        for ended in [known for known, (until, _) in list(self._until.items()) if until < now]:
            self._until.pop(ended, None)
        session.clear()
        session.permanent = True
        # The proxy in front of this server speaks HTTPS, which only the browser's Origin shows.
        session["https"] = request.headers.get("Origin", "").startswith("https://")
        session["id"] = secrets.token_hex(16)
        self._until[session["id"]] = now + SIGNED_IN_FOR.total_seconds(), person

    def end(self) -> None:
        """Sign the visitor out; a copy of the cookie is not accepted any more."""
        self._until.pop(session.get("id", ""), None)
        session.clear()


def on_page() -> bool:
    """Return whether a request is for the page rather than for the API."""
    return request.path in ("/", "/docs") or request.path.startswith("/page/")
