# SPDX-License-Identifier: Apache-2.0
"""Hostile replies beside honest ones: no round dies, and the honest ones are averaged exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg, Strategy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile_replies import (
    REFUSED,
    Answer,
    Opened,
    bad_needed_metric,
    errors,
    first_model,
    honest,
    refused,
    untidy,
)
from support.local_grid import LocalGrid
from support.shipped_strategies import OF_ARRAYS

from fl_app import LifecycleStrategy, RoundReport
from fl_app.strategy import RoundSettings
from fl_registry import InMemoryModelStore, InMemoryTracker
from fl_registry.redaction import printable

NIGHTLY = settings.default is not None and settings.default.max_examples > 100
pytestmark = pytest.mark.chaos
ROUNDS = 20
HOSTILE = 10_000 if NIGHTLY else 300
one_home = settings(suppress_health_check=list(HealthCheck))
"""Hypothesis runs all examples in one test's folder, which is what is wanted here."""


class Trial:
    """Rounds of a strategy inside the wrapper, with node 1000 hostile among honest ones."""

    def __init__(
        self,
        make: Callable[[], Strategy],
        hostile: Sequence[Answer],
        home: Path,
        *,
        nodes: Sequence[int] = (1, 1000, 2),
    ) -> None:
        self.make, self.hostile, self.nodes = make, hostile, nodes
        self.sent: list[list[Message]] = [[] for _ in hostile]
        reports: list[Any] = []
        np.random.seed(1)
        self.result = LifecycleStrategy(
            make(),
            store=InMemoryModelStore(),
            tracker=InMemoryTracker(),
            hooks=[reports.append],
            home=home,
            rounds=RoundSettings(pipeline=False),
        ).start(LocalGrid(self.answer, nodes), first_model(), num_rounds=len(hostile))
        self.reports = [event for event in reports if isinstance(event, RoundReport)]

    def answer(self, node: int, message: Message) -> Answer:
        server_round = int(message.content["config"]["server-round"])
        self.sent[server_round - 1].append(message)
        return self.hostile[server_round - 1] if node == 1000 else honest(node).content()

    def bare(self, *, but: Sequence[int] = (1000,)) -> tuple[ArrayRecord, dict[int, Any]]:
        """What the strategy alone makes of the replies but those of some nodes, in their order."""
        strategy, arrays, metrics = self.make(), first_model(), {}
        grid = LocalGrid(self.answer, self.nodes)
        np.random.seed(1)
        for number, sent in enumerate(self.sent, start=1):
            strategy.configure_train(number, arrays, ConfigRecord(), grid)
            replies = []
            for message in sent:
                node = message.metadata.dst_node_id
                if node not in but:
                    known = self.hostile[number - 1] if node == 1000 else honest(node).content()
                    replies.append(Message(known, reply_to=message))
            made, metrics[number] = strategy.aggregate_train(number, replies)
            arrays = as_first(made) if made is not None else arrays
        return arrays, metrics


def as_first(arrays: ArrayRecord) -> ArrayRecord:
    """In the first model's dtypes."""
    return ArrayRecord(
        {name: type(array)(np.asarray(array.numpy(), np.float32)) for name, array in arrays.items()}
    )


def assert_same(ours: ArrayRecord, theirs: ArrayRecord) -> None:
    assert list(ours) == list(theirs)
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())
        assert mine.numpy().dtype == np.float32


def fedavg() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0)


