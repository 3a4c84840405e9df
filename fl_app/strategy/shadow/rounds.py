# SPDX-License-Identifier: Apache-2.0
"""Shadow evaluation: rounds in which nodes score champion and candidate on their own data.

Nobody trains in them. What follows from the result is done by the session.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic_core import to_json

from fl_app.shares import largest_weight
from fl_app.strategy.checkpoints.round_store import load_array_record
from fl_app.strategy.errors import TooFewNodesError
from fl_app.strategy.finish.reporting import shadow_line
from fl_app.strategy.records import DECIDED, ShadowReport
from fl_app.strategy.round.screening import Screening
from fl_app.strategy.round.state import NodeScore, node_scores
from fl_app.strategy.setup import Setup, ShadowEvaluation
from fl_app.strategy.shadow.messages import Couple, NodeEvaluation, carries, couples, node_of, size
from fl_app.wire.arrays import Schema, fits
from fl_registry import Gone, ModelStore, RegistryError, Stage
from fl_registry.gates.paired import SequentialResult, fewest_differences, sequential_test
from fl_registry.redaction import one_line

logger = logging.getLogger("flwr.fl_app")

SHADOW_SCORES = "shadow_scores"
"""Tag of a version: its scores on the nodes beside Production's, round by round."""
ARMS = ("candidate", "champion")
_LARGEST = 90_000  # characters; MLflow takes 100,000


def shadow_rounds(
    setup: Setup, evaluation: NodeEvaluation, schema: Schema
) -> Iterator[ShadowReport]:
    """Run the rounds that a session ends with, and return a report after each.

    Scores of earlier sessions are read from the candidate's tag if it is the same comparison. There
    are no rounds, and a line in the log, if there are no two versions to compare.
    """
    settings, metric, store = setup.shadow, setup.metric, setup.store
    if settings is None or metric is None:
        return
    champion = store.get_latest_version(Stage.PRODUCTION)
    if champion is None:
        logger.info("no shadow evaluation: there is no version in Production to compare with")
        return
    candidate = store.get_latest_version(Stage.STAGING)
    try:
        tags = {} if candidate is None else store.get_version(candidate).tags
    except Gone as error:
        logger.warning("no shadow evaluation: %s", error)
        return
    if candidate is None or tags.get("approval") != "pending":
        logger.info("no shadow evaluation: no version waits for approval")
        return
    scores = ShadowScores(candidate, champion, metric, setup.mode, settings.ab_test)
    scores = scores.resumed(tags.get(SHADOW_SCORES, ""))
    yield from ShadowRounds(settings, store, evaluation, scores).run(schema)


