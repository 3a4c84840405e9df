# SPDX-License-Identifier: Apache-2.0
"""Probation: finds in the journal what was promoted, and brings the last good version back once.

The rule is in `rule.py`; here it meets the registry and the monitor's memory.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.probation.rollback import in_words, known_ways_back, replacement, tag_of
from fl_app.retraining.probation.rule import (
    fail,
    follow,
    fresh_drift,
    settle,
    take_comparison,
    take_report,
)
from fl_app.retraining.probation.state import (
    Failure,
    Phase,
    ProbationSettings,
    ProbationState,
    ProductionReport,
    Source,
)
from fl_app.retraining.probation.view import ReportAnswer, answer_of, shown
from fl_app.retraining.requests import TriggerKind
from fl_registry import Evidence, ModelStore, RegistryError, StageError, Tenure, tenures

logger = logging.getLogger("flwr.fl_app")

NOTE = "probation"
"""What the monitor's memory calls it."""

Change = Callable[[ProbationState], ProbationState]


class Probation:
    """Watches a version after its promotion, whoever promoted it, in whatever process.

    What is decided is in the monitor's memory before anything is done about it, and the registry
    moves only if the version that failed is still in production: neither a crash nor several
    processes make two rollbacks of one.

    Parameters
    ----------
    models : ModelStore
        The registry.
    monitor : RetrainingManager
        Is asked for retraining; its memory is where the probation is remembered.
    settings : ProbationSettings | None
        When a version has to go.
    now : Callable[[], datetime]
        The wall clock, in UTC.
    """

    def __init__(
        self,
        models: ModelStore,
        monitor: RetrainingManager,
        settings: ProbationSettings | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.settings = settings or ProbationSettings()
        self._models = models
        self._monitor = monitor
        self._now = now
        self._note = monitor.store.note(NOTE, ProbationState)

    def report(self, report: ProductionReport) -> ReportAnswer:
        """Take a report of the operator's feed; a critical fall brings the last good version back.

        Raises
        ------
        StageError
            Nothing is in production, or not the version that the report is about.
        RegistryError
            The registry does not answer. What was decided is done at the next look.
        """
        known = self._kept()
        if report.id in known.seen:
            return answer_of(report, known, self._act(known), logged=True)
        stays = tenures(self._models.history())
        version = _about(report, stays)
        counted = self._step(stays, lambda s: take_report(s, report, self._at, self.settings))
        after = self._act(counted)
        logged = self._log(report, version, step=counted.step_of(report.id))
        return answer_of(report, counted, after, logged=logged)

    def review(self) -> None:
        """Look at the journal and at the drift test, and do what is due; safe at any time.

        A registry that does not answer is told in the log.
        """
        with self._patient():
            self._act(self._step(tenures(self._models.history()), self._drifted))

    def to_compare(self) -> tuple[str, str | None] | None:
        """Return the version on probation and the one it would go back to, if there is any.

        None if there is nothing to compare.
        """
        if Source.FEDERATED not in self.settings.watch or self.settings.metric is None:
            return None
        with self._patient():
            stays = tenures(self._models.history())
            state = self._step(stays, lambda state: state)
            if state.trial is not None and state.trial.phase is Phase.WATCHING:
                ways = known_ways_back(self._models, stays, state)
                return state.trial.version, next(iter(ways), None)
        return None

    def update_production(
        self, version: str, evidence: Evidence, *, rival: str | None = None
    ) -> None:
        """Hear how the version on probation and the one it would go back to score, side by side.

        Parameters
        ----------
        version : str
            As ``to_compare`` named it; nothing counts if it has left production since.
        evidence : Evidence
            Their metrics on the same data, those of the rival as ``champion``, and results per
            example where there are any.
        rival : str | None
            As ``to_compare`` named it.
        """
        with self._patient():
            stays = tenures(self._models.history())
            if not stays or stays[-1].version != version:
                return
            registered = self._models.get_version(version).metrics.get(self.settings.metric or "")

            def compared(state: ProbationState) -> ProbationState:
                return take_comparison(
                    state,
                    evidence,
                    self.settings,
                    rival=rival,
                    registered=registered,
                    at=self._at,
                )

            self._act(self._step(stays, compared))

    def status(self) -> dict[str, Any] | None:
        """Return where the version in production stands, as JSON can hold it; changes nothing.

        None if nothing is in production.

        Raises
        ------
        RegistryError
            The registry does not answer.
        """
        stays = tenures(self._models.history())
        state = follow(self._kept(), stays, self.settings)
        return None if state.trial is None else shown(state.trial, state.failure)

    @property
    def _at(self) -> float:
        return self._now().timestamp()

    def _kept(self) -> ProbationState:
        return self._note.read()[1] or ProbationState()

    def _step(self, stays: Sequence[Tenure], observe: Change) -> ProbationState:
        """Follow the journal, observe, let pass what has proven itself; keep all of it at once."""

        def step(state: ProbationState) -> ProbationState:
            state = follow(state, stays, self.settings)
            if stays and state.trial is not None and state.trial.number > stays[-1].number:
                raise StageError(
                    f"Version {stays[-1].version} left production just now; look at what is there, "
                    "and try again."
                )
            return settle(observe(state), self._at)

        return self._change(step)

    def _change(self, change: Change) -> ProbationState:
        """Change what is kept; again on what another process wrote meanwhile."""
        while True:
            revision, stored = self._note.read()
            before = stored or ProbationState()
            after = change(before)
            if after == before or self._note.swap(revision, after):
                return after

    def _drifted(self, state: ProbationState) -> ProbationState:
        trial = state.trial
        if trial is None or trial.phase is not Phase.WATCHING:
            return state
        if Source.DRIFT not in self.settings.watch:
            return state
        since = datetime.fromtimestamp(trial.since, UTC)
        reason = fresh_drift(self._monitor.store.requests.history(), since)
        return fail(state, Source.DRIFT, reason, at=self._at) if reason else state

    def _act(self, state: ProbationState) -> ProbationState:
        """Do what is decided and not done yet; twice is once."""
        if state.failure is not None and not state.failure.told:
            state = self._deal_with(state.failure, state)
        for version in state.untagged:
            state = self._tag(version, state)
        return state

    def _deal_with(self, failure: Failure, state: ProbationState) -> ProbationState:
        """Bring a good version back, say so loudly, ask for retraining, note that it is done."""
        back, own = replacement(self._models, failure, state)
        done = replace(failure, back=back, told=True)
        if own:
            request_id = uuid.uuid5(uuid.NAMESPACE_OID, f"fl-app {failure.promotion}").hex
            self._monitor.request(TriggerKind.PROBATION, in_words(done), request_id=request_id)
        first = False

        def noted(now: ProbationState) -> ProbationState:
            nonlocal first
            first = now.failure == failure
            return replace(now, failure=done) if first else now

        state = self._change(noted)
        if first:  # of all who found it to do
            logger.log(logging.WARNING if back else logging.ERROR, "%s", in_words(done))
        return state

    def _tag(self, version: str, state: ProbationState) -> ProbationState:
        try:
            self._models.set_version_tags(version, tag_of(version, state))
        except RegistryError as error:
            logger.warning("version %s could not be tagged yet: %s", version, error)
            return state
        if version not in state.failed:
            logger.info("version %s passed its probation", version)
        return self._change(
            lambda s: replace(s, untagged=tuple(v for v in s.untagged if v != version))
        )

    def _log(self, report: ProductionReport, version: str, *, step: int) -> bool:
        """Log a report to its version's run; what was decided does not depend on it."""
        numbers = {f"production/{name}": value for name, value in report.numbers.items()}
        numbers["production/version"] = float(version)  # one run makes several versions
        texts = {}
        if report.predictions is not None:
            texts[f"production/{step}/predictions.json"] = json.dumps(report.predictions)
        try:
            self._models.log_production(version, numbers, step=step, time=report.time, texts=texts)
        except RegistryError as error:
            logger.info("report %d is not in the version's run: %s", step, error)
            return False
        return True

    @contextmanager
    def _patient(self) -> Iterator[None]:
        """Training goes on without a registry; what was decided is kept, and done later."""
        try:
            yield
        except RegistryError as error:
            logger.warning("the probation was not looked after: %s", error)


def _about(report: ProductionReport, stays: Sequence[Tenure]) -> str:
    """Return the version that a report is about: the one in production, and no other."""
    if not stays:
        raise StageError("Nothing is in production yet; promote a version first.")
    version = stays[-1].version
    if report.version not in (None, version):
        raise StageError(
            f"Version {report.version} is not in production, {version} is; nothing was counted."
        )
    return version
