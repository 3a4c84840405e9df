# SPDX-License-Identifier: Apache-2.0
"""What a round's version and a session's end do to stages: moves, marks, and the reports of them.

What a version has earned is decided before. Each of these may be done again and changes nothing.
"""

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
"""What the words on a shadow evaluation begin with, in a version's reason."""

NEEDS_PERSON = "needs_person"
"""Tag of a version that no rule may promote, since it could not be compared."""

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
    """Move the version as decided; Production is only marked, a person or the end grants it.

    Parameters
    ----------
    store : ModelStore
        The registry.
    report : RoundReport
        The round's, with its version.
    decision : Decision
        The stage that it has earned.
    reports : list[RoundReport]
        Those of earlier rounds, which are changed where their version makes room.
    again : bool
        Whether this may have been done before: then what people did since stays.
    lease : Lease | None
        The right to move versions by rule.
    """
    version, marks = str(report.version), decision_tags(decision)
    known = store.get_version(version) if again else None
    if known is not None and known.stage is not Stage.NONE and "approval" in known.tags:
        approval = cast("Approval", known.tags["approval"])
        reason = known.tags.get("reason", "")
        return replace(report, stage=known.stage, approval=approval, reason=reason)
    if known is not None and any(known.tags.get(name) != text for name, text in marks.items()):
        store.set_version_tags(version, marks)
    staged = decision.stage is not Stage.NONE
    if staged and (known is None or known.stage is Stage.NONE):
        supersede(store, version, reports)
        store.promote_to_staging(version, actor="policy", reason=decision.reason, lease=lease)
    reached = Stage.STAGING if staged else Stage.NONE
    waits = cast("Approval", marks["approval"])
    return replace(report, stage=reached, approval=waits, reason=decision.why)


def decision_tags(decision: Decision) -> dict[str, str]:
    """The tags that say what was decided; a version is saved with them."""
    waits = "pending" if decision.stage is Stage.PRODUCTION else "none"
    person = {NEEDS_PERSON: "true"} if decision.needs_person else {}
    return {"reason": decision.why, "approval": waits, **person}


def supersede(store: ModelStore, version: str, reports: Reports) -> None:
    """Note in the reports that ``version`` takes the place of what is in Staging."""
    old = store.get_latest_version(Stage.STAGING)
    for index, report in enumerate(reports):
        if report.version == old and old != version:
            reports[index] = superseded(report)


def superseded(report: RoundReport) -> RoundReport:
    """The report of a round whose version made room in Staging."""
    approval: Approval = "superseded" if report.approval == "pending" else report.approval
    return replace(report, stage=Stage.ARCHIVED, approval=approval)


def promote_waiting(store: ModelStore, reports: Reports, lease: Lease | None = None) -> None:
    """Promote the version of this session that passed the gates of Production, if any.

    One that passed since nothing could be compared waits for a person all the same.
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


def settle_shadow(
    store: ModelStore,
    shadow: ShadowReport,
    reports: Reports,
    *,
    promote: bool,
    lease: Lease | None = None,
) -> None:
    """Do what a shadow evaluation asks for: archive what is worse; ``promote`` what is better.

    What is neither, or has been moved meanwhile by a person, is left to people.
    """
    version, said = shadow.candidate, f"{SHADOW}{shadow_reason(shadow)}"
    gates = store.get_version(version).tags.get("reason", "").partition(f"; {SHADOW}")[0]
    reason = f"{gates}; {said}".removeprefix("; ")
    store.set_version_tags(version, {"reason": reason, "shadow": shadow_tag(shadow)})
    logger.info("version %s: %s", version, said)
    champion = store.get_latest_version(Stage.PRODUCTION)
    try:
        if champion != shadow.champion:
            logger.warning("version %s is in Production by now: a person decides", champion)
        elif shadow.test.outcome == "worse":
            store.reject_version(version, actor="policy", reason=said, lease=lease)
        elif shadow.test.outcome == "better" and promote:
            store.approve_version(version, actor="policy", reason=reason, lease=lease)
    except StageError as error:
        logger.warning("the shadow evaluation changes nothing: %s", error)
    record = store.get_version(version)
    for index, report in enumerate(reports):
        if report.version == version:
            approval = cast("Approval", record.tags.get("approval", report.approval))
            reports[index] = replace(report, stage=record.stage, approval=approval, reason=reason)
