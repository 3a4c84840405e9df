# SPDX-License-Identifier: Apache-2.0
"""Requests for retraining: what they come from and what becomes of them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from fl_app.events import RetrainingRequested
from fl_registry.redaction import redact


class TriggerKind(StrEnum):
    """What a request came from."""

    DEGRADATION = "degradation"
    SCHEDULE = "schedule"
    DRIFT = "drift"
    PROBATION = "probation"
    MANUAL = "manual"


class Outcome(StrEnum):
    """What has become of a request."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    JOINED = "joined"
    SUGGESTED = "suggested"
    SUPPRESSED = "suppressed"


@dataclass(frozen=True)
class RetrainRequest:
    """Somebody's or some rule's wish for a training session.

    Attributes
    ----------
    kind : TriggerKind
        What it came from.
    reason : str
        One sentence for people; passwords in it are hidden.
    force : bool
        Whether it passes cooldown and budget, as people's requests do.
    id : str
        32 hexadecimal digits.
    created : datetime
        UTC.
    cut_short : bool
        Whether a session was begun for it before, by a process that crashed or was stopped.
    """

    kind: TriggerKind
    reason: str
    force: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    cut_short: bool = False

    def __post_init__(self) -> None:
        # It goes to the log, to hooks, into MLflow: for everybody to see, and for ever.
        object.__setattr__(self, "reason", redact(self.reason))


def requested(row: Mapping[str, Any]) -> RetrainingRequested:
    """What hooks hear of a request, from its row in the history."""
    return RetrainingRequested(
        request_id=row["id"],
        kind=row["kind"],
        reason=row["reason"],
        outcome=row["outcome"],
        why=row["why"],
        time=datetime.fromisoformat(row["created"]),
    )
