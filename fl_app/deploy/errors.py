# SPDX-License-Identifier: Apache-2.0
"""The error of a deployment, and what leads to it: errors of the system, packages not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from fl_registry.redaction import one_line, redact


class DeploymentError(RuntimeError):
    """A deployment cannot start or continue; the text is one line that says what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(redact(reason))


@contextmanager
def explained(
    what: str, advice: str, kinds: type[Exception] | tuple[type[Exception], ...] = OSError
) -> Iterator[None]:
    """Turn errors of the block into a `DeploymentError`.

    Parameters
    ----------
    what : str
        What cannot be done.
    advice : str
        What the user can do about it.
    kinds : type[Exception] | tuple[type[Exception], ...]
        The errors.
    """
    try:
        yield
    except kinds as error:
        why = one_line(getattr(error, "strerror", None) or error)
        raise DeploymentError(f"{what} ({why}); {advice}.") from error


def require_package(name: str, use: str) -> None:
    """Check that a package of the extra ``deploy`` is installed.

    Parameters
    ----------
    name : str
        The package's name on PyPI.
    use : str
        What it is needed for.

    Raises
    ------
    DeploymentError
        It is not installed.
    """
    try:
        version(name)
    except PackageNotFoundError:
        raise DeploymentError(
            f"{name} is not installed, {use}; install fl-app with the extra `deploy`, as "
            "`uv run --extra deploy fl-app deploy-local` does."
        ) from None
