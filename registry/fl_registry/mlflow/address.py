# SPDX-License-Identifier: Apache-2.0
"""Tracking addresses: which ones can be used, and a look whether they answer."""

from __future__ import annotations

import errno
import os
import re
import socket
import sqlite3
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from fl_registry.errors import CREDENTIALS, RegistryError, StoreUnavailable
from fl_registry.files.sqlite import advice
from fl_registry.home import sqlite_address
from fl_registry.mlflow.locations import lacks_database
from fl_registry.redaction import one_line, redact

if TYPE_CHECKING:
    import requests

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT = 4.0  # seconds
READ_SECONDS = 15.0
"""How long a look at a server waits for its reply, unless MLFLOW_HTTP_REQUEST_TIMEOUT says more."""
_KNOWN = "sqlite:///<file>, http(s)://<server>, postgresql://, mysql:// or mssql://"


def absolute_address(tracking_uri: str | None, home: Path) -> str:
    """Return the address with any SQLite path made absolute; the default lies in `home`."""
    if tracking_uri is None:
        return sqlite_address(home / "mlflow.db")
    file = sqlite_file(tracking_uri)
    if file is None:
        return tracking_uri
    start, _, options = tracking_uri.partition("?")
    address = start.partition(":")[0] + sqlite_address(file).removeprefix("sqlite")
    return address + (f"?{options}" if options else "")


def kind_of(uri: str) -> str:
    """Return "http", "sqlite", or the database's name.

    Raises
    ------
    StoreUnavailable
        MLflow or this app cannot store a registry there.
    """
    start, colon, _ = uri.partition(":")
    scheme = start.lower().partition("+")[0] if colon else ""
    kind = {"https": "http", "postgres": "postgresql"}.get(scheme, scheme)
    if kind in ("http", "sqlite", *_PORTS):
        if not _is_readable(uri, kind):
            # Not shown: there is no telling which part of it is the password.
            raise StoreUnavailable(
                f"The tracking URI, of kind {kind}, cannot be used: expected "
                f"{scheme}://<user>:<password>@<host>:<port>/<path>, with / : @ # ? of a password "
                "as %2F %3A %40 %23 %3F, and no query for a server."
            )
        return kind
    what = f"its kind {kind!r} is not known here"
    if kind in ("", "file"):
        what = "MLflow no longer keeps runs in plain folders"
    raise StoreUnavailable(
        f"The tracking URI {redact(uri, uri)!r} cannot be used: {what}; use {_KNOWN}."
    )


def _is_readable(uri: str, kind: str) -> bool:
    try:
        parts = urlsplit(uri)
        user_and_host, _ = parts.netloc, parts.port
    except ValueError:  # its text may hold the password
        return False
    stray = user_and_host.count("@") > 1 or ("@" in uri and "@" not in user_and_host)
    return kind == "sqlite" or not (stray or (kind == "http" and (parts.query or parts.fragment)))


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of a SQLite address; None for any other, or one in memory."""
    scheme, _, rest = uri.partition("://")
    if scheme.lower().partition("+")[0] != "sqlite":
        return None
    path = rest.partition("?")[0].removeprefix("/")
    if path in ("", ":memory:"):
        return None
    return Path(unquote(path)).absolute()


def check_address(uri: str, *, read_seconds: float = READ_SECONDS) -> None:
    """Raise `StoreUnavailable`, within about 30 seconds, if nothing usable is at `uri`."""
    kind = kind_of(uri)
    if kind == "http":
        _check_server(uri, read_seconds)
    elif kind == "sqlite":
        _check_file(sqlite_file(uri))
    elif not _has_listener(uri, _PORTS[kind]):
        raise StoreUnavailable(
            f"The database at {redact(uri, uri)} does not answer; start it, or correct the "
            "tracking URI."
        )


def _check_server(uri: str, read_seconds: float) -> None:
    shown, reply = redact(uri, uri), _asked(uri, read_seconds)
    if reply.status_code in (401, 403):
        raise StoreUnavailable(
            f"The server at {shown} answers {reply.status_code}: it does not let us in; set "
            f"{CREDENTIALS}, or correct them."
        )
    try:
        answers = isinstance(reply.json(), dict) and reply.status_code == 200
    except ValueError:
        answers = False
    if not answers:
        kind = one_line(reply.headers.get("Content-Type", "no content"), 60)
        raise StoreUnavailable(
            f"The server at {shown} answers {reply.status_code} ({kind}), not as MLflow does; "
            "check the address, its path included, and that MLflow works behind it."
        )


def server_time(uri: str) -> datetime | None:
    """Return the time of an MLflow server's clock, to the second; None if it sends none."""
    if kind_of(uri) != "http":
        return None
    try:
        sent = parsedate_to_datetime(_asked(uri, READ_SECONDS).headers["Date"])
    except (RegistryError, LookupError, ValueError, TypeError):
        return None
    return sent.replace(tzinfo=UTC) if sent.tzinfo is None else sent.astimezone(UTC)


