# SPDX-License-Identifier: Apache-2.0
"""The rounds of a session: on disk, and in memory while the disk is full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, ConfigRecord

from fl_app.events import RoundReport
from fl_app.health import Health
from fl_app.strategy.checkpoints.folder import SessionFolder
from fl_app.strategy.checkpoints.record import Checkpoint, Phase
from fl_app.strategy.checkpoints.round_files import RoundFiles
from fl_app.strategy.checkpoints.strategy_state import InnerMemory, same_state
from fl_app.strategy.errors import CheckpointError
from fl_app.strategy.round.state import ClosedRound

MAX_UNSAVED = 3
"""Rounds that are kept in memory while the disk is full."""
DISK = "round checkpoints"
"""The name in ``Health`` of what fails then."""


@dataclass
class RoundStore:
    """Writes each round to disk before anything is sent or reported of it.

    Attributes
    ----------
    folder : SessionFolder
        The session's folder.
    files : RoundFiles
        The files of its rounds.
    memory : InnerMemory
        The state of the inner strategy, written with each round.
    configs : Mapping[str, ConfigRecord]
        The configs for ``train`` and ``evaluate`` messages, likewise.
    newest : Checkpoint
        The last round, with its arrays; round 0 is what the session starts with.
    health : Health
        Where a full disk is reported.
    model : Mapping[str, object]
        What the model is, saved beside its weights.
    unsaved : dict[int, Checkpoint]
        Rounds that could not be written.
    lost : set[int]
        Such rounds that were too many for memory.
    """

    folder: SessionFolder
    files: RoundFiles
    memory: InnerMemory
    configs: Mapping[str, ConfigRecord]
    newest: Checkpoint
    health: Health
    model: Mapping[str, object]
    unsaved: dict[int, Checkpoint] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)

    def save(self, closed: ClosedRound, phase: Phase) -> Checkpoint:
        """Write a round and the state of the inner strategy; return it without arrays.

        If the disk is full, the round is kept in memory, and the session continues.

        Raises
        ------
        SessionOverError
            This process has ended the session, which another one may have resumed.
        """
        self.folder.require_open()
        inner, files = self.memory.take(), dict(self.newest.files)
        if closed.problem:
            closed = replace(closed, arrays=self.newest.closed.arrays)
        elif closed.round != self.newest.closed.round:
            files.pop("arrays", None)
        if not same_state(inner, self.newest.inner):
            files.pop("inner", None)
        # Copies: the next round changes the configs while the worker writes this round's report.
        configs = {name: ConfigRecord(dict(config)) for name, config in self.configs.items()}
        whole = Checkpoint(closed, phase, inner, configs, files=files)
        try:
            self.newest = self.files.save(whole, self.model)
            self.unsaved.pop(closed.round, None)
            self.health.works(DISK)
        except CheckpointError as error:
            self._keep_in_memory(whole, error)
        return self.newest.without_arrays()

    def on_disk(self, waiting: Checkpoint) -> Checkpoint:
        """Write a waiting round that could not be written before; one that is lost has failed.

        Raises
        ------
        CheckpointError
            The disk is still full.
        """
        number = waiting.closed.round
        if number in self.lost:
            problem = "the disk was full, and its arrays could not be kept in memory any longer"
            return replace(waiting, closed=replace(waiting.closed, problem=problem))
        whole = self.unsaved.get(number)
        if whole is None:
            return waiting
        saved = self.files.save(whole, self.model)
        self.unsaved.pop(number, None)
        return saved.without_arrays()

    def finish(self, waiting: Checkpoint, report: RoundReport) -> None:
        """Write the report of a closed round, and delete files that are not needed any more."""
        self.files.finish(waiting, report, self.newest, keeping=tuple(self.unsaved))

    def arrays_of(self, checkpoint: Checkpoint) -> ArrayRecord:
        """Return the global arrays after a round."""
        number, newest = checkpoint.closed.round, self.newest
        known = newest if newest.closed.round == number else self.unsaved.get(number)
        if known is not None and known.closed.arrays is not None:
            return known.closed.arrays
        return self.files.arrays(checkpoint)

    @property
    def newest_arrays(self) -> ArrayRecord:
        """The global arrays now."""
        return self.arrays_of(self.newest)

    def _keep_in_memory(self, whole: Checkpoint, error: CheckpointError) -> None:
        self.health.fails(DISK, f"{error}; a crash would lose rounds that are in memory only")
        self.newest = whole
        self.unsaved[whole.closed.round] = whole
        for number in sorted(self.unsaved)[:-MAX_UNSAVED]:
            del self.unsaved[number]
            self.lost.add(number)
