# SPDX-License-Identifier: Apache-2.0
"""The model and its data: 1,797 pictures of digits that scikit-learn ships."""

import warnings

import numpy as np
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

Split = tuple[np.ndarray, np.ndarray]
CLASSES, PIXELS = 10, 64


def holdout() -> Split:
    """The server's fifth of the pictures, which no client sees."""
    return _splits()[1]


def partition(partition_id: int, num_partitions: int) -> tuple[Split, Split]:
    """A node's share, as pictures to train on and pictures to evaluate on."""
    pictures, digits = _splits()[0]
    mine = slice(partition_id, None, num_partitions)
    x_train, x_test, y_train, y_test = train_test_split(
        pictures[mine], digits[mine], test_size=0.2, random_state=7
    )
    return (x_train, y_train), (x_test, y_test)


def first_arrays() -> ArrayRecord:
    """Weights of shape (10, 64) and biases of shape (10,), all zero."""
    return ArrayRecord([np.zeros((CLASSES, PIXELS)), np.zeros(CLASSES)])


def model_of(arrays: ArrayRecord, local_steps: int = 1) -> LogisticRegression:
    """A logistic regression that goes on from ``arrays``."""
    model = LogisticRegression(max_iter=local_steps, warm_start=True)
    model.coef_, model.intercept_ = arrays.to_numpy_ndarrays()
    model.classes_ = np.arange(CLASSES)
    return model


def fit(model: LogisticRegression, data: Split) -> None:
    """Train in place; a few steps a round never converge, and need not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(*data)


def _splits() -> tuple[Split, Split]:
    pictures, digits = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        pictures / 16.0, digits, test_size=0.2, random_state=7, stratify=digits
    )
    return (x_train, y_train), (x_test, y_test)
