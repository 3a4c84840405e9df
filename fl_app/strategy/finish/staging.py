# SPDX-License-Identifier: Apache-2.0
"""Stages and tags of versions after a round, and at the end of a session."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from pydantic_core import to_json

from fl_app.events import Approval, RoundReport
from fl_app.strategy.finish.evaluation import SCORE_SOURCE
from fl_app.strategy.finish.reporting import shadow_reason
from fl_app.strategy.records import Origin, ShadowReport
from fl_app.strategy.round.state import ClosedRound
from fl_app.versions.tags import NODE_SCORES, NODES, gates_tag, rejected_tag
from fl_app.versions.texts import last_moves
from fl_registry import Decision, Gone, Lease, ModelStore, Stage, StageError, UnknownVersion

logger = logging.getLogger("flwr.fl_app")

SHADOW = "shadow evaluation: "
"""Prefix of the result of a shadow evaluation, in a version's reason."""
NEEDS_PERSON = "needs_person"
"""Tag of a version that only a person may promote, since it could not be compared."""


class Staging:
    """Moves and tags the versions of a session; every method is idempotent.

    Parameters
    ----------
    store : ModelStore
        The registry.
    reports : list[RoundReport]
        Those of the session's rounds; that of a version that changes its stage is updated.
    lease : Lease | None
        The right to move versions by rule.
    """

    def __init__(self, store: ModelStore, reports: list[RoundReport], lease: Lease | None) -> None:
        self._store, self._reports = store, reports
        self._by_rule: dict[str, Any] = {"actor": "policy", "lease": lease}

    def stage(self, report: RoundReport, decision: Decision, *, again: bool) -> RoundReport:
        """Move the version of a round as decided; Production is only tagged as pending.

        ``again`` says that this may have been done before: then what people did since is not
        undone.
        """
        version, tags, reached = str(report.version), decision_tags(decision), Stage.NONE
        if again:
            known = self._store.get_version(version)
            reached = known.stage
            self._note_archived()
            if reached is not Stage.NONE and "approval" in known.tags:
                approval = cast("Approval", known.tags["approval"])
                reason = known.tags.get("reason", "")
                return replace(report, stage=reached, approval=approval, reason=reason)
            if any(known.tags.get(name) != text for name, text in tags.items()):
                self._store.set_version_tags(version, tags)
        staged = decision.stage is not Stage.NONE
        if staged and reached is Stage.NONE:
            old = self._store.get_latest_version(Stage.STAGING)
            for index, earlier in enumerate(self._reports):
                if old not in (None, version) and earlier.version == old:
                    self._reports[index] = superseded(earlier, version)
            self._store.promote_to_staging(version, reason=decision.reason, **self._by_rule)
        reached = Stage.STAGING if staged else Stage.NONE
        waits = cast("Approval", tags["approval"])
        return replace(report, stage=reached, approval=waits, reason=decision.why)

    def _note_archived(self) -> None:
        """Note what this or another process has moved out of Staging before it could report it."""
        for index, earlier in enumerate(self._reports):
            if earlier.stage is Stage.STAGING and earlier.version is not None:
                with suppress(Gone, UnknownVersion):
                    if self._store.get_version(earlier.version).stage is Stage.ARCHIVED:
                        move = last_moves(self._store.history()).get(earlier.version)
                        later = move.version if move and move.version != earlier.version else ""
                        self._reports[index] = superseded(earlier, later)

    def promote_pending(self) -> None:
        """Promote the version of this session that passed the gates of Production, if any.

        A version that passed because nothing could be compared still waits for a person.
        """
        for index, report in enumerate(self._reports):
            version, why = report.version, report.reason
            if report.approval != "pending" or version is None:
                continue
            try:
                tags = self._store.get_version(version).tags
            except (Gone, UnknownVersion) as error:
                logger.warning("version %s is not promoted: %s", version, error)
                continue
            if NEEDS_PERSON in tags:
                logger.warning("version %s waits for a person to approve it: %s", version, why)
                continue
            self._store.promote_to_production(version, reason=why, **self._by_rule)
            self._reports[index] = replace(report, stage=Stage.PRODUCTION, approval="approved")

    def apply_shadow(self, shadow: ShadowReport, *, promote: bool) -> None:
        """Archive a candidate that is worse in the shadow rounds; ``promote`` one that is better.

        A candidate that is neither, or that a person has moved meanwhile, is left to people.
        """
        store, version, result = self._store, shadow.candidate, f"{SHADOW}{shadow_reason(shadow)}"
        try:
            gates = store.get_version(version).tags.get("reason", "").partition(f"; {SHADOW}")[0]
        except (Gone, UnknownVersion) as error:
            logger.warning("the shadow evaluation changes nothing: %s", error)
            return
        reason = f"{gates}; {result}".removeprefix("; ")
        store.set_version_tags(version, {"reason": reason, "shadow": shadow_tag(shadow)})
        logger.info("version %s: %s", version, result)
        champion, found = store.get_latest_version(Stage.PRODUCTION), shadow.test.outcome
        try:
            if champion != shadow.champion:
                logger.warning(
                    "version %s was promoted meanwhile: a person decides on the candidate", champion
                )
            elif found == "worse":
                store.reject_version(version, reason=result, **self._by_rule)
            elif found == "better" and promote:
                store.approve_version(version, reason=reason, **self._by_rule)
        except StageError as error:
            logger.warning("the shadow evaluation changes nothing: %s", error)
        record = store.get_version(version)
        for index, report in enumerate(self._reports):
            if report.version == version:
                approval = cast("Approval", record.tags.get("approval", report.approval))
                self._reports[index] = replace(
                    report, stage=record.stage, approval=approval, reason=reason
                )


