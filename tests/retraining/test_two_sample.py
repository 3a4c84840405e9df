# SPDX-License-Identifier: Apache-2.0
"""check_data_drift: scipy's p-values, corrected, and the reason if there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from support.docs import run_block

from fl_app import check_data_drift
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
        (np.full(50, 3.0), "the current data are constant"),
        (np.array([np.nan, *range(20)]), "the current data hold 1 NaN"),
        (np.array([np.inf, *range(20)]), "the current data hold 1 infinite"),
    ],
)
def test_without_an_answer_there_is_a_reason(now: np.ndarray, message: str) -> None:
    result = check_data_drift(now, np.arange(100.0))
    assert result.pvalue is None
    assert result.statistic is None
    assert result.drifted == ()
    assert message in result.problems["0"]


def test_other_features_still_get_theirs() -> None:
    now, past = RNG.normal(0, 1, (100, 2)), RNG.normal(3, 1, (100, 2))
    now[:, 0] = 5
    result = check_data_drift(now, past)
    assert result.drifted == ("1",)
    assert list(result.problems) == ["0"]


@pytest.mark.parametrize(
    ("now", "past", "message"),
    [
        (np.zeros((9, 2)), np.zeros((9, 3)), "2 features and the reference 3"),
        (np.zeros((2, 2, 2)), np.zeros(9), "shape"),
        (np.array(["a"] * 9), np.zeros(9), "numbers"),
    ],
)
def test_arrays_that_cannot_be_compared_are_refused(
    now: np.ndarray, past: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_data_drift(now, past)


def test_the_page_s_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_block("drift.md", "check_data_drift")
    assert "('age',)" in capsys.readouterr().out
