# SPDX-License-Identifier: Apache-2.0
"""The registry's records; no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from fl_registry.stages import Stage

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ModelVersion:
    """One registered version.

    Attributes
    ----------
    version : str
        Its number, as text.
    stage : Stage
        Its stage, by the journal.
    created : datetime
        When it was saved, in UTC.
    metrics : Mapping[str, float]
        The metrics it was saved with.
    tags : Mapping[str, str]
        All its tags, the registry's own included.
    sha256 : str
        Digest of the whole weights file; empty for a version that other tools registered.
    run_id : str
        The MLflow run that made it; empty where there was none.
    size : int
        Bytes of the weights file.
    description : str
        Free text for people.
    """

    version: str
    stage: Stage
    created: datetime
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    sha256: str
    run_id: str
    size: int
    description: str = ""

    def as_row(self) -> dict[str, Any]:
        """Return the version as a plain dictionary, its time in ISO-8601."""
        return {
            "version": self.version,
            "stage": str(self.stage),
            "created": self.created.isoformat(),
            "metrics": dict(self.metrics),
            "tags": dict(self.tags),
            "sha256": self.sha256,
            "size": self.size,
            "run_id": self.run_id,
            "description": self.description,
        }


@dataclass(frozen=True)
class Verdict:
    """The result of one gate for a candidate.

    Attributes
    ----------
    gate : str
        The gate.
    passed : bool
        Whether the candidate passes.
    reason : str
        Why.
    note : str
        What the score that it was compared with is, where that is not a fresh one on the same data.
    needs_person : bool
        Whether it passes only since nothing could be compared, so that a person must confirm it.
    """

    gate: str
    passed: bool
    reason: str
    note: str = ""
    needs_person: bool = False

    def __str__(self) -> str:
        """Return the reason, with the note in brackets."""
        return f"{self.reason} ({self.note})" if self.note else self.reason


class Results(Protocol):
    """A model's results on each example of a data set, from which metrics can be had anew.

    `ExampleScores` keeps it for means; a metric that is no mean needs a class of its own.
    """

    def __len__(self) -> int:
        """Return the number of examples."""

    def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray | None:
        """Return `metric` for each row of `counts`: how often each example is drawn.

        `counts` has the shape (samples, examples); None where there is no such metric.
        """


@dataclass(frozen=True)
class Evidence:
    """The numbers that gates look at.

    Attributes
    ----------
    metrics : Mapping[str, float]
        The candidate's metrics.
    champion : Mapping[str, float] | None
        The production version scored on the same data; None where there is no production yet.
    best : Mapping[str, float] | None
        The best candidate so far on the same data; None for the first one.
    champion_note, best_note : str
        What these scores are where they are not fresh ones on the same data. Where the metric is
        missing as well, this is why nothing can be compared, and a person must decide.
    results, champion_results : Results | None
        Results of both on each example of that data; None where they are not known.
    nodes, champion_nodes : Mapping[str, Mapping[str, float]]
        Metrics of both on each node's own data, by the digest of that data.
    looks : int
        How many candidates are compared with the champion on that data; a session has one a round.
    """

    metrics: Mapping[str, float]
    champion: Mapping[str, float] | None = None
    best: Mapping[str, float] | None = None
    results: Results | None = None
    champion_results: Results | None = None
    nodes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    champion_nodes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    looks: int = 1
    champion_note: str = ""
    best_note: str = ""


Gate = Callable[[Evidence], Verdict]
Policy = Mapping[Stage, Sequence[Gate]]


@dataclass(frozen=True)
class Decision:
    """The stage a candidate has earned, with every verdict that led there."""

    stage: Stage
    verdicts: tuple[Verdict, ...]
    reason: str

    @property
    def why(self) -> str:
        """The verdict that decided (the first refusal, else the last one), and all notes."""
        if not self.verdicts:
            return self.reason
        refused = [verdict for verdict in self.verdicts if not verdict.passed]
        decisive = refused[0] if refused else self.verdicts[-1]
        notes = [verdict.note for verdict in self.verdicts if verdict.note]
        return "; ".join(dict.fromkeys([decisive.reason, *notes]))

    @property
    def needs_person(self) -> bool:
        """Whether a person must confirm it, whatever the rule for approval is."""
        return any(verdict.needs_person for verdict in self.verdicts)
