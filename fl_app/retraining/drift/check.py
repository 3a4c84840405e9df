# SPDX-License-Identifier: Apache-2.0
"""Whether the nodes' data have moved: state and summaries in, next state and a finding out. Pure.

Each node compares its new rows with its own past, so that neither differences between nodes nor who
took part look like drift. e-values accumulate the evidence, so that the rate of false alarms holds
for ever and not for each check; a gate on the size of the effect leaves out what is too small to
matter, and what comes back each season.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fl_app.retraining.drift.kept_references import compare_with_kept, let_in
from fl_app.retraining.drift.merge import Merged, directions, effect, least_effect, merge, shared
from fl_app.retraining.drift.state import HISTORY, RECENT, SLOTS, DriftState, Window
from fl_app.settings import Key, check_settings
from fl_app.wire.data_summary import DataSummary, Feature, FeatureKind

Policy = Literal["evidence", "per_check"]
DAY = 86_400.0
UNITS = {"m": 60.0, "h": 3600.0, "d": DAY}
GROSS_EFFECT = 0.2
"""Effect in the last checks that counts whatever the season; half a standard deviation."""
LEAST_WAIT = 20.0
"""Checks without a false alarm that are asked for at least, however rare checks are."""
KNOWN_INTERVAL = 12
"""Checks after which the time between them is taken from them."""
PER_CHECK_P = 0.05


def _require_time(text: str) -> str:
    if not re.fullmatch("[1-9][0-9]*[mhd]", text):
        raise ValueError("a time such as '24h', '7d' or '90m'")
    return text


@dataclass(frozen=True)
class DriftSettings:
    """When evidence becomes an alarm.

    Attributes
    ----------
    false_alarm_days : float
        Days on average, at least, before a false alarm of drift.
    min_effect : float
        Smallest shift of the data that matters; 0.05 is an eighth of a standard deviation. It is
        the greatest difference of two distribution functions, here of a normal feature.
    season : str | None
        Time after which data repeat themselves, such as ``24h``, ``7d`` or ``90m``; None: the
        last 12 checks decide. The effect is taken over a whole season.
    policy : "evidence" | "per_check"
        ``per_check``: any p < 0.05 in any check requests retraining.
    check_interval : float
        Seconds between checks, until the checks themselves show it.

    Raises
    ------
    SettingError
        If one of them has the wrong type or range.
    """

    false_alarm_days: Annotated[float, Field(gt=0), Key("drift-false-alarm-days")] = 365.0
    min_effect: Annotated[float, Field(ge=0, lt=1), Key("drift-min-effect")] = 0.05
    season: Annotated[
        Annotated[str, AfterValidator(_require_time)] | None, Key("drift-season", off="")
    ] = "24h"
    policy: Annotated[Policy, Key("drift-policy")] = "evidence"
    check_interval: float = 300.0

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def season_seconds(self) -> float | None:
        """The season in seconds; None without one."""
        return None if self.season is None else int(self.season[:-1]) * UNITS[self.season[-1]]


@dataclass(frozen=True)
class FeatureDrift:
    """What a check found in one feature.

    Attributes
    ----------
    feature : Feature
        Which.
    p : float
        Of this check alone: chance of such a difference without drift.
    evidence : float
        Shiryaev-Roberts sum of the e-values so far.
    effect : float
        Greatest difference of the distribution functions, over the rows that decided.
    direction : str
        Where it went, in a word or two.
    nodes_moved : int
        Nodes that show it by themselves in this check (p < 0.01).
    """

    feature: Feature
    p: float
    evidence: float
    effect: float
    direction: str
    nodes_moved: int


@dataclass(frozen=True)
class DriftCheck:
    """What one check of the data found.

    Attributes
    ----------
    drifted : tuple[FeatureDrift, ...]
        The features that the alarm is about, the most moved first.
    features : tuple[FeatureDrift, ...]
        All features.
    nodes, rows : int
        Nodes that told of new rows, and how many rows.
    height : float
        Mean evidence at which the alarm rings.
    """

    drifted: tuple[FeatureDrift, ...]
    features: tuple[FeatureDrift, ...]
    nodes: int
    rows: int
    height: float

    @property
    def rings(self) -> bool:
        """Whether to retrain."""
        return bool(self.drifted)

    @property
    def reason(self) -> str:
        """One sentence for people: which features, where to, on how many nodes."""
        names = ", ".join(
            f"{found.feature} {found.direction} (effect {found.effect:.2f})"
            for found in self.drifted[:3]
        )
        more = f" and {len(self.drifted) - 3} more" if len(self.drifted) > 3 else ""
        moved = max((found.nodes_moved for found in self.drifted), default=0)
        return f"the data moved: {names}{more}; {moved} of {self.nodes} nodes show it by themselves"

    def to_json(self) -> dict[str, Any]:
        """The whole record, as JSON can hold it."""
        return {
            "features": [_found_to_json(found) for found in self.features],
            "drifted": [_found_to_json(found) for found in self.drifted],
            "nodes": self.nodes,
            "rows": self.rows,
            "height": self.height,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DriftCheck:
        """The record that ``to_json`` gave."""
        return DriftCheck(
            drifted=tuple(map(_found_from_json, value["drifted"])),
            features=tuple(map(_found_from_json, value["features"])),
            nodes=value["nodes"],
            rows=value["rows"],
            height=value["height"],
        )


def _found_to_json(found: FeatureDrift) -> list[Any]:
    values = (found.p, found.evidence, found.effect, found.direction, found.nodes_moved)
    return [found.feature.name, str(found.feature.kind), *values]


def _found_from_json(value: Sequence[Any]) -> FeatureDrift:
    name, kind, *values = value
    return FeatureDrift(Feature(name, FeatureKind(kind)), *values)


def check(
    state: DriftState, summaries: Sequence[DataSummary], time: float, settings: DriftSettings
) -> tuple[DriftState, DriftCheck | None]:
    """Take the summaries of one round, each of another node; None if they tell nothing new.

    ``time`` is in seconds since 1970.
    """
    current = [summary for summary in summaries if summary.reference == state.reference]
    state, whole = compare_with_kept(state, current)
    features, told = shared(whole)
    if not features:
        return state, None
    state = state.about(features, told[0].counts.shape[2])
    merged = merge(told, state.features, time)
    state = _with_window(state, merged.window, settings.season_seconds)
    height = alarm_height(state, settings)
    state = _with_evidence(state, merged, height)
    compared = {summary.node_id for summary in whole}
    state = let_in(state, [summary for summary in current if summary.node_id in compared])
    if settings.policy == "per_check":
        size, drifted = effect(merged.window), merged.p < PER_CHECK_P
    else:
        size, matters = _gate(state, settings)
        drifted = matters & (state.evidence >= height) & state.hold
    return state, _finding(state, merged, size, drifted, height)


def alarm_height(state: DriftState, settings: DriftSettings) -> float:
    """Mean evidence at which the alarm rings: checks in ``false_alarm_days``.

    A Shiryaev-Roberts sum of e-values reaches A after at least A checks, on average, without drift;
    so does the mean of several, however they depend on each other.
    """
    interval = settings.check_interval
    if state.checks >= KNOWN_INTERVAL and state.first is not None:
        interval = max((state.recent[-1].time - state.first) / (state.checks - 1), 1e-3)
    return max(settings.false_alarm_days * DAY / interval, LEAST_WAIT)


def _with_window(state: DriftState, window: Window, season: float | None) -> DriftState:
    """Remember the check by itself, and in its part of the season."""
    parts = state.season
    if season is not None:
        begin = window.time - window.time % (season / SLOTS)
        parts = tuple(part for part in parts if part.time > begin - season)
        if parts and parts[-1].time == begin:
            parts = (*parts[:-1], replace(parts[-1] + window, time=begin))
        else:
            parts = (*parts, replace(window, time=begin))
    return replace(
        state,
        recent=(*state.recent, window)[-RECENT:],
        season=parts,
        first=window.time if state.first is None else state.first,
        checks=state.checks + 1,
    )


def _with_evidence(state: DriftState, merged: Merged, height: float) -> DriftState:
    """Add the check's e-values: M becomes (M + 1) e; what nobody told of stays as it is."""
    told = merged.window.rows > 0
    evidence = np.where(told, (state.evidence + 1) * merged.e, state.evidence)
    # The cap lets evidence of a shift that went away go soon.
    evidence = np.minimum(evidence, 100 * height * len(evidence))
    labels = map(str, state.features)
    heard = dict(zip(labels, np.round(evidence, 3).tolist(), strict=True))
    return replace(
        state,
        evidence=evidence,
        hold=bool(evidence.mean() >= height),
        history=(*state.history, (merged.window.time, heard))[-HISTORY:],
    )