def decision_tags(decision: Decision) -> dict[str, str]:
    """Return the tags of a decision, which a version is saved with."""
    waits = "pending" if decision.stage is Stage.PRODUCTION else "none"
    person = {NEEDS_PERSON: "true"} if decision.needs_person else {}
    gates = gates_tag(decision.verdicts)
    return {"reason": decision.why, "approval": waits, **gates, **person}


def superseded(report: RoundReport, later: str) -> RoundReport:
    """Return the report of a round whose version left Staging, for a ``later`` one if known."""
    approval: Approval = "superseded" if report.approval == "pending" else report.approval
    by = f"superseded by {later}" if later else ""
    reason = "; ".join(filter(None, (by, report.reason)))
    return replace(report, stage=Stage.ARCHIVED, approval=approval, reason=reason)


def run_tags(origin: Origin, flower_run_id: str, metric: str | None) -> dict[str, str]:
    """Return the tags of a session's MLflow run, which its versions get too."""
    why = {name: str(value or "") for name, value in vars(origin).items()}
    more = {"flower_run_id": flower_run_id, "metric": metric or "", "app_version": app_version()}
    return why | more


def version_tags(
    closed: ClosedRound, source: str, lease: Lease | None, decision: Decision
) -> dict[str, str]:
    """Return the tags of the version that a round becomes; its score is from ``source``."""
    rows = [
        {"node_id": n.node_id, "num_examples": n.num_examples, "data_digest": n.data_digest}
        for n in closed.nodes
    ]
    scores = {score.key: round(score.score, 6) for score in closed.node_scores}
    tags = {
        **closed.tags,
        "round": str(closed.round),
        NODES: json.dumps(rows),
        SCORE_SOURCE: source,
        "epoch": str(lease.epoch) if lease is not None else "",
        **rejected_tag(closed.rejected),
        **decision_tags(decision),
    }
    return tags | ({NODE_SCORES: json.dumps(scores)} if scores else {})


def failed_tags(closed: ClosedRound) -> dict[str, str]:
    """Return the tags of the session's run for a round without a new model."""
    tags = {"failed_round": closed.problem, **rejected_tag(closed.rejected)}
    return {f"{name}.{closed.round}": value for name, value in tags.items()}


def shadow_tag(report: ShadowReport) -> str:
    """Return the value of a version's tag ``shadow``: the result and its numbers as JSON."""
    numbers = {**asdict(report.test), "extra_bytes": report.total_bytes, "why": report.why}
    names = {"champion": report.champion, "metric": report.metric}
    return to_json({**names, **numbers}, inf_nan_mode="null").decode()


def app_version() -> str:
    """Return the version of the installed fl-app; Flower runs a bundle that is not installed."""
    try:
        return version("fl-app")
    except PackageNotFoundError:
        return "bundle"
