# SPDX-License-Identifier: Apache-2.0
"""What a deployment says when it cannot start."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fl_registry.redaction import redact


class DeploymentError(RuntimeError):
    """A deployment cannot start or go on; the text is one line that says what to do."""

    def __init__(self, said: str) -> None:
        super().__init__(redact(said))


def require_package(name: str, use: str) -> None:
    """Raise `DeploymentError` if a package of the extra ``deploy`` is not installed.

    ``use`` tells what it is needed for.
    """
    try:
        version(name)
    except PackageNotFoundError:
        raise DeploymentError(
            f"{name} is not installed, {use}; install fl-app with the extra `deploy`, as "
            "`uv run --extra deploy fl-app deploy-local` does."
        ) from None
