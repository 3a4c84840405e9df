# SPDX-License-Identifier: Apache-2.0
"""The source of a score, and whether a version's registered score may be compared. Pure."""

from __future__ import annotations

from fl_app.strategy.finish.evaluation import EvaluateFn, Scored
from fl_app.strategy.records import CLIENTS, HOLDOUT, TRAINING, DataUsed
from fl_registry import ModelVersion

SCORE_SOURCE = "score_source"
"""Tag of a version: the source of its score."""


def score_source(evaluate_fn: EvaluateFn | None, holdout: DataUsed | None) -> str:
    """Return the source of the metrics with plain names: ``clients``, or the holdout's digest."""
    if evaluate_fn is None:
        return CLIENTS
    return f"{HOLDOUT} {holdout.digest}" if holdout is not None else HOLDOUT


def metric_source(metric: str | None, plain: str) -> str:
    """Return the source of one metric, in a session whose plain names have the source ``plain``."""
    if metric is not None and metric.startswith("train/"):
        return TRAINING
    return CLIENTS if metric is not None and metric.startswith("client/") else plain


def registered_score(version: ModelVersion, metric: str, source: str, why: str) -> Scored:
    """Return the registered score of a version, if it is of the same source.

    Parameters
    ----------
    version : ModelVersion
        The version.
    metric : str
        The metric that is compared.
    source : str
        The source of the session's own scores.
    why : str
        Why the version is not evaluated now.

    Returns
    -------
    Scored
        Its metrics and a note; no metrics if they cannot be compared, and the note says why.
    """
    theirs = version.tags.get(SCORE_SOURCE, "")
    if metric not in version.metrics:
        problem = f"it has no registered {metric}"
    elif source == theirs == HOLDOUT:
        problem = (
            "its registered score is of a holdout without a digest (name it with "
            "ModelCard(holdout=…))"
        )
    elif source != theirs:
        problem = f"its registered score is of {theirs or 'an unknown source'}, not of {source}"
    else:
        return Scored(
            version.metrics, note=f"the registered score of version {version.version}, since {why}"
        )
    return Scored({}, note=f"version {version.version} cannot be compared: {why}, and {problem}")
