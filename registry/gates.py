# SPDX-License-Identifier: Apache-2.0
"""Gates and the climb through the stages: evidence in, reasoned verdicts out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from registry.records import Decision, Evidence, Policy, Stage, Verdict
from registry.versions import as_number

_CLIMB = (Stage.STAGING, Stage.PRODUCTION)
_HAIR = 1e-12  # so that 0.57 beats 0.56 by 0.01 in floating point too


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
class AtLeast:
    """Passes when `metric` is `threshold` or more."""

    metric: str
    threshold: float

    def __post_init__(self) -> None:
        _check_number(self.threshold, "threshold")

    def __call__(self, evidence: Evidence) -> Verdict:
        name, value = f"AtLeast({self.metric})", _finite(evidence.metrics, self.metric)
        if value is None:
            return _absent(name, evidence.metrics, self.metric)
        got, bound = _words(value, self.threshold)
        if value >= self.threshold:
            return Verdict(name, True, f"{self.metric} {got} is at least {bound}")
        return Verdict(name, False, f"{self.metric} {got} is below {bound}")


@dataclass(frozen=True)
class AtMost:
    """Passes when `metric` is `threshold` or less."""

    metric: str
    threshold: float

    def __post_init__(self) -> None:
        _check_number(self.threshold, "threshold")

    def __call__(self, evidence: Evidence) -> Verdict:
        name, value = f"AtMost({self.metric})", _finite(evidence.metrics, self.metric)
        if value is None:
            return _absent(name, evidence.metrics, self.metric)
        got, bound = _words(value, self.threshold)
        if value <= self.threshold:
            return Verdict(name, True, f"{self.metric} {got} is at most {bound}")
        return Verdict(name, False, f"{self.metric} {got} is above {bound}")


@dataclass(frozen=True)
class BestSoFar:
    """Passes when `metric` is better than that of the best candidate so far, or there is none.

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
        _check_mode(self.mode)

    def __call__(self, evidence: Evidence) -> Verdict:
        name, value = f"BestSoFar({self.metric})", _finite(evidence.metrics, self.metric)
        if value is None:
            return _absent(name, evidence.metrics, self.metric)
        if evidence.best is None:
            return Verdict(name, True, f"{self.metric} {_number(value)} is the first candidate's")
        other = _finite(evidence.best, self.metric)
        if other is None:
            return _absent(name, evidence.best, self.metric, "the best candidate so far")
        got, bound = _words(value, other)
        passed = _gain(value, other, self.mode) > 0
        verb = "beats" if passed else "does not beat"
        return Verdict(name, passed, f"{self.metric} {got} {verb} the best so far, {bound}")


@dataclass(frozen=True)
class BeatsChampion:
    """Passes when `metric` is better than production's on the same data, or there is none.

    Parameters
    ----------
    metric : str
        The metric compared.
    margin : float
        How much better it must be. 0 asks for any gain; below 0 allows that much of a loss.
    mode : {"max", "min"}
        Which direction is better.
    """

    metric: str
    margin: float = 0.0
    mode: str = "max"

    def __post_init__(self) -> None:
        _check_number(self.margin, "margin")
        _check_mode(self.mode)

    def __call__(self, evidence: Evidence) -> Verdict:
        name, value = f"BeatsChampion({self.metric})", _finite(evidence.metrics, self.metric)
        if value is None:
            return _absent(name, evidence.metrics, self.metric)
        if evidence.champion is None:
            reason = f"{self.metric} {_number(value)}, and there is no production version to beat"
            return Verdict(name, True, reason)
        other = _finite(evidence.champion, self.metric)
        if other is None:
            return _absent(name, evidence.champion, self.metric, "the production version")
        gain = _gain(value, other, self.mode)
        passed = gain > 0 if self.margin == 0 else gain >= self.margin - _HAIR
        got, bound = _words(value, other)
        verb = "beats" if passed else "does not beat"
        by = f" by {_number(self.margin)}" if self.margin else ""
        return Verdict(name, passed, f"{self.metric} {got} {verb} production's {bound}{by}")


def decide_stage(policy: Policy, evidence: Evidence) -> Decision:
    """Climb None, Staging, Production in that order; stop at the first stage with a "no".

    A stage that `policy` does not name is not climbed to. All gates of the stage that stops the
    climb are asked, so that every reason is known.

    Raises
    ------
    ValueError
        `policy` names a stage other than Staging and Production.
    """
    strange = [str(stage) for stage in policy if stage not in _CLIMB]
    if strange:
        raise ValueError(
            f"A policy has gates for Staging and Production only, not for {', '.join(strange)}."
        )
    reached, verdicts, parts = Stage.NONE, list[Verdict](), list[str]()
    for stage in (s for s in _CLIMB if s in policy):
        asked = [gate(evidence) for gate in policy[stage]]
        verdicts += asked
        refusals = [v.reason for v in asked if not v.passed]
        if refusals:
            parts.append(f"not {stage}: {'; '.join(refusals)}")
            break
        parts.append(f"{stage}: {'; '.join(v.reason for v in asked) or 'no gates'}")
        reached = stage
    return Decision(reached, tuple(verdicts), ". ".join(parts) or "the policy names no stage")


def _finite(metrics: Mapping[str, float], name: str) -> float | None:
    number = as_number(metrics.get(name))
    return number if number is not None and math.isfinite(number) else None


def _absent(
    gate: str, metrics: Mapping[str, float], name: str, whose: str = "the candidate"
) -> Verdict:
    if name in metrics:
        return Verdict(gate, False, f"{name} of {whose} is {metrics[name]}, not a finite number")
    known = ", ".join(sorted(map(str, metrics))) or "none"
    return Verdict(gate, False, f"{whose} has no metric {name} (there are: {known})")


def _gain(value: float, other: float, mode: str) -> float:
    return value - other if mode == "max" else other - value


def _words(value: float, other: float) -> tuple[str, str]:
    """Write two numbers shortly, yet so that different numbers look different."""
    texts = _number(value), _number(other)
    if texts[0] == texts[1] and value != other:
        return repr(value), repr(other)
    return texts


def _number(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}"
    whole, _, decimals = f"{value:.4f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def _check_number(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise ValueError(f"The {what} of a gate must be a finite number, not {value}.")


def _check_mode(mode: str) -> None:
    if mode not in ("max", "min"):
        raise ValueError(f'The mode of a gate must be "max" or "min", not {mode!r}.')
