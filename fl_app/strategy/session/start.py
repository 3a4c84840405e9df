# SPDX-License-Identifier: Apache-2.0
"""How a session is started or resumed, and how what earlier ones have left is finished."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord

from fl_app.backlog import CHECKPOINTS, SESSION_FILE, session_folders, unfinished_sessions
from fl_app.strategy.checkpoints.folder import SessionFolder, folder_lock, set_apart
from fl_app.strategy.checkpoints.record import (
    Checkpoint,
    NotPlainError,
    SessionRecord,
    encode,
    read_file,
)
from fl_app.strategy.checkpoints.round_store import RoundFiles, RoundStore
from fl_app.strategy.checkpoints.strategy_state import InnerMemory
from fl_app.strategy.errors import CheckpointError, ResumeError
from fl_app.strategy.finish.evaluation import EvaluateFn, score_source
from fl_app.strategy.finish.finisher import Finisher, LastSteps
from fl_app.strategy.finish.staging import run_tags
from fl_app.strategy.round.state import ClosedRound, RoundInHand
from fl_app.strategy.session.outbox import AWAY
from fl_app.strategy.setup import Resume, Setup
from fl_app.wire.arrays import array_rows, fits, schema_of
from fl_registry import Lease, LeaseLost, RegistryError, RunPurged
from fl_registry.tracking import logged_texts

logger = logging.getLogger("flwr.fl_app")

SET_APART = (
    "session %s is damaged (%s): %s, and the rest is set apart; a new session starts, and "
    "`fl-app recover %s --discard` deletes what is left"
)
FOLDER_TAG = "checkpoint"
"""Tag of a session's MLflow run: the name of its folder."""


@dataclass(frozen=True)
class Interrupted:
    """A session on disk that no process runs; its folder is locked by this one.

    Attributes
    ----------
    folder : SessionFolder
        Its folder.
    rounds : tuple[Checkpoint, ...]
        Its rounds, from round 0, which is what it started with.
    damage : str
        What of its files is damaged or missing, so that it cannot be resumed; empty for nothing.
    """

    folder: SessionFolder
    rounds: tuple[Checkpoint, ...]
    damage: str = ""

    def served(self, request_id: str) -> bool:
        """Whether it served this request, and its process ended in the middle."""
        record = self.folder.record
        begun = bool(record.run_id and (self.rounds or self.damage))
        return begun and record.state == "training" and record.origin.request_id == request_id

    def is_resumable(self, request_id: str) -> bool:
        """Whether it can be resumed: by this request, in the middle, and with whole files."""
        return self.served(request_id) and not self.damage

    @property
    def status(self) -> str:
        """How its MLflow run ends."""
        record = self.folder.record
        if self.damage:
            return "FAILED"
        return record.status or ("FINISHED" if record.state == "left" else "KILLED")

    @property
    def waiting(self) -> list[Checkpoint]:
        """The rounds that are closed and not finished, oldest first."""
        return [checkpoint for checkpoint in self.rounds if checkpoint.phase == "closed"]


def lock_interrupted(home: Path, model: str) -> list[Interrupted]:
    """Return the sessions of a model that no process runs, the newest first, and lock them.

    One whose record is damaged is set apart with a warning.
    """
    sessions = []
    for path in session_folders(home, model):
        try:
            sessions.append(lock_session(path))
        except TimeoutError:
            continue  # another process runs it
        except CheckpointError as error:
            set_apart(path, str(error))
            logger.warning(SET_APART, path.name, error, "nothing of it is handed over", path.name)
    return sorted(sessions, key=lambda each: each.folder.record.started, reverse=True)


def lock_session(path: Path) -> Interrupted:
    """Return a session that no process runs, and lock it.

    Raises
    ------
    TimeoutError
        Another process runs it.
    CheckpointError
        Its record is damaged.
    """
    lock = folder_lock(path)
    lock.acquire()
    try:
        folder = SessionFolder(path, read_file(path / SESSION_FILE, SessionRecord), lock)
        return Interrupted(folder, *RoundFiles(path).load())
    except CheckpointError:
        lock.release()
        raise


