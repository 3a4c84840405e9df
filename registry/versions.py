# SPDX-License-Identifier: Apache-2.0
"""A version's tags: made from the caller's input when it is saved, read back later. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime

from registry.artifacts import Artifact
from registry.errors import InvalidMetric, InvalidName, StageError, UnknownVersion
from registry.journal import State
from registry.records import ModelVersion, Stage

RESERVED = frozenset({"sha256", "stage", "metrics", "created", "save_key", "size", "model_id"})
_MAX_KEY, _MAX_VALUE = 250, 100_000  # MLflow's limits, in characters


def version_tags(
    artifact: Artifact,
    *,
    run_id: str | None,
    metrics: Mapping[str, float] | None,
    tags: Mapping[str, str] | None,
) -> dict[str, str]:
    """Return all tags of a new version: the caller's and the registry's own.

    Raises
    ------
    InvalidMetric, InvalidName
        A metric is not a finite number; a tag is not a text or has one of the registry's names.
    """
    numbers = checked_metrics(metrics or {})
    given = checked_tags(tags or {})
    key = "\n".join((run_id or "", given.get("round", ""), artifact.sha256))
    return {
        **given,
        "sha256": artifact.sha256,
        "size": str(artifact.size),
        "stage": str(Stage.NONE),
        "metrics": json.dumps(numbers, sort_keys=True),
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "save_key": hashlib.sha256(key.encode()).hexdigest()[:32],
    }


def checked_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics as plain floats, or raise `InvalidMetric`."""
    checked = {}
    for name, value in metrics.items():
        number = as_number(value)
        if not isinstance(name, str) or not name:
            raise InvalidMetric(f"A metric's name must be a text that is not empty, not {name!r}.")
        if number is None or not math.isfinite(number):
            raise InvalidMetric(f"Metric {name} is {value!r}; expected a finite number.")
        checked[name] = number
    return checked


def as_number(value: object) -> float | None:
    """Return a number of any kind as a float; None for anything else, truth values included."""
    if isinstance(value, bool | str | bytes):
        return None
    try:
        return float(value)  # type: ignore[arg-type]  # numbers of numpy and torch as well
    except (TypeError, ValueError, OverflowError):
        return None


def checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's tags as texts, or raise `InvalidName`."""
    checked = {}
    for name, value in tags.items():
        if not isinstance(name, str) or not name.strip() or len(name) > _MAX_KEY:
            raise InvalidName(
                f"A tag's name must be a text of 1 to {_MAX_KEY} characters, not {name!r:.60}."
            )
        if name in RESERVED:
            raise InvalidName(f"The tag {name!r} is kept by the registry; use another name.")
        text = str(value)
        if len(text) > _MAX_VALUE:
            raise InvalidName(
                f"The tag {name!r} has {len(text)} characters; at most {_MAX_VALUE} fit."
            )
        checked[name] = text
    return checked


def checked_version(version: str | int) -> str:
    """Return a version's number as text without leading zeros, or raise `UnknownVersion`."""
    text = str(version).strip()
    if isinstance(version, bool) or not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UnknownVersion(f"{version!r} is not a version; expected a number such as '3'.")
    return str(int(text))


def checked_stage(stage: str | Stage) -> Stage:
    """Return the stage of that name, in any case, or raise `StageError`."""
    for known in Stage:
        if str(stage).lower() == known.value.lower():
            return known
    names = ", ".join(s.value for s in Stage)
    raise StageError(f"There is no stage {str(stage)!r}; expected one of {names}.")


def read_version(
    version: str, tags: Mapping[str, str], *, run_id: str, created: datetime, state: State
) -> ModelVersion:
    """Return the record of a stored version; `created` serves where its tags do not say.

    Versions that other tools registered have none of our tags, and are read all the same.
    """
    stage = state.stage_of(version)
    return ModelVersion(
        version=version,
        stage=stage,
        created=_read_time(tags.get("created", ""), created),
        metrics=_read_metrics(tags.get("metrics", "{}")),
        tags={**tags, "stage": str(stage)},
        sha256=tags.get("sha256", ""),
        run_id=run_id,
        size=int(tags["size"]) if tags.get("size", "").isdigit() else 0,
    )


def _read_time(text: str, otherwise: datetime) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return otherwise


def _read_metrics(text: str) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
