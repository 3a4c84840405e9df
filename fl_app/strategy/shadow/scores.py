# SPDX-License-Identifier: Apache-2.0
"""The scores of a candidate beside a champion's on the nodes' data, and how a tag holds them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fl_registry.gates.paired import SequentialResult, sequential_test

SHADOW_SCORES = "shadow_scores"
"""Tag of a version: its scores on the nodes beside Production's, round by round."""

_LARGEST = 90_000  # characters; MLflow takes 100,000


@dataclass(frozen=True)
class Paired:
    """Scores of candidate and champion that may be compared.

    Attributes
    ----------
    candidate, champion : float
        The metric; not finite where the model has none on these data.
    nodes : tuple[str, ...]
        The node that scored both, or the two that scored one each, the candidate's first.
    keys : tuple[str, ...]
        `NodeScore.key` of each of them.
    """

    candidate: float
    champion: float
    nodes: tuple[str, ...]
    keys: tuple[str, ...]

    def difference(self, mode: str) -> float:
        """Return by how much the candidate is better; a missing score is worse than any score."""
        # Without this, a candidate that fails on some nodes would be judged by the others only.
        fine = math.isfinite(self.candidate), math.isfinite(self.champion)
        if not all(fine):
            return 0.0 if fine[0] == fine[1] else math.inf if fine[0] else -math.inf
        gain = self.candidate - self.champion
        return gain if mode == "max" else -gain


@dataclass(frozen=True)
class ShadowScores:
    """All scores of a candidate beside a champion's so far.

    Attributes
    ----------
    candidate, champion : str
        The two versions.
    metric, mode : str
        What is compared, and whether more (``max``) or less (``min``) of it is better.
    ab_test : bool
        Whether each node scores one of the two only.
    rounds : tuple[tuple[Paired, ...], ...]
        The new pairs of each round.
    """

    candidate: str
    champion: str
    metric: str
    mode: str
    ab_test: bool = False
    rounds: tuple[tuple[Paired, ...], ...] = ()

    def with_round(self, pairs: Sequence[Paired]) -> ShadowScores:
        """Return these scores with those of one more round."""
        return replace(self, rounds=(*self.rounds, tuple(pairs)))

    def test(self, confidence: float) -> SequentialResult:
        """Return the result of the sequential test."""
        differences = [[pair.difference(self.mode) for pair in pairs] for pairs in self.rounds]
        return sequential_test(differences, confidence=confidence)

    def nodes(self) -> set[str]:
        """Return the nodes that were counted."""
        return {node for pair in itertools.chain(*self.rounds) for node in pair.nodes}

    def keys(self) -> set[str]:
        """Return the keys of the data that were counted, by `NodeScore.key`."""
        return {key for pair in itertools.chain(*self.rounds) for key in pair.keys}

    def as_tag(self) -> str:
        """Return the scores as JSON; without the rounds if a tag could not hold them."""
        rows = [[_row(pair) for pair in pairs] for pairs in self.rounds]
        text = json.dumps({**self._comparison(), "rounds": rows}, separators=(",", ":"))
        return text if len(text) <= _LARGEST else json.dumps(self._comparison())

    def resumed(self, tag: str) -> ShadowScores:
        """Return these scores with the rounds in a tag, if it is of the same comparison."""
        try:
            theirs, mine = json.loads(tag), self._comparison()
            if {key: theirs.get(key) for key in mine} != mine:
                return self
            rounds = tuple(tuple(_paired(*row) for row in rows) for rows in theirs["rounds"])
        except (ValueError, TypeError, KeyError, AttributeError):  # any MLflow user may write tags
            return self
        return replace(self, rounds=rounds)

    def _comparison(self) -> dict[str, object]:
        return {
            "candidate": self.candidate,
            "champion": self.champion,
            "metric": self.metric,
            "mode": self.mode,
            "ab_test": self.ab_test,
        }


def _row(pair: Paired) -> list[object]:
    scores = (s if math.isfinite(s) else None for s in (pair.candidate, pair.champion))
    return [*scores, pair.nodes, pair.keys]


def _paired(
    candidate: float | None, champion: float | None, nodes: list[str], keys: list[str]
) -> Paired:
    old, new = (math.nan if score is None else float(score) for score in (champion, candidate))
    return Paired(new, old, tuple(map(str, nodes)), tuple(map(str, keys)))
