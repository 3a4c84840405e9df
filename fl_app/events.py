# SPDX-License-Identifier: Apache-2.0
"""What happens in a model's life, as frozen records for hooks; who hands them over is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from fl_registry import Stage

Approval = Literal["none", "pending", "approved", "rejected", "superseded"]


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class RejectedReply:
    """A node's reply that did not count in a round.

    Attributes
    ----------
    node_id : str
        Flower's id of the node.
    phase : "train" | "evaluate"
        What it answered to.
    reason : str
        What was wrong with it.
    in_a_row : int
        How many of its last replies in this phase did not count.
    """

    node_id: str
    phase: Literal["train", "evaluate"]
    reason: str
    in_a_row: int = 1

    def told(self) -> str:
        """One line on it."""
        replies = f"{self.in_a_row} replies in a row" if self.in_a_row > 1 else "a reply"
        return f"{replies} ({self.phase}): {self.reason}"


@dataclass(frozen=True)
class RoundReport:
    """One round, once its model has been evaluated, registered and staged.

    Attributes
    ----------
    round, num_rounds : int
        Flower's server round, from 1, and how many there are.
    metrics : Mapping[str, float]
        Holdout metrics by plain name; clients' as ``client/…``, local training as ``train/…``.
    version : str | None
        Registered version; None if the round failed.
    stage : Stage
        Stage that the version was given.
    approval : str
        ``pending`` while the version waits in Staging for a person.
    reason : str
        Why it got this stage, or why the round failed.
    failed : bool
        True if the round left the global arrays as they were.
    seconds : float
        Wall time from the round's first message to the end of its client evaluation.
    run_id : str
        MLflow run of the session.
    rejected : tuple[RejectedReply, ...]
        Replies that did not count.
    time : datetime
        When it was reported, in UTC.
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
        """What tells it from every other event, whoever reports it."""
        return f"{self.run_id}-round-{self.round}"


@dataclass(frozen=True)
class SessionStarted:
    """A session is about to ask the nodes for its first round.

    Attributes
    ----------
    run_id : str
        Its MLflow run.
    session : int
        Its number within its Flower run, from 1.
    num_rounds : int
        Rounds that it will have.
    parent_version : str | None
        Registered version that it starts from; None for first weights.
    trigger : str
        Reason of the retraining request; empty where a person started it.
    request_id : str
        That request.
    production, staging : str | None
        The versions there now.
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
        """What tells it from every other event, whoever reports it."""
        return f"{self.run_id}-started"


@dataclass(frozen=True)
class SessionEnded:
    """A session came to its end, good or bad.

    Attributes
    ----------
    run_id, session
        As in `SessionStarted`.
    status : "finished" | "failed" | "killed"
        ``failed``: an error ended it; ``killed``: the process was told to end.
    reason : str
        The error, or why it stopped before its last round; empty otherwise.
    versions : tuple[str, ...]
        What it registered, oldest first.
    pending : str | None
        The version that waits for approval.
    failed_rounds : int
        Rounds without a new model.
    seconds : float
        How long it took.
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
        """What tells it from every other event, whoever reports it."""
        return f"{self.run_id}-ended"


@dataclass(frozen=True)
class StageMoved:
    """An entry of the registry's journal, whoever made it: strategy, person, probation, doctor.

    Attributes
    ----------
    number : int
        Its place in the journal, from 1.
    op : str
        ``stage``, ``promote``, ``archive``, ``rollback``, ``restore``, ``adopt`` or ``retire``.
    version : str
        The version that moved.
    displaced : str | None
        The version that left the stage for it.
    actor, reason : str
        Who, and why.
    production, staging : str | None
        The versions there after it.
    id : str
        The entry's own, the same in every process that reports it.
    time : datetime
        When it was made, in UTC.
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
    """The monitor wrote a request for retraining down.

    Attributes
    ----------
    request_id : str
        Its id in the history.
    kind : str
        What it came from: ``degradation``, ``schedule``, ``drift``, ``manual``, …
    reason : str
        One sentence for people.
    outcome : str
        ``pending``, or ``joined``, ``suggested``, ``suppressed``.
    why : str
        Why it was not let through; empty if it was.
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
        """What tells it from every other event, whoever reports it."""
        return self.request_id


Event = RoundReport | SessionStarted | SessionEnded | StageMoved | RetrainingRequested

Hook = Callable[[Event], None]
"""Called with each event; what it raises is logged and changes nothing."""


def as_json(event: Event) -> dict[str, Any]:
    """The event as JSON has it: ``type``, ``id``, ``timestamp`` (ISO-8601), the rest in ``data``.

    A number that is not finite, which JSON does not know, is null.
    """
    data = {f.name: _plain(getattr(event, f.name)) for f in fields(event)}
    timestamp = data.pop("time")
    data.pop("id", None)
    return {"type": event.type, "id": event.id, "timestamp": timestamp, "data": data}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, RejectedReply):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