@settings(one_home, max_examples=HOSTILE // ROUNDS)
@given(st.lists(refused(), min_size=ROUNDS, max_size=ROUNDS))
def test_a_hostile_reply_changes_nothing(home: Path, hostile: list[Answer]) -> None:
    trial = Trial(fedavg, hostile, home)
    arrays, metrics = trial.bare()
    assert_same(trial.result.arrays, arrays)
    for number, report in enumerate(trial.reports, start=1):
        assert not report.failed
        ours, theirs = trial.result.train_metrics_clientapp[number], metrics[number]
        assert dict(ours) == dict(theirs)
        (bad,) = report.rejected
        assert (bad.node_id, bad.in_a_row) == ("1000", number)
        assert printable(bad.reason) == bad.reason
        assert 0 < len(bad.reason) <= 200
    assert Opened.marks == []


@settings(one_home, max_examples=HOSTILE // ROUNDS // 5)
@given(st.lists(untidy(), min_size=ROUNDS, max_size=ROUNDS))
def test_bad_metrics_and_keys_cost_neither_the_weights_nor_the_metrics_of_others(
    home: Path, hostile: list[Answer]
) -> None:
    trial = Trial(fedavg, hostile, home)
    trial.hostile = [honest(0).content()] * ROUNDS  # its weights and count are those of node 0
    arrays, metrics = trial.bare(but=())
    assert_same(trial.result.arrays, arrays)
    for number, report in enumerate(trial.reports, start=1):
        assert not report.failed
        assert not report.rejected
        told = trial.result.train_metrics_clientapp[number]
        for name in ("train_loss", "norm_bit"):
            assert told[name] == metrics[number][name]
        assert len(told) <= 2  # what one of three nodes tells is not the round's


def test_flower_alone_dies_of_or_is_poisoned_by_more_than_half_of_them() -> None:
    """The same replies into FedAvg alone: what the tests above would see without screening."""
    seen: Counter[str] = Counter()

    @settings(max_examples=300, derandomize=True, database=None)
    @given(refused(), st.integers(0, 2))
    def count(hostile: Answer, at: int) -> None:
        seen[outcome(hostile, at)] += 1

    count()
    total = sum(seen.values())
    assert seen["dies"] > 0.33 * total, seen
    assert seen["poisoned"] > 0.05 * total, seen
    assert seen["dies"] + seen["poisoned"] > 0.5 * total, seen


def outcome(hostile: Answer, at: int) -> str:
    """What becomes of a round of FedAvg with two honest replies and this one."""
    grid = LocalGrid(lambda node, message: hostile, [1, 2, 3])
    replies = []
    for number, message in enumerate(
        fedavg().configure_train(1, first_model(), ConfigRecord(), grid)
    ):
        message.metadata.__dict__["_message_id"] = str(number)
        content = hostile if number == at else honest(number + 1).content()
        replies.append(Message(content, reply_to=message))
    try:
        with np.errstate(all="ignore"):
            made, _ = fedavg().aggregate_train(1, replies)
    except Exception:  # noqa: BLE001  (whatever ends the run)
        return "dies"
    assert made is not None
    fits = list(made) == list(first_model()) and all(
        a.numpy().shape == b.numpy().shape and np.all(np.abs(a.numpy() - 1) < 1)
        for a, b in zip(made.values(), first_model().values(), strict=True)
    )
    return "unharmed" if fits else "poisoned"


NO_ERRORS = tuple(fault for fault in REFUSED if fault is not errors)
"""Flower's wrappers for differential privacy skip a round in which a node reports an error."""


@pytest.mark.parametrize("name", sorted({*OF_ARRAYS} - {"FedAvg"}))
@settings(one_home, max_examples=max(1, HOSTILE // ROUNDS // 15))
@given(data=st.data())
def test_a_hostile_reply_changes_nothing_whatever_strategy_is_inside(
    home: Path, name: str, data: st.DataObject
) -> None:
    faults = NO_ERRORS if name.startswith("DifferentialPrivacy") else REFUSED
    if name in ("QFedAvg", "DifferentialPrivacyClientSideAdaptiveClipping"):
        faults += (bad_needed_metric,)
    rounds = 2 if name in ("Bulyan", "QFedAvg") else ROUNDS  # Flower collects garbage in them
    hostile = data.draw(st.lists(refused(faults), min_size=rounds, max_size=rounds))
    make = partial(OF_ARRAYS[name], fraction_evaluate=0.0)
    trial = Trial(make, hostile, home, nodes=(1, 2, 1000, 3, 4))
    arrays, metrics = trial.bare()
    assert_same(trial.result.arrays, arrays)
    for number, report in enumerate(trial.reports, start=1):
        assert not report.failed
        assert [bad.node_id for bad in report.rejected] == ["1000"]
        assert dict(trial.result.train_metrics_clientapp[number]) == dict(metrics[number])