@dataclass
class ShadowRounds:
    """The rounds of one comparison.

    Attributes
    ----------
    settings : ShadowEvaluation
        How it is done.
    store : ModelStore
        Where the scores are saved, in a tag of the candidate.
    evaluation : NodeEvaluation
        How nodes evaluate.
    scores : ShadowScores
        The scores so far; each round adds to them.
    total_bytes : int
        Bytes of all records that were sent and received.
    """

    settings: ShadowEvaluation
    store: ModelStore
    evaluation: NodeEvaluation
    scores: ShadowScores
    total_bytes: int = 0
    _repeating: set[str] = field(default_factory=set)  # nodes whose data were counted
    _chance: random.Random = field(default_factory=random.Random)

    def run(self, schema: Schema) -> Iterator[ShadowReport]:
        """Run rounds until the test decides or no node can add a score."""
        models: list[ArrayRecord] = []
        for version in (self.scores.candidate, self.scores.champion):
            try:
                path = self.store.weights_path(version)
                models.append(load_array_record(path))
            except RegistryError as error:
                yield self._report(why=f"version {version} cannot be loaded: {error}")
                return
            differs = self.evaluation.setup.model.other_classes(path)
            if differs or not fits(models[-1], schema):
                why = differs or "it has other arrays than this session's model"
                yield self._report(why=f"version {version} is not compared: {why}")
                return
        report = self._report(why=self._why_to_stop())
        if report.why:
            yield report
        while not report.why:
            report = self._round(*models)
            yield report

    def _round(self, candidate: ArrayRecord, champion: ArrayRecord) -> ShadowReport:
        """Send both models, wait for the replies, count them and test."""
        metric = self.scores.metric
        try:
            messages = self.evaluation.messages(candidate)
        except TooFewNodesError as error:
            return self._report(why=str(error))
        if not messages:
            return self._report(why="the inner strategy samples no node to evaluate")
        if not all(carries(message, candidate) for message in messages):
            return self._report(why="the inner strategy's messages hold other arrays")
        chance = self._chance if self.settings.ab_test else None
        requests = couples(messages, candidate, champion, self._done(), chance)
        sent = list(itertools.chain(*requests))
        got = self.evaluation.send(sent)
        about = {request.metadata.message_id for request, _ in requests}
        self.evaluation.aggregate([m for m in got if m.metadata.reply_to_message_id in about])
        pairs = self._new_pairs(requests, got)
        self.scores = self.scores.with_round(pairs)
        self.store.set_version_tags(self.scores.candidate, {SHADOW_SCORES: self.scores.as_tag()})
        why = self._why_to_stop()
        if not (why or node_scores(got, metric) or all(message.has_error() for message in got)):
            why = f"no node reports {metric!r}"
        self.total_bytes += (extra_bytes := size(sent) + size(got))
        return self._report(pairs, extra_bytes, why=why)

    def _new_pairs(self, requests: Sequence[Couple], got: Sequence[Message]) -> list[Paired]:
        """Return the pairs on data that were not counted yet, and log why others are left out."""
        # A reply is matched by the id of the message that it answers, which errors have too. The
        # message itself does not say which of the two models it brings.
        replies = {message.metadata.reply_to_message_id: message for message in got}
        pairs: list[Paired] = []
        for couple in requests:
            rules = self.evaluation.setup.rounds.screening
            pair = _pair(couple, replies, self.scores.metric, rules)
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

    def _test(self) -> SequentialResult:
        rules = self.evaluation.setup.rounds.screening
        return self.scores.test(self.settings.confidence, rules)

    def _why_to_stop(self) -> str:
        if self._test().outcome != "undecided":
            return DECIDED
        if len(self.scores.rounds) >= self.settings.rounds:
            return f"the budget of {self.settings.rounds} rounds is spent"
        done, connected = self._done(), set(map(str, self.evaluation.grid.get_node_ids()))
        needed, what = (2, "pairs") if self.settings.ab_test else (1, "nodes")
        if done and len(connected - done) < needed:
            fewest = f"{fewest_differences(self.settings.confidence)} {what}"
            return f"all connected nodes were counted, and {fewest} are the fewest that decide"
        return ""

    def _report(
        self, pairs: Sequence[Paired] = (), extra_bytes: int = 0, *, why: str
    ) -> ShadowReport:
        scored = [p for p in pairs if math.isfinite(p.candidate) and math.isfinite(p.champion)]
        sums = {arm: sum(getattr(pair, arm) for pair in scored) for arm in ARMS}
        report = ShadowReport(
            candidate=self.scores.candidate,
            champion=self.scores.champion,
            metric=self.scores.metric,
            test=self._test(),
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


def _pair(
    couple: Couple, replies: Mapping[str, Message], metric: str, rules: Screening | None
) -> Paired | str:
    """Return the scores in the replies to two messages, or why there are none."""
    scores: list[NodeScore] = []
    for arm, request in zip(ARMS, couple, strict=True):
        score = _score(replies.get(request.metadata.message_id), metric, rules)
        if isinstance(score, str):
            return f"node {node_of(request)}, on the {arm}: {score}"
        scores.append(score)
    nodes = tuple(dict.fromkeys(map(node_of, couple)))
    keys = tuple(score.key for score in scores)
    if len(nodes) == 1 and keys[0] != keys[1]:
        return f"node {nodes[0]}: its data changed between its two answers"
    return Paired(scores[0].score, scores[1].score, nodes, keys[: len(nodes)])


def _score(reply: Message | None, metric: str, rules: Screening | None) -> NodeScore | str:
    """Return the score in a reply, or what is wrong with it."""
    if reply is None:
        return "no answer in time"
    if reply.has_error():
        return one_line(" ".join((reply.error.reason or f"error {reply.error.code}").split()))
    if scores := node_scores([reply], metric):
        least, greatest = (-math.inf, math.inf) if rules is None else rules.range_of(metric)
        told = scores[0].score
        if math.isnan(told) or least <= told <= greatest:
            return scores[0]
        return f"its {metric} is {told:g}, expected {least:g} to {greatest:g}"
    seen = next(iter(reply.content.metric_records.values()), MetricRecord())
    return one_line(f"no {metric!r} in the answer, but {sorted(seen)}")


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

    def test(self, confidence: float, rules: Screening | None) -> SequentialResult:
        """Return the result of the sequential test, in which no pair has too large a share."""
        differences = [[pair.difference(self.mode) for pair in pairs] for pairs in self.rounds]
        least, greatest = (-math.inf, math.inf) if rules is None else rules.range_of(self.metric)
        shares = math.inf if rules is None else rules.max_node_share or math.inf
        return sequential_test(
            differences,
            confidence=confidence,
            span=greatest - least,
            largest=partial(largest_weight, shares=shares),
        )

    def nodes(self) -> set[str]:
        """Return the nodes that were counted."""
        return {node for pair in itertools.chain(*self.rounds) for node in pair.nodes}

    def keys(self) -> set[str]:
        """Return the keys of the data that were counted, by `NodeScore.key`."""
        return {key for pair in itertools.chain(*self.rounds) for key in pair.keys}

    def as_tag(self) -> str:
        """Return the scores as JSON; without the rounds if a tag could not hold them."""
        rows = [[list(vars(pair).values()) for pair in pairs] for pairs in self.rounds]
        text = to_json({**self._comparison(), "rounds": rows}, inf_nan_mode="null").decode()
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
        return {name: value for name, value in vars(self).items() if name != "rounds"}


def _paired(
    candidate: float | None, champion: float | None, nodes: list[str], keys: list[str]
) -> Paired:
    new, old = (math.nan if score is None else float(score) for score in (candidate, champion))
    return Paired(new, old, tuple(map(str, nodes)), tuple(map(str, keys)))
