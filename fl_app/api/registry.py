# SPDX-License-Identifier: Apache-2.0
"""The API's routes to the registry: list versions, move them, and report on the one that serves."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any, Literal

from flask import Response
from pydantic import AfterValidator, Field, WithJsonSchema, with_config
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from fl_app.api.downloads import BINARY, DownloadQuery, download_weights
from fl_app.api.endpoint import NOBODY, Answer, Context, Endpoint, acting, part_of_list
from fl_app.api.parsing import VERSION, ApiError, Body, Limit, Query, Text, Version, check_version
from fl_app.retraining.probation.reports import NUMBERS, ProductionReport, ReportAnswer
from fl_registry import InvalidName, Stage
from fl_registry.journal.entries import as_moment
from fl_registry.redaction import printable

MAX_NUMBER = 1e300
"""Far from what a float or a database cannot hold."""
RESERVED: dict[str, Any] = {"not": {"enum": [*NUMBERS, "version"]}}
"""What a further metric cannot be called."""

_DATE = re.compile(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]{1,20}(Z|[+-][0-9:]{2,6})?)?\Z")


def _check_target(text: str) -> str:
    return _check_moment(text, "no_version") if _DATE.match(text) else check_version(text)


def _check_moment(text: str, kind: str = "no_moment") -> str:
    try:
        if _DATE.match(text):
            as_moment(text)
            return text
        reason = "it should be a day such as 2026-11-23, or a moment"
    except InvalidName as error:
        reason = str(error).rstrip(".")
    raise PydanticCustomError(kind, "{reason}", {"reason": reason})


TARGETS = [{"pattern": VERSION}, {"format": "date"}, {"format": "date-time"}]
Target = Annotated[
    str, AfterValidator(_check_target), WithJsonSchema({"type": "string", "anyOf": TARGETS})
]
Day = Annotated[
    str,
    AfterValidator(_check_moment),
    WithJsonSchema({"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]}),
]
Actor = Annotated[str, Field(max_length=100), AfterValidator(printable)]
Amount = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
MetricName = Annotated[str, Field(min_length=1, max_length=200, json_schema_extra=RESERVED)]


class DecisionBody(Body):
    """Who moves a version, and why."""

    by: Actor = Field(NOBODY, examples=["Ada"])
    """Who decides; left out with a token of a person, whose name is recorded."""
    note: Text = Field("", examples=["looked at the picture"])
    """Why; recorded with the decision."""


class PromotionBody(DecisionBody):
    """Where a version goes."""

    to: Literal["production", "staging"] = "production"


class RollbackBody(DecisionBody):
    """Which version comes back."""

    to: Target = ""
    """A version, or a day or moment; by default the version before. A day means its end, in UTC."""


# A TypedDict, since a number may be left out but may not be null.
@with_config(
    extra="forbid",
    strict=True,
    use_attribute_docstrings=True,
    json_schema_extra={
        "anyOf": [{"required": [name]} for name in (*NUMBERS, "metrics", "predictions")],
        "examples": [{"accuracy": 0.87, "avg_latency_ms": 45, "throughput_qps": 100}],
    },
)
class ReportBody(TypedDict, total=False):
    """How the model in production does; at least one number or the predictions."""

    accuracy: Annotated[float, Field(ge=0, le=1)]
    """Share of right predictions, 0 to 1 (0.87, not 87)."""
    avg_latency_ms: Amount
    throughput_qps: Amount
    metrics: Annotated[dict[MetricName, Number], Field(max_length=100)]
    """Further numbers; they are logged and decide nothing."""
    predictions: Any
    """Anything; stored as predictions.json."""
    version: Version
    """What the report is about; a 409 if it is not in Production now."""


class VersionsQuery(Query):
    """Which versions are listed."""

    limit: Limit = 100
    before: Version | SkipJsonSchema[None] = None
    """A version; only those before it are listed."""
    stage: Literal["None", "Staging", "Production", "Archived"] | SkipJsonSchema[None] = None
    """Only versions in this stage."""
    since: Day | SkipJsonSchema[None] = None
    """Only versions that were saved on that day or at that moment, in UTC, or later."""


class VersionRow(TypedDict):
    """A registered version, with more fields than these."""

    version: Version
    stage: str
    created: str
    metrics: dict[str, Any]
    tags: dict[str, str]


class Moved(TypedDict):
    """The version, and the stage where it is now."""

    version: Version
    stage: Literal["Staging", "Production", "Archived"]


def list_versions(api: Context, query: VersionsQuery) -> Response:
    """List versions of the model, newest first.

    If there are more, the header ``Link`` has the address of the next part.
    """
    with api.registry() as store:
        rows = store.list_versions(
            limit=query.limit + 1, before=query.before, stage=query.stage, since=query.since
        )
    rows, more = rows[: query.limit], rows[query.limit :]
    return part_of_list(query, rows, before=rows[-1]["version"] if more else "")


def promote(api: Context, body: PromotionBody, _: str, version: str) -> Answer:
    """Move a version to Production, or to Staging."""
    with api.registry() as store:
        move = {"staging": store.promote_to_staging, "production": store.promote_to_production}
        move[body.to](version, actor=acting(body.by), reason=body.note)
    return _moved(version, Stage(body.to.capitalize()))


def approve(api: Context, body: DecisionBody, _: str, version: str) -> Answer:
    """Move a version that waits for approval to Production."""
    with api.registry() as store:
        store.approve_version(version, actor=acting(body.by), reason=body.note)
    return _moved(version, Stage.PRODUCTION)


def reject(api: Context, body: DecisionBody, _: str, version: str) -> Answer:
    """Archive a version that waits for approval."""
    with api.registry() as store:
        store.reject_version(version, actor=acting(body.by), reason=body.note)
    return _moved(version, Stage.ARCHIVED)


def roll_back(api: Context, body: RollbackBody, _: str) -> Answer:
    """Bring back a version that was in Production, or what was there on a day or at a moment."""
    with api.registry() as store:
        version = store.rollback(body.to or None, actor=acting(body.by), reason=body.note)
    return _moved(version, Stage.PRODUCTION)


def _moved(version: str, stage: Stage) -> Answer:
    return {"version": version, "stage": str(stage)}


def production_metrics(api: Context, body: ReportBody, new_id: str) -> Answer:
    """Report how the model in Production does; a critical fall brings the last good one back.

    The numbers go to the MLflow run of that version, as production/accuracy and so on.
    """
    if not body.keys() - {"version"}:
        raise ApiError(400, "There is nothing in the report; send at least one number.")
    try:
        report = ProductionReport(**body, id=new_id)
    except ValueError as error:  # of the name of a metric
        raise ApiError(400, str(error)) from error
    if api.probation is None:
        raise ApiError(404, "This server watches no version in production.")
    with api.registry():
        return asdict(api.probation.report(report))


REGISTRY_ENDPOINTS = (
    Endpoint("GET", "/versions", VersionsQuery, list[VersionRow], list_versions),
    Endpoint(
        "GET", "/versions/<version>/weights", DownloadQuery, bytes, download_weights, media=BINARY
    ),
    Endpoint("POST", "/versions/<version>/promote", PromotionBody, Moved, promote),
    Endpoint("POST", "/versions/<version>/approve", DecisionBody, Moved, approve),
    Endpoint("POST", "/versions/<version>/reject", DecisionBody, Moved, reject),
    # Whether an unfinished rollback to "the one before" was done cannot be seen afterwards.
    Endpoint(
        "POST", "/rollback", RollbackBody, Moved, roll_back, repeatable=lambda body: bool(body.to)
    ),
    Endpoint("POST", "/production_metrics", ReportBody, ReportAnswer, production_metrics),
)
