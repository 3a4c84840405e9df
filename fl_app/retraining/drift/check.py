# SPDX-License-Identifier: Apache-2.0
"""The drift test: state and the nodes' data summaries in, next state and a result out. Pure.

Each node compares its new rows with its own past. So neither differences between nodes nor the
choice of nodes looks like drift. e-values accumulate the evidence, so that the rate of false alarms
is per year and not per check. A gate on the size of the effect excludes changes that are too small
to matter, and those that recur each season.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from fl_app.retraining.drift.state import (
    HISTORY,
    RECENT,
    SLOTS,
    DriftCheck,
    DriftState,
    FeatureDrift,
    Window,
    difference,
)
from fl_app.settings import Key, check_settings
from fl_app.wire.data_summary import DataSummary, Feature, FeatureKind, SummaryError, read_summary

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
SQUARE_MEAN = math.pi**2 / 12
SQUARE_VARIANCE = 7 * math.pi**4 / 720 - SQUARE_MEAN**2
"""Mean and variance of the square of a variable with Kolmogorov's distribution."""
LEAST_P, MOST_P = 1e-300, 0.999
E_CAP = 1e15
MOVED_P = 0.01


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
    merged = merge(usable, state.features, time)
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
        drifted = matters & (state.evidence >= height) & state.hold
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
    e = (e_value(merged.p) + e_value(merged.nodes_p)) / 2  # the mean of e-values is an e-value
    evidence = np.where(merged.window.rows > 0, (state.evidence + 1) * e, state.evidence)
    # The cap lets the evidence of a past shift decay soon.
    evidence = np.minimum(evidence, 100 * height * len(evidence))
    rounded = np.round(evidence, 3).tolist()
    by_feature = {str(f): value for f, value in zip(state.features, rounded, strict=True)}
    return replace(
        state,
        evidence=evidence,
        hold=bool(evidence.mean() >= height),
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
        state.evidence.tolist(),
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
        rows=int(merged.window.rows.max()),
        height=height,
    )


@dataclass(frozen=True, eq=False)
class Merged:
    """One check, all nodes together; each array has shape (features,).

    Attributes
    ----------
    window : Window
        The counts, and their expectation by the frozen baselines.
    p : np.ndarray
        p-value of the difference from the grown references, all rows together; 1 without rows.
    nodes_p : np.ndarray
        Fisher's combination of the p-values of the nodes' own differences. It shows a shift on some
        nodes, which hardly shows in the sum of all.
    moved : np.ndarray
        Number of nodes whose rows differ from their own reference (p < 0.01).
    nodes : int
        Number of nodes with a summary.
    """

    window: Window
    p: np.ndarray
    nodes_p: np.ndarray
    moved: np.ndarray
    nodes: int


