# SPDX-License-Identifier: Apache-2.0
"""The rounds of a session: on disk, and in memory while the disk is full.

The name of a record says how far its round is, so that waiting rounds are counted without reading:

``aggregated-0007.json``
    It has a new model. After a crash its nodes evaluate, and do not train again.
``closed-0007.json``
    It is over for the nodes, and waits to be finished: logged, registered, staged.
``done/done-0007.json``
    It is finished; its report is in the record. In a folder of their own, so that the others are
    listed in the same time however many rounds a session has.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from fl_app.events import RoundReport
from fl_app.strategy.checkpoints.folder import SessionFolder
from fl_app.strategy.checkpoints.record import (
    PHASES,
    Checkpoint,
    InnerState,
    Phase,
    disk_errors,
    read_file,
    write_file,
)
from fl_app.strategy.checkpoints.strategy_state import InnerMemory, same_state
from fl_app.strategy.errors import CheckpointError
from fl_app.strategy.round.state import ClosedRound
from fl_app.strategy.setup import Setup
from fl_app.wire.arrays import view
from fl_registry.files.digests import file_digest
from fl_registry.files.weights import load_weights, save_weights

logger = logging.getLogger("flwr.fl_app")

MAX_UNSAVED = 3
"""Rounds that are kept in memory while the disk is full."""
DISK = "round checkpoints"
"""The name in ``Health`` of what fails then."""
DONE = "done"
"""The phase of a finished round, and the folder of its record."""
_NUMBERED = re.compile(r"(round|inner|aggregated|closed|done)-(\d{4,})(?:-[a-z]+)?\.[a-z]+")


def load_array_record(path: Path) -> ArrayRecord:
    """Arrays of a weights file as Flower sends them, in the model's own order."""
    return ArrayRecord({name: Array(values) for name, values in load_weights(path).items()})


