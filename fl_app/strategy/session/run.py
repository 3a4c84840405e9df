# SPDX-License-Identifier: Apache-2.0
"""One session from its start to its end: its worker, its queue, and what becomes of its folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from fl_app.events import SessionEnded, SessionStarted
from fl_app.flower_internals import lost
from fl_app.progress import SessionProgress
from fl_app.strategy.checkpoints.record import Checkpoint
from fl_app.strategy.checkpoints.round_store import DISK, RoundStore
from fl_app.strategy.errors import CheckpointError, TooFewNodesError
from fl_app.strategy.finish.finisher import REGISTRY, Finisher, FirstSteps
from fl_app.strategy.round.state import RoundInHand
from fl_app.strategy.session.live import LiveProgress
from fl_app.strategy.session.outbox import AWAY, Outbox
from fl_app.strategy.session.start import Start, choose, end_run, lock_interrupted
from fl_app.strategy.setup import Setup
from fl_registry import Stage
from fl_registry.files.atomic import remove_abandoned
from fl_registry.redaction import redact

logger = logging.getLogger("flwr.fl_app")

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
    live : LiveProgress
        What other processes see of it.
    staging : str | None
        The version in Staging as it started.
    """

    setup: Setup
    rounds: RoundStore
    finisher: Finisher
    hand: RoundInHand
    outbox: Outbox
    live: LiveProgress
    staging: str | None = None

    def drained(self) -> bool:
        """Wait until the queue is empty; if anything is left, leave it to the next run.

        Raises
        ------
        CheckpointError
            The disk did not take the last model.
        """
        if not self.outbox.drain(self.setup.session.drain_timeout):
            return True
        self.outbox.close(LAST_SECONDS[0])  # so that what is said of the queue stays so
        rounds = [item for item in self.outbox.drain(0.0) if isinstance(item, Checkpoint)]
        missing = self.rounds.save_left(rounds)
        if self.rounds.newest.closed.round in missing:
            raise CheckpointError(_lost(missing, rounds))
        if missing:
            logger.warning("%s", _lost(missing, rounds))
        waits = len(rounds) - len(missing)
        self.leave_queue(f"{waits} rounds" if waits else "its last steps")
        return False

    def leave_queue(self, what: str) -> None:
        """Note that what is in the queue is for the next run."""
        noted = self.rounds.folder.note(state="left")
        logger.warning(
            "the session is over, and %s wait on disk, which the next run finishes%s: %s",
            what,
            "" if noted else " if its settings are the same",
            self.outbox.trouble or "MLflow did not take them in time",
        )

    def leave(self) -> None:
        """End the session at once: Flower has stopped the run, whose process may hang."""
        self.rounds.folder.over = True
        self.live.close()
        self.outbox.close(LAST_SECONDS[0])
        self.outbox.afterwards(self.rounds.folder.release)

    def close(self, error: BaseException | None) -> None:
        """End the session: finish what can be in the time that there is, and release its folder."""
        folder, hooks = self.rounds.folder, self.setup.hooks
        if folder.over:  # by `leave`
            return
        self.live.close()
        status: Literal["finished", "failed", "killed"] = "finished"
        reason = self.hand.stopped
        if error is not None:
            status = "failed" if isinstance(error, Exception) else "killed"
            reason = redact(f"{type(error).__name__}: {error}".rstrip(": "))
        if status == "failed" and not isinstance(error, CheckpointError):
            try:
                left = self.outbox.drain(FAILED_DRAIN_SECONDS)
                rounds = [item for item in left if isinstance(item, Checkpoint)]
                if missing := self.rounds.save_left(rounds):
                    logger.warning("%s", _lost(missing, rounds))
            except Exception as second:  # noqa: BLE001  (the first one is raised already)
                logger.info("a round is left: %s", second)
        if status == "failed" and not isinstance(error, RESUMED_AFTER):
            folder.note(state="ending", status="FAILED")
        reports = self.finisher.reports
        pending = [r.version for r in reports if r.approval == "pending"]
        ended = SessionEnded(
            run_id=folder.record.run_id,
            session=folder.record.origin.session,
            status=status,
            reason=reason[:MAX_REASON],
            versions=tuple(r.version for r in reports if r.version is not None),
            pending=pending[-1] if pending else None,
            failed_rounds=sum(r.failed for r in reports),
            seconds=time.monotonic() - self.finisher.started,
        )
        folder.over = True
        self.outbox.close(LAST_SECONDS[0])
        # A process that is killed must end; the next one resumes the session.
        last = LAST_SECONDS[1] if status == "killed" else None
        state = folder.record.state
        if state == "left":
            self.setup.tracker.leave_run()
        ended_run = state != "left" and end_run(self.setup, status.upper(), last)
        if ended_run and state == "ending" and not self.outbox.waiting:
            folder.remove()
        self.outbox.afterwards(folder.release)
        hooks(ended)
        hooks.flush(last)


