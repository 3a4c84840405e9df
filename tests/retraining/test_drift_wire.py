# SPDX-License-Identifier: Apache-2.0
"""What nodes send, honest and hostile: it comes back as it was, or is dropped by name."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from support.drift_nodes import MINUTES, NO_SEASON, Nodes

from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.retraining.drift.check import DriftSettings, observe
from fl_app.retraining.drift.state import DriftState
from fl_app.wire.data_summary import SummaryError, read_summary

HOSTILE = 10_000 if settings.default is not None and settings.default.max_examples > 100 else 100
"""Examples: many in the nightly profile."""
STATES = TypeAdapter(DriftState)
HONEST = Nodes(3, 3, seed=3)
RECORDS = {s.node_id: s.to_record() for s in HONEST.summaries()}
BARE = {s.node_id: s.to_record() for s in HONEST.bare()}

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=300),
    st.binary(max_size=3000),
    st.lists(st.one_of(st.text(max_size=20), st.floats(), st.integers()), max_size=10),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
numbers = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -1.0, 0.5, 1e9, 3e38, float("nan"), float("inf"), -float("inf")]),
    st.integers(0, 1000).map(float),
)


@st.composite
def hostile(draw: st.DrawFn) -> dict[str, Any]:
    """An honest record of node 0 in which some things are not."""
    record: dict[str, Any] = dict(draw(st.sampled_from([RECORDS["0"], BARE["0"]])))
    for key in draw(st.lists(st.sampled_from([*sorted(record), "more"]), max_size=3)):
        if key != "counts" or draw(st.booleans()):
            record[key] = draw(junk)
    if isinstance(record.get("counts"), bytes) and draw(st.booleans()):
        counts = np.frombuffer(record["counts"][: len(record["counts"]) // 4 * 4], "<f4").copy()
        for place in draw(st.lists(st.integers(0, max(len(counts) - 1, 0)), max_size=8)):
            counts[place : place + 1] = draw(numbers)
        record["counts"] = counts.tobytes()
    if draw(st.booleans()) and record:
        del record[draw(st.sampled_from(sorted(record)))]
    return record


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers_in(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers_in(v)]
    return [value] if isinstance(value, float) else []


@settings(max_examples=HOSTILE)
@given(hostile(), st.sampled_from([DriftSettings(), NO_SEASON, DriftSettings(policy="per_check")]))
def test_no_hostile_summary_ends_a_round_or_leaves_a_state_that_is_not_finite(
    record: dict[str, Any], how: DriftSettings
) -> None:
    state = DriftState()
    for number in range(3):
        state, _ = observe(state, {**RECORDS, "0": record}, number * MINUTES, how)
    state, _ = observe(state, RECORDS, 3 * MINUTES, how)
    stored = STATES.dump_json(state)
    state = STATES.validate_json(stored)  # pydantic writes what is not finite as null
    assert np.isfinite(numbers_in(json.loads(stored))).all()
    assert np.isfinite(state.evidence).all()
    for window in (*state.recent, *state.season):
        assert all(np.isfinite(values).all() for values in window.arrays)
    assert state.last is not None
    assert np.isfinite([f.p + f.effect + f.evidence for f in state.last.features]).all()


@given(st.dictionaries(st.text(max_size=10), junk, max_size=9))
@settings(max_examples=50)
def test_records_of_anything_are_read_or_refused(record: dict[str, Any]) -> None:
    with pytest.raises(SummaryError):
        read_summary(record, "0")


def spoilt(**changes: Any) -> dict[str, Any]:
    return {**RECORDS["0"], **changes}


def counts(place: int, value: float) -> bytes:
    values = np.frombuffer(RECORDS["0"]["counts"], "<f4").copy()  # type: ignore[call-overload]
    values[place] = value
    return bytes(values.tobytes())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (spoilt(version=2), "version: Input should be 1"),
        (spoilt(**{"node-id": "1"}), "its node id is 1"),
        (spoilt(bins=63), "bytes"),
        (spoilt(bins=10**9), "bins: Input should be less than or equal to 256"),
        (spoilt(names=["a"] * 3), "twice"),
        (spoilt(names=["a", "b"]), "2 names and 3 kinds"),
        (spoilt(names=["a", "b", "c" * 10_000]), "names with a text of more than 200 characters"),
        (spoilt(names=["a", "b", "c\n2026-01-01 INFO all is well"]), "plain text"),
        (
            spoilt(names=["a"] * 5000, kinds=["value"] * 5000),
            "names of length 5000, expected at most 2000",
        ),
        (
            spoilt(kinds=["value", "value", "secret"]),
            "kinds 2: Input should be 'value'",
        ),
        (spoilt(noise=[-1.0, 0.0, 0.0]), "noise 0: Input should be greater"),
        (spoilt(noise=[float("nan")] * 3), "noise 0: Input should be a finite number"),
        (spoilt(counts=b""), "0 bytes"),
        (spoilt(counts=counts(0, -1)), "negative"),
        (spoilt(counts=counts(0, float("nan"))), "not finite"),
        (spoilt(counts=counts(0, 0.5)), "whole"),
        (spoilt(counts=counts(0, 2e9)), "more than 1e+09 rows"),
        (spoilt(counts=counts(64, 0)), "smaller than its baseline"),
        (spoilt(kinds=["no kind"] * 10**6), "kinds of length 1000000, expected at most 2000"),
        (spoilt(noise=[0.0] * 4), "noise of length 4, expected at most 3"),
        (spoilt(more=1), "9 values, expected 8"),
        ({}, "version: Field required"),
    ],
)
def test_what_is_wrong_is_said_with_the_node_s_id_and_the_others_count(
    record: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        state, _ = observe(DriftState(), {**RECORDS, "0": record}, 0.0, NO_SEASON)
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("dropped the data summary of node 0: ")
    assert message in line
    assert len(line) < 250
    assert state.last is not None
    assert state.last.nodes == 2


def test_rows_that_a_column_tells_in_two_numbers_are_refused() -> None:
    (honest,) = [s for s in HONEST.bare() if s.node_id == "0"]
    spoilt = honest.counts.copy()
    spoilt[1, 0, 0] -= 1
    record = {**honest.to_record(), "counts": spoilt.astype("<f4").tobytes()}
    with pytest.raises(SummaryError, match="two numbers of rows of x0"):
        read_summary(record, "0")


def test_a_summary_survives_flower_s_record() -> None:
    summary = HONEST.summaries()[1]
    record = ConfigRecord(summary.to_record())  # type: ignore[arg-type]
    back = read_summary(record, "1")
    assert (back.features, back.reference, back.noise) == (summary.features, "", (0.0,) * 3)
    np.testing.assert_array_equal(back.counts, summary.counts)


def test_a_lasting_alarm_requests_retraining_once_a_day() -> None:
    nodes, state, requested = Nodes(4, 2, means=0.0), DriftState(), []
    for number in range(80):
        moved = 1.0 if number >= 12 else 0.0
        summaries = nodes.summaries(moved, hold=state.hold)
        records = {s.node_id: s.to_record() for s in summaries}
        state, reason = observe(state, records, number * 3600.0, NO_SEASON)
        if reason:
            requested.append(number)
    assert requested == [12, 36, 60]


def test_a_drift_request_that_is_taken_begins_a_new_reference() -> None:
    now = [datetime(2026, 1, 4, tzinfo=UTC)]
    monitor = RetrainingManager(store=MonitorStore(), drift=NO_SEASON, now=lambda: now[0])
    nodes = Nodes(4, 2, means=0.0)
    for moved in [0.0] * 12 + [1.0]:
        summaries = nodes.summaries(moved, hold=bool(monitor.data_orders()["data-hold"]))
        monitor.update_data({s.node_id: s.to_record() for s in summaries}, 1)
        now[0] += timedelta(hours=1)
    request = monitor.take()
    assert request is not None
    assert monitor.data_orders() == {"data-reference": request.id, "data-hold": False}
    assert (monitor.drift.checks, monitor.drift.last) == (0, None)


def test_the_guide_s_rule_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        RetrainingManager(store=MonitorStore(), drift=DriftSettings(policy="per_check"))
    assert "997 of 1,000" in caplog.text
