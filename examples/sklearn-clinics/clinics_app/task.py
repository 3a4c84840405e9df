# SPDX-License-Identifier: Apache-2.0
"""The model and its data: scikit-learn's 569 breast cancer findings, which come in bit by bit."""

import warnings

import numpy as np
from flwr.app import ArrayRecord
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Columns = dict[str, np.ndarray]
FIRST, EACH_ROUND, HELD_OUT = 90, 60, 89


def table(
    clinic: int, clinics: int, server_round: int, new_scanner_in: int
) -> tuple[Columns, list]:
    """A clinic's columns and diagnoses in a round: it has more with each.

    From the round ``new_scanner_in`` on, a scanner reports all lengths twice as long; 0 for never.
    """
    data, order = load_breast_cancer(), np.random.default_rng(7).permutation(569)[HELD_OUT:]
    mine = order[clinic::clinics][: FIRST + EACH_ROUND * (server_round - 1)]
    rows = data.data[mine]
    if 0 < new_scanner_in <= server_round:
        new = slice(FIRST + EACH_ROUND * (new_scanner_in - 2), None)
        lengths = [i for i, n in enumerate(data.feature_names) if "radius" in n or "perimeter" in n]
        rows[new, lengths] *= 2
    columns = dict(zip(map(str, data.feature_names), rows.T, strict=True))
    return columns, data.target[mine]


def holdout() -> tuple[np.ndarray, np.ndarray]:
    """Findings that no clinic has, as the model takes them."""
    data, order = load_breast_cancer(), np.random.default_rng(7).permutation(569)[:HELD_OUT]
    return scaled(data.data[order]), data.target[order]


def scaled(rows: np.ndarray) -> np.ndarray:
    """Rows in units that suit a logistic regression."""
    data = load_breast_cancer().data
    return (rows - data.mean(axis=0)) / data.std(axis=0)


def first_arrays() -> ArrayRecord:
    """Weights of shape (1, 30) and a bias of shape (1,), all zero."""
    return ArrayRecord([np.zeros((1, 30)), np.zeros(1)])


def model_of(arrays: ArrayRecord) -> LogisticRegression:
    """A logistic regression that goes on from ``arrays``."""
    model = LogisticRegression(max_iter=10, warm_start=True)
    model.coef_, model.intercept_ = arrays.to_numpy_ndarrays()
    model.classes_ = np.arange(2)
    return model


def fit(model: LogisticRegression, rows: np.ndarray, diagnoses: np.ndarray) -> None:
    """Train in place; a few steps a round never converge, and need not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, diagnoses)
