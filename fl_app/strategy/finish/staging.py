# SPDX-License-Identifier: Apache-2.0
"""Stages and tags of versions after a round, and at the end of a session.

Every function that moves or tags a version is idempotent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import cast

from fl_app.events import Approval, RoundReport
from fl_app.strategy.finish.evaluation import SCORE_SOURCE
from fl_app.strategy.finish.reporting import shadow_reason
from fl_app.strategy.records import Origin, ShadowReport
from fl_app.strategy.round.state import ClosedRound, rejected_tag
from fl_registry import Decision, Lease, ModelStore, Stage, StageError

logger = logging.getLogger("flwr.fl_app")

NODE_SCORES = "node_scores"
"""Tag of a version: its metric on each node that evaluated it."""
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
    version, tags, reached = str(report.version), decision_tags(decision), Stage.NONE
    if again:
        known = store.get_version(version)
        reached = known.stage
        if reached is not Stage.NONE and "approval" in known.tags:
            approval = cast("Approval", known.tags["approval"])
            reason = known.tags.get("reason", "")
            return replace(report, stage=reached, approval=approval, reason=reason)
        if any(known.tags.get(name) != text for name, text in tags.items()):
            store.set_version_tags(version, tags)
    staged = decision.stage is not Stage.NONE
    if staged and reached is Stage.NONE:
        old = store.get_latest_version(Stage.STAGING)
        for index, earlier in enumerate(reports):
            if old not in (None, version) and earlier.version == old:
                reports[index] = superseded(earlier)
        store.promote_to_staging(version, actor="policy", reason=decision.reason, lease=lease)
    reached = Stage.STAGING if staged else Stage.NONE
    waits = cast("Approval", tags["approval"])
    return replace(report, stage=reached, approval=waits, reason=decision.why)


def decision_tags(decision: Decision) -> dict[str, str]:
    """Return the tags of a decision, which a version is saved with."""
    waits = "pending" if decision.stage is Stage.PRODUCTION else "none"
    person = {NEEDS_PERSON: "true"} if decision.needs_person else {}
    return {"reason": decision.why, "approval": waits, **person}


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
        "nodes": json.dumps(rows),
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


def read_node_scores(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the scores of nodes in a version's tags, by `NodeScore.key`."""
    try:
        return {str(k): float(v) for k, v in json.loads(tags.get(NODE_SCORES, "{}")).items()}
    except (ValueError, TypeError, AttributeError):  # any MLflow user may write tags
        return {}


def shadow_tag(report: ShadowReport) -> str:
    """Return the value of a version's tag ``shadow``: the result and its numbers as JSON."""
    numbers = {**asdict(report.test), "extra_bytes": report.total_bytes}
    plain = {k: v if not isinstance(v, float) or isfinite(v) else None for k, v in numbers.items()}
    return json.dumps(
        {"champion": report.champion, "metric": report.metric, **plain, "why": report.why}
    )


def app_version() -> str:
    """Return the version of the installed fl-app; Flower runs a bundle that is not installed."""
    try:
        return version("fl-app")
    except PackageNotFoundError:
        return "bundle"
