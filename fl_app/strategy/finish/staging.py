# SPDX-License-Identifier: Apache-2.0
"""Stage moves and tags after a round, and at the end of a session; every function is idempotent."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import cast

from fl_app.events import Approval, RoundReport
from fl_app.strategy.finish.console import shadow_reason
from fl_app.strategy.finish.provenance import shadow_tag
from fl_app.strategy.records import ShadowReport
from fl_registry import Decision, Lease, ModelStore, Stage, StageError

logger = logging.getLogger("flwr.fl_app")

SHADOW = "shadow evaluation: "
"""Prefix of the result of a shadow evaluation, in a version's reason."""

NEEDS_PERSON = "needs_person"
"""Tag of a version that only a person may promote, since it could not be compared."""

Reports = list[RoundReport]


def stage(
    store: ModelStore,
    report: RoundReport,
    decision: Decision,
    reports: Reports,
    *,
    again: bool,
    lease: Lease | None = None,
) -> RoundReport:
    """Move the version as decided; Production is only tagged as pending.

    Parameters
    ----------
    store : ModelStore
        The registry.
    report : RoundReport
        The round's, with its version.
    decision : Decision
        The stage that it has earned.
    reports : list[RoundReport]
        Those of earlier rounds; that of the version that leaves Staging is updated.
    again : bool
        Whether this may have been done before: then what people did since is not undone.
    lease : Lease | None
        The right to move versions by rule.
    """
    version, tags = str(report.version), decision_tags(decision)
    known = store.get_version(version) if again else None
    if known is not None and known.stage is not Stage.NONE and "approval" in known.tags:
        approval = cast("Approval", known.tags["approval"])
        reason = known.tags.get("reason", "")
        return replace(report, stage=known.stage, approval=approval, reason=reason)
    if known is not None and any(known.tags.get(name) != text for name, text in tags.items()):
        store.set_version_tags(version, tags)
    staged = decision.stage is not Stage.NONE
    if staged and (known is None or known.stage is Stage.NONE):
        supersede(store, version, reports)
        store.promote_to_staging(version, actor="policy", reason=decision.reason, lease=lease)
    reached = Stage.STAGING if staged else Stage.NONE
    waits = cast("Approval", tags["approval"])
    return replace(report, stage=reached, approval=waits, reason=decision.why)


def decision_tags(decision: Decision) -> dict[str, str]:
    """Return the tags of a decision, which a version is saved with."""
    waits = "pending" if decision.stage is Stage.PRODUCTION else "none"
    person = {NEEDS_PERSON: "true"} if decision.needs_person else {}
    return {"reason": decision.why, "approval": waits, **person}


def supersede(store: ModelStore, version: str, reports: Reports) -> None:
    """Update the report of the version that leaves Staging for ``version``."""
    old = store.get_latest_version(Stage.STAGING)
    for index, report in enumerate(reports):
        if report.version == old and old != version:
            reports[index] = superseded(report)


def superseded(report: RoundReport) -> RoundReport:
    """Return the report of a round whose version has left Staging for a later one."""
    approval: Approval = "superseded" if report.approval == "pending" else report.approval
    return replace(report, stage=Stage.ARCHIVED, approval=approval)


def promote_pending(store: ModelStore, reports: Reports, lease: Lease | None = None) -> None:
    """Promote the version of this session that passed the gates of Production, if any.

    A version that passed because nothing could be compared still waits for a person.
    """
    for index, report in enumerate(reports):
        if report.approval == "pending" and report.version is not None:
            if NEEDS_PERSON in store.get_version(report.version).tags:
                logger.warning(
                    "version %s waits for a person to approve it: %s", report.version, report.reason
                )
                continue
            store.promote_to_production(
                report.version, actor="policy", reason=report.reason, lease=lease
            )
            reports[index] = replace(report, stage=Stage.PRODUCTION, approval="approved")


def apply_shadow(
    store: ModelStore,
    shadow: ShadowReport,
    reports: Reports,
    *,
    promote: bool,
    lease: Lease | None = None,
) -> None:
    """Archive a candidate that is worse in the shadow rounds; ``promote`` one that is better.

    A candidate that is neither, or that a person has moved meanwhile, is left to people.
    """
    version, result = shadow.candidate, f"{SHADOW}{shadow_reason(shadow)}"
    gates = store.get_version(version).tags.get("reason", "").partition(f"; {SHADOW}")[0]
    reason = f"{gates}; {result}".removeprefix("; ")
    store.set_version_tags(version, {"reason": reason, "shadow": shadow_tag(shadow)})
    logger.info("version %s: %s", version, result)
    champion = store.get_latest_version(Stage.PRODUCTION)
    try:
        if champion != shadow.champion:
            logger.warning(
                "version %s was promoted meanwhile: a person decides on the candidate", champion
            )
        elif shadow.test.outcome == "worse":
            store.reject_version(version, actor="policy", reason=result, lease=lease)
        elif shadow.test.outcome == "better" and promote:
            store.approve_version(version, actor="policy", reason=reason, lease=lease)
    except StageError as error:
        logger.warning("the shadow evaluation changes nothing: %s", error)
    record = store.get_version(version)
    for index, report in enumerate(reports):
        if report.version == version:
            approval = cast("Approval", record.tags.get("approval", report.approval))
            reports[index] = replace(report, stage=record.stage, approval=approval, reason=reason)
