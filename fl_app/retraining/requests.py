# SPDX-License-Identifier: Apache-2.0
"""Requests for retraining: their triggers and outcomes."""

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
    """What triggered a request."""

    DEGRADATION = "degradation"
    SCHEDULE = "schedule"
    DRIFT = "drift"
    PROBATION = "probation"
    MANUAL = "manual"


class Outcome(StrEnum):
    """The state of a request, or how it ended.

    ``joined``: merged into the pending request; ``suggested``: left to a person; ``suppressed``:
    dropped by the cooldown or the budget.
    """

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    JOINED = "joined"
    SUGGESTED = "suggested"
    SUPPRESSED = "suppressed"


@dataclass(frozen=True)
class RetrainRequest:
    """A person's or a rule's request for a training session.

    Attributes
    ----------
    kind : TriggerKind
        What triggered it.
    reason : str
        One sentence for people; passwords in it are hidden.
    force : bool
        Whether it bypasses cooldown and budget, as a person's request does.
    id : str
        32 hexadecimal digits.
    created : datetime
        UTC.
    cut_short : bool
        Whether an earlier process started a session for it, and crashed or was stopped.
    """

    kind: TriggerKind
    reason: str
    force: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    cut_short: bool = False

    def __post_init__(self) -> None:
        # The reason is logged, sent to hooks and stored in MLflow, where it cannot be taken back.
        object.__setattr__(self, "reason", redact(self.reason))


def requested_event(row: Mapping[str, Any]) -> RetrainingRequested:
    """Return the event for a request, given its row in the history."""
    return RetrainingRequested(
        request_id=row["id"],
        kind=row["kind"],
        reason=row["reason"],
        outcome=row["outcome"],
        why=row["why"],
        time=datetime.fromisoformat(row["created"]),
    )
