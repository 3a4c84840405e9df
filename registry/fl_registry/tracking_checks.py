# SPDX-License-Identifier: Apache-2.0
"""Checks of names and numbers that both trackers make before they log them. Pure."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from fl_registry.errors import ArtifactError, InvalidName, RegistryError
from fl_registry.redaction import HIDDEN, is_secret_name, known_secrets, redact
from fl_registry.version_tags import as_number

logger = logging.getLogger(__name__)

_REFUSED = re.compile(r"[^\w.\- :/]+")
MAX_PARAM, MAX_TAG = 6000, 8000  # characters that MLflow takes
_MAX_KEY, _MAX_DATASET = 250, 500
_STATUSES = ("FINISHED", "FAILED", "KILLED")
T = TypeVar("T")


def clean_key(name: object) -> str:
    """Return a name that MLflow accepts, always the same for the same name.

    Names that MLflow accepts stay; ``mAP50(B)`` becomes ``mAP50_B``.
    """
    text = str(name)
    cleaned = _REFUSED.sub("_", text)
    if cleaned != text:
        cleaned = cleaned.strip("_ ")
    parts = [part for part in cleaned.split("/") if part not in ("", ".", "..")]
    cleaned = "/".join(parts) or f"unnamed_{_mark(text)}"
    return cleaned if len(cleaned) <= _MAX_KEY else f"{cleaned[:240]}_{_mark(text)}"


class Names:
    """The names of one run's metrics, or of its params, as MLflow accepts them.

    A name that MLflow refuses is reported once, with the one that replaces it. Two names that
    would become the same one are distinguished by a mark, in one call or in two.
    """

    def __init__(self) -> None:
        self._accepted: dict[str, str] = {}  # by the name that was given
        self._taken: set[str] = set()

    def __call__(self, fields: Mapping[str, T]) -> dict[str, T]:
        """Return the fields under accepted names."""
        # Unchanged names first: of two that become the same one, those keep it.
        for name in sorted(fields.keys() - self._accepted.keys(), key=_order):
            accepted = clean_key(name)
            if accepted in self._taken:
                accepted = f"{accepted[:240]}_{_mark(name)}"
            if accepted != name:
                logger.warning("MLflow cannot take the name %r: logged as %r", name, accepted)
            self._accepted[name] = accepted
            self._taken.add(accepted)
        return {self._accepted[name]: value for name, value in fields.items()}


def _order(name: object) -> tuple[bool, str]:
    return clean_key(name) != name, str(name)


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are finite numbers; the others are reported in the log."""
    numbers = {}
    for name, value in metrics.items():
        number = as_number(value)
        if number is None or not math.isfinite(number):
            logger.warning("metric %s is %r, not a finite number: not logged", name, value)
        else:
            numbers[name] = number
    return numbers


def logged_texts(fields: Mapping[str, object], most: int = MAX_PARAM) -> dict[str, str]:
    """Return values as the texts that are logged: without secrets, of at most so many characters.

    A param or a tag can be seen for ever by all who can see the run.
    """
    known = known_secrets()
    return {str(name): _shown(str(name), value, known)[:most] for name, value in fields.items()}


def _shown(name: str, value: object, known: Sequence[str]) -> str:
    is_number = isinstance(value, int | float)  # as in pass=2
    return HIDDEN if is_secret_name(name) and not is_number else redact(str(value), known=known)


def checked_artifact(path: str | Path) -> Path:
    """Return the path of a file or folder that exists."""
    checked = Path(path).expanduser()
    if not checked.exists():
        raise ArtifactError(f"There is no file at {checked} to log; check the path.")
    return checked


def checked_folder(artifact_path: str | None) -> str | None:
    """Return a path below a run's files, or raise `InvalidName`; what leads out MLflow refuses."""
    if artifact_path is not None and not (artifact_path.isprintable() and artifact_path):
        raise InvalidName(
            f"{artifact_path!r:.60} cannot be a folder of a run's files; use a printable path such "
            "as 'plots'."
        )
    return artifact_path


def checked_status(status: str) -> str:
    """Return a status that a run can end with, or raise `RegistryError`."""
    if status not in _STATUSES:
        raise RegistryError(f"A run cannot end {status!r}; expected {', '.join(_STATUSES)}.")
    return status


def checked_dataset(name: str, digest: str, context: str) -> None:
    """Raise `InvalidName` if MLflow could not keep a data set so called."""
    if not 0 < len(name) <= _MAX_DATASET:
        raise InvalidName(
            f"A data set's name must be a text of 1 to {_MAX_DATASET} characters, not {name!r:.60}."
        )
    if not digest:
        raise InvalidName(f"The data set {name!r} has no digest; give one of its content.")
    if not context or clean_key(context) != context:
        raise InvalidName(f"A data set cannot be used as {context!r}; expected e.g. 'holdout'.")


def searched_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that a run must have, as text; without any, every run would match."""
    if not tags:
        raise RegistryError("A run is looked for by its tags; give at least one.")
    return logged_texts(tags, MAX_TAG)


def _mark(text: object) -> str:
    return hashlib.sha256(str(text).encode("utf-8", "replace")).hexdigest()[:6]
