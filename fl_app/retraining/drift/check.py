# SPDX-License-Identifier: Apache-2.0
"""The drift test: state and the nodes' data summaries in, next state and a result out. Pure.

Each node compares its new rows with its own past. So neither differences between nodes nor the
choice of nodes looks like drift. A check is compared with the quiet checks before it, so that
neither the effects of batches nor the weather do. e-values accumulate the evidence, so that the
rate of false alarms is per year and not per check. A gate on the size of the effect excludes
changes that are too small to matter, and those that recur each season.
"""

from __future__ import annotations

import functools
import itertools
import logging
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fl_app.retraining.drift.merge import LEAST_P, Merged, direction, merge, shared
from fl_app.retraining.drift.state import (
    HISTORY,
    RECENT,
    SLOTS,
    DriftCheck,
    DriftState,
    FeatureDrift,
    Window,
)
from fl_app.settings import Key, check_settings
from fl_app.wire.data_summary import DataSummary, SummaryError, read_summary

logger = logging.getLogger("flwr.fl_app")

Policy = Literal["evidence", "per_check"]
DAY = 86_400.0
UNITS = {"m": 60.0, "h": 3600.0, "d": DAY}
GROSS_EFFECT = 0.2
"""Effect in the last checks that matters in any season; half a standard deviation."""
LEAST_WAIT = 20.0
"""Lower limit of the mean number of checks to a false alarm, for rare checks."""
KNOWN_INTERVAL = 12
"""Checks after which the time between them is measured."""
PER_CHECK_P = 0.05
MOST_P = 0.999
E_CAP = 1e15


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
    max_node_share : float | None
        Most rows of a node that count in a check, in multiples of an equal share of the check's
        nodes; None: no limit. The app takes that of ``Screening``.

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
    max_node_share: Annotated[float | None, Field(gt=1)] = 2.0

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def season_seconds(self) -> float | None:
        """The season in seconds; None without one."""
        return None if self.season is None else int(self.season[:-1]) * UNITS[self.season[-1]]


def observe(
    state: DriftState,
    records: Mapping[str, Mapping[str, object]],
    time: float,
    settings: DriftSettings,
) -> tuple[DriftState, str]:
    """Check the data summaries of a round, as the nodes sent them.

    A malformed summary is logged and ignored.

    Parameters
    ----------
    records : Mapping[str, Mapping[str, object]]
        By node id.
    time : float
        Seconds since 1970.

    Returns
    -------
    tuple[DriftState, str]
        The next state, and the reason to retrain, if any. A lasting alarm has one once a day.
    """
    summaries = []
    for node_id, record in records.items():
        try:
            summaries.append(read_summary(record, node_id))
        except SummaryError as error:
            logger.warning("dropped the data summary of node %s: %s", node_id, error)
    state, result = check(state, summaries, time, settings)
    if result is None:
        return state, ""
    requested = state.requested if result.is_alarm or state.hold else None
    due = result.is_alarm and (requested is None or time - requested >= DAY)
    state = replace(state, last=result, requested=time if due else requested)
    return state, result.reason if due else ""


def check(
    state: DriftState, summaries: Sequence[DataSummary], time: float, settings: DriftSettings
) -> tuple[DriftState, DriftCheck | None]:
    """Check the summaries of a round, one of each node, at ``time`` in seconds since 1970.

    Returns
    -------
    tuple[DriftState, DriftCheck | None]
        The next state and the result; None without anything to compare.
    """
    # Others were made before the nodes received the order for the present reference.
    current = [summary for summary in summaries if summary.reference == state.reference]
    state, complete = state.with_references(current)
    features, usable = shared(complete)
    if not features:
        return state, None
    state = state.with_features(features, usable[0].counts.shape[2])
    merged = merge(
        usable,
        state.features,
        time,
        shares=settings.max_node_share,
        node_variance=state.quiet.node_variance,
    )
    state = _with_window(state, merged.window, settings.season_seconds)
    height = alarm_height(state, settings)
    state = _with_evidence(state, merged, height)
    compared = {summary.node_id for summary in complete}
    # The reference grows: a frozen one of 300 rows has an error that all checks share, which adds
    # up to evidence (34 false alarms in 1,000 checks). While ``hold``, it does not grow: a lasting
    # shift would be part of it before a season is over, and the gate on the effect would open when
    # the evidence is gone.
    state = state.with_grown_references([each for each in current if each.node_id in compared])
    if settings.policy == "per_check":
        size, drifted = merged.window.effect, merged.p < PER_CHECK_P
    else:
        size, matters = _gate(state, settings)
        drifted = matters & (state.evidence.mean(axis=1) >= height) & state.hold
    return state, _result(state, merged, size, drifted, height)