class RoundFiles:
    """Reads and writes the rounds of a session.

    Parameters
    ----------
    folder : Path
        The session's folder.

    Raises
    ------
    CheckpointError
        From all methods: the disk is full, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save_arrays(
        self, arrays: ArrayRecord, number: int, model: Mapping[str, object]
    ) -> tuple[str, str]:
        """Write the arrays of a round; return the name of their file and its SHA-256.

        They are written whole or not at all, and the files of other rounds are not touched.
        """
        path = self._folder / f"round-{number:04d}.safetensors"
        with disk_errors(f"{path} could not be written; make room on that disk"):
            values = {name: view(array) for name, array in arrays.items()}
            return path.name, save_weights(values, path, model=model)

    def save(self, checkpoint: Checkpoint, model: Mapping[str, object]) -> Checkpoint:
        """Write a round with its arrays.

        Files that ``checkpoint`` names already are not written again: those of a round without a
        new model, and of an inner state that did not change.
        """
        closed, files = checkpoint.closed, dict(checkpoint.files)
        if closed.arrays is not None and "arrays" not in files:
            files["arrays"] = self.save_arrays(closed.arrays, closed.round, model)
        if checkpoint.inner.arrays and "inner" not in files:
            name = f"inner-{closed.round:04d}-{checkpoint.phase}.safetensors"
            with disk_errors(f"the inner state of round {closed.round} could not be written"):
                files["inner"] = name, save_weights(checkpoint.inner.arrays, self._folder / name)
        saved = replace(checkpoint, files=files)
        self._write(saved)
        return saved

    def finish(self, done: Checkpoint, newest: Checkpoint, keeping: Collection[int]) -> None:
        """Write a round that is done, which waits no longer, and delete old files.

        Old are those that neither a session resumed after ``newest`` nor a waiting round needs;
        ``keeping`` are further rounds whose arrays stay.
        """
        number = done.closed.round
        old = [self._path(kind, number) for kind in ("closed", "aggregated")]
        files = [*_numbered(self._folder)]
        needed = {name for name, _ in newest.files.values()}
        waiting = {n for kind, n, _ in files if kind == "closed"} - {number} | {*keeping}
        old += [
            path
            for kind, n, path in files
            if n < newest.closed.round
            and path.name not in needed
            and (kind == "inner" or (kind == "round" and n not in waiting))
        ]
        self._write(done)
        for path in old:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s could not be deleted: %s", path, error.strerror)

    def load(self) -> tuple[tuple[Checkpoint, ...], str]:
        """Return the rounds, each as far as it is, oldest first; and what of them is damaged.

        They are without their arrays. Rounds that are damaged and not finished are left out. Files
        that nobody needs any more are not looked at.
        """
        folders = self._folder, self._folder / DONE
        names = {(kind, number) for each in folders for kind, number, _ in _numbered(each)}
        phases: dict[int, Phase] = {}
        for phase in PHASES:  # a later phase replaces an earlier one
            phases |= {number: phase for kind, number in names if kind == phase}
        rounds, damage, newest = list[Checkpoint](), list[str](), max(phases, default=-1)
        for number in range(newest + 1):
            try:
                if number not in phases:
                    raise CheckpointError(f"there is no record of round {number}")
                checkpoint = read_file(self._path(phases[number], number), Checkpoint)
                if checkpoint.phase == "aggregated" and number < newest:
                    raise CheckpointError(f"there is no record of the end of round {number}")
                waits = checkpoint.phase == "closed" and not checkpoint.closed.problem
                if waits:
                    self._check(checkpoint, "arrays")
                rounds.append(checkpoint)
                if number == newest:
                    self._check(checkpoint, "inner")
                if number == newest and not waits:
                    self._check(checkpoint, "arrays")
            except CheckpointError as error:
                damage.append(str(error))
        # The arrays of a round go once the next one has a record. If they went, it had one.
        later = max((n for kind, n in names if kind in {"round", "inner"}), default=-1)
        if newest < later and (damage or newest < 0 < later):
            damage.append(f"there is no record of round {later}")
        return tuple(rounds), damage[-1] if damage else ""

    def arrays(self, checkpoint: Checkpoint) -> ArrayRecord:
        """Return the global arrays after a round."""
        with disk_errors(f"the arrays of round {checkpoint.closed.round} cannot be read"):
            return load_array_record(self._unchanged(checkpoint, "arrays"))

    def weights(self, checkpoint: Checkpoint) -> Path:
        """Return the file with the arrays of a round."""
        return self._folder / checkpoint.files["arrays"][0]

    def inner(self, checkpoint: Checkpoint) -> InnerState:
        """Return the state of the inner strategy after a round, with its arrays."""
        if "inner" not in checkpoint.files:
            return checkpoint.inner
        with disk_errors(f"the inner state of round {checkpoint.closed.round} cannot be read"):
            arrays = load_weights(self._unchanged(checkpoint, "inner"))
        return replace(checkpoint.inner, arrays=arrays)

    def _write(self, checkpoint: Checkpoint) -> None:
        path = self._path(checkpoint.phase, checkpoint.closed.round)
        with disk_errors(f"{path} could not be written"):
            path.parent.mkdir(exist_ok=True)
        write_file(path, checkpoint.without_arrays())

    def _path(self, kind: str, number: int) -> Path:
        folder = self._folder / DONE if kind == DONE else self._folder
        return folder / f"{kind}-{number:04d}.json"

    def _check(self, checkpoint: Checkpoint, what: Literal["arrays", "inner"]) -> None:
        """Raise CheckpointError if a file of a round is missing, or is not what was written."""
        if what == "arrays" and what not in checkpoint.files:
            raise CheckpointError(f"there are no arrays of round {checkpoint.closed.round}")
        if what in checkpoint.files:
            name, _ = checkpoint.files[what]
            with disk_errors(f"{self._folder / name} cannot be read"):
                self._unchanged(checkpoint, what)

    def _unchanged(self, checkpoint: Checkpoint, what: Literal["arrays", "inner"]) -> Path:
        name, digest = checkpoint.files[what]
        path = self._folder / name
        if file_digest(path) != digest:
            raise CheckpointError(f"{path} has changed since it was written")
        return path


def _numbered(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """Yield kind, round and path of the files of rounds in a folder, if it is there."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _NUMBERED.fullmatch(path.name):
            yield match[1], int(match[2]), path


