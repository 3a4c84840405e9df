# SPDX-License-Identifier: Apache-2.0
"""The registry's errors, and the one place that turns MLflow's and transport errors into them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from fl_registry.files.sqlite import advice, is_damage
from fl_registry.redaction import one_line, printable, redact

_DOWN = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_FOREIGN = (
    *("mlflow", "requests", "urllib3", "http", "sqlalchemy", "alembic", "sqlite3"),
    *("psycopg", "pymysql", "botocore", "boto3", "google", "azure"),
)


EXTRA_OF = {
    "ray": "simulation",
    **dict.fromkeys(("croniter", "flask", "prometheus_client", "waitress"), "server"),
    **dict.fromkeys(("torch", "torchvision", "ultralytics"), "yolo"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxslim"), "export"),
    "psycopg": "postgres",
    "boto3": "s3",
}
"""The extra of fl-app that brings each module."""
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
"""MLflow's environment variables for what a server asks for."""


class RegistryError(Exception):
    """Base of all errors of the registry; its text is one printable line."""

    def __init__(self, text: str = "") -> None:
        super().__init__(printable(text))


class UnknownVersion(RegistryError):  # noqa: N818 - the name is the fault
    """A version that does not exist."""


class ArtifactError(RegistryError):
    """A model file that is missing, empty, changed, unsafe, or not a model file."""


class StageError(RegistryError):
    """A stage that does not exist, or a move between stages that the rules forbid."""


class ModelBusy(RegistryError):  # noqa: N818 - the name is the fault
    """Another server writes to the model."""


class LeaseLost(RegistryError):  # noqa: N818 - the name is the fault
    """Another server has taken over the model, so this one may not move its versions any more."""


class StoreUnavailable(RegistryError):  # noqa: N818 - the name is the fault
    """MLflow does not answer, refuses us, or its address cannot be used."""


class Gone(RegistryError):  # noqa: N818 - the name is the fault
    """What was deleted in MLflow by somebody; the text says how it comes back."""


class RunPurged(Gone):
    """A run that MLflow has removed for good, as `mlflow gc` does."""


class MissingExtra(RegistryError):  # noqa: N818 - the name is the fault
    """A module of an extra that is not installed; the text names the extra."""


class InvalidName(RegistryError):  # noqa: N818 - the name is the fault
    """A name (of a model, tag, version or stage) that cannot be used."""


class InvalidMetric(RegistryError):  # noqa: N818 - the name is the fault
    """A metric that is not a finite number."""


def require(use: str, *modules: str) -> None:
    """Check that modules of extras are installed.

    Parameters
    ----------
    use : str
        What they are needed for: the subject of the error.
    modules : str
        Keys of `EXTRA_OF`.

    Raises
    ------
    MissingExtra
        One is not installed.
    """
    for module in modules:
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # of a package that it is in
            found = None
        if found is None:
            raise MissingExtra(f"{use} needs {module}, which is not installed; {remedy(module)}.")


def remedy(module: str) -> str:
    """Return what to do about a module that is not installed."""
    extra = EXTRA_OF.get(module)
    return f"install fl-app[{extra}], which brings it" if extra else "install it"


@contextmanager
def foreign_errors(doing: str, *, uri: str = "") -> Iterator[None]:
    """Turn errors of MLflow, of the transport and of the disk in the block into ours.

    Everything else passes through.

    Parameters
    ----------
    doing : str
        What was tried, to follow "could not", e.g. "save the version".
    uri : str
        The tracking URI, named in the message without its password; empty where there is none.
    """
    try:
        yield
    except Exception as error:
        raise_if_foreign(error, doing=doing, uri=uri)
        raise


