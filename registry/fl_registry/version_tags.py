# SPDX-License-Identifier: Apache-2.0
"""A version's tags: made from the caller's input when it is saved, read back later. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from fl_registry.errors import InvalidMetric, InvalidName
from fl_registry.files.artifacts import DIGEST, Artifact
from fl_registry.files.strict_json import read_json
from fl_registry.records import ModelVersion
from fl_registry.redaction import redact_values
from fl_registry.stages import Stage

RESERVED = frozenset(
    {
        *("sha256", "size", "stage", "metrics", "created", "save_key", "model_id"),
        *("per_example", "half"),
    }
)
_MAX_KEY, _MAX_VALUE, _MAX_DESCRIPTION = 250, 100_000, 5000  # MLflow's limits, in characters
_MAX_EXAMPLES = 100_000
_TAG_NAME = re.compile(r"[\w.\- :/]+")  # what MLflow takes
_SIZE = re.compile(r"[0-9]{1,18}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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
        "metrics": json.dumps(numbers),  # in their order: the first is shown as the score
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "save_key": hashlib.sha256(key.encode()).hexdigest()[:32],
        **({"per_example": artifact.scores_sha256} if artifact.scores_sha256 else {}),
    }


def not_taken_over(saved: ModelVersion, tags: Mapping[str, str], *, description: str) -> list[str]:
    """Return in words what a save of equal weights has that the saved version lacks.

    Parameters
    ----------
    saved : ModelVersion
        The version.
    tags : Mapping[str, str]
        All tags of the later save, from `version_tags`.
    description : str
        Its description.
    """
    had = saved.metrics
    differences = [
        f"metric {name} {value} (it has {had.get(name, 'none')})"
        for name, value in _read_metrics(tags["metrics"]).items()
        if had.get(name) != value
    ]
    differences += [
        f"tag {name}"
        for name, text in tags.items()
        if name not in RESERVED and saved.tags.get(name) != text
    ]
    if description not in ("", saved.description):
        differences.append("description")
    if tags.get("per_example", "") not in ("", saved.tags.get("per_example")):
        differences.append("per_example")
    return differences


def checked_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics as plain floats, or raise `InvalidMetric`."""
    checked = {}
    for name, value in metrics.items():
        number = as_number(value)
        if not isinstance(name, str) or not name:
            raise InvalidMetric(f"A metric's name must be a text that is not empty, not {name!r}.")
        if _CONTROL.search(name) or len(name) > _MAX_KEY:
            raise InvalidMetric(
                f"{name!r:.60} cannot be a metric's name; use at most {_MAX_KEY} characters, none "
                "of them a line break or another control character."
            )
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
    checked = redact_values(tags)
    for name, text in checked.items():
        if not isinstance(name, str) or not name.strip() or len(name) > _MAX_KEY:
            raise InvalidName(
                f"A tag's name must be a text of 1 to {_MAX_KEY} characters, not {name!r:.60}."
            )
        if not _TAG_NAME.fullmatch(name) or _is_path(name):
            raise InvalidName(
                f"{name!r:.60} cannot be a tag's name; use letters, digits, spaces and _-.:/ only, "
                "and no path such as a//b."
            )
        if name in RESERVED:
            raise InvalidName(f"The tag {name!r} belongs to the registry; use another name.")
        if "\0" in text:
            raise InvalidName(f"The tag {name!r} holds a NUL character, which cannot be stored.")
        if len(text) > _MAX_VALUE:
            raise InvalidName(
                f"The tag {name!r} has {len(text)} characters; at most {_MAX_VALUE} fit."
            )
    return checked


def _is_path(name: str) -> bool:
    return posixpath.normpath(name) != name or name == "." or name.startswith(("..", "/"))


def checked_scores(per_example: Mapping[str, float] | None) -> dict[str, float]:
    """Return results per example as plain floats, or raise `InvalidMetric`."""
    scores = {}
    for name, value in (per_example or {}).items():
        number = as_number(value)
        if number is None or not math.isfinite(number):
            raise InvalidMetric(
                f"The result of example {name!r:.60} is {value!r:.60}; expected a finite number."
            )
        scores[str(name)] = number
    if len(scores) > _MAX_EXAMPLES or len(scores) < len(per_example or {}):
        raise InvalidMetric(
            f"There are results of {len(per_example or {})} examples under {len(scores)} names; "
            f"expected at most {_MAX_EXAMPLES}, each under a name of its own."
        )
    return scores


def checked_description(description: str) -> str:
    """Return a description that MLflow can keep, or raise `InvalidName`."""
    text = str(description)
    if len(text) > _MAX_DESCRIPTION or "\0" in text:
        raise InvalidName(
            f"The description has {len(text)} characters; at most {_MAX_DESCRIPTION} fit, without "
            "NUL."
        )
    return text


def read_version(
    version: str,
    tags: Mapping[str, str],
    *,
    run_id: str,
    created: datetime,
    stage: Stage = Stage.NONE,
    description: str = "",
) -> ModelVersion:
    """Return the record of a stored version; `created` is used if its tags have no time.

    Versions that other tools registered have none of the registry's tags and are read as well.
    """
    return ModelVersion(
        version=version,
        stage=stage,
        created=_read_time(tags.get("created", ""), created),
        metrics=_read_metrics(tags.get("metrics", "{}")),
        tags=dict(tags),
        sha256=_read_digest(tags.get("sha256", "")),
        run_id=run_id,
        size=int(tags["size"]) if _SIZE.fullmatch(tags.get("size", "")) else 0,
        description=description,
    )


def _read_digest(text: str) -> str:
    """Return a digest; empty for any other text, which might be a path as well."""
    return text if DIGEST.fullmatch(text) else ""


def _read_time(text: str, otherwise: datetime) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return otherwise


def _read_metrics(text: str) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in read_json(text).items()}
    except (ValueError, TypeError, AttributeError, OverflowError):
        return {}