@dataclass
class RoundStore:
    """Writes each round to disk before anything is sent or reported of it.

    Attributes
    ----------
    folder : SessionFolder
        The session's folder.
    setup : Setup
        What the model is, saved beside its weights, and where a full disk is reported.
    memory : InnerMemory
        The state of the inner strategy, written with each round.
    configs : Mapping[str, ConfigRecord]
        The configs for ``train`` and ``evaluate`` messages, likewise.
    newest : Checkpoint
        The last round, with its arrays; round 0 is what the session starts with.
    unsaved : dict[int, Checkpoint]
        Rounds that could not be written.
    lost : set[int]
        Such rounds that were too many for memory.
    """

    folder: SessionFolder
    setup: Setup
    memory: InnerMemory
    configs: Mapping[str, ConfigRecord]
    newest: Checkpoint
    unsaved: dict[int, Checkpoint] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.files = RoundFiles(self.folder.path)
        self._health, self._model = self.setup.session.health, self.setup.model.description
        self._saved = self.newest  # the last round that is on disk, so that its files stay

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
            self.newest = self._saved = self.files.save(whole, self._model)
        except CheckpointError as error:
            self._health.fails(DISK, f"{error}; a crash would lose rounds that are in memory only")
            self.newest = self.unsaved[closed.round] = whole
            for number in sorted(self.unsaved)[:-MAX_UNSAVED]:
                del self.unsaved[number]
                self.lost.add(number)
        else:
            self.unsaved.pop(closed.round, None)
            self._health.works(DISK)
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
            return self._as_lost(waiting)
        whole = self.unsaved.get(number)
        if whole is None:
            return waiting
        saved = self.files.save(whole, self._model)
        if number > self._saved.closed.round:
            self._saved = saved
        self.unsaved.pop(number, None)
        return saved.without_arrays()

    def save_left(self, left: Sequence[Checkpoint]) -> dict[int, str]:
        """Write what fits of the rounds that are left to the next run; return why others are not.

        The last one is tried first, since without it the session has no result. If it does not fit,
        the others are written from the first one on, so that the next run can resume after them.
        """
        missing: dict[int, str] = {}
        newest = self.newest.closed.round
        for each in sorted(left, key=lambda each: each.closed.round != newest):
            number, why = each.closed.round, next(iter(missing.values()), "")
            try:
                if newest in missing and (len(missing) > 1 or number in self.lost):
                    missing[number] = why  # not to leave a gap before it
                elif number in self.lost:
                    self.files.save(self._as_lost(each), self._model)
                else:
                    self.on_disk(each)
            except CheckpointError as error:
                missing[number] = str(error)
        return missing

    def _as_lost(self, waiting: Checkpoint) -> Checkpoint:
        problem = "the disk was full, and its arrays could not be kept in memory any longer"
        return replace(waiting, closed=replace(waiting.closed, problem=problem))

    def save_score(self, waiting: Checkpoint, record: MetricRecord) -> None:
        """Write what ``evaluate_fn`` returned for a round that waits into its record, if it can."""
        if waiting.closed.round not in self.unsaved:
            closed = replace(waiting.closed, central=MetricRecord(dict(record)))
            with suppress(CheckpointError):
                self.files.save(replace(waiting, closed=closed), self._model)

    def finish(self, waiting: Checkpoint, report: RoundReport) -> None:
        """Write the report of a closed round, and delete files that are not needed any more."""
        # What the report has already, or nobody asks for any more.
        closed = replace(
            waiting.closed, nodes=(), node_scores=(), rejected=(), train=None, clients=None, tags={}
        )
        done = replace(waiting, closed=closed, phase="done", report=report)
        self.files.finish(done, self._saved, keeping=tuple(self.unsaved))

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
