# SPDX-License-Identifier: Apache-2.0
"""How a session is started, resumed, or finished if only its queue is left."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord

from fl_app.strategy.checkpoints.backlog import CHECKPOINTS
from fl_app.strategy.checkpoints.folder import SessionFolder, set_apart
from fl_app.strategy.checkpoints.plain_json import NotPlainError, encode
from fl_app.strategy.checkpoints.record import Checkpoint, SessionRecord
from fl_app.strategy.checkpoints.round_files import RoundFiles
from fl_app.strategy.checkpoints.round_store import RoundStore
from fl_app.strategy.checkpoints.strategy_state import InnerMemory
from fl_app.strategy.errors import CheckpointError, ResumeError
from fl_app.strategy.finish.evaluation import EvaluateFn
from fl_app.strategy.finish.finisher import Finisher, LastSteps
from fl_app.strategy.finish.provenance import run_tags
from fl_app.strategy.finish.score_sources import score_source
from fl_app.strategy.finish.scores import Scores
from fl_app.strategy.round.state import ClosedRound, RoundInHand
from fl_app.strategy.session.outbox import AWAY
from fl_app.strategy.session.resume import Interrupted
from fl_app.strategy.setup import Setup
from fl_app.wire.arrays import array_rows, fits, schema_of
from fl_registry import Lease, LeaseLost, RegistryError, Stage
from fl_registry.tracking import logged_texts

logger = logging.getLogger("flwr.fl_app")

FOLDER_TAG = "checkpoint"
"""Tag of a session's MLflow run: the name of its folder."""


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
        texts = logged_texts(setup.params)  # the file stays for as long as the session waits
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
            settings=setup.resume.compared(settings),
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
        rounds = self._rounds(folder, first)
        folder.note(run_id=str(run.info.run_id))  # before there is a round to resume from
        rounds.save(closed, "done")
        return rounds, self._finisher(rounds, self.evaluate_fn), self._hand(rounds, record.tags)

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
        files = RoundFiles(folder.path)
        inner, arrays = files.inner(newest), files.arrays(newest)
        try:
            self.memory.put_back(inner)
        except NotPlainError as error:
            raise ResumeError(
                f"The session in {folder.path} cannot be resumed ({error}); use resume='fresh'."
            ) from error
        for name, config in newest.configs.items():
            self.configs[name].clear()
            self.configs[name].update(config)
        whole = replace(newest, inner=inner, closed=replace(newest.closed, arrays=arrays))
        rounds = self._rounds(folder, whole)
        hand = self._hand(rounds, {**record.tags, "flower_run_id": self.flower_run_id})
        for checkpoint in cut.rounds[1:]:  # round 0 is what the session started with
            hand.resume(checkpoint.closed, aggregated_only=checkpoint.phase == "aggregated")
        if newest.phase == "aggregated":
            hand.restored = whole.closed
        hand.offset = newest.closed.round - (newest.phase == "aggregated")
        tag = {f"resumed_after_round.{hand.offset}": self.flower_run_id}
        self.setup.tracker.start_run(run_id=record.run_id, tags=tag)
        finisher = self._finisher(rounds, self.evaluate_fn)
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
        folder, tracker = left.folder, self.setup.tracker
        record = folder.record
        status = record.status or ("FINISHED" if record.state == "left" else "KILLED")
        try:
            if record.run_id:
                tracker.start_run(run_id=record.run_id)
            if record.run_id or tracker.adopt_run({FOLDER_TAG: folder.path.name}) is not None:
                if left.rounds:
                    self._finish_rounds(left)
                tracker.end_run(status)
            folder.remove()
        except (*AWAY, LeaseLost):
            raise
        except Exception as error:  # whatever it is, the new session must not end with it
            apart = set_apart(folder.path)
            logger.exception("%s is left as it is: %s", apart, type(error).__name__)
            end_run(self.setup, status)
        finally:
            folder.release()

    def _finish_rounds(self, left: Interrupted) -> None:
        """Finish the waiting rounds of an earlier session, and its last steps."""
        newest, folder, setup = left.rounds[-1], left.folder, self.setup
        arrays = RoundFiles(folder.path).arrays(newest)
        rounds = self._rounds(folder, replace(newest, closed=replace(newest.closed, arrays=arrays)))
        # Its model is scored only if it has the arrays of the present one, and on the same data.
        same_model = not (self.arrays or folder.record.arrays) or fits(
            arrays, schema_of(self.arrays)
        )
        same_data = folder.record.source == score_source(self.evaluate_fn, setup.model.holdout)
        finisher = self._finisher(rounds, self.evaluate_fn if same_model and same_data else None)
        finisher.resume(left.rounds, 0)
        staging = setup.store.get_latest_version(Stage.STAGING)
        finisher.best = finisher.scores.better(finisher.best, staging)
        if not folder.record.described:
            finisher.begin()
        if left.waiting:
            logger.info("%d rounds of an earlier session are finished now", len(left.waiting))
        for checkpoint in left.waiting:
            finisher.work(checkpoint)
        if folder.record.state == "left":
            finisher.end(LastSteps(promote=setup.shadow is None))

    def _rounds(self, folder: SessionFolder, newest: Checkpoint) -> RoundStore:
        setup = self.setup
        return RoundStore(
            folder,
            RoundFiles(folder.path),
            self.memory,
            self.configs,
            newest,
            health=setup.session.health,
            model=setup.model.description,
        )

    def _finisher(self, rounds: RoundStore, evaluate_fn: EvaluateFn | None) -> Finisher:
        setup, schema = self.setup, schema_of(rounds.newest_arrays)
        scores = Scores(setup.store, rounds, evaluate_fn, schema, setup.metric, setup.mode)
        return Finisher(setup, rounds, scores, self.lease)

    def _hand(self, rounds: RoundStore, tags: Mapping[str, str]) -> RoundInHand:
        arrays = rounds.newest_arrays
        return RoundInHand(self.num_rounds, tags, schema_of(arrays), arrays)


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
