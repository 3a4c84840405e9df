# SPDX-License-Identifier: Apache-2.0
"""`ModelVersion`: its tags, what differs between two, and which may be removed. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic_core import from_json

from fl_registry.errors import InvalidMetric, InvalidName, RegistryError
from fl_registry.files.artifacts import DIGEST, Artifact
from fl_registry.redaction import known_secrets, redact
from fl_registry.stages import Stage, State

RESERVED = frozenset(
    ("sha256", "size", "stage", "metrics", "created", "save_key", "model_id", "per_example", "half")
)
_MAX_KEY, _MAX_VALUE, _MAX_DESCRIPTION = 250, 100_000, 5000  # MLflow's limits, in characters
_MAX_EXAMPLES = 100_000
_TAG_NAME = re.compile(rf"(?! *$)[\w.\- :/]{{1,{_MAX_KEY}}}")  # what MLflow takes
_SIZE = re.compile(r"[0-9]{1,18}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO = ("", "0", "false", "no")  # values of the tag keep


@dataclass(frozen=True)
class ModelVersion:
    """One registered version.

    Attributes
    ----------
    version : str
        Its number, as text.
    stage : Stage
        Its stage, by the journal.
    created : datetime
        When it was saved, in UTC.
    metrics : Mapping[str, float]
        The metrics it was saved with.
    tags : Mapping[str, str]
        All its tags, the registry's own included.
    sha256 : str
        Digest of the whole weights file; empty for a version that other tools registered.
    run_id : str
        The MLflow run that made it; empty where there was none.
    size : int
        Bytes of the weights file.
    description : str
        Free text for people.
    """

    version: str
    stage: Stage
    created: datetime
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    sha256: str
    run_id: str
    size: int
    description: str = ""

    def as_row(self) -> dict[str, Any]:
        """Return the version as a plain dictionary, its time in ISO-8601."""
        return {
            **vars(self),
            "stage": str(self.stage),
            "created": self.created.isoformat(),
            "metrics": dict(self.metrics),
            "tags": dict(self.tags),
        }


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
        for name, value in json.loads(tags["metrics"]).items()
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
    for name in metrics:
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_KEY or _CONTROL.search(name):
            raise InvalidMetric(
                f"{name!r:.60} cannot be a metric's name; use a text of at most {_MAX_KEY} "
                "characters, not empty and without a control character such as a line break."
            )
    return _finite(metrics, "Metric {name} is {value!r:.60}; expected a finite number.")


def finite_number(value: object) -> float | None:
    """Return a number of any kind as a float; None for all else: truth values, NaN, infinity."""
    if isinstance(value, bool | str | bytes):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # numbers of numpy and torch as well
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _finite(fields: Mapping[Any, float], refusal: str) -> dict[str, float]:
    """Return the values as plain floats, or raise `InvalidMetric` with this text."""
    numbers = {}
    for name, value in fields.items():
        number = finite_number(value)
        if number is None:
            raise InvalidMetric(refusal.format(name=name, value=value))
        numbers[str(name)] = number
    return numbers


def checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's tags as texts, or raise `InvalidName`."""
    known = known_secrets()
    checked = {name: redact(str(value), known=known) for name, value in tags.items()}
    for name, text in checked.items():
        if not isinstance(name, str) or not _TAG_NAME.fullmatch(name) or _is_path(name):
            raise InvalidName(
                f"{name!r:.60} cannot be a tag's name; use 1 to {_MAX_KEY} letters, digits, spaces "
                "and _-.:/ only, not spaces alone, and no path such as a//b."
            )
        if name in RESERVED:
            raise InvalidName(f"The tag {name!r} belongs to the registry; use another name.")
        if len(text) > _MAX_VALUE or "\0" in text:
            raise InvalidName(
                f"The tag {name!r} has {len(text)} characters; at most {_MAX_VALUE} fit, without "
                "NUL."
            )
    return checked


def _is_path(name: str) -> bool:
    return posixpath.normpath(name) != name or name == "." or name.startswith(("..", "/"))


