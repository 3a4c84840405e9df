# SPDX-License-Identifier: Apache-2.0
"""Bodies, queries and answers of the API: pydantic checks requests by them and `openapi.py`
describes the API by them.

The texts below the fields are their descriptions in ``GET /openapi.json``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    with_config,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from fl_app.retraining.probation.reports import NUMBERS
from fl_app.retraining.probation.state import Baseline
from fl_registry import InvalidName
from fl_registry.journal.entries import as_moment
from fl_registry.redaction import printable

MAX_NUMBER = 1e300
"""Far from what a float or a database cannot hold."""
VERSION = "^[1-9][0-9]{0,8}$"

_DATE = re.compile(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]{1,20}(Z|[+-][0-9:]{2,6})?)?\Z")


def _version(text: str) -> str:
    if not re.fullmatch(VERSION.strip("^$"), text):
        raise PydanticCustomError("no_version", "versions are numbers such as 3")
    return text


def _rollback_target(text: str) -> str:
    if not _DATE.match(text):
        return _version(text)
    try:
        as_moment(text)
    except InvalidName as error:
        reason = {"reason": str(error).rstrip(".")}
        raise PydanticCustomError("no_version", "{reason}", reason) from None
    return text


def _digits(value: object) -> object:
    # pydantic would also read " 1", "+1", "1_0" and "1.0".
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,9}", value):
        raise PydanticCustomError("no_number", "it should be a whole number")
    return value


Version = Annotated[
    str, AfterValidator(_version), WithJsonSchema({"type": "string", "pattern": VERSION})
]
RequestId = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
Limit = Annotated[int, Field(ge=1, le=1000), BeforeValidator(_digits)]
Text = Annotated[str, Field(max_length=500), AfterValidator(printable)]
Actor = Annotated[str, Field(max_length=100), AfterValidator(printable)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Amount = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
MetricName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        json_schema_extra={"not": {"enum": [*NUMBERS, "version"]}},
    ),
]
Moment = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class Body(BaseModel):
    """The base of all bodies: no unknown fields, no conversions."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class TriggerBody(Body):
    """A request for retraining."""

    reason: Text = Field("", examples=["new pictures"])
    """Why; one sentence for people."""
    force: bool = True
    """Whether it passes cooldown and budget."""


class DecisionBody(Body):
    """Who moves a version, and why."""

    by: Actor = Field("api", examples=["Ada"])
    """Who decides."""
    note: Text = Field("", examples=["looked at the picture"])
    """Why; recorded with the decision."""


class PromotionBody(DecisionBody):
    """Where a version goes."""

    to: Literal["production", "staging"] = "production"


class RollbackBody(DecisionBody):
    """Which version comes back."""

    to: Annotated[
        str,
        AfterValidator(_rollback_target),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "pattern": VERSION},
                    {"type": "string", "format": "date"},
                    {"type": "string", "format": "date-time"},
                ]
            }
        ),
    ] = ""
    """A version, or a day or moment; by default the version before. A day means its end, in UTC."""


# A TypedDict, since a number may be left out but may not be null.
@with_config(
    ConfigDict(
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={
            "anyOf": [{"required": [name]} for name in (*NUMBERS, "metrics", "predictions")],
            "examples": [{"accuracy": 0.87, "avg_latency_ms": 45, "throughput_qps": 100}],
        },
    )
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


class Query(BaseModel):
    """The base of all queries; this one has no parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class HistoryQuery(Query):
    """Which requests for retraining are listed."""

    limit: Limit = 100
    before: RequestId | SkipJsonSchema[None] = None
    """Id of a request; only those before it are listed."""


class VersionsQuery(Query):
    """Which versions are listed."""

    limit: Limit = 100
    before: Version | SkipJsonSchema[None] = None
    """A version; only those before it are listed."""


class MetricsQuery(Query):
    """The form of the metrics."""

    format: Literal["json", "prometheus"] | SkipJsonSchema[None] = None


class Error(TypedDict):
    """A rejected request; nothing was done."""

    error: str
    detail: str


class Triggered(TypedDict):
    """The request is written down."""

    status: Literal["accepted", "joined", "suppressed", "suggested"]
    request_id: RequestId
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
    failing: dict[str, str]


class Health(TypedDict):
    """Whether something fails; ``backlog`` counts closed rounds that are not yet in MLflow."""

    status: Literal["ok", "degraded"]
    failing: NotRequired[list[str]]
    backlog: NotRequired[Annotated[int, Field(ge=0)]]


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
