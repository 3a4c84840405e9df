# SPDX-License-Identifier: Apache-2.0
"""The state of the round that is under way; only Flower's thread reads and changes it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, Message, MetricRecord

from fl_app.strategy.errors import RunFailedError
from fl_app.strategy.round.closed_round import ClosedRound
from fl_app.strategy.round.rejected_nodes import RejectedNodes
from fl_app.wire.schema import Schema

MAX_FAILED_ROUNDS = 3
"""Rounds without a new model, in a row, after which the run fails."""


@dataclass
class RoundInHand:
    """The round that is under way, and what its session remembers of those before it.

    Attributes
    ----------
    num_rounds : int
        Rounds of the session, those of earlier processes included.
    tags : Mapping[str, str]
        Tags of the session, which its versions get.
    schema : Schema
        Arrays that every global model must have; empty until a server without a model has one.
    sent : ArrayRecord
        The global model that the nodes were sent in this round.
    offset : int
        Rounds that an earlier process has closed. Flower's loop counts from there.
    restored : ClosedRound | None
        A round whose model an earlier process has made, but which it did not close.
    current : ClosedRound
        The result of the last aggregation.
    requested : tuple[str, ...]
        Ids of the nodes that the last messages were sent to.
    stopped : str
        Why the remaining rounds are left out; empty if they are not.
    rejected : RejectedNodes
        Nodes whose replies were rejected.
    opened : float
        When the round began, by the monotonic clock.
    failed_in_a_row : int
        Rounds without a new model since the last one with a model.
    made_model : bool
        Whether a round made a model, those of earlier processes included.
    """

    num_rounds: int
    tags: Mapping[str, str]
    schema: Schema
    sent: ArrayRecord
    offset: int = 0
    restored: ClosedRound | None = None
    current: ClosedRound = field(default_factory=lambda: ClosedRound(0, "no round"))
    requested: tuple[str, ...] = ()
    stopped: str = ""
    rejected: RejectedNodes = field(default_factory=RejectedNodes)
    opened: float = field(default_factory=time.monotonic)
    failed_in_a_row: int = 0
    made_model: bool = False

    def send(self, messages: Iterable[Message]) -> list[Message]:
        """Return the messages; replies are expected from the nodes that they go to."""
        sent = list(messages)
        self.requested = tuple(str(message.metadata.dst_node_id) for message in sent)
        return sent

    def take_restored(self) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model and metrics that an earlier process has made in this round."""
        restored, self.restored = self.restored, None
        if restored is not None:
            self.current = replace(restored, tags=self.tags)
            self.rejected.this_round = self.current.rejected
        return self.current.arrays, self.current.train

    def resume(self, closed: ClosedRound, *, aggregated_only: bool) -> None:
        """Take a round into account that an earlier process has run."""
        if not closed.problem:
            self.made_model = True
        if not aggregated_only:
            self.current = closed
            self.failed_in_a_row = self.failed_in_a_row + 1 if closed.problem else 0

    def count_failure(self) -> None:
        """Count the round if it has no new model; too many in a row raise RunFailedError."""
        problem = self.current.problem
        self.failed_in_a_row = self.failed_in_a_row + 1 if problem else 0
        if self.failed_in_a_row >= MAX_FAILED_ROUNDS:
            raise RunFailedError(
                f"{MAX_FAILED_ROUNDS} rounds in a row gave no model, the last one because "
                f"{problem}; look at the clients' log and run again."
            )

    def require_model(self) -> None:
        """Raise RunFailedError if there were rounds, and none of them made a model."""
        if self.num_rounds > 0 and not self.made_model and not self.stopped:
            raise RunFailedError(
                f"No round of {self.num_rounds} made a model, the last one because "
                f"{self.current.problem}; look at the clients' log and run again."
            )
