# SPDX-License-Identifier: Apache-2.0
"""What a person does about a session that is on disk and not over: hand it over, or discard it."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord

from fl_app.backlog import UnfinishedSession
from fl_app.strategy.checkpoints.folder import folder_lock, remove_session, set_apart
from fl_app.strategy.checkpoints.strategy_state import InnerMemory
from fl_app.strategy.errors import CheckpointError, ResumeError
from fl_app.strategy.lifecycle import LifecycleStrategy
from fl_app.strategy.session.start import FOLDER_TAG, Start, lock_session
from fl_registry import Evidence, Gone, ModelStore, RegistryError, Stage, Tracker
from fl_registry.gates.gates import Verdict

logger = logging.getLogger("flwr.fl_app")

BUSY = "Session {} is run by another process; wait for its end."


def by_hand(_: Evidence) -> Verdict:
    """Let no version pass: the gates of its session, and its evaluation, are not here."""
    return Verdict(
        "handed over", passed=False, reason="handed over without its gates; promote it by hand"
    )


def hand_over(session: UnfinishedSession, store: ModelStore, tracker: Tracker, home: Path) -> int:
    """Register the rounds of a session, and end its MLflow run; return how many they were.

    Versions get the scores that the session has taken; none is staged.

    Raises
    ------
    ResumeError
        Another process runs it, or it is damaged; then the rounds that are whole were registered.
    RegistryError
        MLflow does not take it. Then it is where it was, with the reason.
    """
    path = session.path
    if session.apart:
        path = path.rename(path.with_name(session.id))
    try:
        left = lock_session(path)
    except TimeoutError as error:
        raise ResumeError(BUSY.format(session.id)) from error
    except CheckpointError as error:
        set_apart(path, str(error))
        raise ResumeError(
            f"Session {session.id} cannot be read ({error}); `fl-app recover {session.id} "
            "--discard` deletes it."
        ) from error
    strategy = LifecycleStrategy(
        policy={Stage.STAGING: [by_hand]}, artifacts=[], store=store, tracker=tracker, home=home
    )
    configs = {"train": ConfigRecord(), "evaluate": ConfigRecord()}
    rounds, memory = len(left.waiting), InnerMemory(strategy.strategy)
    try:
        with store.writer("fl-app recover") as writer:
            lease, last = writer.lease, left.folder.record.num_rounds
            start = Start(
                strategy.setup, memory, ArrayRecord(), configs, None, last, "recover", lease
            )
            start.hand_over(left)
    except Exception as error:
        tracker.leave_run()
        if session.apart:
            set_apart(path, f"{type(error).__name__}: {error}")
        raise
    finally:
        left.folder.release()
    if left.damage:
        raise ResumeError(
            f"Session {session.id} is damaged ({left.damage}): {rounds} rounds of it are in MLflow "
            f"now, and `fl-app recover {session.id} --discard` deletes the rest."
        )
    return rounds


def discard(session: UnfinishedSession, tracker: Tracker) -> None:
    """Delete a session with its rounds, and end its MLflow run as failed.

    Raises
    ------
    ResumeError
        Another process runs it.
    StoreUnavailable
        MLflow does not answer; nothing was deleted.
    """
    lock = folder_lock(session.path)
    try:
        lock.acquire()
    except TimeoutError as error:
        raise ResumeError(BUSY.format(session.id)) from error
    try:
        end_run_of(session, tracker)
        remove_session(session.path)
    finally:
        lock.release()


def end_run_of(session: UnfinishedSession, tracker: Tracker) -> None:
    """End the MLflow run of a session that nobody continues as failed, if it is still running."""
    try:
        if tracker.adopt_run({FOLDER_TAG: session.id}) is None and session.run_id:
            tracker.start_run(run_id=session.run_id)
        tracker.end_run("FAILED")
    except Gone as error:
        logger.info("%s", error)
    except RegistryError:
        tracker.leave_run()
        raise
