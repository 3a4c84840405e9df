# SPDX-License-Identifier: Apache-2.0
"""The metrics in replies: which are valid, and how those of all nodes are aligned. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from fl_app.wire.arrays import MAX_NAME, quoted
from fl_registry.redaction import one_line

MAX_METRICS, MAX_LIST = 100, 10_000
MAX_CLASSES = 200
"""Metrics ``<metric>/<class>`` that a reply may have beside these: one MLflow tag holds all."""

Value = int | float | list[int] | list[float]


def brief(text: object) -> str:
    """Return a text from outside as one line of at most 200 characters."""
    return one_line(str(text)[:1000])


@dataclass
class WatchedMetric:
    """The metric that gates look at, as the replies of a phase report it.

    Attributes
    ----------
    name : str
        Its name in a reply; empty without a metric.
    sound : int
        Accepted replies with a valid value of it.
    rejected : list[str]
        What was wrong with each other value.
    """

    name: str
    sound: int = 0
    rejected: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, metric: str | None, phase: Literal["train", "evaluate"]) -> WatchedMetric:
        """Watch a metric by the name that a round has for it, such as ``train/loss``."""
        name, trained = metric or "", (metric or "").startswith("train/")
        if trained != (phase == "train"):
            return cls("")
        return cls(name.removeprefix("train/" if trained else "client/"))

    def note(self, reported: Mapping[str, Value], sound: Mapping[str, Value]) -> None:
        """Count the value that a reply reported, and whether it is valid."""
        value = reported.get(self.name) if self.name else None
        if isinstance(sound.get(self.name), int | float):
            self.sound += 1
        elif value is not None:
            fault = _fault(self.name, value)
            self.rejected.append(fault or "is a list, expected a number")

    def refuse(self, reported: Mapping[str, Value], why: str) -> None:
        """Count a reply that is rejected, if it has the metric."""
        if self.name and self.name in reported:
            self.rejected.append(f"is in a reply that was rejected: {why}")

    def why_missing(self, replies: int) -> str:
        """Return why the average of that many replies lacks the metric although nodes reported it.

        Empty if no node did, or so many that the strategy must have left it out.
        """
        if 0 < replies <= 2 * self.sound:
            return ""
        parts = [f"{self.sound} of {replies} replies have it"] if self.sound else []
        most = Counter(self.rejected).most_common(3)
        parts += [f"of {count} {'node' if count == 1 else 'nodes'} it {why}" for why, count in most]
        return "; ".join(parts)


def sound_metrics(
    metrics: Mapping[str, Value], needed: Collection[str], watched: str = ""
) -> tuple[dict[str, Value], list[str]]:
    """Return the metrics that may be averaged, and what is wrong with the others.

    A name has 1 to 200 printable characters, a value is finite, a list has at most 10,000 values,
    and beside those that are ``needed``, the one that is ``watched`` and 200 of its classes
    (``<watched>/…``) a reply has at most 100.
    """
    # Arrays are rejected and metrics are left out: Flower averages none if the names differ between
    # replies, and one node must not take them from all others.
    sound: dict[str, Value] = {}
    faults, room, classes = [], MAX_METRICS, MAX_CLASSES if watched else 0
    for name, value in metrics.items():
        fault = _fault(name, value)
        if not fault and classes and name.startswith(f"{watched}/"):
            classes -= 1
        elif not fault and name not in (*needed, watched):
            room -= 1
            fault = "is one too many" if room < 0 else ""
        if fault:
            faults.append(f"metric {quoted(name)} {fault}")
        else:
            sound[name] = value
    if room < 0:
        faults.insert(0, f"it has {MAX_METRICS - room} metrics, expected at most {MAX_METRICS}")
    return sound, faults


def _fault(name: str, value: Value) -> str:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        return f"has a bad name, expected 1 to {MAX_NAME} printable characters"
    if not isinstance(value, list):
        return "" if is_finite(value) else f"is {value}, expected a finite number"
    if len(value) > MAX_LIST:
        return f"has {len(value)} values, expected at most {MAX_LIST}"
    return "" if all(map(is_finite, value)) else "has values that are not finite"


def is_finite(value: float) -> bool:
    """Whether a number is finite, as a float too."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def in_step(
    replies: Sequence[Mapping[str, Value]], weights: Sequence[float]
) -> list[dict[str, Value]]:
    """Return replies with the same metrics, as Flower's aggregation requires.

    A metric is kept if at least half of the replies report it. If a reply lacks it, or has a list
    of another length than most, it gets the weighted mean of the others, so that the weighted
    average of all is theirs.
    """
    reported = Counter(name for metrics in replies for name in metrics)
    filled: list[dict[str, Value]] = [{} for _ in replies]
    for name, count in reported.items():
        if 2 * count < len(replies):
            continue
        values = [metrics.get(name) for metrics in replies]
        length = Counter(_length(v) for v in values if v is not None).most_common(1)[0][0]
        chosen = [
            (value, weight)
            for value, weight in zip(values, weights, strict=True)
            if value is not None and _length(value) == length
        ]
        mean = None if len(chosen) == len(replies) else _mean(chosen)
        for metrics, value in zip(filled, values, strict=True):
            fits = value is not None and _length(value) == length
            metrics[name] = cast("Value", value if fits else mean)
    return filled


def _length(value: Value) -> int:
    """Length of a list; -1 for a single number."""
    return len(value) if isinstance(value, list) else -1


def _mean(chosen: Sequence[tuple[Value, float]]) -> Value:
    total = sum(weight for _, weight in chosen)
    if not isinstance(chosen[0][0], list):
        return sum(cast("float", value) * (weight / total) for value, weight in chosen)
    columns = zip(*(cast("list[float]", value) for value, _ in chosen), strict=True)
    shares = [weight / total for _, weight in chosen]
    return [sum(v * s for v, s in zip(column, shares, strict=True)) for column in columns]
