# SPDX-License-Identifier: Apache-2.0
"""RetrainingManager: decides when to retrain, and queues the request. It never trains itself."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from fl_app.events import Hook, RetrainingRequested
from fl_app.health import Health
from fl_app.hooks.queue import Hooks
from fl_app.retraining.degradation import LIMIT, RULES, Mode, Rule, is_score
from fl_app.retraining.drift.check import DriftSettings, observe
from fl_app.retraining.drift.state import DriftCheck, DriftState
from fl_app.retraining.memory.errors import MEMORY, memory_errors
from fl_app.retraining.memory.store import MonitorStore, default_url
from fl_app.retraining.requests import Outcome, RetrainPolicy, RetrainRequest, TriggerKind
from fl_app.retraining.schedule import Cron, Every
from fl_app.wire.data_summary import HOLD_KEY, REFERENCE_KEY
from fl_registry import ModelStore, app_home
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.redaction import trace

if TYPE_CHECKING:
    from fl_app.retraining.memory.database import Note

logger = logging.getLogger("flwr.fl_app")

Callback = Callable[[RetrainRequest], object]

MAX_ERRORS_IN_A_ROW = 4
"""Rejected scores in a row after which the monitor warns that it cannot detect a fall."""
POLL_SECONDS = 0.5
"""How often a waiting loop reads requests that another process has stored."""


def _rule_or_none(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Read a rule; None for the state of a rule that this version does not have."""
    try:
        return read(value)
    except ValidationError:
        return None


@dataclass(frozen=True)
class MonitorState:
    """The state of a `RetrainingManager`, as the monitor's memory stores it.

    Attributes
    ----------
    rule : Rule | None
        The degradation rule with its scores; None if it cannot be read.
    served_version : str | None
        Version whose score the rule was last rebased on.
    recovered : bool
        Whether the score was healthy at some time since the rule's last request.
    rounds_since : int | None
        Rounds since a request was last taken; None before the first.
    taken : str
        Id of that request.
    errors_in_a_row : int
        Rejected scores since the last one that was a number.
    drift : DriftState
        The state of the drift test.
    """

    rule: Annotated[Rule | None, WrapValidator(_rule_or_none)] = None
    served_version: str | None = None
    recovered: bool = True
    rounds_since: int | None = None
    taken: str = ""
    errors_in_a_row: int = 0
    drift: DriftState = field(default_factory=DriftState)


