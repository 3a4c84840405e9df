# SPDX-License-Identifier: Apache-2.0
"""The API's routes to the monitor: trigger, history, metrics, status and health."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NotRequired

from flask import Response, request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from fl_app.api.endpoint import Answer, Context, Endpoint, acting, part_of_list, reply
from fl_app.api.parsing import ApiError, Body, Limit, Moment, Query, RequestId, Text, Version
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.probation.state import Baseline
from fl_app.retraining.requests import Outcome

NOT_ACCEPTED = (Outcome.JOINED, Outcome.SUPPRESSED, Outcome.SUGGESTED)
SOURCE_HEADER = "X-Trigger-Source"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_DESCRIPTIONS = {
    "best_accuracy": "Best score since the baseline was set.",
    "current_accuracy": "Last score.",
    "accuracy_threshold": "Lasting fall of the score that triggers retraining.",
    "monitoring": "1 while the monitor runs.",
}


class TriggerBody(Body):
    """A request for retraining, or what Prometheus' Alertmanager posts to a webhook."""

    reason: Text = Field("", examples=["new pictures"])
    """Why; one sentence for people."""
    force: bool | SkipJsonSchema[None] = None
    """Whether it passes cooldown and budget; by default a person's does, an alert's does not."""
    source: Literal["person", "alert"] | SkipJsonSchema[None] = None
    """Who asks; an alert never passes cooldown and budget. The header `X-Trigger-Source` too."""
    status: Literal["firing", "resolved"] = "firing"
    """Of an alert; one that is resolved requests nothing."""

    @model_validator(mode="before")
    @classmethod
    def of_alertmanager(cls, body: object) -> object:
        """Read the body of Alertmanager's webhook, which has a list of alerts."""
        if not isinstance(body, dict) or not isinstance(body.get("alerts"), list):
            return body
        parts = [body.get("commonLabels"), body.get("commonAnnotations")]
        labels, notes = (part if isinstance(part, dict) else {} for part in parts)
        name = labels.get("alertname") or f"{len(body['alerts'])} alerts"
        about = notes.get("summary") or notes.get("description") or ""
        reason = ": ".join(str(text) for text in ("Alertmanager", name, about) if text)
        return {"source": "alert", "reason": reason[:500], "status": body.get("status")}


class HistoryQuery(Query):
    """Which requests for retraining are listed."""

    limit: Limit = 100
    before: RequestId | SkipJsonSchema[None] = None
    """Id of a request; only those before it are listed."""


class MetricsQuery(Query):
    """The form of the metrics."""

    format: Literal["json", "prometheus"] | SkipJsonSchema[None] = None


class Triggered(TypedDict):
    """The request is written down; one of a resolved alert is ignored."""

    status: Literal["accepted", "joined", "suppressed", "suggested", "ignored"]
    request_id: NotRequired[RequestId]
    reason: str
    why: NotRequired[str]


class RequestRow(TypedDict):
    """A request for retraining."""

    id: RequestId
    kind: str
    reason: str
    created: Moment
    outcome: Literal["pending", "running", "done", "failed", "joined", "suggested", "suppressed"]
    why: str
    started: Moment | None
    ended: Moment | None


class Metrics(TypedDict):
    """Scores, and how many requests have each outcome."""

    best_accuracy: float | None
    current_accuracy: float | None
    accuracy_threshold: float
    monitoring: bool
    requests: dict[str, Annotated[int, Field(ge=0)]]


class FailureRow(TypedDict):
    """The last version that failed its probation; ``back`` came in its place."""

    version: Version
    source: Literal["federated", "feed", "drift"]
    reason: str
    back: str | None
    time: Moment


class RejectedRow(TypedDict):
    """A rejected reply of a node."""

    node_id: str
    phase: Literal["train", "evaluate"]
    reason: str
    in_a_row: Annotated[int, Field(ge=1)]


class SessionRow(TypedDict):
    """The session under way; ``silent`` if its process has written nothing for a minute."""

    id: str
    run_id: str
    trigger: str
    parent_version: Version | None
    num_rounds: Annotated[int, Field(ge=0)]
    round: Annotated[int, Field(ge=0)]
    phase: Literal["starting", "waiting", "train", "evaluate", "finishing"]
    requested: Annotated[int, Field(ge=0)]
    answered: Annotated[int, Field(ge=0)]
    nodes: list[str]
    rejected: list[RejectedRow]
    rejected_before: list[RejectedRow]
    round_seconds: float | None
    started: Moment
    round_started: Moment
    written: Moment
    seconds_left: float | None
    silent: bool


