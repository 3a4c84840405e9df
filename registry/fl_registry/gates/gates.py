# SPDX-License-Identifier: Apache-2.0
"""Gates, and the stage that a candidate reaches by them: evidence in, verdicts with reasons out."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from fl_registry.gates.dependence import Dependence, dependence, labels_of
from fl_registry.gates.paired import FEWEST, bootstrap_interval, hull, mcnemar
from fl_registry.gates.results import ExampleScores, Results
from fl_registry.numbers import number_text
from fl_registry.stages import Stage

# What `fl_registry` and `fl_app.strategy` export too: a new gate is named here and nowhere else.
__all__ = [
    "AtLeast",
    "AtMost",
    "BeatsChampion",
    "BestSoFar",
    "Decision",
    "Evidence",
    "Finite",
    "Gate",
    "NoRegression",
    "Policy",
    "Verdict",
    "decide_stage",
]

_STAGES = (Stage.STAGING, Stage.PRODUCTION)
_NAMED = 3  # classes or nodes listed in one reason
_ROUNDING = 1e-12  # so that 0.57 beats 0.56 by 0.01 in floating point too


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


@dataclass(frozen=True)
class Finite:
    """Passes when there is at least one metric and all are finite numbers."""

    def __call__(self, evidence: Evidence) -> Verdict:
        bad = sorted(k for k in evidence.metrics if _finite(evidence.metrics, k) is None)
        if not evidence.metrics:
            return Verdict("Finite", False, "no metrics were reported")
        if bad:
            return Verdict("Finite", False, f"not a finite number: {', '.join(bad)}")
        return Verdict("Finite", True, f"all {len(evidence.metrics)} metrics are finite")


@dataclass(frozen=True)
class _Threshold:
    metric: str
    threshold: float
    _passes: ClassVar[Callable[[float, float], bool]]
    _verbs: ClassVar[tuple[str, str]]  # where it does not pass, and where it does

    def __post_init__(self) -> None:
        _check(threshold=self.threshold)

    def __call__(self, evidence: Evidence) -> Verdict:
        name = f"{type(self).__name__}({self.metric})"
        value = _finite(evidence.metrics, self.metric)
        if value is None:
            return _absent(name, evidence.metrics, self.metric)
        passed = type(self)._passes(value, self.threshold)
        got, bound = _words(value, self.threshold)
        return Verdict(name, passed, f"{self.metric} {got} {self._verbs[passed]} {bound}")


class AtLeast(_Threshold):
    """Passes when `metric` is `threshold` or more."""

    _passes, _verbs = operator.ge, ("is below", "is at least")


class AtMost(_Threshold):
    """Passes when `metric` is `threshold` or less."""

    _passes, _verbs = operator.le, ("is above", "is at most")


@dataclass(frozen=True)
class BestSoFar:
    """Passes when `metric` is better than the best candidate's so far, or there is none.

    Parameters
    ----------
    metric : str
        The metric compared.
    mode : {"max", "min"}
        Which direction is better.
    """

    metric: str
    mode: str = "max"

    def __post_init__(self) -> None:
        _check(self.mode)

    def __call__(self, evidence: Evidence) -> Verdict:
        name, value = f"BestSoFar({self.metric})", _finite(evidence.metrics, self.metric)
        if value is None:
            return _absent(name, evidence.metrics, self.metric)
        if evidence.best is None:
            return Verdict(
                name, True, f"{self.metric} {number_text(value)} is the first candidate's"
            )
        other, note = _finite(evidence.best, self.metric), evidence.best_note
        if other is None and note:
            return _left_to_a_person(name, f"{self.metric} {number_text(value)}", note)
        if other is None:
            return _absent(name, evidence.best, self.metric, "the best candidate so far")
        got, bound = _words(value, other)
        passed = _gain(value, other, self.mode) > 0
        verb = "beats" if passed else "does not beat"
        return Verdict(name, passed, f"{self.metric} {got} {verb} the best so far, {bound}", note)


@dataclass(frozen=True)
class BeatsChampion:
    """Passes when `metric` is significantly better than production's on the same data.

    It also passes if there is no production version. The test uses the results of both versions
    on each example: an exact McNemar test if the results are right or wrong and any gain is
    enough, otherwise a paired bootstrap. Without such results the two numbers are compared, and
    the reason says so. The error rate is shared among the candidates of a session (C. Bonferroni,
    1936), since the best of many candidates looks better than it is.

    If the results name groups of examples, such as clips, patients or sites, the gain must be sure
    from group to group too. Without groups it must be sure beside the waves along the order of the
    examples, if neighbours vary together; the note tells (see `fl_registry.gates.dependence`).

    Parameters
    ----------
    metric : str
        The metric compared.
    margin : float
        How much better it must be. 0: any gain is enough; below 0: that much loss is allowed.
    mode : {"max", "min"}
        Which direction is better.
    confidence : float | None
        Confidence of the two-sided interval of the gain, which must lie above `margin`, for all
        candidates of a session together. None: the two numbers are compared.
    """

    metric: str
    margin: float = 0.0
    mode: str = "max"
    confidence: float | None = 0.95

    def __post_init__(self) -> None:
        _check(self.mode, margin=self.margin)
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ValueError(
                f"The confidence of a gate must lie between 0 and 1, not be {self.confidence}."
            )

    def __call__(self, evidence: Evidence) -> Verdict:
        name, value = f"BeatsChampion({self.metric})", _finite(evidence.metrics, self.metric)
        if value is None:
            return _absent(name, evidence.metrics, self.metric)
        if evidence.champion is None:
            reason = (
                f"{self.metric} {number_text(value)}, and there is no production version to beat"
            )
            return Verdict(name, True, reason)
        other, note = _finite(evidence.champion, self.metric), evidence.champion_note
        if other is None and note:
            return _left_to_a_person(name, f"{self.metric} {number_text(value)}", note)
        if other is None:
            return _absent(name, evidence.champion, self.metric, "the production version")
        alike, passed, why = None, None, ""
        if self.confidence:
            alike, passed, why = self._paired(evidence, self.confidence)
        surely = "surely " if passed is False else ""
        if passed is None:
            passed = self._enough(_gain(value, other, self.mode))
        got, bound = _words(value, other)
        verb = "beats" if passed else f"does not {surely}beat"
        by = f" by {number_text(self.margin)}" if self.margin else ""
        reason = f"{self.metric} {got} {verb} production's {bound}{by}{why}"
        notes = (note, _alike(len(evidence.results or ()), alike))
        return Verdict(name, passed, reason, "; ".join(filter(None, notes)))

    def _enough(self, gain: float) -> bool:
        return gain > 0 if self.margin == 0 else gain >= self.margin - _ROUNDING

    def _paired(
        self, evidence: Evidence, confidence: float
    ) -> tuple[Dependence | None, bool | None, str]:
        """Return whether the results per example show it (None: there are none), and why.

        Before it stands how the examples vary together, if they do.
        """
        old, new = evidence.champion_results, evidence.results
        # Bonferroni: the error rate is shared among all candidates of the session. One of eight
        # equally good ones passes in 1.5 of 100 sessions at 95 % together, in 18 at 95 % each; one
        # that is 5 points of mAP50 better still passes in 60, if nothing makes the order of the
        # pictures suspect (benchmarks/gates.py).
        confidence = 1 - (1 - confidence) / evidence.looks
        if old is None or new is None:
            return None, None, " (two numbers alone: there are no results per example)"
        if len(old) != len(new):
            return None, False, f": it has {len(new)} results per example, production {len(old)}"
        if not np.array_equal(_labels(old), _labels(new)):
            return None, False, ": its examples are in other groups than production's"
        alike = dependence(old, new, self.metric)
        if alike is not None and alike.freedom < 1:
            return None, False, f": {_groups(alike)} are too few, expected 2 of like size at least"
        right = [r.correct(self.metric) for r in (old, new) if isinstance(r, ExampleScores)]
        if self.margin == 0 and len(right) == 2 and right[0] is not None and right[1] is not None:
            return alike, *self._mcnemar(right[0], right[1], confidence, alike)
        return alike, *self._bootstrap(old, new, confidence, alike)

    def _mcnemar(
        self, old: np.ndarray, new: np.ndarray, confidence: float, alike: Dependence | None
    ) -> tuple[bool, str]:
        won, lost, p = mcnemar(*((old, new) if self.mode == "max" else (new, old)))
        why = f": {won} of {len(new)} examples speak for it, {lost} against it, p {number_text(p)}"
        passed = won > lost and p <= 1 - confidence
        if alike is None:
            return passed, why
        low, high = self._gains(alike.interval(confidence))
        gain = f"{number_text(low)} to {number_text(high)}"
        why += f"; the gain is {gain}, {_sure(confidence, len(new), alike)}"
        return passed and self._enough(low), why

    def _bootstrap(
        self, old: Results, new: Results, confidence: float, alike: Dependence | None
    ) -> tuple[bool | None, str]:
        if len(new) < FEWEST:
            return False, f": {len(new)} examples are too few, {FEWEST} would do"
        interval = bootstrap_interval(old, new, self.metric, confidence=confidence)
        if interval is None:
            return None, f" (two numbers alone: there is no {self.metric} per example)"
        if not np.isfinite(interval).all():
            return False, ": not every result per example is a finite number"
        if alike is not None:
            interval = hull(interval, alike.interval(confidence))
        if not np.isfinite(interval).all():
            return False, f": {self.metric} cannot be computed without each of the groups"
        low, high = self._gains(interval)
        sure = _sure(confidence, len(new), alike)
        return self._enough(low), f": the gain is {number_text(low)} to {number_text(high)}, {sure}"

    def _gains(self, interval: tuple[float, float]) -> tuple[float, float]:
        return interval if self.mode == "max" else (-interval[1], -interval[0])


@dataclass(frozen=True)
class NoRegression:
    """Passes when `metric` is not below production's in any class, or on any node.

    Classes are the metrics named ``<metric>/<class>``. Nodes are those that evaluated both
    versions on the same data; others are not compared.

    Parameters
    ----------
    metric : str
        The metric compared.
    margin : float
        How much worse it may be in a class or on a node.
    by : {"class", "node"}
        Where it is compared.
    mode : {"max", "min"}
        Which direction is better.
    """

    metric: str
    margin: float = 0.0
    by: str = "class"
    mode: str = "max"

    def __post_init__(self) -> None:
        _check(self.mode, margin=self.margin)
        if self.margin < 0 or self.by not in ("class", "node"):
            raise ValueError(
                'NoRegression expects a margin of 0 or more and by="class" or by="node", not '
                f"margin={self.margin} and by={self.by!r}."
            )

    def __call__(self, evidence: Evidence) -> Verdict:
        name = f"NoRegression({self.metric} by {self.by})"
        if evidence.champion is None:
            return Verdict(name, True, "there is no production version to fall below")
        pairs = self._pairs(evidence, evidence.champion)
        if not pairs and evidence.champion_note:
            return _left_to_a_person(name, f"no {self.by} is compared", evidence.champion_note)
        if not pairs:
            where = f"class ({self.metric}/…)" if self.by == "class" else "node that scored both"
            return Verdict(name, False, f"there is no {self.metric} of production by {where}")
        # A class or node without a number counts as an infinite loss.
        gains = {
            place: -math.inf if value is None or old is None else _gain(value, old, self.mode)
            for place, (value, old) in pairs.items()
        }
        worst = sorted(gains, key=lambda place: gains[place])
        fallen = [place for place in worst if gains[place] < -self.margin - _ROUNDING]
        if not fallen:
            reason = f"no {self.by} loses more than {number_text(self.margin)} of {self.metric}"
            return Verdict(name, True, f"{reason}; {self._words(worst[0], *pairs[worst[0]])}")
        parts = [self._words(place, *pairs[place]) for place in fallen[:_NAMED]]
        more = f" and {len(fallen) - _NAMED} more" if len(fallen) > _NAMED else ""
        reason = f"more than {number_text(self.margin)} of {self.metric} is lost: "
        return Verdict(name, False, f"{reason}{', '.join(parts)}{more}")

    def _pairs(
        self, evidence: Evidence, champion: Mapping[str, float]
    ) -> dict[str, tuple[float | None, float | None]]:
        """Return both scores by class or node; None for what is not a finite number."""
        if self.by == "class":
            prefix, new = f"{self.metric}/", evidence.metrics
            return {
                key.removeprefix(prefix): (_finite(new, key), _finite(champion, key))
                for key in champion
                if str(key).startswith(prefix)
            }
        return {
            node: (_finite(evidence.nodes[node], self.metric), _finite(old, self.metric))
            for node, old in evidence.champion_nodes.items()
            if node in evidence.nodes and self.metric in old
        }

    def _words(self, place: str, value: float | None, old: float | None) -> str:
        numbers = ["no number" if n is None else number_text(n) for n in (old, value)]
        return f"{self.by} {place} goes from {numbers[0]} to {numbers[1]}"


def decide_stage(policy: Policy, evidence: Evidence) -> Decision:
    """Return the last stage of None, Staging, Production that a candidate reaches.

    A stage is reached if all its gates pass, and every stage before it in `policy` is reached. A
    stage that `policy` does not name is skipped. All gates of a stage are evaluated, so that the
    decision lists every reason.

    Raises
    ------
    ValueError
        `policy` names a stage other than Staging and Production.
    """
    unknown = [str(stage) for stage in policy if stage not in _STAGES]
    if unknown:
        raise ValueError(
            f"A policy has gates for Staging and Production only, not for {', '.join(unknown)}."
        )
    reached, verdicts, parts = Stage.NONE, list[Verdict](), list[str]()
    for stage in (s for s in _STAGES if s in policy):
        results = [gate(evidence) for gate in policy[stage]]
        verdicts += results
        refusals = [str(v) for v in results if not v.passed]
        if refusals:
            parts.append(f"not {stage}: {'; '.join(refusals)}")
            break
        parts.append(f"{stage}: {'; '.join(map(str, results)) or 'no gates'}")
        reached = stage
    return Decision(reached, tuple(verdicts), ". ".join(parts) or "the policy names no stage")


def _finite(metrics: Mapping[str, float], name: str) -> float | None:
    """Return a metric as a float; None where it is missing or not a finite number."""
    value: Any = metrics.get(name)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _absent(
    gate: str, metrics: Mapping[str, float], name: str, whose: str = "the candidate"
) -> Verdict:
    if name in metrics:
        return Verdict(gate, False, f"{name} of {whose} is {metrics[name]}, not a finite number")
    known = ", ".join(sorted(map(str, metrics))) or "none"
    return Verdict(gate, False, f"{whose} has no metric {name} (there are: {known})")


def _left_to_a_person(gate: str, known: str, note: str) -> Verdict:
    """Pass, for a person to confirm: a refusal would also block every later version."""
    return Verdict(gate, True, f"{known}, to be confirmed by a person", note, needs_person=True)


def _labels(results: Results) -> np.ndarray:
    labels = labels_of(results)
    return np.array([]) if labels is None else labels


def _groups(alike: Dependence) -> str:
    sizes = f", which count as {alike.examples:.2g} of one size,"
    return f"{alike.groups} groups{sizes if alike.examples < (alike.groups or 0) - 0.5 else ''}"


def _sure(confidence: float, examples: int, alike: Dependence | None) -> str:
    sure = f"{100 * confidence:.4g} % sure on {examples} examples"
    return f"{sure} of {_groups(alike)}" if alike is not None and alike.groups else sure


def _alike(examples: int, alike: Dependence | None) -> str:
    """Return the warning that examples without groups vary together; empty if they do not."""
    if alike is None or alike.groups is not None:
        return ""
    return (
        f"neighbouring examples vary together, so {examples} count as about {alike.examples:.2g}: "
        "name the group of each, such as its clip, or one for each if they are independent"
    )


def _gain(value: float, other: float, mode: str) -> float:
    return value - other if mode == "max" else other - value


def _words(value: float, other: float) -> tuple[str, str]:
    """Format two numbers briefly, but so that different numbers look different."""
    texts, digits = (number_text(value), number_text(other)), 4
    while texts[0] == texts[1] and value != other and digits < 17:
        digits += 1
        texts = f"{value:.{digits}g}", f"{other:.{digits}g}"
    return texts


def _check(mode: str = "max", **numbers: float) -> None:
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"The {name} of a gate must be a finite number, not {value}.")
    if mode not in ("max", "min"):
        raise ValueError(f'The mode of a gate must be "max" or "min", not {mode!r}.')
