# SPDX-License-Identifier: Apache-2.0
"""Where a version comes from: the nodes that took part, and the tags that say so."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from math import isfinite

from flwr.app import ConfigRecord, Message, MetricRecord

from fl_app.strategy.records import Origin, ShadowReport
from fl_app.wire.data_summary import SUMMARY_RECORD

NODE_RECORD = "node"
"""Key of the ConfigRecord in which a ClientApp may say what data it trained on."""

NODE_SCORES = "node_scores"
"""Tag of a version: its metric on each node that evaluated it."""

_MAX_DIGEST = 128


@dataclass(frozen=True)
class Contribution:
    """A node's part in a round, and what it tells of its data, if it does."""

    node_id: str
    num_examples: float
    data_digest: str
    summary: Mapping[str, object] | None = None


def contributions(replies: Iterable[Message], weighted_by: str | None) -> tuple[Contribution, ...]:
    """Read who answered and with how many examples."""
    found = []
    for message in replies:
        if message.has_error():
            continue
        metrics = next(iter(message.content.metric_records.values()), MetricRecord())
        examples = metrics.get(weighted_by or "num-examples", 0)
        node = message.content.config_records.get(NODE_RECORD, ConfigRecord())
        found.append(
            Contribution(
                node_id=str(message.metadata.src_node_id),
                num_examples=float(examples) if isinstance(examples, int | float) else 0.0,
                data_digest=_digest(node),
                summary=message.content.config_records.get(SUMMARY_RECORD),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class NodeScore:
    """The score of a node's evaluation; ``key`` stays the same as long as its data do."""

    node_id: str
    key: str
    score: float


def node_scores(replies: Iterable[Message], metric: str | None) -> tuple[NodeScore, ...]:
    """Read from evaluate replies how well each node scored the model; others are left out.

    A node that does not say what data it has is taken to keep them as long as its id.
    """
    found = []
    for message in replies:
        if message.has_error():
            continue
        metrics = next(iter(message.content.metric_records.values()), MetricRecord())
        score = metrics.get(metric or "")
        node = message.content.config_records.get(NODE_RECORD, ConfigRecord())
        node_id = str(message.metadata.src_node_id)
        digest = _digest(node)
        if isinstance(score, int | float):
            found.append(NodeScore(node_id, digest[:16] or f"node {node_id}", float(score)))
    return tuple(found)


def _digest(node: ConfigRecord) -> str:
    """What a node calls its data; nothing if that is no short text."""
    digest = node.get("data-digest")
    fits = isinstance(digest, str) and len(digest) <= _MAX_DIGEST and digest.isprintable()
    return str(digest) if fits else ""


def summaries(nodes: Iterable[Contribution]) -> dict[str, Mapping[str, object]]:
    """What nodes tell of their data, by node id."""
    return {node.node_id: node.summary for node in nodes if node.summary is not None}


def run_tags(origin: Origin, flower_run_id: str, metric: str | None) -> dict[str, str]:
    """The tags of a session's MLflow run, which its versions bear too."""
    return {
        "flower_run_id": flower_run_id,
        "session": str(origin.session),
        "parent_version": origin.parent_version or "",
        "trigger": origin.trigger,
        "request_id": origin.request_id,
        "metric": metric or "",
        "app_version": app_version(),
    }


def version_tags(
    server_round: int, nodes: Iterable[Contribution], scores: Iterable[NodeScore] = ()
) -> dict[str, str]:
    """The tags of a version that tell it from others of its session."""
    rows = [
        {"node_id": n.node_id, "num_examples": n.num_examples, "data_digest": n.data_digest}
        for n in nodes
    ]
    tags = {"round": str(server_round), "nodes": json.dumps(rows)}
    by_key = {score.key: round(score.score, 6) for score in scores}
    return tags | ({NODE_SCORES: json.dumps(by_key)} if by_key else {})


def read_node_scores(tags: Mapping[str, str]) -> dict[str, float]:
    """What a version's tags tell of its nodes' scores, by `NodeScore.key`."""
    try:
        return {str(k): float(v) for k, v in json.loads(tags.get(NODE_SCORES, "{}")).items()}
    except (ValueError, TypeError, AttributeError):  # anybody may write tags
        return {}


def shadow_tag(report: ShadowReport) -> str:
    """What a version's tag ``shadow`` holds: the result and its numbers as JSON."""
    numbers = {**asdict(report.test), "extra_bytes": report.total_bytes}
    kept = {k: v if not isinstance(v, float) or isfinite(v) else None for k, v in numbers.items()}
    return json.dumps(
        {"champion": report.champion, "metric": report.metric, **kept, "why": report.why}
    )


def app_version() -> str:
    """Version of the installed fl-app; Flower runs it from a bundle that is not installed."""
    try:
        return version("fl-app")
    except PackageNotFoundError:
        return "bundle"