def raise_if_foreign(error: Exception, *, doing: str, uri: str) -> None:
    """Raise our error for a foreign one; called where `error` is handled."""
    matches = ((ours, sentence) for applies, ours, sentence in _TABLE if applies(error))
    ours, sentence = next(matches, (None, ""))
    if ours is None:
        return
    reason, package = _first_line(redact(str(error), uri)), getattr(error, "name", "")
    text = sentence.format(
        uri=redact(uri, uri),
        doing=doing,
        reason=reason,
        package=package,
        remedy=remedy(package),
        disk=disk_remedy(str(error)),
        damage=advice(redact(uri, uri).partition(":///")[2] or "behind MLflow", reason),
    )
    secret = _has_secret(error, uri)
    try:
        raise ours(text) from (None if secret else error)
    except RegistryError as raised:
        if secret:  # the foreign text may hold the password, so nothing may lead to it
            raised.__context__ = None
        raise


def error_code(error: Exception) -> str:
    """Return MLflow's error code, or an empty text."""
    return str(getattr(error, "error_code", ""))


def is_missing(error: Exception) -> bool:
    """Return whether MLflow does not have what a call named."""
    return error_code(error) == "RESOURCE_DOES_NOT_EXIST"


def is_down(error: Exception) -> bool:
    """Return whether MLflow, or its database, did not answer."""
    code = error_code(error)
    if code in _DOWN or isinstance(error, ConnectionError | TimeoutError):
        return True
    if _family(error) in ("requests", "urllib3", "sqlalchemy", "sqlite3"):
        return True
    # MLflow's client wraps the transport's errors in one of its own that has no better code.
    return code == "INTERNAL_ERROR" and "API request to" in str(error)


def disk_remedy(reason: str) -> str:
    """Return what to do about a disk that takes no data or is failing; empty for other reasons.

    Parameters
    ----------
    reason : str
        The text of an error: of the system, of SQLite or PostgreSQL, or of an MLflow server, which
        repeats one of those.
    """
    rows = ((remedy, pattern) for pattern, remedy in _DISK_TEXTS.items())
    return next((remedy for remedy, pattern in rows if pattern.search(reason)), "")


_DISK_TEXTS = {
    re.compile(r"No space left on device|disk is full|Disk quota exceeded|File too large"): (
        "make room on it"
    ),
    re.compile(
        r"Read-only file system|readonly database"
    ): "make it writable again, and start anew if the file was moved or deleted",
    re.compile(r"Input/output error|disk I/O error"): (
        "copy what is on it, since it may be failing, and check it"
    ),
}


def _family(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


# The first row that applies: which errors, which of ours, and its sentence.
_TABLE: tuple[tuple[Callable[[Exception], bool], type[RegistryError], str], ...] = (
    (
        lambda error: isinstance(error, ModuleNotFoundError),
        StoreUnavailable,
        "MLflow at {uri} could not {doing}: the Python package {package} is not installed here; "
        "{remedy}, or use another address.",
    ),
    (
        lambda error: _family(error) in _FOREIGN and error_code(error) in _REFUSED,
        StoreUnavailable,
        f"MLflow at {{uri}} refused to {{doing}} ({{reason}}); check {CREDENTIALS}, and what that "
        "user may do.",
    ),
    (
        lambda error: _family(error) in ("sqlalchemy", "sqlite3", "mlflow") and is_damage(error),
        StoreUnavailable,
        "Could not {doing}. {damage}",
    ),
    (
        lambda error: _family(error) in _FOREIGN and bool(disk_remedy(str(error))),
        StoreUnavailable,
        "The disk of {uri} took no data, so it could not {doing} ({reason}); {disk}.",
    ),
    (
        is_down,
        StoreUnavailable,
        "MLflow at {uri} could not {doing} ({reason}); check that it runs and can be reached.",
    ),
    (
        lambda error: isinstance(error, OSError),
        StoreUnavailable,
        "Could not {doing} ({reason}); check the folder and the disk.",
    ),
    (
        lambda error: _family(error) in _FOREIGN,
        RegistryError,
        "MLflow at {uri} could not {doing}: {reason}",
    ),
)


def _has_secret(error: BaseException | None, uri: str) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if redact(str(error), uri) != str(error):
            return True
        error = error.__cause__ or error.__context__
    return redact(uri, uri) != uri


def _first_line(text: str) -> str:
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    telling = (line for line in lines if disk_remedy(line) or is_damage(line))
    return one_line(next(telling, lines[0] if lines else "no reason given"), 300)
