# SPDX-License-Identifier: Apache-2.0
"""Requests for retraining: what triggers them, and which may become a session. Pure."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fl_app.settings import Key, check_settings
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


@dataclass(frozen=True)
class RetrainPolicy:
    """Limits of requests that are not forced.

    Attributes
    ----------
    min_rounds_between_retrain : int
        Rounds after the start of a retraining before the monitor may request another.
    min_hours_between_retrain : float
        Hours after the start of a retraining before the monitor may request another.
    budget : int
        Retrainings in 30 days that the monitor may request.
    mode : "auto" | "suggest"
        ``suggest``: the monitor's requests are recorded, and a person decides.
    window : timedelta
        The time that the budget is for.

    Raises
    ------
    SettingError
        If a limit is negative or not finite, or ``mode`` is another word.
    """

    min_rounds_between_retrain: Annotated[int, Field(ge=0), Key()] = 10
    min_hours_between_retrain: Annotated[float, Field(ge=0), Key()] = 24.0
    budget: Annotated[int, Field(ge=0), Key("retrain-budget")] = 4
    mode: Annotated[Literal["auto", "suggest"], Key("on-request")] = "auto"
    window: ClassVar[timedelta] = timedelta(days=30)

    def __post_init__(self) -> None:
        check_settings(self)

    def decide(
        self,
        request: RetrainRequest,
        *,
        rounds_since: int | None,
        hours_since: float | None,
        taken_in_window: int,
        recovered: bool,
    ) -> tuple[Outcome, str]:
        """Return the outcome of a new request, and the reason if it is not pending.

        Forced requests are always pending. All others must be past the cooldown in rounds and
        hours, within the budget, and not repeat a request about a fall that has not recovered.

        Parameters
        ----------
        request : RetrainRequest
            The new request.
        rounds_since, hours_since : int | None, float | None
            Since a request was last taken; None before the first.
        taken_in_window : int
            Automatic requests taken in the last 30 days.
        recovered : bool
            Whether the score was healthy at some time since the rule's last request.
        """
        # People's requests are forced. Cooldown and budget guard against a rule with false alarms,
        # not against a person, who has other information. Even so only one runs and one is pending.
        if request.force:
            return Outcome.PENDING, ""
        why, since = "", "since the last retraining"
        rounds, hours = self.min_rounds_between_retrain, self.min_hours_between_retrain
        if rounds_since is not None and rounds_since < rounds:
            why = f"only {rounds_since} rounds {since}, {rounds} are required"
        elif hours_since is not None and hours_since < hours:
            why = f"only {hours_since:.1f} hours {since}, {hours:g} are required"
        elif taken_in_window >= self.budget:
            why = f"{taken_in_window} automatic retrainings in 30 days, the budget"
        elif request.kind is TriggerKind.DEGRADATION and not recovered:
            why = "the score has not recovered since the last request"
        if why:
            return Outcome.SUPPRESSED, why
        if self.mode == "suggest":
            return Outcome.SUGGESTED, "the monitor only suggests; a person may trigger it"
        return Outcome.PENDING, ""