def _lost(missing: Mapping[int, str], rounds: Sequence[Checkpoint]) -> str:
    """Return what is lost with this process, why, and what the next run does about it."""
    first, last = min(missing), max(missing)
    which = f"round {last}" if first == last else f"rounds {first} to {last}"
    if len(missing) != last - first + 1:
        which = f"rounds {', '.join(map(str, sorted(missing)))}"
    are = "is" if len(missing) == 1 else "are"
    what = f"The disk took no more, so {which} {are} lost: {missing[last]}."
    if last < max(item.closed.round for item in rounds):
        return f"{what} The later rounds are whole; the next run hands them over."
    return (
        f"{what} The last model of this session is not on disk, so no version is promoted by rule. "
        f"Once there is room, a run with the same settings resumes after round {first - 1}."
    )


@contextmanager
def open_session(start: Start) -> Iterator[SessionRun]:
    """Start or resume a session, finish what earlier ones have left, and end it after the block."""
    setup = start.setup
    if swept := remove_abandoned(setup.home, now=datetime.now(UTC)):
        logger.info("%d unfinished files of killed processes are removed", len(swept))
    setup.store.check_files()  # or raise: rounds would be trained for nothing
    sessions = lock_interrupted(setup.home, setup.model_name)
    try:
        record = start.record()
        resumed = choose(sessions, record, setup.resume)
        for each in sessions:
            if each is not resumed:
                start.finish_left(each)
        start.end_runs_apart()
        rounds, finisher, hand = start.new(record) if resumed is None else start.resumed(resumed)
    except BaseException:
        for each in sessions:
            each.folder.release()
        raise
    setup.session.health.works(REGISTRY)  # which has just let the session start
    if resumed is not None and rounds.folder.note():
        setup.session.health.works(DISK)
    for reason in lost():
        setup.session.health.fails("Flower", reason)
    record, store, outbox = rounds.folder.record, setup.store, Outbox(setup, finisher)
    origin = record.origin
    begun = SessionProgress(
        rounds.folder.path.name,
        record.run_id,
        origin.trigger,
        origin.parent_version,
        record.num_rounds,
        started=record.started,
    )
    live = LiveProgress(rounds.folder.path, begun)
    run = SessionRun(setup, rounds, finisher, hand, outbox, live)
    error: BaseException | None = None
    try:
        with store.one_reading():
            setup.hooks.look()
            event = SessionStarted(
                run_id=record.run_id,
                num_rounds=record.num_rounds,
                production=store.get_latest_version(Stage.PRODUCTION),
                staging=store.get_latest_version(Stage.STAGING),
                **vars(record.origin),  # which request and version it comes from
            )
        run.staging = event.staging
        setup.hooks(event)
        if resumed is not None:
            finisher.compare_staging()  # others may have staged a better version meanwhile
            if record.first_metrics is not None and not record.described:
                outbox.put(FirstSteps())
            for waiting in resumed.waiting:
                outbox.put(waiting)
        yield run
    except BaseException as caught:
        error = caught
        raise
    finally:
        run.close(error)