class ProbationRow(TypedDict):
    """The probation of the version in production; it ends at ``until`` at the earliest."""

    version: Version
    phase: Literal["watching", "passed", "failed", "exempt"]
    since: Moment
    until: Moment
    reports: Annotated[int, Field(ge=0)]
    reports_needed: Annotated[int, Field(ge=1)]
    comparisons: Annotated[int, Field(ge=0)]
    critical_in_a_row: Annotated[int, Field(ge=0)]
    baseline: Baseline | None
    last_failure: FailureRow | None


class Status(TypedDict):
    """The monitor's state; ``failing`` has what does not work and why."""

    monitoring: bool
    running: RequestRow | None
    pending: RequestRow | None
    probation: ProbationRow | None
    session: SessionRow | None
    failing: dict[str, str]


class Health(TypedDict):
    """Whether something fails; ``backlog`` counts closed rounds that are not yet in MLflow."""

    status: Literal["ok", "degraded"]
    failing: NotRequired[list[str]]
    backlog: NotRequired[Annotated[int, Field(ge=0)]]


def trigger_retrain(api: Context, body: TriggerBody, new_id: str) -> Answer:
    """Request a retraining session. It is written down when the answer comes.

    At most one request is pending; more join it. The webhook of Prometheus' Alertmanager may be
    sent here as it is: a firing alert is a request within cooldown and budget.
    """
    manager, source = api.manager, body.source or request.headers.get(SOURCE_HEADER, "person")
    if source not in ("person", "alert"):
        raise ApiError(400, f"{SOURCE_HEADER} is {source[:40]!r}, expected 'person' or 'alert'.")
    from_alert = "alert" in (source, request.headers.get(SOURCE_HEADER))
    if from_alert and body.force:
        raise ApiError(400, "An alert cannot be forced; leave out 'force', or 'alert' as source.")
    if body.status == "resolved":
        over = "The alert is resolved, so nothing is requested."
        return {"status": "ignored", "reason": body.reason, "why": over}
    force, who = not from_alert if body.force is None else body.force, acting("")
    reason = body.reason or ("an alert requested it" if from_alert else "")
    reason = f"{reason} (requested by {who})" if who else reason
    request_id = manager.manual_trigger(reason, force=force, request_id=new_id)
    row = manager.store.requests.get(new_id) or {}
    status = row["outcome"] if row["outcome"] in NOT_ACCEPTED else "accepted"
    why = {"why": row["why"]} if row["why"] else {}
    return {"status": status, "request_id": request_id, "reason": row["reason"], **why}


def trigger_history(api: Context, query: HistoryQuery) -> Response:
    """List requests with their outcome, newest last.

    If there are older ones, the header ``Link`` has the address of the part before.
    """
    memory, before = api.manager.store.requests, query.before
    if before is not None and memory.get(before) is None:
        raise ApiError(404, "There is no request with that id.")
    rows = memory.history(query.limit + 1, before or "")
    more, rows = rows[: -query.limit], rows[-query.limit :]
    return part_of_list(query, rows, before=rows[0]["id"] if more else "")


def requests_now(manager: RetrainingManager) -> dict[str, Any]:
    """Return the running and the pending request, None where there is none."""
    memory = manager.store.requests
    requests = {str(o): memory.find(o) for o in (Outcome.RUNNING, Outcome.PENDING)}
    return {name: r if r is None else memory.get(r.id) for name, r in requests.items()}


def session_status(api: Context) -> dict[str, Any] | None:
    """Return how far the session under way is; None if none is."""
    live, now = api.live(), api.now()
    if live is None:
        return None
    row = dict(to_jsonable_python(live))
    return {**row, "seconds_left": live.seconds_left(now), "silent": live.is_silent(now)}


def probation_status(api: Context) -> dict[str, Any] | None:
    """Return the probation of the version in production; None where it is not known just now."""
    try:
        with api.registry():
            return api.probation.status() if api.probation is not None else None
    except ApiError:
        return None


def status(api: Context, _: Query) -> Answer:
    """Tell whether the monitor runs, what requests and session are under way, and what fails."""
    return {
        "monitoring": api.manager.monitoring,
        **requests_now(api.manager),
        "probation": probation_status(api),
        "session": session_status(api),
        "failing": api.failing(None if api.backlog is None else api.backlog()),
    }


