# SPDX-License-Identifier: Apache-2.0
"""check_data_drift: scipy's answer, corrected, and said where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from fl_app import check_data_drift
from fl_app.retraining.drift.two_sample import FeatureComparison, _holm

RNG = np.random.default_rng(1)


def test_one_feature_is_scipy_s_answer() -> None:
    now, past = RNG.normal(0.2, 1, 300), RNG.normal(0, 1, 500)
    found, expected = check_data_drift(now, past), ks_2samp(now, past)
    assert found.pvalue == expected.pvalue
    assert found.statistic == expected.statistic
    assert found.features[0].effect == pytest.approx((now.mean() - past.mean()) / past.std(ddof=1))


def test_the_feature_that_moved_is_named() -> None:
    now, past = RNG.normal(0, 1, (500, 4)), RNG.normal(0, 1, (500, 4))
    now[:, 2] += 1
    found = check_data_drift(now, past, names=["age", "height", "weight", "pulse"])
    assert found.drifted == ("weight",)
    assert found.features[2].effect == pytest.approx(1, abs=0.2)
    assert [f.problem for f in found.features] == [""] * 4


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
    found = [FeatureComparison(str(i), 0.5, p, 0.0) for i, p in enumerate(values)]
    corrected = [f.pvalue or 0.0 for f in _holm(found)]
    for p, after in zip(values, corrected, strict=True):
        assert p <= after <= min(1.0, p * len(values)) + 1e-12
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    assert min(corrected) == min(1.0, min(values) * len(values))


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (np.arange(7.0), "the current data have 7 rows"),
        (np.full(50, 3.0), "the current data are constant"),
        (np.array([np.nan, *range(20)]), "the current data hold 1 NaN"),
        (np.array([np.inf, *range(20)]), "the current data hold 1 infinite"),
    ],
)
def test_where_there_is_no_answer_it_says_so(now: np.ndarray, said: str) -> None:
    found = check_data_drift(now, np.arange(100.0))
    assert found.pvalue is None
    assert found.statistic is None
    assert found.drifted == ()
    assert said in found.problems["0"]


def test_other_features_still_get_theirs() -> None:
    now, past = RNG.normal(0, 1, (100, 2)), RNG.normal(3, 1, (100, 2))
    now[:, 0] = 5
    found = check_data_drift(now, past)
    assert found.drifted == ("1",)
    assert list(found.problems) == ["0"]


@pytest.mark.parametrize(
    ("now", "past", "said"),
    [
        (np.zeros((9, 2)), np.zeros((9, 3)), "2 features and the reference 3"),
        (np.zeros((2, 2, 2)), np.zeros(9), "shape"),
        (np.array(["a"] * 9), np.zeros(9), "numbers"),
    ],
)
def test_arrays_that_cannot_be_compared_are_refused(
    now: np.ndarray, past: np.ndarray, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        check_data_drift(now, past)


def test_the_readme_s_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = [block.split("```")[0] for block in readme.split("```python\n")]
    (snippet,) = (block for block in blocks[1:] if "check_data_drift" in block)
    exec(compile(snippet, "README.md", "exec"), {})  # noqa: S102 - our own README
    assert "('age',)" in capsys.readouterr().out
