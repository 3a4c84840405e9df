# SPDX-License-Identifier: Apache-2.0
"""The registry's errors, and the one place that turns MLflow's and transport errors into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fl_registry.redaction import has_secret, printable, redact

_DOWN = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_FOREIGN = (
    *("mlflow", "requests", "urllib3", "http", "sqlalchemy", "alembic", "sqlite3"),
    *("psycopg", "pymysql", "botocore", "boto3", "google", "azure"),
)


class RegistryError(Exception):
    """Base of all errors of the registry; its text is one printable line for people."""

    def __init__(self, said: str = "") -> None:
        super().__init__(printable(said))


class UnknownVersion(RegistryError):  # noqa: N818 - says what is wrong
    """A version that the registry does not hold."""


class ArtifactError(RegistryError):
    """A model file that is missing, empty, changed, unsafe, or not a model file."""


class StageError(RegistryError):
    """A stage that does not exist, or a move between stages that the rules forbid."""


class ModelBusy(RegistryError):  # noqa: N818 - says what is wrong
    """Another server writes to the model."""


class LeaseLost(RegistryError):  # noqa: N818 - says what is wrong
    """Another server has taken over the model, so this one may not move its versions any more."""


class StoreUnavailable(RegistryError):  # noqa: N818 - says what is wrong
    """MLflow does not answer, refuses us, or its address cannot be used."""


class InvalidName(RegistryError):  # noqa: N818 - says what is wrong
    """A name (of a model, tag, version or stage) that cannot be used."""


class InvalidMetric(RegistryError):  # noqa: N818 - says what is wrong
    """A metric that is not a finite number."""


@contextmanager
def foreign_errors(doing: str, *, uri: str) -> Iterator[None]:
    """Turn errors of MLflow and of the transport into ours; let everything else through.

    Parameters
    ----------
    doing : str
        What was tried, to follow "could not", e.g. "save the version".
    uri : str
        The tracking URI, named in the message without its password.
    """
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        ours = translate(error, doing=doing, uri=uri)
        if ours is None:
            raise
        secret = _has_secret(error, uri)
        try:
            raise ours from (None if secret else error)
        except RegistryError:
            if secret:  # the foreign text may hold the password, so nothing leads to it
                ours.__context__ = None
            raise


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn errors of the disk in the block into ours; `doing` follows "could not"."""
    with foreign_errors(doing, uri=""):
        yield


def translate(error: Exception, *, doing: str, uri: str) -> RegistryError | None:
    """Return our error for a foreign one, or None where it is not a foreign one."""
    family = type(error).__module__.partition(".")[0]
    if isinstance(error, ModuleNotFoundError):
        return StoreUnavailable(
            f"MLflow at {redact(uri, uri)} could not {doing}: the Python package {error.name} is "
            "not installed here; install it, or use another address."
        )
    if family not in _FOREIGN and not isinstance(error, OSError):
        return None
    shown, said = redact(uri, uri), _first_line(redact(str(error), uri))
    code = str(getattr(error, "error_code", ""))
    if code in _REFUSED:
        return StoreUnavailable(
            f"MLflow at {shown} refused to {doing}; check the user name, password or token."
        )
    if is_down(error, code):
        return StoreUnavailable(
            f"MLflow at {shown} could not {doing} ({said}); check that it runs and can be reached."
        )
    if isinstance(error, OSError):
        return StoreUnavailable(f"Could not {doing} ({said}); check the folder and the disk.")
    return RegistryError(f"MLflow at {shown} could not {doing}: {said}")


def error_code(error: Exception) -> str:
    """Return MLflow's error code, or an empty text."""
    return str(getattr(error, "error_code", ""))


def is_down(error: Exception, code: str) -> bool:
    """Return whether an error means that MLflow, or what it stands on, did not answer."""
    family = type(error).__module__.partition(".")[0]
    if code in _DOWN or isinstance(error, ConnectionError | TimeoutError):
        return True
    if family in ("requests", "urllib3"):
        return True
    if family in ("sqlalchemy", "sqlite3"):
        return True
    return code == "INTERNAL_ERROR" and "API request to" in str(error)


def _has_secret(error: BaseException | None, uri: str) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if redact(str(error), uri) != str(error):
            return True
        error = error.__cause__ or error.__context__
    return has_secret(uri)


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    line = printable(line)
    return line if len(line) <= 300 else line[:297] + "..."
