# SPDX-License-Identifier: Apache-2.0
"""The rounds of a session as they are kept: on disk, and in memory while the disk takes none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, ConfigRecord

from fl_app.health import Health
from fl_app.strategy.errors import CheckpointError
from fl_app.strategy.session.closed_round import ClosedRound
from fl_app.strategy.session.folder import Checkpoint, Phase, SessionFolder
from fl_app.strategy.session.strategy_state import InnerMemory, InnerState

MAX_UNSAVED = 3
"""Rounds that are kept in memory while the disk does not take them."""
DISK = "round checkpoints"
"""What fails then, for whoever looks at the health."""


@dataclass
class KeptRounds:
    """Writes down what a round has made, before anybody relies on it.

    Attributes
    ----------
    folder : SessionFolder
        Where.
    memory : InnerMemory
        What the inner strategy remembers, written down with each round.
    configs : Mapping[str, ConfigRecord]
        The configs for ``train`` and ``evaluate`` messages, likewise.
    newest : Checkpoint
        The last round, with its arrays; round 0 is what the session starts with.
    health : Health
        Where it is noted that the disk takes nothing.
    model : Mapping[str, object]
        What the model is, kept beside its weights.
    unsaved : dict[int, Checkpoint]
        Rounds that the disk did not take.
    lost : set[int]
        Such rounds that were too many for memory.
    """

    folder: SessionFolder
    memory: InnerMemory
    configs: Mapping[str, ConfigRecord]
    newest: Checkpoint
    health: Health = field(default_factory=Health)
    model: Mapping[str, object] = field(default_factory=dict)
    unsaved: dict[int, Checkpoint] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)

    def keep(self, closed: ClosedRound, phase: Phase) -> Checkpoint:
        """Write a round down, and what the inner strategy remembers; return it without arrays.

        Where the disk does not take it, it is kept in memory, and the session goes on.
        """
        inner, files = self.memory.take(), dict(self.newest.files)
        if closed.problem:
            closed = replace(closed, arrays=self.newest.closed.arrays)
        elif closed.round != self.newest.closed.round:
            files.pop("arrays", None)
        if not inner.same_as(self.newest.inner):
            files.pop("inner", None)
        # As they are now: the next round changes them while the worker writes this one's record.
        configs = {name: ConfigRecord(dict(config)) for name, config in self.configs.items()}
        whole = Checkpoint(closed, phase, inner, configs, files=files)
        try:
            self.newest = self.folder.save(whole, self.model)
            self.unsaved.pop(closed.round, None)
            self.health.works(DISK)
        except CheckpointError as error:
            self._keep_in_memory(whole, error)
        return _light(self.newest)

    def on_disk(self, waiting: Checkpoint) -> Checkpoint:
        """Write a round down that the disk did not take before; one that was lost has failed.

        Raises
        ------
        CheckpointError
            The disk still does not take it.
        """
        number = waiting.closed.round
        if number in self.lost:
            problem = "the disk was full, and its arrays could not be kept in memory any longer"
            return replace(waiting, closed=replace(waiting.closed, problem=problem))
        whole = self.unsaved.get(number)
        if whole is None:
            return waiting
        saved = self.folder.save(whole, self.model)
        self.unsaved.pop(number, None)
        return _light(saved)

    def forget(self) -> None:
        """Delete files that neither a later round nor one that waits needs."""
        self.folder.forget(self.newest, keeping=tuple(self.unsaved))

    def arrays_of(self, checkpoint: Checkpoint) -> ArrayRecord:
        """The global arrays after a round."""
        number, newest = checkpoint.closed.round, self.newest
        known = newest if newest.closed.round == number else self.unsaved.get(number)
        if known is not None and known.closed.arrays is not None:
            return known.closed.arrays
        return self.folder.arrays(checkpoint)

    def _keep_in_memory(self, whole: Checkpoint, error: CheckpointError) -> None:
        self.health.fails(DISK, f"{error}; a crash would lose rounds that are in memory only")
        self.newest = whole
        self.unsaved[whole.closed.round] = whole
        for number in sorted(self.unsaved)[:-MAX_UNSAVED]:
            del self.unsaved[number]
            self.lost.add(number)


def _light(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint without its arrays."""
    inner = InnerState(checkpoint.inner.values, missing=checkpoint.inner.missing)
    return replace(checkpoint, closed=replace(checkpoint.closed, arrays=None), inner=inner)