def damaged_sessions(home: Path, model: str) -> dict[str, str]:
    """Return what is damaged of sessions that no process runs, by the name of their folder.

    The next run sets them apart. Only those that look damaged are locked, and only for a moment: a
    run that starts just then must find the others.
    """
    damaged = {}
    for path in session_folders(home, model):
        with suppress(TimeoutError):  # it is being written to
            if _damage(path):
                lock = folder_lock(path)
                with lock:
                    damage = _damage(path)
                if damage:
                    damaged[path.name] = damage
    return damaged


def _damage(path: Path) -> str:
    try:
        read_file(path / SESSION_FILE, SessionRecord)
        return RoundFiles(path).load()[1]
    except CheckpointError as error:
        return str(error) if path.exists() else ""


def is_cut_short(home: Path, model: str, request_id: str = "") -> bool:
    """Return whether a session that served this request, or none, can be resumed."""
    sessions = lock_interrupted(home, model)
    for each in sessions:
        each.folder.release()
    return any(each.is_resumable(request_id) for each in sessions)


def choose(
    sessions: Sequence[Interrupted], now: SessionRecord, resume: Resume
) -> Interrupted | None:
    """Return the session to resume; None to start a new one.

    Raises
    ------
    ResumeError
        There is none, though one is required.
    """
    why = []
    for each in sessions:
        if not each.served(now.origin.request_id):
            continue
        if each.damage:
            why.append(each.damage)
            continue
        differences, newest = each.folder.record.differences(now), each.rounds[-1]
        if resume.mode == "require":
            missing = newest.inner.missing
            differences += [f"{at.strip('/')} of its strategy is not on disk" for at in missing]
        if resume.mode != "fresh" and not differences:
            return each
        # With other settings it is not resumed: a run that is half of one and half of another
        # learning rate is neither. Settings that shape no model are not compared (`ignoring`).
        why.append("; ".join(differences) or "a fresh one is requested")
        last = newest.closed.round
        logger.warning("the session interrupted in round %d is not resumed: %s", last, why[-1])
    if resume.mode == "require":
        raise ResumeError(
            f"No session of {now.model!r} can be resumed here"
            + (f": {why[0]}" if why else ", since none was interrupted")
            + "; use resume='auto' to start a new one then."
        )
    return None