def _asked(uri: str, read_seconds: float) -> requests.Response:
    """Return a server's reply to MLflow's own client.

    Raises
    ------
    StoreUnavailable
        There was none. The error's name only is shown: its text may hold the password.
    """
    import requests
    from mlflow.exceptions import MlflowException

    from fl_registry.mlflow.internals import ask

    shown, chosen = redact(uri, uri), os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    seconds = max(read_seconds, float(chosen)) if chosen.isdecimal() else read_seconds
    try:
        return ask(uri, (_CONNECT, seconds))
    except (MlflowException, ValueError, OSError) as error:
        cause = error.__cause__ or error.__context__ or error
        name = type(cause).__name__
    if isinstance(cause, requests.exceptions.SSLError):
        raise StoreUnavailable(
            f"TLS with the server at {shown} failed ({_tls_reason(cause)}); "
            "MLFLOW_TRACKING_SERVER_CERT_PATH names the file of the authority that signed its "
            "certificate, MLFLOW_TRACKING_CLIENT_CERT_PATH that of ours if it wants one."
        )
    if not isinstance(cause, requests.RequestException):  # a setting of MLflow's is wrong
        reason = one_line(redact(str(cause), uri), 200)
        raise StoreUnavailable(f"The server at {shown} cannot be asked: {reason}")
    if isinstance(cause, requests.exceptions.Timeout):
        name = f"nothing within {seconds:g} seconds; MLFLOW_HTTP_REQUEST_TIMEOUT sets more"
    raise StoreUnavailable(
        f"MLflow at {shown} does not answer ({name}); start it with "
        "`mlflow server`, or correct the tracking URI."
    )


def _tls_reason(error: Exception) -> str:
    """Return OpenSSL's words for what went wrong, which are behind brackets or in quotes."""
    text = str(error)
    found = re.search(r"\] ([^(]+?)( \(_ssl|$)", text) or re.search(r"'([^'(]+) \(_ssl", text)
    return one_line(found.group(1) if found else type(error).__name__, 120)


def _check_file(file: Path | None) -> None:
    if file is None:
        raise StoreUnavailable(
            "A SQLite database in memory is lost with the process; give the path of a file, as in "
            "sqlite:////home/me/mlflow.db."
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if file.exists() and not os.access(file, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise StoreUnavailable(
            f"The SQLite file {file} cannot be written ({error.strerror}); choose a folder that "
            "you may write to, or ask for the right to."
        ) from error
    if lacks_database(file):
        raise StoreUnavailable(
            f"{file} is missing or empty, and {file.parent / 'artifacts'} holds files of versions "
            "that it had. Put a backup of it in its place; to begin anew, move that folder away."
        )
    if not file.exists():
        return
    # SQLite itself looks: opening and closing its file would drop the locks of this process.
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", 1, uri=True)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:
        pass  # locked by a writer, so it is a database
    except sqlite3.DatabaseError as error:
        raise StoreUnavailable(advice(file, error)) from error


def _has_listener(uri: str, default: int) -> bool:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "localhost", parts.port or default
        socket.create_connection((host, port), timeout=_CONNECT).close()
    except (OSError, ValueError):
        return False
    return True
