# SPDX-License-Identifier: Apache-2.0
"""A model's results on each example of a data set."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

BLOCK = 2_000_000
"""Counts of examples in memory at a time."""


class Results(Protocol):
    """A model's results on each example of a data set, from which metrics can be had anew.

    `ExampleScores` keeps it for means; a metric that is no mean needs a class of its own.
    """

    @property
    def groups(self) -> Sequence[Hashable] | None:
        """The group of each example, such as its clip, patient or site; None if none are known.

        Examples of one group may have like results, those of different groups are independent.
        """

    def __len__(self) -> int:
        """Return the number of examples."""

    def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray | None:
        """Return `metric` for each row of `counts`: how often each example is drawn.

        `counts` has the shape (samples, examples); None where there is no such metric.
        """


@dataclass(frozen=True)
class ExampleScores:
    """Numbers per example, for metrics that are the mean of these numbers.

    Parameters
    ----------
    scores : Mapping[str, Sequence[float]]
        For each metric one number per example, in the same order for every model. If all numbers
        are 0 or 1, they mean wrong and right.
    groups : Sequence[Hashable] | None
        The group of each example, such as its clip, patient or site. None if none are known.

    Raises
    ------
    ValueError
        There is not one group for each example.
    """

    scores: Mapping[str, Sequence[float]]
    groups: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        if self.groups is not None and len(self.groups) != len(self):
            raise ValueError(
                f"There are {len(self.groups)} groups for {len(self)} examples, expected one for "
                "each."
            )

    def __len__(self) -> int:
        """Return the number of examples."""
        return max((len(values) for values in self.scores.values()), default=0)

    def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray | None:
        """Return the mean of `metric` for each row of `counts`; None if it was not scored.

        Parameters
        ----------
        counts : np.ndarray
            How often each example is in each sample, shape (samples, examples).
        """
        if len(self.scores.get(metric, ())) != len(self):
            return None
        means: np.ndarray = counts @ np.asarray(self.scores[metric], float) / counts.sum(axis=1)
        return means

    def correct(self, metric: str) -> np.ndarray | None:
        """Return which examples are right, shape (examples,); None unless all are 0 or 1."""
        values = np.asarray(self.scores.get(metric, ()), float)
        return values == 1 if len(values) and np.isin(values, (0, 1)).all() else None