def kolmogorov_p(shift: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the p-value of a difference ``shift`` of distribution functions, by Stephens (1970).

    ``variance`` is 1 over the effective number of rows, 1/n + 1/m for two samples, plus the
    variance of noise in the counts.
    """
    from scipy.special import kolmogorov

    root = 1 / np.sqrt(variance)
    return np.asarray(kolmogorov((root + 0.12 + 0.11 / root) * shift))


def e_value(p: np.ndarray) -> np.ndarray:
    """Return the mixture of all power calibrators of a p-value (Vovk and Wang 2021).

    It is (1 - p + p ln p) / (p ln(p)^2). Its mean is at most 1 without drift, also with the cap.
    """
    p = np.clip(p, LEAST_P, MOST_P)
    log = np.log(p)
    return np.asarray(np.minimum((1 - p + p * log) / (p * log**2), E_CAP))


def shared(summaries: Sequence[DataSummary]) -> tuple[list[Feature], list[DataSummary]]:
    """Return the features of most nodes, and the summaries with the usual number of bins."""
    if not summaries:
        return [], []
    # A majority decides, so that no node adds columns or changes the bins of all.
    usual = Counter(s.counts.shape[2] for s in summaries).most_common(1)[0][0]
    usable = []
    for summary in summaries:
        if summary.counts.shape[2] == usual:
            usable.append(summary)
        else:
            bins = summary.counts.shape[2]
            logger.warning("node %s counts in %d bins, not in %d", summary.node_id, bins, usual)
    nodes_with = Counter(f for summary in usable for f in summary.features)
    common = [f for f, n in nodes_with.items() if f.kind != "missing" and 2 * n > len(usable)]
    columns = {feature.name for feature in common}
    missing = [f for f in nodes_with if f.kind == "missing" and f.name in columns]
    return [*common, *missing], usable


def merge(summaries: Sequence[DataSummary], features: Sequence[Feature], time: float) -> Merged:
    """Add up the counts of all nodes, and their expectations by the nodes' own references.

    The nodes' rows are independent, so the variance of the difference is the sum of their variances
    times their squared shares, ``sum w^2 (1/n + 1/r)``, plus that of noise, ``B sigma^2 / n^2``.
    """
    from scipy.special import gammaincc

    place = {feature: number for number, feature in enumerate(features)}
    bins = summaries[0].counts.shape[2]
    now, grown, frozen = np.zeros((3, len(features), bins))
    rows, noise, variance, base, spread, spread_variance = np.zeros((6, len(features)))
    surprise, nodes, moved = np.zeros((3, len(features)))
    for summary in summaries:
        mine = [i for i, feature in enumerate(summary.features) if feature in place]
        to = [place[summary.features[i]] for i in mine]
        counts, (v_now, v_grown, v_base) = summary.counts[mine], np.multiply(bins, summary.noise)
        n, r, b = counts.sum(axis=2).T
        # A reference has more rows than this check: scaled, it is the expectation of the new rows.
        expected = counts * (n[:, None] / counts.sum(axis=2))[:, :, None]
        now[to] += counts[:, 0]
        grown[to] += expected[:, 1]
        frozen[to] += expected[:, 2]
        rows[to] += n
        noise[to] += v_now
        fresh = (n + v_now) / n**2
        own = fresh + 1 / r + v_grown / r**2
        variance[to] += n**2 * own
        p = kolmogorov_p(difference(counts[:, 0], expected[:, 1], n), own)
        # Fisher's combination: a shift of half a standard deviation on a fifth of the nodes hardly
        # shows in the sum of all. With this p-value the alarm comes after 2 checks instead of 5.
        surprise[to] -= np.log(np.maximum(p, LEAST_P))
        moved[to] += p < MOVED_P
        nodes[to] += 1
        own_base = 1 / b + v_base / b**2
        base[to] += n**2 * own_base
        shift, error = difference(counts[:, 0], expected[:, 2], n), fresh + own_base
        spread[to] += n * (shift**2 - SQUARE_MEAN * error)
        spread_variance[to] += n**2 * (SQUARE_VARIANCE * error**2 + shift**2 * error)
    window = Window(time, now, frozen, rows, noise, np.sqrt(base), spread, spread_variance)
    some = np.maximum(rows, 1)
    p = kolmogorov_p(difference(now, grown, some), np.maximum(variance, 1) / some**2)
    nodes_p = gammaincc(np.maximum(nodes, 1), surprise)
    return Merged(window, np.where(rows > 0, p, 1.0), nodes_p, moved, len(summaries))


def direction(feature: Feature, running: np.ndarray) -> str:
    """Describe how a feature changed; ``running`` sums now less expected, shape (bins,)."""
    if feature.kind is FeatureKind.LEVELS:
        return "in another mix"
    if feature.kind is FeatureKind.MISSING:
        return "more often" if running[0] < 0 else "less often"
    mean = running.sum() / len(running)
    if abs(mean) < max(running.max(), -running.min()) / 4:
        return "with another spread"
    return "higher" if mean < 0 else "lower"
