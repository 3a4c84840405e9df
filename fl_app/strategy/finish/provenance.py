# SPDX-License-Identifier: Apache-2.0
"""The tags of versions and runs that say where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from math import isfinite

from fl_app.strategy.finish.score_sources import SCORE_SOURCE
from fl_app.strategy.records import Origin, ShadowReport
from fl_app.strategy.round.state import ClosedRound, rejected_tag
from fl_registry import Lease

NODE_SCORES = "node_scores"
"""Tag of a version: its metric on each node that evaluated it."""


def run_tags(origin: Origin, flower_run_id: str, metric: str | None) -> dict[str, str]:
    """Return the tags of a session's MLflow run, which its versions get too."""
    return {
        "flower_run_id": flower_run_id,
        "session": str(origin.session),
        "parent_version": origin.parent_version or "",
        "trigger": origin.trigger,
        "request_id": origin.request_id,
        "metric": metric or "",
        "app_version": app_version(),
    }


def version_tags(closed: ClosedRound, source: str, lease: Lease | None) -> dict[str, str]:
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
