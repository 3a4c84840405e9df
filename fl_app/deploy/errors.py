# SPDX-License-Identifier: Apache-2.0
"""The error of a deployment, and the check for packages of the extra ``deploy``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fl_registry.redaction import redact


class DeploymentError(RuntimeError):
    """A deployment cannot start or continue; the text is one line that says what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(redact(reason))


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
