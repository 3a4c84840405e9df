# SPDX-License-Identifier: Apache-2.0
"""Tracking addresses: which ones can be used, and a quick look whether they answer; no MLflow."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fl_registry.errors import StoreUnavailable
from fl_registry.redaction import redact

if TYPE_CHECKING:
    import requests

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT = 4.0  # seconds
READ_SECONDS = 5.0
"""How long a look at a server waits for its reply."""
_KNOWN = "sqlite:///<file>, http(s)://<server>, postgresql://, mysql:// or mssql://"


def absolute_address(tracking_uri: str | None, home: Path) -> str:
    """Return the address with any SQLite path made absolute; the default lies in `home`."""
    if tracking_uri is None:
        return f"sqlite:///{home / 'mlflow.db'}"
    file = sqlite_file(tracking_uri)
    if file is None:
        return tracking_uri
    start, _, options = tracking_uri.partition("?")
    scheme = start.partition(":")[0]
    return f"{scheme}:///{file}" + (f"?{options}" if options else "")


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
    return Path(path).absolute()


def check_address(uri: str, *, read_seconds: float = READ_SECONDS) -> None:
    """Raise `StoreUnavailable`, within about 10 seconds, if nothing usable is at `uri`."""
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
    shown, reply = redact(uri, uri), _health(uri, read_seconds)
    if isinstance(reply, str):
        raise StoreUnavailable(
            f"MLflow at {shown} does not answer ({reply}); start it with "
            "`mlflow server`, or correct the tracking URI."
        )
    if reply.status_code != 200:
        raise StoreUnavailable(
            f"The server at {shown} answers {reply.status_code} to a health check, so it is not "
            "a working MLflow server that lets us in; check the address and the password."
        )


def server_time(uri: str) -> datetime | None:
    """Return the time of an MLflow server's clock, to the second; None if it sends none."""
    reply = _health(uri, READ_SECONDS) if kind_of(uri) == "http" else ""
    try:
        sent = parsedate_to_datetime("" if isinstance(reply, str) else reply.headers["Date"])
    except (LookupError, ValueError, TypeError):
        return None
    return sent.replace(tzinfo=UTC) if sent.tzinfo is None else sent.astimezone(UTC)


def _health(uri: str, read_seconds: float) -> requests.Response | str:
    """Return a server's reply to a health check, its content not read; or the error's name.

    Its name only: the text of the error may hold the password.
    """
    import requests

    try:
        reply = requests.get(
            f"{uri.rstrip('/')}/health",
            timeout=(_CONNECT, read_seconds),
            stream=True,
            verify=_certificates(),
        )
    except (requests.RequestException, ValueError, OSError) as error:
        return type(error).__name__
    reply.close()
    return reply


def _certificates() -> str | bool:
    """Return what MLflow's own settings say about checking certificates."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


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
    if not file.exists():
        return
    # SQLite itself looks: opening and closing its file would drop the locks of this process.
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", 1, uri=True)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:
        pass  # locked by a writer, so it is a database
    except sqlite3.DatabaseError as error:
        raise StoreUnavailable(f"{file} is not a SQLite database; choose another file.") from error


def _has_listener(uri: str, default: int) -> bool:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "localhost", parts.port or default
        socket.create_connection((host, port), timeout=_CONNECT).close()
    except (OSError, ValueError):
        return False
    return True
