# SPDX-License-Identifier: Apache-2.0
"""The records of a probation: its settings, what it is told, and what it remembers, as JSON too."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from fl_app.settings import Key, check_settings


class Source(StrEnum):
    """What a version on probation is watched by; each has a baseline of its own."""

    FEDERATED = "federated"
    FEED = "feed"
    DRIFT = "drift"


class Phase(StrEnum):
    """Where a version in production stands."""

    WATCHING = "watching"
    PASSED = "passed"
    FAILED = "failed"
    EXEMPT = "exempt"  # it was brought back, or nothing is watched


@dataclass(frozen=True)
class ProbationSettings:
    """When a promoted version has to go, and when it is known to be good.

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
        What sessions compare by; None compares nothing.
    mode : "max" | "min"
        Whether more or less of ``metric`` is better.
    confidence : float | None
        Confidence of a comparison where there are results per example.

    Raises
    ------
    SettingError
        If one of them has the wrong type or range.
    """

    watch: Annotated[tuple[Source, ...], Key("probation-watch", listed=True)] = (
        Source.FEDERATED,
        Source.FEED,
    )
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
    """What an operator tells of the model in production.

    Attributes
    ----------
    accuracy : float | None
        Share of right predictions, 0 to 1.
    avg_latency_ms : float | None
        Milliseconds for a prediction.
    throughput_qps : float | None
        Predictions per second.
    metrics : Mapping[str, float]
        Further numbers; they are logged and decide nothing.
    predictions : object
        Anything that JSON can hold; kept as a file.
    version : str | None
        The version that it is about; None means the one in production now.
    id : str
        The same report sent again has the same one.
    time : datetime
        When it was told, in UTC.

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
        """All its numbers by name."""
        named = {name: getattr(self, name) for name in NUMBERS}
        return {**self.metrics, **{k: v for k, v in named.items() if v is not None}}


NUMBERS = ("accuracy", "avg_latency_ms", "throughput_qps")
"""The numbers of a report that may decide."""


@dataclass(frozen=True)
class Baseline:
    """What a feed's accuracy is measured against.

    Attributes
    ----------
    level : float
        Median of the reports that it is made from.
    limit : float
        Below it a report is critical.
    of : str
        Whose reports they were.
    """

    level: float
    limit: float
    of: str


@dataclass(frozen=True)
class Trial:
    """One version's time in production, from the journal's entry that put it there.

    Attributes
    ----------
    id, number : str, int
        Of that entry.
    version : str
        The version.
    since, until : float
        When it began, and when its probation ends at the earliest, in seconds since 1970.
    needed : int
        Reports that must have been all right by then.
    phase : Phase
        Where it stands.
    baseline : Baseline | None
        What reports are measured against; None until there is one.
    first : tuple[float, ...]
        The first accuracies, for want of reports of the version before.
    in_a_row : int
        Critical reports since the last one that was all right.
    healthy : int
        Reports that were all right.
    compared : int
        Comparisons in sessions that were all right.
    """

    id: str
    number: int
    version: str
    since: float
    until: float
    needed: int
    phase: Phase = Phase.WATCHING
    baseline: Baseline | None = None
    first: tuple[float, ...] = ()
    in_a_row: int = 0
    healthy: int = 0
    compared: int = 0


@dataclass(frozen=True)
class Failure:
    """A critical fall, and how far it has been dealt with.

    Attributes
    ----------
    promotion : str
        Id of the journal's entry that had put the version into production.
    version : str
        The version that failed.
    source : Source
        What showed it.
    reason : str
        The numbers.
    time : float
        Seconds since 1970.
    report : str
        Id of the report that decided; empty for the other sources.
    back : str | None
        The version that came in its place; empty if there was none, None as long as it is not done.
    told : bool
        Whether the monitor has heard of it.
    """

    promotion: str
    version: str
    source: Source
    reason: str
    time: float
    report: str = ""
    back: str | None = None
    told: bool = False


@dataclass(frozen=True)
class ProbationState:
    """All that is remembered, by whoever looks: several processes share it.

    Attributes
    ----------
    journal : str
        Id of the journal's first entry about production; another journal begins all of this anew.
    trial : Trial | None
        The version in production; None before the first.
    recent : tuple[tuple[str, float], ...]
        The last accuracies of the feed, each with its version; none of versions that failed.
    steps : int
        Reports so far, of all versions.
    seen : tuple[str, ...]
        Ids of the last reports.
    good, failed : tuple[str, ...]
        Versions that passed, and that failed.
    untagged : tuple[str, ...]
        Those of them that the registry does not show yet.
    failure : Failure | None
        The last critical fall.
    """

    journal: str = ""
    trial: Trial | None = None
    recent: tuple[tuple[str, float], ...] = ()
    steps: int = 0
    seen: tuple[str, ...] = ()
    good: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    untagged: tuple[str, ...] = ()
    failure: Failure | None = None

    def step_of(self, report: str) -> int:
        """The number of a report that is remembered; 0 for others."""
        if report not in self.seen:
            return 0
        return self.steps - len(self.seen) + self.seen.index(report) + 1

    def to_json(self) -> dict[str, Any]:
        """The whole record, as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> ProbationState:
        """The record that ``to_json`` wrote; the first one for nothing at all."""
        if not kept:
            return cls()
        lists = {k: tuple(kept[k]) for k in ("seen", "good", "failed", "untagged")}
        trial, failure = kept["trial"], kept["failure"]
        return cls(
            journal=kept["journal"],
            trial=_trial(trial) if trial is not None else None,
            recent=tuple((version, accuracy) for version, accuracy in kept["recent"]),
            steps=kept["steps"],
            failure=None
            if failure is None
            else replace(Failure(**failure), source=Source(failure["source"])),
            **lists,
        )


def _trial(kept: Mapping[str, Any]) -> Trial:
    baseline = kept["baseline"]
    return replace(
        Trial(**kept),
        phase=Phase(kept["phase"]),
        first=tuple(kept["first"]),
        baseline=None if baseline is None else Baseline(**baseline),
    )
