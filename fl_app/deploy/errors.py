# SPDX-License-Identifier: Apache-2.0
"""The error of a deployment, and the context in which errors of the system become one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
