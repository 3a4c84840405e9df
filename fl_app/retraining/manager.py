# SPDX-License-Identifier: Apache-2.0
"""RetrainingManager: a mailbox for the wish to train again. It never trains by itself."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from fl_app.events import Hook
from fl_app.health import Health
from fl_app.hooks.queue import Hooks
from fl_app.retraining.calendar import Calendar
from fl_app.retraining.callback import Callback, CallbackThread
from fl_app.retraining.degradation import LIMIT, RULES, Mode, is_score
from fl_app.retraining.drift.check import DriftSettings
from fl_app.retraining.drift.monitor import DriftWatch
from fl_app.retraining.memory.store import MonitorStore, default_url
from fl_app.retraining.memory.tables import MEMORY, memory_errors
from fl_app.retraining.request_policy import BUDGET_WINDOW, RetrainPolicy, Situation, decide
from fl_app.retraining.requests import Outcome, RetrainRequest, TriggerKind, requested
from fl_app.retraining.schedule import Cron, Every, Schedule
from fl_registry import app_home

logger = logging.getLogger("flwr.fl_app")

MAX_ERRORS_IN_A_ROW = 4
"""Rejected scores in a row after which the monitor warns that no fall can be found."""
POLL_SECONDS = 0.5
"""How often a waiting loop looks for requests that another process wrote down."""


class RetrainingManager:
    """Takes scores, due times and people's wishes, and keeps at most one request waiting.

    ``train_and_retrain`` takes requests out and starts sessions; ``set_retrain_callback`` is a
    second way to take them. What decides is on disk before a call returns, so that requests,
    cooldowns, budget, schedules and the rule's state outlive the process. Safe to use from many
    threads.

    Parameters
    ----------
    accuracy_threshold : float
        Lasting fall of the score, in the metric's unit, that asks for retraining. It is measured
        against the earlier scores, from the second one on, and, after ``start_from``, against the
        score of the version that is served.
    check_interval : float
        Seconds between looks at the schedules, once ``start_monitoring`` was called.
    min_rounds_between_retrain : int
        Rounds after a retraining before a rule may ask again; people always may.
    min_hours_between_retrain : float
        Hours after it.
    budget : int
        Automatic retrainings in 30 days.
    mode : "max" | "min"
        Whether more or less of the score is better.
    policy : "capped_cusum" | "best_minus_threshold"
        How a fall is told from noise; see the rules in ``fl_app.retraining.degradation``.
    on_request : "auto" | "suggest"
        ``suggest`` writes automatic requests down and leaves them to a person.
    drift : DriftSettings | None
        When the nodes' data count as moved; a false alarm a year by default.
    store : MonitorStore | None
        Where it is remembered; ``monitor.db`` in ``FL_APP_HOME`` by default.
    hooks : Sequence[Hook] | Hooks
        Told of each request that this object writes down (`RetrainingRequested`).
    health : Health | None
        Where it is noted that the store cannot be written; rounds go on then.
    now : Callable[[], datetime]
        The wall clock, in UTC; it decides due times, cooldown hours and the budget's window.

    Raises
    ------
    ValueError
        If a threshold, limit or interval makes no sense.
    """

    def __init__(
        self,
        accuracy_threshold: float = 0.05,
        check_interval: float = 300,
        min_rounds_between_retrain: int = 10,
        *,
        min_hours_between_retrain: float = 24.0,
        budget: int = 4,
        mode: Mode = "max",
        policy: Literal["capped_cusum", "best_minus_threshold"] = "capped_cusum",
        on_request: Literal["auto", "suggest"] = "auto",
        drift: DriftSettings | None = None,
        store: MonitorStore | None = None,
        hooks: Sequence[Hook] | Hooks = (),
        health: Health | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not (math.isfinite(check_interval) and check_interval > 0):
            raise ValueError(f"check_interval is {check_interval}, expected seconds, more than 0.")
        if policy not in RULES:
            raise ValueError(f"policy is {policy!r}, expected one of {sorted(RULES)}.")
        self.accuracy_threshold = accuracy_threshold
        self.check_interval = check_interval
        self.retrain_callback: Callback | None = None
        self._policy = RetrainPolicy(
            min_rounds_between_retrain, min_hours_between_retrain, budget, on_request
        )
        self._store = store or MonitorStore(default_url(app_home()))
        self.health = health or Health()
        self._hooks = hooks if isinstance(hooks, Hooks) else Hooks(hooks)
        self._now = now
        self._changed = threading.Condition(threading.RLock())
        self._monitor: threading.Thread | None = None
        self._stop = threading.Event()
        self._callback_thread = CallbackThread(self.running)
        self._calendar = Calendar(self._store)
        self._rule = RULES[policy](accuracy_threshold, mode)
        self._drift = DriftWatch(drift or DriftSettings())
        self._served_version: str | None = None
        self._rounds_since: int | None = None
        self._taken = ""  # the request that they are counted from
        self._errors_in_a_row = 0
        self._recovered = True
        self._leaving = False
        self._restore()

    @property
    def monitoring(self) -> bool:
        """Whether the monitor looks at schedules and serves the callback."""
        return self._monitor is not None and self._monitor.is_alive()

    @property
    def best_accuracy(self) -> float | None:
        """Best score since the baseline was set; None before the first."""
        return self._rule.best

    @property
    def current_accuracy(self) -> float | None:
        """Last score; None before the first."""
        return self._rule.current

    @property
    def store(self) -> MonitorStore:
        """Where it is remembered."""
        return self._store

    @property
    def trigger_history(self) -> list[dict[str, Any]]:
        """Every request, oldest first, with its outcome, and why it did not go through."""
        return self._store.history()

    @property
    def drift(self) -> DriftWatch:
        """The drift test, its evidence and what the last round showed."""
        return self._drift

    def start_from(self, version: str, score: float) -> None:
        """Hear which version a session starts from, and its score on the session's holdout.

        When it is another than before, falls are measured against it from now on.
        """
        with self._changed:
            if version == self._served_version:
                return
            if not is_score(score):
                logger.warning(
                    "the score of version %s is %s, expected a finite number of at most %g in "
                    "size; falls are measured against the earlier scores",
                    *(version, score, LIMIT),
                )
                return
            self._served_version, self._recovered = version, True
            self._rule = self._rule.rebase(score)
            self._save()

    def update_metrics(self, accuracy: float, round_num: int) -> None:
        """Take the score of a round; a fall becomes a request.

        A score that is not finite or more than 1e100 in size is rejected and reported: it changes
        neither best nor current.
        """
        with self._changed, self.health.going_on(MEMORY, *memory_errors()):
            if self._rounds_since is not None:
                self._rounds_since += 1
            if not is_score(accuracy):
                self._reject(accuracy, round_num)
            else:
                self._errors_in_a_row = 0
                self._rule, fall = self._rule.update(accuracy)
                if fall:
                    reason = f"in round {round_num} {fall}"
                    made = self._store.get(
                        self._put(RetrainRequest(TriggerKind.DEGRADATION, reason))
                    )
                    # A fall that lasts longer than a cooldown is requested after it.
                    suppressed = made is not None and made["outcome"] == Outcome.SUPPRESSED
                    self._recovered = self._recovered and suppressed
                elif self._rule.healthy:
                    self._recovered = True
            self._save()

    def update_data(self, summaries: Mapping[str, Mapping[str, object]], round_num: int) -> None:
        """Take what the nodes tell of their data, by node id; drift becomes a request."""
        with self._changed, self.health.going_on(MEMORY, *memory_errors()):
            moved = self._drift.update(summaries, self._now().timestamp())
            if moved:
                self.ask(TriggerKind.DRIFT, f"in round {round_num} {moved}")
            self._save()

    def data_orders(self) -> Mapping[str, str | bool]:
        """What the next train message tells the nodes of the data that they compare with."""
        return self._drift.orders

    def manual_trigger(
        self, reason: str = "", *, force: bool = True, request_id: str | None = None
    ) -> str:
        """Ask for retraining; returns the id of the request, or of the one that waits already.

        With ``force=False`` cooldown and budget hold for it as for a rule's request. Asking again
        with the same ``request_id`` (32 hexadecimal digits) changes nothing.
        """
        new, why = request_id or uuid.uuid4().hex, reason or "a person asked"
        with self._changed:
            return self._put(RetrainRequest(TriggerKind.MANUAL, why, force=force, id=new))

    def ask(self, kind: TriggerKind, reason: str, *, request_id: str | None = None) -> str:
        """Ask for retraining for a reason that was found elsewhere.

        The policy decides about it as about a fall of the score. Returns as ``manual_trigger``.
        """
        request = RetrainRequest(kind, reason, id=request_id or uuid.uuid4().hex)
        with self._changed:
            return self._put(request)

    def schedule_periodic_retrain(
        self, interval_days: float | None = None, *, cron: str | None = None
    ) -> None:
        """Ask for retraining each ``interval_days``, or at the times of a cron expression (UTC).

        The due time is kept: a time that passed while nothing ran is made up for once.
        """
        if (interval_days is None) == (cron is None):
            raise ValueError("Expected either interval_days or cron, and not both.")
        schedule: Schedule = Cron(cron) if cron is not None else Every(interval_days or 0.0)
        with self._changed:
            self._calendar.add(schedule, self._now())

    def set_retrain_callback(self, callback: Callback) -> None:
        """Hand requests to ``callback`` while monitoring, each in a thread of its own.

        What it raises marks the request as failed. As long as it has not returned, its request runs
        and at most one other waits; the monitor goes on, and tells how long that has been.
        """
        self.retrain_callback = callback

    def start_monitoring(self) -> None:
        """Look at the schedules each ``check_interval`` seconds, and serve the callback."""
        with self._changed:
            if self.monitoring:
                return
            self._stop.clear()
            self._monitor = threading.Thread(target=self._watch, name="fl-app-monitor", daemon=True)
            self._monitor.start()

    def stop_monitoring(self) -> None:
        """End what ``start_monitoring`` began; a callback that runs is left to its end."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._monitor is not None:
            self._monitor.join()

    def check_schedules(self) -> None:
        """Put in a request for what is due; one due time makes one request, whoever looks."""
        with self._changed:
            for request in self._calendar.due(self._now()):
                self._put(request)

    def take(self, *, wait: float = 0.0) -> RetrainRequest | None:
        """The request that waits, if any, or that comes within ``wait`` seconds.

        It is in flight from now on, until ``running`` ends; until then nobody gets another. One
        that a crash cut short comes first.
        """
        until = time.monotonic() + wait
        with self._changed:
            request = None
            while not self._leaving:
                request = self._store.take(self._now())
                left = until - time.monotonic()
                if request is not None or left <= 0:
                    break
                self._changed.wait(min(left, POLL_SECONDS))
            if request is not None:
                if request.cut_short:
                    logger.info("request %s was cut short and is served again", request.id)
                if request.id != self._taken:  # else rounds are counted from when it was
                    self._taken, self._rounds_since = request.id, 0
                    if request.kind is TriggerKind.DRIFT or self._drift.state.hold:
                        self._drift.restart(request.id)
                    self._save()
            return request

    @contextmanager
    def running(self, request: RetrainRequest) -> Iterator[None]:
        """The time in which ``request`` is being served.

        An error marks it as failed. Where the process is made to end, by ``leave`` or by what is
        no ``Exception``, it stays as it is and is served again.
        """
        outcome: Outcome | None = Outcome.DONE
        try:
            yield
        except BaseException as error:
            stopped = self._leaving or not isinstance(error, Exception)
            outcome = None if stopped else Outcome.FAILED
            raise
        finally:
            if outcome is None:
                self._store.abandon()
            else:
                self._store.finish(request.id, outcome, self._now())

    def leave(self) -> None:
        """Nobody waits for requests any more: the process is about to end."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()

    def _put(self, request: RetrainRequest) -> str:
        outcome, why = decide(self._policy, request, self._situation())
        waiting = self._store.add(request, outcome, why)
        row = self._store.get(request.id)
        if row is not None and (waiting is None or waiting.id != request.id):
            self._hooks(requested(row))
        if waiting is not None:
            logger.debug("retraining is asked for already (request %s)", waiting.id)
            return waiting.id
        if outcome is Outcome.PENDING:
            logger.info("retraining is asked for: %s", request.reason)
        else:
            logger.info("retraining is %s: %s (%s)", outcome, why, request.reason)
        self._changed.notify_all()
        return request.id

    def _situation(self) -> Situation:
        now, last = self._now(), self._store.last_taken()
        return Situation(
            rounds_since=self._rounds_since,
            hours_since=None if last is None else (now - last).total_seconds() / 3600,
            taken_in_window=self._store.taken_since(now - BUDGET_WINDOW),
            recovered=self._recovered,
        )

    def _reject(self, score: float, round_num: int) -> None:
        self._errors_in_a_row += 1
        logger.warning(
            "the score of round %d is %s, expected a finite number of at most %g in size; it is "
            "rejected",
            *(round_num, score, LIMIT),
        )
        if self._errors_in_a_row == MAX_ERRORS_IN_A_ROW:
            logger.warning(
                "scores were rejected %d times in a row; a fall cannot be found until one is a "
                "number: see what your evaluation returns",
                MAX_ERRORS_IN_A_ROW,
            )

    def _watch(self) -> None:
        """The monitor's thread: what is due, then what waits for the callback."""
        from sqlalchemy.exc import SQLAlchemyError

        next_check, pause = time.monotonic(), min(POLL_SECONDS, self.check_interval)
        while not self._stop.is_set():
            try:
                if time.monotonic() >= next_check:
                    self._callback_thread.tell()
                    self.check_schedules()
                    next_check = time.monotonic() + self.check_interval
                self._call_back(pause)
            except SQLAlchemyError as error:  # a database may be away for a while
                logger.warning("the monitor's memory does not answer: %s", type(error).__name__)
                self._stop.wait(pause)

    def _call_back(self, wait: float) -> None:
        callback = self.retrain_callback
        if callback is None:
            self._stop.wait(wait)
            return
        request = self.take(wait=wait)
        if request is not None:
            self._callback_thread.start(callback, request)

    def _restore(self) -> None:
        state = self._store.load_state()
        if not state:
            return
        if state["rule"]["settings"] == self._rule.settings:
            self._rule = self._rule.restored(state["rule"]["state"])
            self._served_version = state["served_version"]
            self._recovered = state["recovered"]
        else:
            logger.info(
                "the kept scores are those of another rule or threshold; degradation begins anew"
            )
        self._rounds_since, self._taken = state["rounds_since"], state.get("taken", "")
        self._errors_in_a_row = state["errors_in_a_row"]
        self._drift.restore(state["drift"])

    def _save(self) -> None:
        self._store.save_state(
            {
                "rule": {"settings": self._rule.settings, "state": self._rule.state()},
                "served_version": self._served_version,
                "rounds_since": self._rounds_since,
                "taken": self._taken,
                "errors_in_a_row": self._errors_in_a_row,
                "recovered": self._recovered,
                "drift": self._drift.to_json(),
            }
        )
