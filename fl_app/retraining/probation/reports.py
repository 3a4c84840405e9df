# SPDX-License-Identifier: Apache-2.0
"""What operators set and send: the settings of a probation, reports, and the answer to one."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from fl_app.settings import Key, check_settings


class Source(StrEnum):
    """What a version on probation is judged by; each has its own baseline."""

    FEDERATED = "federated"
    FEED = "feed"
    DRIFT = "drift"


@dataclass(frozen=True)
class ProbationSettings:
    """When a promoted version fails, and when it passes.

    Attributes
    ----------
    watch : tuple[Source, ...]
        What may cause a rollback after a promotion: sessions (``federated``), reports to the API
        (``feed``), ``drift``; with nothing there is no probation.
    drop : float
        Fall of accuracy in the operator's reports, or of the metric, that is critical.
    in_a_row : int
        Critical reports in a row that cause a rollback.
    hours : float
        Least hours that a probation lasts after a promotion.
    reports : int
        Reports that must have been good by then; one comparison in a session is enough as well.
    max_latency_ms : float | None
        Mean latency in milliseconds above which a report is critical; None: no limit.
    min_throughput_qps : float | None
        Predictions per second below which a report is critical; None: no limit.
    metric : str | None
        Metric of the comparison in sessions; None for no comparison.
    mode : "max" | "min"
        Whether a higher or a lower ``metric`` is better.
    confidence : float | None
        Confidence of a comparison where there are results per example.

    Raises
    ------
    SettingError
        If one of them has the wrong type or range.
    """

    # Drift alone does not decide by default: it says that the data moved, not that the version
    # before would do better, which was trained on still older data. It requests retraining anyway.
    watch: Annotated[tuple[Source, ...], Key("probation-watch", listed=True)] = (
        Source.FEDERATED,
        Source.FEED,
    )
    # Twice the fall that requests retraining, since a rollback costs more than a request.
    drop: Annotated[float, Field(gt=0), Key("probation-drop")] = 0.1
    in_a_row: Annotated[int, Field(ge=1), Key("probation-in-a-row")] = 3
    hours: Annotated[float, Field(ge=0), Key("probation-hours")] = 24.0
    reports: Annotated[int, Field(ge=1), Key("probation-reports")] = 10
    max_latency_ms: Annotated[
        float | None, Field(gt=0), Key("probation-max-latency-ms", off=0.0)
    ] = None
    min_throughput_qps: Annotated[
        float | None, Field(gt=0), Key("probation-min-throughput", off=0.0)
    ] = None
    metric: str | None = None
    mode: Literal["max", "min"] = "max"
    confidence: float | None = 0.95

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class ProductionReport:
    """An operator's report on the model in production.

    Attributes
    ----------
    accuracy : float | None
        Share of correct predictions, 0 to 1.
    avg_latency_ms : float | None
        Milliseconds for a prediction.
    throughput_qps : float | None
        Predictions per second.
    metrics : Mapping[str, float]
        Further numbers, which are logged and do not decide.
    predictions : object
        Any JSON value; stored as a file.
    version : str | None
        The version that it is about; None for the one in production.
    id : str
        Id of the report; one that is sent again counts once.
    time : datetime
        Time of the report, in UTC.

    Raises
    ------
    ValueError
        If a number is not finite or out of its range.
    """

    accuracy: float | None = None
    avg_latency_ms: float | None = None
    throughput_qps: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    predictions: object = None
    version: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if name in (*NUMBERS, "version") or not name:
                raise ValueError(f"A further metric cannot be called {name!r}; use another name.")
            if not math.isfinite(value):
                raise ValueError(f"The metric {name!r} is {value}, expected a finite number.")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError(
                f"accuracy is {self.accuracy:g}, expected a share from 0 to 1 (0.87, not 87)."
            )
        for name in ("avg_latency_ms", "throughput_qps"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}, expected 0 or more.")

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers by name."""
        named = {name: getattr(self, name) for name in NUMBERS}
        return {**self.metrics, **{k: v for k, v in named.items() if v is not None}}


NUMBERS = ("accuracy", "avg_latency_ms", "throughput_qps")
"""The numbers of a report that may decide."""


@dataclass(frozen=True)
class ReportAnswer:
    """The answer to a report.

    Attributes
    ----------
    status : str
        ``ok``: the version is not on probation; ``watching``: it is; ``rolled_back``: it failed and
        another one is back; ``failed``: it failed, and there is none to go back to.
    version : str
        The version that the report was about.
    production : str
        The version in production now.
    reason : str
        The numbers, if it failed.
    report : int
        Number of the report, and its step in the metrics of the run.
    logged : bool
        Whether its numbers are in the version's run.
    """

    status: str
    version: str
    production: str
    reason: str
    report: int
    logged: bool
