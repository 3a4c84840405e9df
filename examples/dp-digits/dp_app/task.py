# SPDX-License-Identifier: Apache-2.0
"""The model and its data: 1,797 pictures of digits that scikit-learn ships."""

import numpy as np
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Split = tuple[np.ndarray, np.ndarray]
CLASSES, PIXELS = 10, 64


def holdout() -> Split:
    """The server's fifth of the pictures, which no node sees."""
    return _splits()[1]


def partition(partition_id: int, num_partitions: int) -> Split:
    """A node's share: as many pictures as each other node has, which the accounting requires."""
    pictures, digits = _splits()[0]
    share = len(digits) // num_partitions
    mine = slice(partition_id * share, (partition_id + 1) * share)
    return pictures[mine], digits[mine]


def first_arrays() -> ArrayRecord:
    """Weights of shape (10, 64) and biases of shape (10,), all zero."""
    return ArrayRecord([np.zeros((CLASSES, PIXELS)), np.zeros(CLASSES)])


def fit(arrays: ArrayRecord, data: Split, steps: int) -> ArrayRecord:
    """Take steps of size 1 down the gradient of the mean cross-entropy of a softmax regression.

    Source: C. M. Bishop, Pattern Recognition and Machine Learning (2006), equation 4.109.
    """
    weights, biases = arrays.to_numpy_ndarrays()
    pictures, digits = data
    for _ in range(steps):
        error = _probabilities(weights, biases, pictures) - np.eye(CLASSES)[digits]
        weights = weights - error.T @ pictures / len(digits)
        biases = biases - error.mean(axis=0)
    return ArrayRecord([weights, biases])


def accuracy(arrays: ArrayRecord, data: Split) -> float:
    """The share of pictures that the model names rightly."""
    weights, biases = arrays.to_numpy_ndarrays()
    named = _probabilities(weights, biases, data[0]).argmax(axis=1)
    return float((named == data[1]).mean())


def _probabilities(weights: np.ndarray, biases: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    scores = pictures @ weights.T + biases
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _splits() -> tuple[Split, Split]:
    pictures, digits = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        pictures / 16.0, digits, test_size=0.2, random_state=7, stratify=digits
    )
    return (x_train, y_train), (x_test, y_test)
