# SPDX-License-Identifier: Apache-2.0
"""Shadow evaluation: rounds in which nodes score champion and candidate on their own data.

Nobody trains in them. What follows from the result is done by the session.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from flwr.app import ArrayRecord, Message
from pydantic import Field

from fl_app.settings import Key, check_settings
from fl_app.strategy.checkpoints.arrays_file import load_round
from fl_app.strategy.errors import TooFewNodesError
from fl_app.strategy.finish.console import shadow_line
from fl_app.strategy.records import DECIDED, ShadowReport
from fl_app.strategy.round.state import node_scores
from fl_app.strategy.shadow.messages import (
    ARMS,
    Arm,
    NodeEvaluation,
    Replies,
    carries,
    request_both,
    request_one_each,
    size,
)
from fl_app.strategy.shadow.scores import SHADOW_SCORES, Paired, ShadowScores
from fl_app.wire.arrays import Schema, fits
from fl_registry import ModelStore, RegistryError, Stage
from fl_registry.gates.paired import fewest_differences

logger = logging.getLogger("flwr.fl_app")


@dataclass(frozen=True)
class ShadowEvaluation:
    """Have the nodes score the version that waits for approval beside the one in Production.

    After the last training round up to ``rounds`` rounds of evaluate messages follow. The inner
    strategy samples the nodes; each of them gets its message twice, once with either model. A
    test that may look after each round decides: better, worse, or undecided while it cannot.

    Parameters
    ----------
    rounds : int
        Most rounds in which nodes compare a version that waits for approval with Production.
        Rounds of earlier sessions count.
    confidence : float
        One minus the probability of a decision between equally good models. A decision needs at
        least 6 nodes at 0.95, 5 at 0.9 and 4 at 0.8.
    ab_test : bool
        Each node scores only one of the two models; needs many more nodes. For nodes that cannot
        hold both. They are paired at random, and the data of the two differ as well.
    fresh_data : bool
        True if nodes evaluate on data that are new each time, such as those of the last day: then
        a node counts anew as its data digest changes. By default it counts once, since data of
        which a part has changed would tell the same again.

    Raises
    ------
    SettingError
        If ``rounds`` or ``confidence`` is out of range.
    """

    rounds: Annotated[int, Field(ge=1), Key("shadow-rounds", off=0)] = 3
    confidence: Annotated[float, Field(gt=0, lt=1), Key("shadow-confidence")] = 0.95
    ab_test: Annotated[bool, Key("shadow-ab-test")] = False
    fresh_data: bool = False

    def __post_init__(self) -> None:
        check_settings(self)


def find_pair(store: ModelStore) -> tuple[str, str] | str:
    """Return the version that waits for approval and the one in Production, or what is missing."""
    champion = store.get_latest_version(Stage.PRODUCTION)
    if champion is None:
        return "there is no version in Production to compare with"
    candidate = store.get_latest_version(Stage.STAGING)
    if candidate is None or store.get_version(candidate).tags.get("approval") != "pending":
        return "no version waits for approval"
    return candidate, champion


def shadow_rounds(
    settings: ShadowEvaluation | None,
    store: ModelStore,
    *,
    metric: str | None,
    mode: str,
    schema: Schema,
    evaluation: NodeEvaluation,
) -> Iterable[ShadowReport]:
    """Return the rounds that a session ends with; iterating over their reports runs them.

    Scores of earlier sessions are read from the candidate's tag if it is the same comparison. There
    are no rounds, and a line in the log, if there are no two versions to compare.
    """
    if settings is None or metric is None:
        return ()
    pair = find_pair(store)
    if isinstance(pair, str):
        logger.info("no shadow evaluation: %s", pair)
        return ()
    scores = ShadowScores(*pair, metric, mode, settings.ab_test)
    scores = scores.resumed(store.get_version(scores.candidate).tags.get(SHADOW_SCORES, ""))
    return ShadowRounds(settings, store, scores, load_models(store, scores, schema), evaluation)


def load_models(
    store: ModelStore, scores: ShadowScores, schema: Schema
) -> dict[Arm, ArrayRecord] | str:
    """Return the arrays of both versions, or why they cannot be compared."""
    models = {}
    for arm, version in zip(ARMS, (scores.candidate, scores.champion), strict=True):
        try:
            models[arm] = load_round(store.weights_path(version))
        except RegistryError as error:
            return f"version {version} cannot be loaded: {error}"
        if not fits(models[arm], schema):
            return f"version {version} has other arrays than this session's model"
    return models


@dataclass
class ShadowRounds:
    """The rounds of one comparison; iterating runs them and returns a report after each.

    Attributes
    ----------
    settings : ShadowEvaluation
        How it is done.
    store : ModelStore
        Where the scores are saved, in a tag of the candidate.
    scores : ShadowScores
        The scores so far; each round adds to them.
    models : Mapping[str, ArrayRecord] | str
        The arrays of ``candidate`` and ``champion``, or why there are none.
    evaluation : NodeEvaluation
        How nodes evaluate.
    total_bytes : int
        Bytes of all records that were sent and received.
    """

    settings: ShadowEvaluation
    store: ModelStore
    scores: ShadowScores
    models: Mapping[Arm, ArrayRecord] | str
    evaluation: NodeEvaluation
    total_bytes: int = 0
    _repeating: set[str] = field(default_factory=set)  # nodes whose data were counted
    _chance: random.Random = field(default_factory=random.Random)

    def __iter__(self) -> Iterator[ShadowReport]:
        """Run rounds until the test decides or no node can add a score."""
        if isinstance(self.models, str):
            yield self._report(why=self.models)
            return
        report = self._report(why=self._why_to_stop())
        if report.why:
            yield report
        while not report.why:
            report = self._round(self.models)
            yield report

    def _round(self, models: Mapping[Arm, ArrayRecord]) -> ShadowReport:
        """Send both models, wait for the replies, count them and test."""
        try:
            messages = self.evaluation.messages(models["candidate"])
        except TooFewNodesError as error:
            return self._report(why=str(error))
        if not messages:
            return self._report(why="the inner strategy samples no node to evaluate")
        if not all(carries(message, models["candidate"]) for message in messages):
            return self._report(why="the inner strategy's messages hold other arrays")
        if self.settings.ab_test:
            requests = request_one_each(messages, models, self._done(), self._chance)
        else:
            requests = request_both(messages, models, self._done())
        sent = [request.message for request in requests]
        got = self.evaluation.send(sent)
        replies = Replies(requests, got, self.scores.metric)
        self.evaluation.aggregate(replies.of("candidate"))
        pairs = self._new_pairs(replies)
        self.scores = self.scores.with_round(pairs)
        self.store.set_version_tags(self.scores.candidate, {SHADOW_SCORES: self.scores.as_tag()})
        why = self._why_to_stop() or self._why_useless(got)
        self.total_bytes += (extra_bytes := size(sent) + size(got))
        return self._report(pairs, extra_bytes, why=why)

    def _new_pairs(self, replies: Replies) -> list[Paired]:
        """Return the pairs on data that were not counted yet, and log why others are left out."""
        pairs: list[Paired] = []
        for pair in replies.pairs():
            if isinstance(pair, str):
                logger.warning("shadow evaluation: %s; not counted", pair)
                continue
            known = self.scores.with_round(pairs).keys()
            repeating = [n for n, k in zip(pair.nodes, pair.keys, strict=True) if k in known]
            if not repeating:
                pairs.append(pair)
                continue
            self._repeating.update(repeating)
            logger.info(
                "shadow evaluation: the data of node %s were counted already", ", ".join(repeating)
            )
        return pairs

    def _done(self) -> set[str]:
        """Return the nodes whose data were counted already."""
        # A node counts once: equally good models differ on its data, and nearly the same again when
        # a part has changed. Four nodes that keep 90 % of their examples and count in each of ten
        # rounds make 32 wrong decisions in 100; once each, 2.
        return set() if self.settings.fresh_data else self.scores.nodes() | self._repeating

    def _why_to_stop(self) -> str:
        if self.scores.test(self.settings.confidence).outcome != "undecided":
            return DECIDED
        if len(self.scores.rounds) >= self.settings.rounds:
            return f"the budget of {self.settings.rounds} rounds is spent"
        done, fewest = self._done(), fewest_differences(self.settings.confidence)
        left = self.evaluation.nodes() - done
        if done and len(left) < (2 if self.settings.ab_test else 1):
            what = "pairs" if self.settings.ab_test else "nodes"
            return (
                f"all connected nodes were counted, and {fewest} {what} are the fewest that decide"
            )
        return ""

    def _why_useless(self, got: Sequence[Message]) -> str:
        answers = [message for message in got if not message.has_error()]
        useless = bool(answers) and not node_scores(answers, self.scores.metric)
        return f"no node reports {self.scores.metric!r}" if useless else ""

    def _report(
        self, pairs: Sequence[Paired] = (), extra_bytes: int = 0, *, why: str
    ) -> ShadowReport:
        scored = [p for p in pairs if math.isfinite(p.candidate) and math.isfinite(p.champion)]
        sums = {arm: sum(getattr(pair, arm) for pair in scored) for arm in ARMS}
        report = ShadowReport(
            candidate=self.scores.candidate,
            champion=self.scores.champion,
            metric=self.scores.metric,
            test=self.scores.test(self.settings.confidence),
            server_round=self.evaluation.server_round,
            budget=self.settings.rounds,
            ab_test=self.settings.ab_test,
            scores={arm: total / len(scored) for arm, total in sums.items() if scored},
            extra_bytes=extra_bytes,
            total_bytes=self.total_bytes,
            why=why,
        )
        if why or extra_bytes:
            logger.info("%s", shadow_line(report))
        return report
