# SPDX-License-Identifier: Apache-2.0
"""One session from its start to its end: its worker, its queue, and what becomes of its folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from flwr.app import ArrayRecord, MetricRecord

from fl_app.events import SessionEnded, SessionStarted
from fl_app.strategy.checkpoints.record import Checkpoint, SessionRecord
from fl_app.strategy.checkpoints.round_store import RoundStore
from fl_app.strategy.errors import TooFewNodesError
from fl_app.strategy.finish.finisher import Finisher, FirstSteps, Item
from fl_app.strategy.round.state import RoundInHand
from fl_app.strategy.session.outbox import AWAY, Outbox
from fl_app.strategy.session.resume import choose, lock_interrupted
from fl_app.strategy.session.start import Start, end_run
from fl_app.strategy.setup import Setup
from fl_registry import Stage
from fl_registry.redaction import redact

logger = logging.getLogger("flwr.fl_app")

REGISTRY = "registry"
"""The name in ``Health`` of what fails while rounds wait."""
FAILED_DRAIN_SECONDS = 10.0
"""Seconds for which a session that failed waits for MLflow while it is down."""
RESUMED_AFTER = (*AWAY, TooFewNodesError)
"""Errors after which the next run resumes the session: what was missing may be there then."""
LAST_SECONDS = 0.5, 1.0
"""Seconds for the current round, and for the end of the MLflow run, when the process must end."""
MAX_REASON = 500
"""Characters of an error in an event."""


@dataclass
class SessionRun:
    """A running session.

    Attributes
    ----------
    setup : Setup
        What the user gave.
    rounds : RoundStore
        Its rounds on disk.
    finisher : Finisher
        Finishes them, on the worker's thread.
    hand : RoundInHand
        The round that is under way, on Flower's thread.
    outbox : Outbox
        The queue between the two.
    staging : str | None
        The version in Staging as it started.
    """

    setup: Setup
    rounds: RoundStore
    finisher: Finisher
    hand: RoundInHand
    outbox: Outbox[Item]
    staging: str | None = None

    def drained(self, *, last: bool = False) -> bool:
        """Wait until the queue is empty; if anything is left, leave it to the next run."""
        left = self.outbox.drain(self.setup.session.drain_timeout)
        if left:
            rounds = sum(isinstance(item, Checkpoint) for item in left)
            self.leave_queue("its last steps" if last else f"{rounds} rounds")
        return not left

    def leave_queue(self, what: str) -> None:
        """Note that what is in the queue is for the next run."""
        self.rounds.folder.note(state="left")
        logger.warning(
            "the session is over, and %s wait on disk, since MLflow does not answer: the next run "
            "finishes them",
            what,
        )

    def leave(self) -> None:
        """End the session at once: Flower has stopped the run, whose process may hang."""
        self.rounds.folder.over = True
        self.outbox.close(LAST_SECONDS[0])
        self.outbox.afterwards(self.rounds.folder.release)

    def close(self, error: BaseException | None) -> None:
        """End the session: finish what can be in the time that there is, and release its folder."""
        folder, hooks = self.rounds.folder, self.setup.hooks
        if folder.over:  # by `leave`
            return
        failed, last = isinstance(error, Exception), None
        if failed:
            try:
                self.outbox.drain(FAILED_DRAIN_SECONDS)
            except Exception as second:  # noqa: BLE001  (the first one is raised already)
                logger.info("a round is left: %s", second)
            if not isinstance(error, RESUMED_AFTER):
                folder.note(state="ending", status="FAILED")
        ended = self._ended(error)
        folder.over = True
        self.outbox.close(LAST_SECONDS[0])
        if error is not None and not failed:
            last = LAST_SECONDS[1]  # the process must end; the next one resumes the session
        run_ended = False
        if folder.record.state == "left":
            self.setup.tracker.leave_run()
        else:
            run_ended = end_run(self.setup, ended.status.upper(), last)
        if run_ended and folder.record.state == "ending" and not self.outbox.waiting:
            folder.remove()
        self.outbox.afterwards(folder.release)
        hooks(ended)
        hooks.flush(last)

    def _ended(self, error: BaseException | None) -> SessionEnded:
        failed: Literal["failed", "killed"] = "failed" if isinstance(error, Exception) else "killed"
        reason = self.hand.stopped
        if error is not None:
            reason = redact(f"{type(error).__name__}: {error}".rstrip(": "))
        reports = self.finisher.reports
        pending = [r.version for r in reports if r.approval == "pending"]
        return SessionEnded(
            run_id=self.rounds.folder.record.run_id,
            session=self.rounds.folder.record.origin.session,
            status="finished" if error is None else failed,
            reason=reason[:MAX_REASON],
            versions=tuple(r.version for r in reports if r.version is not None),
            pending=pending[-1] if pending else None,
            failed_rounds=sum(r.failed for r in reports),
            seconds=time.monotonic() - self.finisher.started,
        )


@contextmanager
def open_session(start: Start) -> Iterator[SessionRun]:
    """Start or resume a session, finish what earlier ones have left, and end it after the block."""
    setup, evaluate_fn = start.setup, start.evaluate_fn
    sessions = lock_interrupted(setup.home, setup.model_name)

    def watched(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        with outbox.computing():  # time that is not MLflow's
            return evaluate_fn(server_round, arrays) if evaluate_fn is not None else None

    try:
        record = start.record()
        resumed = choose(sessions, record, setup.resume)
        for each in sessions:
            if each is not resumed:
                start.finish_left(each)
        begun = replace(start, evaluate_fn=watched if evaluate_fn is not None else None)
        rounds, finisher, hand = begun.new(record) if resumed is None else begun.resumed(resumed)
    except BaseException:
        for each in sessions:
            each.folder.release()
        raise
    folder, health = rounds.folder, setup.session.health

    def prepare(item: Item) -> None:
        finisher.prepare(item, save=bool(outbox.trouble))

    def report_trouble(why: str) -> None:
        folder.note_trouble(why)
        if why:
            health.fails(REGISTRY, f"{why} (rounds wait on disk until MLflow is back)")
            finisher.scores.save()
        else:
            health.works(REGISTRY)

    health.works(REGISTRY)  # which has just let the session start
    outbox = Outbox[Item](
        finisher.work,
        prepare,
        report_trouble,
        pipeline=setup.rounds.pipeline,
        patience=setup.session.round_patience,
        retry=setup.session.retry,
    )
    run = SessionRun(setup, rounds, finisher, hand, outbox)
    error: BaseException | None = None
    try:
        with setup.store.one_reading():
            setup.hooks.look()
            event = _started(setup, folder.record)
        run.staging = event.staging
        setup.hooks(event)
        if resumed is not None:
            # Others may have staged a better version meanwhile.
            staging = setup.store.get_latest_version(Stage.STAGING)
            finisher.best = finisher.scores.better(finisher.best, staging)
            if folder.record.first_metrics is not None and not folder.record.described:
                outbox.put(FirstSteps())
            for waiting in resumed.waiting:
                outbox.put(waiting)
        yield run
    except BaseException as caught:
        error = caught
        raise
    finally:
        run.close(error)


def _started(setup: Setup, record: SessionRecord) -> SessionStarted:
    return SessionStarted(
        run_id=record.run_id,
        session=record.origin.session,
        num_rounds=record.num_rounds,
        parent_version=record.origin.parent_version,
        trigger=record.origin.trigger,
        request_id=record.origin.request_id,
        production=setup.store.get_latest_version(Stage.PRODUCTION),
        staging=setup.store.get_latest_version(Stage.STAGING),
    )
