# SPDX-License-Identifier: Apache-2.0
"""Events of a model's life, as frozen records for hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic_core import to_jsonable_python

from fl_registry import Stage

Approval = Literal["none", "pending", "approved", "rejected", "superseded"]


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class RejectedReply:
    """A node's reply that was rejected in a round.

    Attributes
    ----------
    node_id : str
        Flower's id of the node.
    phase : "train" | "evaluate"
        Kind of the message that it replied to.
    reason : str
        Why it was rejected.
    in_a_row : int
        How many of the node's last replies in this phase were rejected.
    """

    node_id: str
    phase: Literal["train", "evaluate"]
    reason: str
    in_a_row: int = 1

    def as_line(self) -> str:
        """Return the rejection as one line for people."""
        replies = f"{self.in_a_row} replies in a row" if self.in_a_row > 1 else "a reply"
        return f"{replies} ({self.phase}): {self.reason}"


@dataclass(frozen=True)
class RoundReport:
    """A round whose model was evaluated, registered and staged.

    Attributes
    ----------
    round, num_rounds : int
        Flower's server round, from 1, and how many there are.
    metrics : Mapping[str, float]
        Holdout metrics by plain name; clients' as ``client/…``, local training as ``train/…``.
    version : str | None
        Registered version; None if the round failed.
    stage : Stage
        Stage of the version.
    approval : str
        ``pending`` while the version waits in Staging for a person's approval.
    reason : str
        Why it got this stage, or why the round failed.
    failed : bool
        True if the round left the global arrays as they were.
    seconds : float
        Wall time from the round's first message to the end of its client evaluation.
    run_id : str
        MLflow run of the session.
    rejected : tuple[RejectedReply, ...]
        Rejected replies.
    time : datetime
        Time of this report, in UTC.
    """

    type: ClassVar[str] = "round.finished"

    round: int
    num_rounds: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    version: str | None = None
    stage: Stage = Stage.NONE
    approval: Approval = "none"
    reason: str = ""
    failed: bool = False
    seconds: float = 0.0
    run_id: str = ""
    rejected: tuple[RejectedReply, ...] = ()
    time: datetime = field(default_factory=_now)

    @property
    def id(self) -> str:
        """Identifies the event, in every process that reports it."""
        return f"{self.run_id}-round-{self.round}"


@dataclass(frozen=True)
class SessionStarted:
    """A session is about to begin its first round.

    Attributes
    ----------
    run_id : str
        MLflow run of the session.
    session : int
        Number of the session within its Flower run, from 1.
    num_rounds : int
        Configured number of rounds.
    parent_version : str | None
        Registered version that the session starts from; None for new weights.
    trigger : str
        Reason of the retraining request; empty if a person started the session.
    request_id : str
        Id of that request.
    production, staging : str | None
        The current versions of these stages.
    time : datetime
        In UTC.
    """

    type: ClassVar[str] = "session.started"

    run_id: str
    session: int
    num_rounds: int
    parent_version: str | None = None
    trigger: str = ""
    request_id: str = ""
    production: str | None = None
    staging: str | None = None
    time: datetime = field(default_factory=_now)

    @property
    def id(self) -> str:
        """Identifies the event, in every process that reports it."""
        return f"{self.run_id}-started"


@dataclass(frozen=True)
class SessionEnded:
    """A session ended.

    Attributes
    ----------
    run_id, session
        As in `SessionStarted`.
    status : "finished" | "failed" | "killed"
        ``failed``: an error ended it; ``killed``: the process received a signal.
    reason : str
        The error, or why the session stopped before its last round; empty otherwise.
    versions : tuple[str, ...]
        Versions that it registered, oldest first.
    pending : str | None
        The version that waits for approval.
    failed_rounds : int
        Rounds without a new model.
    seconds : float
        Duration of the session.
    time : datetime
        In UTC.
    """

    type: ClassVar[str] = "session.ended"

    run_id: str
    session: int
    status: Literal["finished", "failed", "killed"]
    reason: str = ""
    versions: tuple[str, ...] = ()
    pending: str | None = None
    failed_rounds: int = 0
    seconds: float = 0.0
    time: datetime = field(default_factory=_now)

    @property
    def id(self) -> str:
        """Identifies the event, in every process that reports it."""
        return f"{self.run_id}-ended"


@dataclass(frozen=True)
class StageMoved:
    """A new entry of the registry's journal, by the strategy, a person, probation or doctor.

    Attributes
    ----------
    number : int
        Position in the journal, from 1.
    op : str
        ``stage``, ``promote``, ``archive``, ``rollback``, ``restore``, ``adopt`` or ``retire``.
    version : str
        The version that moved.
    displaced : str | None
        The version that left the stage in exchange.
    actor, reason : str
        Who moved it, and why.
    production, staging : str | None
        The versions of these stages after the move.
    id : str
        Id of the entry, the same in every process that reports it.
    time : datetime
        Time of the entry, in UTC.
    """

    type: ClassVar[str] = "stage.moved"

    number: int
    op: str
    version: str
    displaced: str | None
    actor: str
    reason: str
    production: str | None
    staging: str | None
    id: str
    time: datetime


@dataclass(frozen=True)
class RetrainingRequested:
    """The monitor recorded a request for retraining.

    Attributes
    ----------
    request_id : str
        Id of the request in the history.
    kind : str
        Origin: ``degradation``, ``schedule``, ``drift``, ``manual``, …
    reason : str
        One sentence for people.
    outcome : str
        ``pending``, or ``joined``, ``suggested``, ``suppressed``.
    why : str
        Why it is not pending; empty if it is.
    time : datetime
        In UTC.
    """

    type: ClassVar[str] = "retraining.requested"

    request_id: str
    kind: str
    reason: str
    outcome: str
    why: str = ""
    time: datetime = field(default_factory=_now)

    @property
    def id(self) -> str:
        """Identifies the event, in every process that reports it."""
        return self.request_id


Event = RoundReport | SessionStarted | SessionEnded | StageMoved | RetrainingRequested

Hook = Callable[[Event], None]
"""Called with each event; an exception is logged and has no other effect."""


def as_json(event: Event) -> dict[str, Any]:
    """Return the event as JSON: ``type``, ``id``, ``timestamp`` (ISO-8601), the rest in ``data``.

    A number that is not finite, for which JSON has no form, is null.
    """
    data = to_jsonable_python(event, exclude={"id", "time"}, inf_nan_mode="null")
    timestamp = event.time.isoformat(timespec="milliseconds")
    return {"type": event.type, "id": event.id, "timestamp": timestamp, "data": data}