def _gate(state: DriftState, settings: DriftSettings) -> tuple[np.ndarray, np.ndarray]:
    """Size of the shift of each feature, and whether it matters.

    The last checks are taken together in as many as show the shift best. With a season they count
    only if the shift is gross; a smaller one must show in a whole season.
    """
    lately = list(itertools.accumulate(reversed(state.recent), operator.add))
    limits = np.stack([least_effect(window) for window in lately])
    sizes = np.stack([effect(window) for window in lately])
    best = limits.argmax(axis=0)[None]
    size = np.take_along_axis(sizes, best, axis=0)[0]
    limit = limits.max(axis=0)
    season = settings.season_seconds
    if season is None:
        return size, limit >= settings.min_effect
    matters = limit >= max(settings.min_effect, GROSS_EFFECT)
    if state.first is not None and state.recent[-1].time - state.first >= season:
        whole = functools.reduce(operator.add, state.season)
        matters |= least_effect(whole, nodes=False) >= settings.min_effect
    return size, matters


def _finding(
    state: DriftState, merged: Merged, size: np.ndarray, drifted: np.ndarray, height: float
) -> DriftCheck:
    went = directions(state.features, merged.window.now - merged.window.expected)
    found = [
        FeatureDrift(
            feature=feature,
            p=float(merged.p[i]),
            evidence=float(state.evidence[i]),
            effect=float(size[i]),
            direction=went[i],
            nodes_moved=int(merged.moved[i]),
        )
        for i, feature in enumerate(state.features)
    ]
    named = [found[i] for i in np.flatnonzero(drifted)]
    return DriftCheck(
        drifted=tuple(sorted(named, key=lambda one: -one.effect)),
        features=tuple(found),
        nodes=merged.nodes,
        rows=int(merged.window.rows.max()),
        height=height,
    )
