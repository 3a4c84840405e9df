# SPDX-License-Identifier: Apache-2.0
"""Probation: watches the version in production, and rolls back a failed one, once.

The rules are in `state.py`. Here they meet the registry and the monitor's memory.
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
from fl_app.retraining.probation.reports import (
    ProbationSettings,
    ProductionReport,
    ReportAnswer,
    Source,
)
from fl_app.retraining.probation.state import Failure, Phase, ProbationState, ways_back
from fl_app.retraining.requests import TriggerKind
from fl_registry import (
    ArtifactError,
    Evidence,
    InvalidMetric,
    ModelStore,
    RegistryError,
    StageError,
    Tenure,
    UnknownVersion,
    tenures,
)

logger = logging.getLogger("flwr.fl_app")

ACTOR = "probation"
"""Actor of an automatic rollback in the journal."""
TAG, REASON_TAG = "probation", "probation_reason"
MAX_TAGS_READ = 50
"""Versions whose tags are read for the result of an earlier probation."""


class Probation:
    """Watches a version after its promotion, by any person and in any process.

    A decision is stored in the monitor's memory before it is carried out, and the registry rolls
    back only if the failed version is still in production. So neither a crash nor several processes
    lead to two rollbacks for one failure.

    Parameters
    ----------
    models : ModelStore
        The registry.
    monitor : RetrainingManager
        Where retraining is requested; its memory stores the state of the probation.
    settings : ProbationSettings | None
        When a version fails.
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
        monitor.require_model_of(models)
        self.settings = settings or ProbationSettings()
        self._models = models
        self._monitor = monitor
        self._now = now
        self._note = monitor.store.note("probation", ProbationState)

    def report(self, report: ProductionReport) -> ReportAnswer:
        """Add a report of the operator; a critical fall brings the last good version back.

        Raises
        ------
        StageError
            If nothing is in production, or not the version that the report is about.
        RegistryError
            If the registry does not answer. What was decided is carried out by the next call.
        """
        stored = self.state()
        if report.id in stored.seen:
            return stored.answer(report, self._carry_out(stored), logged=True)
        # The journal, not the caller of a promotion, begins a probation: people, the page, the API
        # and other processes promote as well, and a crash would leave a version unwatched.
        stays = tenures(self._models.history())
        if not stays:
            raise StageError("Nothing is in production yet; promote a version first.")
        version = stays[-1].version
        if report.version not in (None, version):
            raise StageError(
                f"Version {report.version} is not in production, {version} is; nothing was counted."
            )
        counted = self._step(stays, lambda s: s.with_report(report, self._now(), self.settings))
        after = self._carry_out(counted)
        logged = self._log(report, version, step=counted.step_of(report.id))
        return counted.answer(report, after, logged=logged)

    def review(self) -> None:
        """Read the journal and the drift requests, and do what is due; may be called at any time.

        If the registry does not answer, this is logged.
        """
        with self._registry_errors_logged():
            stays = tenures(self._models.history())
            requests = self._monitor.trigger_history if Source.DRIFT in self.settings.watch else []
            self._carry_out(self._step(stays, lambda s: s.with_drift(requests, self._now())))

    def to_compare(self) -> tuple[str, str | None] | None:
        """Return the version on probation, and the one that a rollback would bring back, if any.

        None if there is nothing to compare.
        """
        if Source.FEDERATED not in self.settings.watch or self.settings.metric is None:
            return None
        with self._registry_errors_logged():
            stays = tenures(self._models.history())
            state = self._step(stays, lambda state: state)
            if state.watched is not None:
                return state.watched.stay.version, next(self._ways_back(stays, state), None)
        return None

    def update_production(
        self, version: str, evidence: Evidence, *, rival: str | None = None
    ) -> None:
        """Add the scores of the version on probation and of its rival on the same data.

        Parameters
        ----------
        version : str
            The version that ``to_compare`` returned; ignored if it has left production since.
        evidence : Evidence
            Its metrics, those of the rival as ``champion``, and results per example, if any.
        rival : str | None
            The other version that ``to_compare`` returned.
        """
        with self._registry_errors_logged():
            stays = tenures(self._models.history())
            if not stays or stays[-1].version != version:
                return
            registered = self._models.get_version(version).metrics.get(self.settings.metric or "")
            now = self._now()
            decided = self._step(
                stays,
                lambda state: state.with_comparison(
                    evidence, self.settings, rival=rival, registered=registered, at=now
                ),
            )
            self._carry_out(decided)

    def status(self) -> dict[str, Any] | None:
        """Return the status of the version in production, as JSON types, and change nothing.

        None if nothing is in production.

        Raises
        ------
        RegistryError
            If the registry does not answer.
        """
        stays = tenures(self._models.history())
        return self.state().follow(stays, self.settings).status()

    def state(self) -> ProbationState:
        """Return the stored state."""
        return self._note.read()[1] or ProbationState()

    def _step(
        self, stays: Sequence[Tenure], observe: Callable[[ProbationState], ProbationState]
    ) -> ProbationState:
        """Follow the journal, observe, settle, and store all of it at once."""

        def step(state: ProbationState) -> ProbationState:
            state = state.follow(stays, self.settings)
            if stays and state.trial is not None and state.trial.stay.number > stays[-1].number:
                raise StageError(
                    f"Version {stays[-1].version} left production just now; check what is in "
                    "production, and try again."
                )
            return observe(state).settle(self._now())

        return self._change(step)[1]

    def _change(
        self, change: Callable[[ProbationState], ProbationState]
    ) -> tuple[ProbationState, ProbationState]:
        """Change the stored state, again if another process was faster; return old and new."""
        while True:
            revision, stored = self._note.read()
            before = stored or ProbationState()
            after = change(before)
            if after == before or self._note.swap(revision, after):
                return before, after

    def _carry_out(self, state: ProbationState) -> ProbationState:
        """Do what is decided and not done yet; each step may be repeated after a crash."""
        failure = state.failure
        if failure is not None and failure.back is None:
            back, by_us = self._replace_failed(failure, state)
            handled = replace(failure, back=back)
            if by_us:
                request_id = uuid.uuid5(uuid.NAMESPACE_OID, f"fl-app {failure.promotion}").hex
                self._monitor.request(TriggerKind.PROBATION, str(handled), request_id=request_id)
            before, state = self._change(
                lambda now: replace(now, failure=handled) if now.failure == failure else now
            )
            if before.failure == failure:  # of all processes that handled it, one logs it
                logger.log(logging.WARNING if back else logging.ERROR, "%s", handled)
        for version in state.untagged:
            state = self._tag(version, state)
        return state

    def _replace_failed(self, failure: Failure, state: ProbationState) -> tuple[str, bool]:
        """Roll a failed version back, unless another version has replaced it already.

        Returns
        -------
        tuple[str, bool]
            The version that replaced it, and whether the probation brought it back. The first is
            empty if there is no version to go back to, so that the failed one stays.

        Raises
        ------
        RegistryError
            If the registry does not answer.
        """
        stays = tenures(self._models.history())
        targets = self._ways_back(stays, state)
        while True:
            promotions = [stay.id for stay in stays]
            if failure.promotion not in promotions:  # the registry was created anew meanwhile
                return "", False
            after = stays[promotions.index(failure.promotion) + 1 :]
            if after:
                return after[0].version, after[0].actor == ACTOR
            target = next(targets, None)
            if target is None:
                return "", True
            try:
                self._models.rollback(
                    target,
                    actor=ACTOR,
                    reason=f"version {failure.version} failed its probation: {failure.reason}",
                    displacing=failure.version,
                )
            except (ArtifactError, InvalidMetric, UnknownVersion, StageError) as error:
                # A person or another process may have been faster.
                logger.warning("version %s was not brought back: %s", target, error)
            stays = tenures(self._models.history())

    def _ways_back(self, stays: Sequence[Tenure], state: ProbationState) -> Iterator[str]:
        """Yield the versions to go back to, the best first, by the state and the tags."""
        results = dict(state.results)
        newest_first = dict.fromkeys(stay.version for stay in reversed(stays))
        for version in list(newest_first)[:MAX_TAGS_READ]:
            # The tags have the results of probations with another memory.
            if version not in results:
                tag = self._models.get_version(version).tags.get(TAG)
                if tag in (Phase.PASSED, Phase.FAILED):
                    results[version] = Phase(tag)
        yield from ways_back(stays, results)

    def _tag(self, version: str, state: ProbationState) -> ProbationState:
        result, failure = state.results.get(version), state.failure
        if result is None:  # another process has found a registry that was created anew
            return state
        tags = {TAG: str(result)}
        if result is Phase.FAILED:
            is_last = failure is not None and failure.version == version
            tags[REASON_TAG] = failure.reason if is_last and failure is not None else ""
        try:
            self._models.set_version_tags(version, tags)
        except RegistryError as error:
            logger.warning("version %s could not be tagged yet: %s", version, error)
            return state
        if result is Phase.PASSED:
            logger.info("version %s passed its probation", version)
        return self._change(
            lambda s: replace(s, untagged=tuple(v for v in s.untagged if v != version))
        )[1]

    def _log(self, report: ProductionReport, version: str, *, step: int) -> bool:
        """Log a report to its version's run; return whether that succeeded."""
        numbers = {f"production/{name}": value for name, value in report.numbers.items()}
        numbers["production/version"] = float(version)  # a run has several versions
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
    def _registry_errors_logged(self) -> Iterator[None]:
        """Let training continue without a registry; what was decided is stored, and done later."""
        try:
            yield
        except RegistryError as error:
            logger.warning("the probation could not be checked: %s", error)
