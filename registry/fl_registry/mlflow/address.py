# SPDX-License-Identifier: Apache-2.0
"""Tracking addresses: which ones can be used, and a quick look whether they answer; no MLflow."""

from __future__ import annotations

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
        if not _is_readable(
            uri, kind
        ):  # not shown: there is no telling which part of it is the password
            raise StoreUnavailable(
                f"The tracking URI, of kind {kind}, cannot be used: expected "
                f"{scheme}://<user>:<password>@<host>:<port>/<path>, with / : @ # ? of a password "
                "as %2F %3A %40 %23 %3F, and no query for a server."
            )
        return kind
    what = (
        "MLflow no longer keeps runs in plain folders"
        if kind in ("", "file")
        else f"its kind {kind!r} is not known here"
    )
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
        _check_file(uri)
    else:
        _check_port(uri, _PORTS[kind])


def _check_server(uri: str, read_seconds: float) -> None:
    import requests

    shown, problem = redact(uri, uri), ""
    try:
        reply = _health(uri, read_seconds)
    except (requests.RequestException, ValueError, OSError) as error:
        problem = type(error).__name__
    if problem:  # raised out here: the foreign text may hold the password
        raise StoreUnavailable(
            f"MLflow at {shown} does not answer ({problem}); start it with "
            "`mlflow server`, or correct the tracking URI."
        )
    if reply.status_code != 200:
        raise StoreUnavailable(
            f"The server at {shown} answers {reply.status_code} to a health check, so it is not "
            "a working MLflow server that lets us in; check the address and the password."
        )


def server_time(uri: str) -> datetime | None:
    """Return the time of an MLflow server's clock, to the second; None if it sends none."""
    if kind_of(uri) != "http":
        return None
    import requests

    try:
        reply = _health(uri, READ_SECONDS)
        sent = parsedate_to_datetime(reply.headers["Date"])
    except (requests.RequestException, LookupError, ValueError, TypeError, OSError):
        return None
    return sent.replace(tzinfo=UTC) if sent.tzinfo is None else sent.astimezone(UTC)


def _health(uri: str, read_seconds: float) -> requests.Response:
    """Return a server's reply to a health check; its content is not read."""
    import requests

    reply = requests.get(
        f"{uri.rstrip('/')}/health",
        timeout=(_CONNECT, read_seconds),
        stream=True,
        verify=_certificates(),
    )
    reply.close()
    return reply


def _certificates() -> str | bool:
    """Return what MLflow's own settings say about checking certificates."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


def _check_file(uri: str) -> None:
    file = sqlite_file(uri)
    if file is None:
        raise StoreUnavailable(
            "A SQLite database in memory is lost with the process; give the path of a file, as in "
            "sqlite:////home/me/mlflow.db."
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        writable = not file.exists() or os.access(file, os.R_OK | os.W_OK)
    except OSError as error:
        raise StoreUnavailable(
            f"The SQLite file {file} cannot be written ({error.strerror}); choose a folder that "
            "you may write to."
        ) from error
    if not writable:
        raise StoreUnavailable(
            f"The SQLite file {file} cannot be written; ask for the right to, or choose another."
        )
    if file.exists():
        _check_database(file)


def _check_database(file: Path) -> None:
    """Let SQLite itself look: opening and closing its file would drop the locks of this process."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", 1, uri=True)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:
        return  # locked by a writer, so it is a database
    except sqlite3.DatabaseError as error:
        raise StoreUnavailable(f"{file} is not a SQLite database; choose another file.") from error


def _check_port(uri: str, default: int) -> None:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "localhost", parts.port or default
        socket.create_connection((host, port), timeout=_CONNECT).close()
        return
    except (OSError, ValueError):
        pass  # raised out here: the foreign text may hold the password
    raise StoreUnavailable(
        f"The database at {redact(uri, uri)} does not answer; start it, or correct the tracking "
        "URI."
    )