class RetrainingManager:
    """Turns scores, data drift, schedules and people's requests into at most one pending request.

    ``train_and_retrain`` takes requests and runs sessions; ``set_retrain_callback`` is the other
    way to serve them. Everything is stored before a call returns, so that requests, cooldowns,
    budget, schedules and the rule's state outlive the process. Thread-safe.

    Parameters
    ----------
    accuracy_threshold : float
        Lasting fall of the score that requests retraining, in the unit of the metric. It is
        measured from the earlier scores, from the second one on, and, after ``start_from``, from
        the score of the served version.
    check_interval : float
        Seconds between checks of the schedules, after ``start_monitoring``.
    min_rounds_between_retrain : int
        Rounds from a retraining to the next automatic one, at least; people's requests bypass it.
    min_hours_between_retrain : float
        Hours between them, at least.
    budget : int
        Automatic retrainings in 30 days, at most.
    mode : "max" | "min"
        Whether a higher or a lower score is better.
    policy : "capped_cusum" | "best_minus_threshold"
        How a fall is distinguished from noise; see ``fl_app.retraining.degradation``.
    on_request : "auto" | "suggest"
        ``suggest`` stores automatic requests and leaves them to a person.
    drift : DriftSettings | None
        When the nodes' data count as drifted; by default with a false alarm a year.
    model : str
        The registered model whose requests it keeps, in ``monitor.db`` in ``FL_APP_HOME``.
    store : MonitorStore | None
        Another memory, which has its own model.
    hooks : Sequence[Hook] | Hooks
        Called with a `RetrainingRequested` for each request that this object stores.
    now : Callable[[], datetime]
        The wall clock, in UTC, for due times, cooldown and budget.

    Attributes
    ----------
    store : MonitorStore
        The monitor's memory.
    health : Health
        Where a failing memory is reported; training continues then.
    retrain_callback : Callable[[RetrainRequest], object] | None
        What ``set_retrain_callback`` set.

    Raises
    ------
    ValueError
        If a threshold, limit or interval is out of its range.
    MonitorStoreError
        If the memory cannot be opened or read.
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
        model: str = DEFAULT_MODEL_NAME,
        store: MonitorStore | None = None,
        hooks: Sequence[Hook] | Hooks = (),
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
        self._new_rule = RULES[policy](accuracy_threshold, mode)
        self._drift_settings = drift or DriftSettings()
        if self._drift_settings.policy == "per_check":
            logger.warning(
                "drift_policy 'per_check' requests retraining in 5 %% of all checks for each "
                "feature without any drift: in 139, 370 and 997 of 1,000 with 3, 10 and 100"
            )
        self.store = store or MonitorStore(default_url(app_home()), model)
        self._note = self.store.note("monitor", MonitorState)
        self.health = Health()
        self._hooks = hooks if isinstance(hooks, Hooks) else Hooks(hooks)
        self._now = now
        self._changed = threading.Condition(threading.RLock())
        self._monitor: threading.Thread | None = None
        self._stop = threading.Event()
        self._called_back: tuple[RetrainRequest, float] | None = None
        self._schedules: dict[Every | Cron, Note[datetime]] = {}
        self._leaving = False
        self._state = self._restored()

    def require_model_of(self, models: ModelStore) -> None:
        """Require that the requests in a memory that others share are those of a store's model.

        Otherwise the sessions of another model would serve them.

        Raises
        ------
        ValueError
            They are those of another one.
        """
        name = getattr(models, "registered_model_name", None)
        if self.store.is_shared and name not in (None, self.store.model):
            raise ValueError(
                f"The monitor keeps the requests of model {self.store.model!r}, expected "
                f"{name!r}, which the store has: make it by RetrainingManager(model={name!r})."
            )

    @property
    def monitoring(self) -> bool:
        """Whether the monitor's thread runs, which checks schedules and calls the callback."""
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
    def trigger_history(self) -> list[dict[str, Any]]:
        """All requests, oldest first, with outcome and reason."""
        return self.store.requests.history()

    @property
    def drift(self) -> DriftState:
        """The state of the drift test, with the result of the last check."""
        return self._state.drift

    def snapshot(self) -> tuple[Rule, DriftCheck | None]:
        """Return the rule with its scores, and the last drift check.

        While another process monitors, they are read from the memory.
        """
        state = self._state if self.monitoring else self._note.read()[1] or MonitorState()
        return state.rule or self._new_rule, state.drift.last

    def start_from(self, version: str, score: float) -> None:
        """Set the version that a session starts from, and its score on the session's holdout.

        From now on falls are measured from this score, if the version has changed.
        """
        with self._changed:
            new = version != self._state.served_version
            if new and self._is_score(
                score, f"version {version}", "falls are measured from the earlier scores"
            ):
                self._save(rule=self._rule.rebase(score), served_version=version, recovered=True)

    def update_metrics(self, accuracy: float, round_num: int) -> None:
        """Add the score of a round; a fall becomes a request.

        A score that is not finite, or more than 1e100 in size, is rejected and logged; best and
        current score stay as they are.
        """
        with self._changed, self.health.going_on(MEMORY, *memory_errors()):
            rounds = self._state.rounds_since
            self._state = replace(self._state, rounds_since=None if rounds is None else rounds + 1)
            if self._is_score(accuracy, f"round {round_num}", "it is rejected"):
                rule, fall = self._rule.update(accuracy)
                self._state = replace(self._state, rule=rule, errors_in_a_row=0)
                recovered = self._state.recovered or (rule.healthy and not fall)
                if fall:
                    why = f"in round {round_num} {fall}"
                    row = self.store.requests.get(self.request(TriggerKind.DEGRADATION, why)) or {}
                    # A fall that lasts longer than the cooldown is requested again after it.
                    recovered = recovered and row.get("outcome") == Outcome.SUPPRESSED
                self._state = replace(self._state, recovered=recovered)
            else:
                rejected = self._state.errors_in_a_row + 1
                self._state = replace(self._state, errors_in_a_row=rejected)
                if rejected == MAX_ERRORS_IN_A_ROW:
                    logger.warning(
                        "scores were rejected %d times in a row; no fall can be detected until one "
                        "is a number: check what your evaluation returns",
                        MAX_ERRORS_IN_A_ROW,
                    )
            self._save()

    def update_data(self, summaries: Mapping[str, Mapping[str, object]], round_num: int) -> None:
        """Add the nodes' data summaries of a round, by node id; drift becomes a request."""
        with self._changed, self.health.going_on(MEMORY, *memory_errors()):
            time = self._now().timestamp()
            drift, reason = observe(self.drift, summaries, time, self._drift_settings)
            self._state = replace(self._state, drift=drift)
            if reason:
                self.request(TriggerKind.DRIFT, f"in round {round_num} {reason}")
            self._save()

    def data_orders(self) -> Mapping[str, str | bool]:
        """Return the config of the next train message about the nodes' reference data."""
        return {REFERENCE_KEY: self.drift.reference, HOLD_KEY: self.drift.hold}

    def manual_trigger(
        self, reason: str = "", *, force: bool = True, request_id: str | None = None
    ) -> str:
        """Request retraining for a person.

        Parameters
        ----------
        reason : str
            One sentence.
        force : bool
            Whether to bypass cooldown and budget.
        request_id : str | None
            32 hexadecimal digits; a second call with the same id changes nothing.

        Returns
        -------
        str
            Id of the request, or of the one that is pending already.
        """
        # The limits guard against a rule's false alarms, not against a person's knowledge.
        why = reason or "a person requested it"
        return self.request(TriggerKind.MANUAL, why, force=force, request_id=request_id)

    def request(
        self, kind: TriggerKind, reason: str, *, force: bool = False, request_id: str | None = None
    ) -> str:
        """Request retraining for a reason from elsewhere, within cooldown and budget.

        Parameters and return value are those of ``manual_trigger``.
        """
        new = RetrainRequest(kind, reason, force=force, id=request_id or uuid.uuid4().hex)
        with self._changed:
            requests, now = self.store.requests, self._now()
            last = requests.last_taken()
            outcome, why = self._policy.decide(
                new,
                rounds_since=self._state.rounds_since,
                hours_since=None if last is None else (now - last).total_seconds() / 3600,
                taken_in_window=requests.taken_since(now - self._policy.window),
                recovered=self._state.recovered,
            )
            pending = requests.add(new, outcome, why)
            stored = requests.get(new.id)
            if stored is not None and (pending is None or pending.id != new.id):
                facts = {name: stored[name] for name in ("kind", "reason", "outcome", "why")}
                self._hooks(RetrainingRequested(new.id, **facts, time=new.created))
            if pending is not None:
                logger.debug("a retraining request is pending already (%s)", pending.id)
                return pending.id
            if outcome is Outcome.PENDING:
                logger.info("retraining is requested: %s", new.reason)
            else:
                logger.info("retraining is %s: %s (%s)", outcome, why, new.reason)
            self._changed.notify_all()
            return new.id

    def schedule_periodic_retrain(
        self, interval_days: float | None = None, *, cron: str | None = None
    ) -> None:
        """Request retraining each ``interval_days``, or at the times of a cron expression (UTC).

        The due time is stored. If due times pass while no server runs, there is one request at the
        next start.
        """
        if (interval_days is None) == (cron is None):
            raise ValueError("Expected either interval_days or cron, and not both.")
        schedule = Cron(cron) if cron is not None else Every(interval_days or 0.0)
        with self._changed:
            due = self._schedules[schedule] = self.store.note(schedule.name, datetime)
            # False where an earlier process has set it; that time may have passed meanwhile.
            due.swap(0, schedule.after(self._now()))

    def set_retrain_callback(self, callback: Callback) -> None:
        """Call ``callback`` with each request while monitoring, in a thread of its own.

        An exception marks the request as failed. Until the callback returns, its request is
        running, no other is served, and the monitor logs how long it has taken.
        """
        self.retrain_callback = callback

    def start_monitoring(self) -> None:
        """Start to check the schedules each ``check_interval`` seconds and to call the callback."""
        with self._changed:
            if self.monitoring:
                return
            self._stop.clear()
            self._monitor = threading.Thread(target=self._watch, name="fl-app-monitor", daemon=True)
            self._monitor.start()

    def stop_monitoring(self) -> None:
        """Stop what ``start_monitoring`` started; a running callback is not interrupted."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._monitor is not None:
            self._monitor.join()

    def check_schedules(self) -> None:
        """Request retraining for what is due; one due time makes one request on all servers."""
        with self._changed:
            now = self._now()
            for schedule, note in self._schedules.items():
                revision, due = note.read()
                # A due time may be later than possible: the clock was set back.
                if due is None or now < due <= schedule.after(now):
                    continue
                if due <= now:
                    # The id is a function of the due time. So there is one request even if a crash
                    # comes before the next due time is stored, if the clock is set back, or if
                    # several servers check.
                    name = f"fl-app {self.store.model} {schedule.name} {due.timestamp()!r}"
                    self.request(
                        TriggerKind.SCHEDULE,
                        f"{schedule.name}, due {due:%Y-%m-%d %H:%M} UTC",
                        request_id=uuid.uuid5(uuid.NAMESPACE_OID, name).hex,
                    )
                note.swap(revision, schedule.after(now, due))

    def take(self, *, wait: float = 0.0) -> RetrainRequest | None:
        """Take the pending request, waiting ``wait`` seconds for one.

        It is running until its ``running`` context ends; no other is returned before. A request
        whose server crashed comes first.

        Returns
        -------
        RetrainRequest | None
            None if there is none.
        """
        until = time.monotonic() + wait
        with self._changed:
            request = None
            while not self._leaving:
                request = self.store.requests.take(self._now())
                left = until - time.monotonic()
                if request is not None or left <= 0:
                    break
                self._changed.wait(min(left, POLL_SECONDS))
            if request is not None:
                if request.cut_short:
                    logger.info("request %s was interrupted and is served again", request.id)
                if request.id != self._state.taken:  # else its rounds are being counted already
                    drift = self.drift
                    if request.kind is TriggerKind.DRIFT or drift.hold:
                        drift = DriftState(request.id)  # the nodes' present data are the reference
                    self._save(taken=request.id, rounds_since=0, drift=drift)
            return request

    @contextmanager
    def running(self, request: RetrainRequest) -> Iterator[None]:
        """Return the context in which a request is served.

        An exception marks it as failed. If the process is about to end, by ``leave`` or by a
        `BaseException`, the request stays running and is served again by the next server.
        """
        requests = self.store.requests
        try:
            yield
        except BaseException as error:
            if self._leaving or not isinstance(error, Exception):
                requests.abandon()
            else:
                requests.finish(request.id, Outcome.FAILED, self._now())
            raise
        requests.finish(request.id, Outcome.DONE, self._now())

    def leave(self) -> None:
        """End all waiting for requests, since the process is about to end."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()

    @property
    def _rule(self) -> Rule:
        return self._state.rule or self._new_rule

    def _is_score(self, score: float, of: str, consequence: str) -> bool:
        """Return whether the rules accept a score; log it if not."""
        accepted = is_score(score)
        if not accepted:
            logger.warning(
                "the score of %s is %s, expected a finite number of at most %g in size; %s",
                *(of, score, LIMIT, consequence),
            )
        return accepted

    def _watch(self) -> None:
        """Check the schedules and call the callback, until ``stop_monitoring``."""
        next_check, pause = time.monotonic(), min(POLL_SECONDS, self.check_interval)
        while not self._stop.is_set():
            try:
                if time.monotonic() >= next_check:
                    if (serving := self._called_back) is not None:
                        request, began = serving
                        logger.info(
                            "the retrain callback has had request %s for %.1f s",
                            *(request.id, time.monotonic() - began),
                        )
                    self.check_schedules()
                    next_check = time.monotonic() + self.check_interval
                callback = self.retrain_callback
                if callback is None:
                    self._stop.wait(pause)
                elif (taken := self.take(wait=pause)) is not None:
                    # In a thread of its own, so that schedules are checked meanwhile.
                    serve = threading.Thread(
                        target=self._serve, args=(callback, taken), daemon=True
                    )
                    serve.start()
            except memory_errors() as error:  # the database may be down for a while
                logger.warning("the monitor's memory does not answer: %s", type(error).__name__)
                self._stop.wait(pause)

    def _serve(self, callback: Callback, request: RetrainRequest) -> None:
        began = time.monotonic()
        self._called_back = (request, began)
        try:
            with self.running(request):
                try:
                    callback(request)
                finally:
                    self._called_back = None
        except Exception as error:  # noqa: BLE001 - the user's code; the monitor continues
            failure = trace(error)
            logger.warning("the retrain callback failed on request %s: %s", request.id, failure)
        logger.info("request %s took %.1f s", request.id, time.monotonic() - began)

    def _restored(self) -> MonitorState:
        _, stored = self._note.read()
        if stored is None:
            return MonitorState(self._new_rule)
        # Begun anew from one score, rules differ in their kind and settings alone.
        if stored.rule is not None and stored.rule.rebase(0.0) == self._new_rule.rebase(0.0):
            return stored
        logger.info("the stored scores are of another rule or threshold; degradation begins anew")
        return replace(stored, rule=self._new_rule, served_version=None, recovered=True)

    def _save(self, **changes: Any) -> None:
        self._state = replace(self._state, **changes)
        self._note.write(self._state)