def health(api: Context, _: Query) -> Answer:
    """Tell whether the API answers, and what else fails while the run goes on. Needs no token.

    The log and `/status` tell why something fails.
    """
    backlog = None if api.backlog is None else api.backlog()
    failing = sorted(api.failing(backlog))
    # 200 also if degraded: a probe that fails would have the server killed, for a full disk say.
    return {
        "status": "degraded" if failing else "ok",
        **({"failing": failing} if failing else {}),
        **({"backlog": backlog.rounds} if backlog is not None else {}),
    }


def metrics(api: Context, query: MetricsQuery) -> Response:
    """Return scores and counts, as JSON or as Prometheus text.

    The text also has what the server counted of rounds, sessions and stage moves.
    """
    text, json = _weight("text/plain", "application/openmetrics-text"), _weight("application/json")
    if query.format == "prometheus" or (query.format is None and text > json):
        now = CollectorRegistry()
        now.register(HealthCollector(api))
        text_of_both = generate_latest(api.metrics) + generate_latest(now)
        response = Response(text_of_both, content_type=PROMETHEUS)
    else:
        response = reply(200, monitor_metrics(api.manager))
    response.headers["Vary"] = "Accept"
    return response


def _weight(*kinds: str) -> float:
    """Return the highest weight that the Accept header gives to a type; ``*/*`` names none."""
    accepted = request.accept_mimetypes
    return max((w for kind, w in accepted if kind.partition(";")[0].lower() in kinds), default=0.0)


def monitor_metrics(manager: RetrainingManager) -> dict[str, Any]:
    """Return the scores, and how many requests have each outcome."""
    rule, _ = manager.snapshot()
    return {
        "best_accuracy": rule.best,
        "current_accuracy": rule.current,
        "accuracy_threshold": rule.threshold,
        "monitoring": manager.monitoring,
        "requests": {str(outcome): n for outcome, n in manager.store.requests.counts().items()},
    }


class MonitorCollector(Collector):
    """The same for Prometheus; unknown numbers are left out.

    Parameters
    ----------
    manager : RetrainingManager
        The monitor.
    """

    def __init__(self, manager: RetrainingManager) -> None:
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        """Read the numbers now."""
        values = monitor_metrics(self._manager)
        for name, text in _DESCRIPTIONS.items():
            if values[name] is not None:  # Prometheus has no null
                yield GaugeMetricFamily(f"fl_app_{name}", text, value=float(values[name]))
        text = "Requests for retraining by outcome."
        requests = GaugeMetricFamily("fl_app_retrain_requests", text, labels=["outcome"])
        for outcome, count in values["requests"].items():
            requests.add_metric([outcome], count)
        yield requests


class HealthCollector(Collector):
    """What ``/health`` tells, as numbers.

    Parameters
    ----------
    api : Context
        What the routes work with.
    """

    def __init__(self, api: Context) -> None:
        self._api = api

    def collect(self) -> Iterator[Metric]:
        """Look now."""
        backlog = None if self._api.backlog is None else self._api.backlog()
        failing = GaugeMetricFamily(
            "fl_app_failing", "1 for each part that fails.", labels=["part"]
        )
        for part in sorted(self._api.failing(backlog)):
            failing.add_metric([part], 1)
        yield failing
        if backlog is not None:
            text = "Rounds on disk that MLflow does not have yet."
            yield GaugeMetricFamily("fl_app_backlog_rounds", text, value=backlog.rounds)


def all_metrics(manager: RetrainingManager, collectors: Iterable[Collector]) -> CollectorRegistry:
    """Return Prometheus' registry of the monitor's metrics and those of other collectors."""
    registry = CollectorRegistry()
    for collector in (MonitorCollector(manager), *collectors):
        registry.register(collector)
    return registry


MONITOR_ENDPOINTS = (
    Endpoint("POST", "/trigger_retrain", TriggerBody, Triggered, trigger_retrain, status=202),
    Endpoint("GET", "/trigger_history", HistoryQuery, list[RequestRow], trigger_history),
    Endpoint("GET", "/metrics", MetricsQuery, Metrics, metrics),
    Endpoint("GET", "/status", Query, Status, status),
    Endpoint("GET", "/health", Query, Health, health),
)