@dataclass(frozen=True)
class Start:
    """What ``LifecycleStrategy.start()`` was given.

    Attributes
    ----------
    setup : Setup
        What the strategy was made with.
    memory : InnerMemory
        The state of the inner strategy.
    arrays : ArrayRecord
        The first global arrays of a new session.
    configs : Mapping[str, ConfigRecord]
        The configs for ``train`` and ``evaluate`` messages.
    evaluate_fn : EvaluateFn | None
        Scores the holdout.
    num_rounds : int
        Rounds of the session.
    flower_run_id : str
        Id of the Flower run.
    lease : Lease | None
        The right to move versions by rule.
    """

    setup: Setup
    memory: InnerMemory
    arrays: ArrayRecord
    configs: Mapping[str, ConfigRecord]
    evaluate_fn: EvaluateFn | None
    num_rounds: int
    flower_run_id: str
    lease: Lease | None

    def record(self) -> SessionRecord:
        """Return the record of the session, if it is a new one."""
        setup, origin = self.setup, self.setup.session.origin
        inner = {"strategy": type(setup.strategy).__name__}
        # Logged texts have no secrets: the file stays for as long as the session waits.
        texts = logged_texts({**inner, **setup.session.params})
        settings = {
            **{f"strategy{place}": value for place, value in self.memory.settings.items()},
            **{f"{name}-config": encode(config) for name, config in self.configs.items()},
            **texts,
        }
        return SessionRecord(
            model=setup.model_name,
            origin=origin,
            num_rounds=self.num_rounds,
            chain=self.memory.chain,
            arrays=array_rows(schema_of(self.arrays)),
            settings={k: v for k, v in settings.items() if k not in setup.resume.ignoring},
            tags=run_tags(origin, self.flower_run_id, setup.metric),
            params={**texts, "num-server-rounds": str(self.num_rounds)},
            holdout=setup.model.holdout,
            source=score_source(self.evaluate_fn, setup.model.holdout),
            run_name=f"flower-{self.flower_run_id}-session-{origin.session}",
        )

    def new(self, record: SessionRecord) -> tuple[RoundStore, Finisher, RoundInHand]:
        """Start a session.

        Raises
        ------
        CheckpointError
            The disk is full.
        RegistryError
            MLflow does not answer, or refuses.
        """
        # The folder first: after a crash every MLflow run has one that leads to it.
        path = self.setup.home / CHECKPOINTS / uuid.uuid4().hex
        folder, files = SessionFolder.create(path, record), RoundFiles(path)
        closed, saved = ClosedRound(0, arrays=self.arrays), {}
        try:
            with ThreadPoolExecutor(1) as beside:  # the disk takes as long as MLflow
                model = self.setup.model.description
                writing = beside.submit(files.save_arrays, self.arrays, 0, model)
                tags = {**record.tags, FOLDER_TAG: path.name}
                run = self.setup.tracker.start_run(record.run_name, tags=tags)
            with suppress(CheckpointError):  # saving the round tries again, and reports it
                saved["arrays"] = writing.result()
        except BaseException:
            folder.release()
            raise
        # The first train message waits for the lease, the run and this checkpoint, without which a
        # crash would mean a new session. Params, data and the first scores are logged while nodes
        # train, from the session's record, so that a process that resumes it logs the same.
        first = Checkpoint(closed, "done", self.memory.take(), files=saved)
        rounds, finisher = self._parts(folder, first, self.evaluate_fn)
        folder.note(run_id=str(run.info.run_id))  # before there is a round to resume from
        rounds.save(closed, "done")
        return rounds, finisher, self._hand(rounds, record.tags)

    def resumed(self, cut: Interrupted) -> tuple[RoundStore, Finisher, RoundInHand]:
        """Resume a session: its MLflow run, its arrays, and the state of its strategy.

        Raises
        ------
        CheckpointError
            Its files have changed.
        ResumeError
            The state is of another strategy.
        """
        newest, folder, record = cut.rounds[-1], cut.folder, cut.folder.record
        inner = RoundFiles(folder.path).inner(newest)
        whole = replace(_with_arrays(folder, newest), inner=inner)
        try:
            self.memory.put_back(inner)
        except NotPlainError as error:
            raise ResumeError(
                f"The session in {folder.path} cannot be resumed ({error}); use resume='fresh'."
            ) from error
        for name, config in newest.configs.items():
            self.configs[name].clear()
            self.configs[name].update(config)
        rounds, finisher = self._parts(folder, whole, self.evaluate_fn)
        hand = self._hand(rounds, {**record.tags, "flower_run_id": self.flower_run_id})
        for checkpoint in cut.rounds[1:]:  # round 0 is what the session started with
            hand.resume(checkpoint.closed, aggregated_only=checkpoint.phase == "aggregated")
        if newest.phase == "aggregated":
            hand.restored = whole.closed
        hand.offset = newest.closed.round - (newest.phase == "aggregated")
        self._continue_run(folder, {f"resumed_after_round.{hand.offset}": self.flower_run_id})
        finisher.resume(cut.rounds, hand.offset)
        logger.info(
            "resuming the session of MLflow run %s, which was interrupted in round %d of %d",
            record.run_id,
            min(hand.offset + 1, record.num_rounds),
            record.num_rounds,
        )
        return rounds, finisher, hand

    def finish_left(self, left: Interrupted) -> None:
        """Finish what an earlier session has left: its queue, and its MLflow run.

        What cannot be finished is set apart with the reason; its files stay.
        """
        folder = left.folder
        try:
            self.hand_over(left)
        except (*AWAY, LeaseLost):
            raise
        except Exception as error:  # whatever it is, the new session must not end with it
            apart = set_apart(folder.path, f"{type(error).__name__}: {error}")
            logger.exception(
                "%s is set apart, `fl-app recover %s` tries again: %s",
                apart,
                folder.path.name,
                type(error).__name__,
            )
            end_run(self.setup, left.status)
        finally:
            folder.release()

    def hand_over(self, left: Interrupted) -> None:
        """Finish the queue of an earlier session, and end its MLflow run.

        If files of it are damaged, its rounds that are whole are finished, no version of it is
        promoted by rule, since a better one may be lost, and the rest is set apart.

        Raises
        ------
        RegistryError
            MLflow does not take it.
        """
        folder, tracker = left.folder, self.setup.tracker
        record = folder.record
        if record.run_id:
            self._continue_run(folder, {})
        if record.run_id or tracker.adopt_run({FOLDER_TAG: folder.path.name}) is not None:
            if left.rounds if not left.damage else left.waiting:
                self._finish_rounds(left)
            tracker.end_run(left.status)
        if left.damage:
            set_apart(folder.path, left.damage)
            done = f"{len(left.waiting)} rounds of it are handed over"
            logger.warning(SET_APART, folder.path.name, left.damage, done, folder.path.name)
        else:
            folder.remove()

    def end_runs_apart(self) -> None:
        """End the MLflow runs of sessions that were set apart unread, so that none stays active."""
        for session in unfinished_sessions(self.setup.home, self.setup.model_name):
            if session.apart and self.setup.tracker.adopt_run({FOLDER_TAG: session.id}) is not None:
                end_run(self.setup, "FAILED")

    def _continue_run(self, folder: SessionFolder, tags: Mapping[str, str]) -> None:
        """Continue a session's MLflow run, or start another if MLflow has removed that one."""
        record, tracker = folder.record, self.setup.tracker
        try:
            tracker.start_run(run_id=record.run_id, tags=tags)
        except RunPurged as error:
            tags = {**record.tags, FOLDER_TAG: folder.path.name, **tags}
            run = tracker.start_run(record.run_name, tags=tags)
            logger.warning("%s What it has left is logged to run %s.", error, run.info.run_id)
            folder.note(run_id=str(run.info.run_id), described=False)

    def _finish_rounds(self, left: Interrupted) -> None:
        """Finish the waiting rounds of an earlier session, and its last steps."""
        folder, record, setup = left.folder, left.folder.record, self.setup
        newest = _with_arrays(folder, left.waiting[-1] if left.damage else left.rounds[-1])
        # Its model is scored only if it has the arrays of the present one, and on the same data.
        arrays = newest.closed.arrays or ArrayRecord()
        same_model = not (self.arrays or record.arrays) or fits(arrays, schema_of(self.arrays))
        same_data = record.source == score_source(self.evaluate_fn, setup.model.holdout)
        evaluate_fn = self.evaluate_fn if same_model and same_data else None
        _, finisher = self._parts(folder, newest, evaluate_fn)
        finisher.resume(left.rounds, 0)
        finisher.compare_staging()
        if not record.described:
            finisher.begin()
        if left.waiting:
            logger.info("%d rounds of an earlier session are finished now", len(left.waiting))
        for checkpoint in left.waiting:
            finisher.work(checkpoint)
        if record.state == "left" and not left.damage:
            finisher.end(LastSteps(promote=setup.shadow is None))

    def _parts(
        self, folder: SessionFolder, newest: Checkpoint, evaluate_fn: EvaluateFn | None
    ) -> tuple[RoundStore, Finisher]:
        rounds = RoundStore(folder, self.setup, self.memory, self.configs, newest)
        return rounds, Finisher(self.setup, rounds, evaluate_fn, self.lease)

    def _hand(self, rounds: RoundStore, tags: Mapping[str, str]) -> RoundInHand:
        arrays = rounds.newest_arrays
        return RoundInHand(self.num_rounds, tags, schema_of(arrays), arrays)


def _with_arrays(folder: SessionFolder, checkpoint: Checkpoint) -> Checkpoint:
    """Return a round of a session with its arrays, read from their file."""
    arrays = RoundFiles(folder.path).arrays(checkpoint)
    return replace(checkpoint, closed=replace(checkpoint.closed, arrays=arrays))


def end_run(setup: Setup, status: str, seconds: float | None = None) -> bool:
    """End the MLflow run, in at most some seconds; return whether MLflow has ended it."""
    ended = threading.Event()

    def end() -> None:
        try:
            setup.tracker.end_run(status)
            ended.set()
        except RegistryError as error:
            setup.tracker.leave_run()
            logger.warning("%s; the next run ends it", error)

    if seconds is None:
        end()
    else:
        thread = threading.Thread(target=end, name="fl-app-end", daemon=True)
        thread.start()
        thread.join(seconds)
    return ended.is_set()
