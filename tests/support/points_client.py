# SPDX-License-Identifier: Apache-2.0
"""A ClientApp in NumPy: softmax regression on points of five overlapping classes."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

CLASSES, FEATURES = 5, 20

app = ClientApp()


def data_of(node: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of five overlapping classes, as this node sees them."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    random = np.random.default_rng(node + 1)
    classes = random.integers(0, CLASSES, count)
    return centres[classes] + random.normal(0, 1.5, (count, FEATURES)), classes


def fit(
    weights: np.ndarray,
    data: tuple[np.ndarray, np.ndarray],
    steps: int,
    proximal_mu: float = 0.0,
) -> np.ndarray:
    """Softmax regression by gradient descent from `weights`, shape (features, classes)."""
    (points, classes), first = data, weights
    for _ in range(steps):
        scores = np.exp(points @ weights - (points @ weights).max(axis=1, keepdims=True))
        error = scores / scores.sum(axis=1, keepdims=True) - np.eye(CLASSES)[classes]
        slope = points.T @ error / len(points) + proximal_mu * (weights - first)
        weights = weights - 0.1 * slope
    return weights


@app.train()
def train(message: Message, context: Context) -> Message:
    """Forty steps on this node's points."""
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    proximal_mu = float(message.content["config"].get("proximal-mu", 0.0))
    fitted = fit(weights, data_of(_number(context), 200), 40, proximal_mu)
    metrics = MetricRecord({"num-examples": 200})
    content = RecordDict({"arrays": ArrayRecord([fitted]), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Accuracy on 400 other points of this node."""
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    points, classes = data_of(100 + _number(context), 400)
    accuracy = float((np.argmax(points @ weights, axis=1) == classes).mean())
    content = RecordDict(
        {
            "metrics": MetricRecord({"accuracy": accuracy, "num-examples": 400}),
            "node": ConfigRecord({"data-digest": f"points of node {_number(context)}"}),
        }
    )
    return Message(content, reply_to=message)


def _number(context: Context) -> int:
    return int(str(context.node_config["data"]))