def checked_scores(per_example: Mapping[str, float] | None) -> dict[str, float]:
    """Return results per example as plain floats, or raise `InvalidMetric`."""
    given = per_example or {}
    scores = _finite(
        given, "The result of example {name!r:.60} is {value!r:.60}; expected a finite number."
    )
    if len(scores) > _MAX_EXAMPLES or len(scores) < len(given):
        raise InvalidMetric(
            f"There are results of {len(given)} examples under {len(scores)} names; expected at "
            f"most {_MAX_EXAMPLES}, each under a name of its own."
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
    digest, size = tags.get("sha256", ""), tags.get("size", "")
    with suppress(ValueError):  # other tools give it no such tag
        created = datetime.fromisoformat(tags.get("created", "")).astimezone(UTC)
    return ModelVersion(
        version=version,
        stage=stage,
        created=created,
        metrics=read_numbers(tags.get("metrics", "")) or {},
        tags=dict(tags),
        sha256=digest if DIGEST.fullmatch(digest) else "",  # any other text might be a path
        run_id=run_id,
        size=int(size) if _SIZE.fullmatch(size) else 0,
        description=description,
    )


def read_numbers(text: str | bytes | None) -> dict[str, float] | None:
    """Return numbers by name, as they are stored in JSON; None where they cannot be read."""
    try:
        return {str(k): float(v) for k, v in json.loads(text or "null").items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


@dataclass(frozen=True)
class PruneReport:
    """What a clean-up removed, or would remove.

    Attributes
    ----------
    dry_run : bool
        Whether nothing was touched.
    versions : tuple[str, ...]
        The versions that went, or would go, oldest first. Some may be left from a clean-up that
        was interrupted.
    freed : int
        Bytes of the files that are really gone; in a dry run, of those that would go.
    kept : Mapping[str, str]
        Why each of the other versions stays.
    left : Mapping[str, str]
        Versions whose files could not be removed, or are still needed, and why.
    later : int
        How many more may go, beyond the number that was asked for.
    """

    dry_run: bool
    versions: tuple[str, ...] = ()
    freed: int = 0
    kept: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    later: int = 0


def reasons_to_stay(
    records: Iterable[ModelVersion],
    state: State,
    keep: int,
    older_than: timedelta | None,
    *,
    restorable: Callable[[ModelVersion], bool],
) -> dict[str, str]:
    """Return why each version stays; the ones not in it may go.

    Parameters
    ----------
    records : Iterable[ModelVersion]
        All versions, newest first.
    state : State
        The state by the journal.
    keep : int
        How many of the newest that can be restored stay.
    older_than : timedelta | None
        Only versions older than this go.
    restorable : Callable[[ModelVersion], bool]
        Whether a version's files are there and whole; called only until there are enough.

    Raises
    ------
    RegistryError
        `keep` or `older_than` is nothing of the kind.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
        raise RegistryError(f"keep is {keep!r}; expected a number of versions, 0 or more.")
    if older_than is not None and not isinstance(older_than, timedelta):
        raise RegistryError(
            f"older_than is {older_than!r}; expected a timedelta, such as timedelta(days=30)."
        )
    stay, newest = {}, 0
    now = datetime.now(UTC)
    for record in records:
        counts = newest < keep and restorable(record)
        newest += counts
        rules = {
            "in production": record.version == state.production,
            "in staging": record.version == state.staging,
            "the previous production version": record.version == state.previous,
            "has been in production": record.version in state.served,
            "has the tag keep": record.tags.get("keep", "").strip().lower() not in _NO,
            "was not saved by this app": not record.sha256,
            f"one of the newest {keep} that can be restored": counts,
            f"younger than {older_than}": older_than and now - record.created < older_than,
        }
        why = next((why for why, holds in rules.items() if holds), "")
        if why:
            stay[record.version] = why
    return stay


def metric_differences(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    """Return by how much `two` exceeds `one` in each metric that both have."""
    return {name: two[name] - one[name] for name in one if name in two}


def param_differences(
    one: Mapping[str, str] | None, two: Mapping[str, str] | None
) -> dict[str, list[str | None]] | None:
    """Return the params that differ as ``{name: [in one, in two]}``; None where a side is unknown.

    A param that only one of them has is None on the other side.
    """
    if one is None or two is None:
        return None
    names = sorted(one.keys() | two.keys())
    return {n: [one.get(n), two.get(n)] for n in names if one.get(n) != two.get(n)}


def architecture_differences(one: bytes | None, two: bytes | None) -> dict[str, Any] | None:
    """Return which arrays differ, by the ``spec.json`` of both; None where one is missing.

    ``only_in_version1`` and ``only_in_version2`` hold names; ``changed`` holds
    ``{name: [{"dtype", "shape"} in one, the same in two]}``.
    """
    first, second = _arrays(one), _arrays(two)
    if first is None or second is None:
        return None
    changed = [name for name in first if name in second and first[name] != second[name]]
    return {
        "only_in_version1": [name for name in first if name not in second],
        "only_in_version2": [name for name in second if name not in first],
        "changed": {name: [first[name], second[name]] for name in changed},
    }


def data_differences(one: str | None, two: str | None) -> dict[str, Any] | None:
    """Return how the training data differ, by the tag ``nodes`` of both; None where one is missing.

    ``changed`` names the nodes whose data are known to be others; ``num_nodes`` and
    ``num_examples`` are the totals of both sides.
    """
    first, second = _nodes(one), _nodes(two)
    if first is None or second is None:
        return None
    digests = {n: (first[n][1], second[n][1]) for n in first.keys() & second.keys()}
    return {
        "only_in_version1": sorted(first.keys() - second.keys()),
        "only_in_version2": sorted(second.keys() - first.keys()),
        "changed": sorted(n for n, (a, b) in digests.items() if a and b and a != b),
        "num_nodes": [len(first), len(second)],
        "num_examples": [sum(count for count, _ in side.values()) for side in (first, second)],
    }


def _arrays(spec: bytes | None) -> dict[str, dict[str, Any]] | None:
    try:
        rows = from_json(spec or b"null")["arrays"]
        return {str(r["name"]): {"dtype": r["dtype"], "shape": r["shape"]} for r in rows}
    except (ValueError, TypeError, KeyError):
        return None


def _nodes(tag: str | None) -> dict[str, tuple[float, str]] | None:
    try:
        return {
            str(n["node_id"]): (float(n["num_examples"]), str(n.get("data_digest", "")))
            for n in from_json(tag or "null")
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