def alarm_height(state: DriftState, settings: DriftSettings) -> float:
    """Return the mean evidence of an alarm: the number of checks in ``false_alarm_days``.

    Without drift, a Shiryaev-Roberts sum of e-values reaches A after A checks or more on average.
    So does the mean of several sums, whatever their dependence.
    """
    interval = settings.check_interval
    if state.checks >= KNOWN_INTERVAL and state.first is not None:
        interval = max((state.recent[-1].time - state.first) / (state.checks - 1), 1e-3)
    return max(settings.false_alarm_days * DAY / interval, LEAST_WAIT)


def _with_window(state: DriftState, window: Window, season: float | None) -> DriftState:
    """Store the check by itself, and in its part of the season."""
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
    """Add the e-values of a check: M becomes (M + 1) e, for the features that have new rows."""
    seen = merged.window.rows > 0
    e = e_value(state.quiet.p_values(merged.scores, hold=state.hold))
    evidence = np.where(seen[:, None], (state.evidence + 1) * e, state.evidence)
    # The cap lets the evidence of a past shift decay soon.
    evidence = np.minimum(evidence, 100 * height * evidence.size)
    means = evidence.mean(axis=1)
    rounded = np.round(means, 3).tolist()
    by_feature = {str(f): value for f, value in zip(state.features, rounded, strict=True)}
    hold = bool(means.mean() >= height)
    return replace(
        state,
        evidence=evidence,
        # A check is quiet, and shows how checks differ, unless there is enough evidence.
        quiet=state.quiet if hold else state.quiet.after(merged.scores, seen),
        hold=hold,
        history=(*state.history, (merged.window.time, by_feature))[-HISTORY:],
    )


def _gate(state: DriftState, settings: DriftSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return the size of the shift of each feature, and whether it matters.

    The size is that of the last checks together, in the number that shows the shift best. With a
    season only a gross shift matters in them; a smaller one must show in a whole season.
    """
    lately = list(itertools.accumulate(reversed(state.recent), operator.add))
    limits = np.stack([window.least_effect() for window in lately])
    sizes = np.stack([window.effect for window in lately])
    size = sizes[limits.argmax(axis=0), np.arange(len(state.features))]
    limit = limits.max(axis=0)
    season = settings.season_seconds
    if season is None:
        return size, limit >= settings.min_effect
    # In a part of a season a cycle of the data looks like a shift, unless that is gross. A daily
    # cycle of 0.3 standard deviations causes 500 alarms in ten days if the last hour decides, and
    # none over a whole day. The price: a shift of 0.2 in one of ten columns is detected after 18
    # hours instead of at once (benchmarks/drift.py).
    matters = limit >= max(settings.min_effect, GROSS_EFFECT)
    if state.first is not None and state.recent[-1].time - state.first >= season:
        whole = functools.reduce(operator.add, state.season)
        matters |= whole.least_effect(nodes=False) >= settings.min_effect
    return size, matters


def _result(
    state: DriftState, merged: Merged, size: np.ndarray, drifted: np.ndarray, height: float
) -> DriftCheck:
    running = np.cumsum(merged.window.now - merged.window.expected, axis=1)
    columns = zip(
        state.features,
        merged.p.tolist(),
        state.evidence.mean(axis=1).tolist(),
        size.tolist(),
        map(direction, state.features, running),
        merged.moved.astype(int).tolist(),
        strict=True,
    )
    features = tuple(itertools.starmap(FeatureDrift, columns))
    alarms = itertools.compress(features, drifted)
    return DriftCheck(
        drifted=tuple(sorted(alarms, key=lambda each: -each.effect)),
        features=features,
        nodes=merged.nodes,
        rows=merged.rows,
        height=height,
    )


def e_value(p: np.ndarray) -> np.ndarray:
    """Return the mixture of all power calibrators of a p-value (Vovk and Wang 2021).

    It is (1 - p + p ln p) / (p ln(p)^2). Its mean is at most 1 without drift, also with the cap.
    """
    p = np.clip(p, LEAST_P, MOST_P)
    log = np.log(p)
    return np.asarray(np.minimum((1 - p + p * log) / (p * log**2), E_CAP))
