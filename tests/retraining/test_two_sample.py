# SPDX-License-Identifier: Apache-2.0
"""check_data_drift: scipy's p-values, corrected, and the reason if there is none."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from support.docs import run_block

from fl_app import check_data_drift
from fl_app.retraining.drift.columns import column_of, columns_of
from fl_app.retraining.drift.two_sample import FeatureComparison, _holm

RNG = np.random.default_rng(1)


def test_one_feature_is_scipy_s_answer() -> None:
    now, past = RNG.normal(0.2, 1, 300), RNG.normal(0, 1, 500)
    result, expected = check_data_drift(now, past), ks_2samp(now, past)
    assert result.pvalue == expected.pvalue
    assert result.statistic == expected.statistic
    assert result.features[0].effect == pytest.approx((now.mean() - past.mean()) / past.std(ddof=1))


def test_the_feature_that_moved_is_named() -> None:
    now, past = RNG.normal(0, 1, (500, 4)), RNG.normal(0, 1, (500, 4))
    now[:, 2] += 1
    result = check_data_drift(now, past, names=["age", "height", "weight", "pulse"])
    assert result.drifted == ("weight",)
    assert result.features[2].effect == pytest.approx(1, abs=0.2)
    assert [f.problem for f in result.features] == [""] * 4


def test_many_features_are_no_alarm_by_their_number() -> None:
    alarms = sum(
        bool(check_data_drift(RNG.random((50, 20)), RNG.random((50, 20))).drifted)
        for _ in range(200)
    )
    assert alarms <= 20  # uncorrected: 128


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_s_correction_keeps_the_order_and_is_between_none_and_bonferroni(
    values: list[float],
) -> None:
    result = [FeatureComparison(str(i), 0.5, p, 0.0) for i, p in enumerate(values)]
    corrected = [f.pvalue or 0.0 for f in _holm(result)]
    for p, after in zip(values, corrected, strict=True):
        assert p <= after <= min(1.0, p * len(values)) + 1e-12
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    assert min(corrected) == min(1.0, min(values) * len(values))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (np.arange(7.0), "the current data have 7 rows"),
        (np.array([]), "the current data have 0 rows"),
        (np.array([None, None]), "the current data have 2 rows"),
        ([str(i) for i in range(50)], "its levels are too rare"),
    ],
)
def test_without_an_answer_there_is_a_reason(now: object, message: str) -> None:
    result = check_data_drift(now, np.arange(100.0))
    assert result.pvalue is None
    assert result.statistic is None
    assert result.drifted == ()
    assert message in result.problems["0"]


OTHER = np.random.default_rng(2)
NORMAL = OTHER.normal(size=(2, 500))
FEW = OTHER.random((2, 500)) < 0.05
DAYS = np.datetime64("2026-01-01") + np.arange(500).astype("timedelta64[D]")
HALF = OTHER.random(500) < 0.5


@pytest.mark.parametrize(
    ("now", "past", "drifts"),
    [
        (np.full(99, 3.0), np.full(99, 3.0), False),
        (np.full(99, 0.1 + 0.2), np.full(99, 0.3), False),
        (np.full(99, 4.0), np.full(99, 3.0), True),
        (np.where(FEW[0], np.nan, NORMAL[0]), np.where(FEW[1], np.nan, NORMAL[1]), False),
        (np.where(HALF, np.nan, NORMAL[0]), np.where(FEW[1], np.nan, NORMAL[1]), True),
        (np.full(99, np.nan), NORMAL[1], True),
        (np.full(99, np.nan), np.full(99, np.nan), False),
        (np.where(FEW[0], np.inf, NORMAL[0]), np.where(FEW[1], np.inf, NORMAL[1]), False),
        (np.where(HALF, np.inf, NORMAL[0]), NORMAL[1], True),
        (NORMAL[0] * 1e300, NORMAL[1] * 1e300, False),
        (FEW[0], FEW[1], False),
        (HALF, FEW[1], True),
        (FEW[0], FEW[1].astype(int), False),
        (list("abc") * 99, list("abc") * 50, False),
        (list("abd") * 99, list("abc") * 50, True),
        (list("ab") * 99 + ["z"], list("ab") * 99, False),
        (["a"] * 8, ["b"] * 8, True),
        (["b"] * 8, ["a"] * 5000, True),
        ([None, "a"] * 99, [None, "a"] * 99, False),
        (DAYS, DAYS, False),
        (DAYS + np.timedelta64(200, "D"), DAYS, True),
        (DAYS.tolist(), DAYS, False),
        (np.where(HALF, np.datetime64("NaT"), DAYS), DAYS, True),
        (["a"] * 50, np.zeros(50), True),
        ([10**400] * 9, [10**400] * 9, False),
        (np.ma.masked_array(NORMAL[0], HALF), NORMAL[1], True),
    ],
)
def test_any_column_has_a_p_value(now: object, past: object, drifts: bool) -> None:
    (feature,) = check_data_drift(now, past).features
    assert feature.pvalue is not None
    assert (feature.pvalue < 0.01) is drifts


def test_frames_are_paired_by_name_and_what_only_one_has_is_reported() -> None:
    now = pd.DataFrame({"a": NORMAL[0], "new": 1, "b": NORMAL[0] + 5})
    past = pd.DataFrame({"b": NORMAL[1] + 5, "a": NORMAL[1] + 5, "gone": "x"})
    result = check_data_drift(now, past)
    assert result.drifted == ("a",)
    assert result.problems == {
        "new": "the reference data lack this column",
        "gone": "the current data lack this column",
    }
    assert result.pvalue is not None
    by_mapping = check_data_drift(now.to_dict("list"), past)
    assert by_mapping.pvalue == result.pvalue


def test_pandas_own_types_are_read() -> None:
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, None, 3] * 30, dtype="Int64"),
            "kind": pd.Categorical(["x", "y", None] * 30),
            "time": pd.date_range("2026-01-01", periods=90, tz="Europe/Berlin"),
            "text": pd.array(["a", None, "b"] * 30, dtype="string"),
        }
    )
    same = check_data_drift(frame, frame)
    assert [feature.pvalue for feature in same.features] == [1.0] * 4
    assert same.problems == {}
    later = frame.assign(time=frame["time"] + pd.Timedelta(days=90), kind="x")
    assert check_data_drift(later, frame).drifted == ("kind", "time")


DAYS = [datetime.date(2026, 1, 1), None, datetime.date(2026, 1, 3)]
COLUMNS: dict[str, tuple[list[Any], str]] = {
    "whole": ([1, None, 3], "number"),
    "real": ([1.5, None, 2.5], "number"),
    "flag": ([True, False, None], "bool"),
    "text": (["a", None, "b"], "text"),
    "day": (DAYS, "time"),
}


@pytest.mark.parametrize("library", ["polars", "pyarrow", "pyarrow batch"])
def test_frames_of_other_libraries_are_read_as_a_mapping_is(library: str) -> None:
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    make = {"polars": pl.DataFrame, "pyarrow": pa.table, "pyarrow batch": pa.record_batch}
    plain = {name: values for name, (values, _) in COLUMNS.items()}
    table = columns_of(make[library](plain))
    assert table.names == tuple(COLUMNS)
    for found, (values, kind) in zip(map(column_of, table.values), COLUMNS.values(), strict=True):
        assert (found.kind, found.missing) == (kind, 1)
        assert found.values.tolist() == column_of(np.array(values, object)).values.tolist()


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_a_missing_level_is_missing(library: str) -> None:
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    levels = ["a", None, "b"]
    coded = pl.Series(levels, dtype=pl.Categorical)
    if library == "pyarrow":
        coded = pa.array(levels).dictionary_encode()
    frame = pl.DataFrame({"s": coded}) if library == "polars" else pa.table({"s": coded})
    for data in (frame, coded):
        found = column_of(columns_of(data).values[0])
        assert (found.values.tolist(), found.missing) == (["a", "b"], 1)


def test_a_lazy_frame_is_refused_with_the_remedy() -> None:
    lazy = pytest.importorskip("polars").DataFrame({"x": [1.0, 2.0]}).lazy()
    with pytest.raises(ValueError, match=r"lazy frame.*give data\.collect\(\)"):
        check_data_drift(lazy, lazy)


def test_columns_with_one_name_are_kept_apart() -> None:
    frame = pd.DataFrame(np.stack([NORMAL[0], NORMAL[0] + 1], axis=1), columns=["a", "a"])
    assert [f.name for f in check_data_drift(frame, frame).features] == ["a", "a (2)"]


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["", "a", "b", "1"]),
    st.dates(),
    st.datetimes(),
    st.timedeltas(),
    st.sampled_from([pd.NaT, pd.NA, np.datetime64("NaT"), Decimal("NaN"), Decimal(1), b"x", 1j]),
)


@st.composite
def samples(draw: st.DrawFn) -> object:
    some = draw(st.lists(values, min_size=1, max_size=4))
    rows = draw(st.integers(0, 40))
    column = draw(st.lists(st.sampled_from(some), min_size=rows, max_size=rows))
    as_objects = np.empty(len(column), dtype=object)
    as_objects[:] = column
    return draw(
        st.sampled_from(
            [
                as_objects,
                pd.Series(as_objects),
                np.array([*map(str, column)]),
                pd.to_numeric(pd.Series(as_objects.astype(str)), errors="coerce").to_numpy(),
            ]
        )
    )


@given(samples(), samples())
def test_any_mixture_has_a_p_value_or_a_reason(now: object, past: object) -> None:
    for result in (
        check_data_drift(now, past),
        check_data_drift({"x": now, "y": past}, {"x": past, "z": now}),
    ):
        for feature in result.features:
            assert feature.pvalue is not None or feature.problem
            assert feature.pvalue is None or 0 <= feature.pvalue <= 1
            assert feature.statistic is None or 0 <= feature.statistic <= 1
            assert feature.effect is None or np.isfinite(feature.effect)


@pytest.mark.parametrize(
    ("now", "past", "message"),
    [
        (np.zeros((9, 2)), np.zeros((9, 3)), "2 features and the reference 3"),
        (np.zeros((2, 2, 2)), np.zeros(9), "shape"),
        (3.0, np.zeros(9), "shape"),
        ([[1, 2], [3]], np.zeros(9), "differ in length"),
        ({"a": 1}, {"a": [1]}, "The column a has shape"),
    ],
)
def test_data_that_are_no_table_are_refused(now: object, past: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_data_drift(now, past)


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_names_that_are_not_one_for_each_feature_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="names for 2 features"):
        check_data_drift(np.zeros((9, 2)), np.zeros((9, 2)), names=names)


def test_the_page_s_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_block("drift.md", "check_data_drift")
    assert "('age',)" in capsys.readouterr().out
