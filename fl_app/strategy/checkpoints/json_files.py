# SPDX-License-Identifier: Apache-2.0
"""Records as JSON files, written whole or not at all; errors of the disk as one error."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fl_app.strategy.checkpoints.plain_json import NotPlainError, decode
from fl_app.strategy.errors import CheckpointError
from fl_registry.files.atomic import write_whole
from fl_registry.files.weights import WeightsError

logger = logging.getLogger("flwr.fl_app")

T = TypeVar("T")


def write(path: Path, encoded: object) -> None:
    """Write a value that `encode` has returned, whole or not at all."""
    with disk_errors(f"{path} could not be written"):
        write_whole(path, json.dumps(encoded).encode())


def read(path: Path, kind: type[T]) -> T:
    """Return the value that `write` has written, decoded; it must be of this type."""
    with disk_errors(f"{path} cannot be read"):
        value: Any = json.loads(path.read_bytes())
    try:
        record = decode(value)
    except NotPlainError as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
    if not isinstance(record, kind):
        raise CheckpointError(f"{path} is damaged (it has no {kind.__name__})")
    return record


def remove(paths: Iterable[Path]) -> None:
    """Delete files, if they are there; log what goes wrong."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", path, error.strerror)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn the errors of a disk, or of a damaged file, in the block into a CheckpointError."""
    try:
        yield
    except (OSError, MemoryError, WeightsError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{doing} ({reason})") from error
