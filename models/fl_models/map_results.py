# SPDX-License-Identifier: Apache-2.0
"""Detections in each picture of a set, from which the mAP of a resampled set is computed.

mAP is not a mean over pictures: on another sample of the pictures it must be computed again, from
the confidence of each box and whether it is right.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

_STEPS = 100  # COCO reads precision at recalls of 0, 0.01, … 1
_ROUNDING = 1e-4  # in such steps; float32 distinguishes recalls of up to 10,000 true boxes
_BLOCK = 8_000_000  # numbers in memory at a time


@dataclass(frozen=True)
class Matches:
    """Detections in a set of pictures, and the true boxes.

    Parameters
    ----------
    num_pictures : int
        Pictures in the set, including those without boxes.
    picture, category, conf : np.ndarray
        Picture, class and confidence of each detection, shape (detections,).
    right : np.ndarray
        Whether a detection matches a true box, bool, shape (detections, thresholds), at an IoU
        of 0.5 in the first column.
    true_picture, true_category : np.ndarray
        Picture and class of each true box, shape (true,).
    names : Sequence[str]
        Class names by class number.
    groups : Sequence[Hashable] | None
        The group of each picture, such as its clip; None if none are known.
    """

    num_pictures: int
    picture: np.ndarray
    category: np.ndarray
    conf: np.ndarray
    right: np.ndarray
    true_picture: np.ndarray
    true_category: np.ndarray
    names: Sequence[str]
    groups: Sequence[Hashable] | None = None

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.num_pictures

    def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray | None:
        """Return ``mAP50``, ``mAP50-95`` or one class' (``mAP50/fish``) for each row of `counts`.

        As Ultralytics computes them: at 101 recalls, without classes that have no true boxes. None
        for any other metric; NaN if a sample has no true box.

        Parameters
        ----------
        counts : np.ndarray
            How often each picture is in each sample, shape (samples, pictures).
        """
        kind, _, name = metric.partition("/")
        thresholds = {"mAP50": range(1), "mAP50-95": range(self.right.shape[1])}.get(kind)
        chosen = [c for c in np.unique(self.true_category) if not name or self.names[c] == name]
        if thresholds is None or not chosen:
            return None
        total, present = np.zeros(len(counts)), np.zeros(len(counts))
        # Samples come last: sums and maxima over boxes then run along memory.
        drawn = np.ascontiguousarray(counts.T, dtype=np.float32)
        for category in chosen:
            here = self.true_picture[self.true_category == category]
            true = np.bincount(here, minlength=self.num_pictures).astype(np.float32) @ drawn
            precisions = [self._ap(category, column, drawn, true) for column in thresholds]
            total += np.mean(precisions, axis=0)
            present += true > 0
        with np.errstate(invalid="ignore"):
            return np.asarray(total / present)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(-self.conf, kind="stable")

    def _ap(self, category: int, column: int, drawn: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Return the average precision of a class at one IoU for each sample, 0 without true boxes.

        Ultralytics' precision curve changes only at right boxes: between two of them it is the best
        precision from the next one on. So the right boxes are enough, each with the number of wrong
        boxes of more confidence.
        """
        detected = self._order[self.category[self._order] == category]
        right = self.right[detected, column]
        if not right.any():
            return np.zeros(len(true))
        pictures = self.picture[detected]
        wrong = self._wrong_before(pictures, right)
        result = np.empty(len(true))
        step = max(1, _BLOCK // int(right.sum()))
        for start in range(0, len(true), step):
            part = slice(start, start + step)
            hits = np.cumsum(drawn[pictures[right], part], axis=0)
            boxes = hits + np.cumsum(wrong @ drawn[:, part], axis=0)
            precision = np.divide(hits, boxes, out=np.zeros_like(boxes), where=boxes > 0)
            best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
            # The number of COCO's recalls below that of each right box. The trapezoid rule counts
            # the first of them half.
            recall = hits / np.maximum(true[part], 1)
            read = np.maximum(np.ceil(_STEPS * recall - _ROUNDING) - 0.5, 0)
            steps = np.einsum("ij,ij->j", best[1:], read[1:] - read[:-1])
            result[part] = (best[0] * read[0] + steps) / _STEPS
        return result

    def _wrong_before(self, pictures: np.ndarray, right: np.ndarray) -> csr_array:
        """Return the wrong boxes between a right box and the one before, (right, pictures)."""
        slots = np.cumsum(right)
        between = ~right & (slots < slots[-1])
        ones = np.ones(int(between.sum()), np.float32)
        shape = (int(slots[-1]), self.num_pictures)
        return csr_array((ones, (slots[between], pictures[between])), shape=shape)
