# SPDX-License-Identifier: Apache-2.0
"""Servers that start without a model, partial and growing models, and sessions that made none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg, Strategy
from support.local_grid import LocalGrid, add_one, model, reply

from fl_app import LifecycleStrategy
from fl_app.client.mods.compression import compress_updates
from fl_app.strategy import RoundSettings, RunFailedError, StreamingFedAvg
from fl_app.strategy.checkpoints.round_store import RoundFiles, load_array_record
from fl_app.strategy.round.inner_strategy import adopted_schema
from fl_app.strategy.round.screening import Needs, Screening, agreed_schema
from fl_app.wire.arrays import Schema, schema_of
from fl_app.wire.compressed_update import UPDATE_RECORD
from fl_app.wire.packing import pack, unpack
from fl_registry import InMemoryModelStore, InMemoryTracker, Stage

NOTHING = ArrayRecord()
NODES = 11, 13  # whose average is exact


def arrays(**values: Any) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in values.items()})


def first(node_id: int = 11) -> ArrayRecord:
    """What a node makes of nothing: floats and a counter."""
    return arrays(w=np.full((2, 3), node_id, np.float32), steps=np.int64(3))


def begin_then_add(node_id: int, message: Message) -> RecordDict:
    """A ClientApp whose server has no model: it makes one in round 1, and goes on with it."""
    if message.metadata.message_type != "train":
        return reply(accuracy=0.1 * len(message.content["arrays"]))
    sent = message.content["arrays"]
    if not sent:
        return reply(first(node_id), loss=1.0)
    return reply(
        arrays(**{name: np.asarray(a.numpy() + 1, a.dtype) for name, a in sent.items()}),
        loss=1.0,
    )


class World:
    """A registry and a tracker, and sessions in them."""

    def __init__(self, home: Path) -> None:
        self.home, self.store, self.tracker = home, InMemoryModelStore(), InMemoryTracker()

    def run(
        self,
        answer: Callable[[int, Message], Any],
        begin: ArrayRecord = NOTHING,
        *,
        inner: Strategy | None = None,
        rounds: int = 2,
        settings: RoundSettings | None = None,
        evaluate_fn: Any = None,
        **kwargs: Any,
    ) -> Any:
        strategy = LifecycleStrategy(
            inner,
            store=self.store,
            tracker=self.tracker,
            home=self.home,
            rounds=settings,
            **kwargs,
        )
        return strategy.start(LocalGrid(answer, NODES), begin, rounds, evaluate_fn=evaluate_fn)

    @property
    def statuses(self) -> list[str]:
        return [run.status for run in self.tracker.runs]


@pytest.fixture
def here(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("kind", [FedAvg, StreamingFedAvg])
@pytest.mark.parametrize(
    "screened", [{}, {"settings": RoundSettings(screening=None)}], ids=["screened", "unscreened"]
)
def test_a_server_without_a_model_takes_that_of_its_nodes(
    here: World, kind: type[FedAvg], screened: dict[str, Any]
) -> None:
    bare = kind().start(LocalGrid(begin_then_add, NODES), NOTHING, 3)
    result = here.run(begin_then_add, inner=kind(), rounds=3, metric="accuracy", **screened)
    np.testing.assert_array_equal(result.arrays["w"].numpy(), bare.arrays["w"].numpy())
    assert result.arrays["steps"].dtype == "int64"
    assert [row["stage"] for row in here.store.list_all_versions()].count("Staging") == 1
    assert here.statuses == ["FINISHED"]


def test_the_first_replies_are_screened_and_must_be_like_most(here: World) -> None:
    odd: dict[int, RecordDict | Error] = {
        12: reply(arrays(other=np.ones(2))),
        13: reply(arrays(w=np.full((2, 3), np.nan, np.float32), steps=np.int64(3))),
        14: reply(first(14), examples=0),
        15: Error(100, "no disk"),
        16: reply(NOTHING),
    }

    def answer(node_id: int, message: Message) -> Any:
        train = message.metadata.message_type == "train"
        if train and not message.content["arrays"] and node_id in odd:
            return odd[node_id]
        return begin_then_add(node_id, message)

    inner = StreamingFedAvg(min_train_nodes=9, min_available_nodes=9)
    strategy = LifecycleStrategy(inner, store=here.store, tracker=here.tracker, home=here.home)
    grid = LocalGrid(answer, node_ids=[11, 12, 13, 14, 15, 16, 21, 31, 41])
    result = strategy.start(grid, NOTHING, 1)
    assert result.arrays["w"].numpy()[0, 0] == np.float32((11 + 21 + 31 + 41) / 4)
    (row,) = here.store.list_all_versions()
    said = row["tags"]["rejected"]
    assert "its arrays are not the model's: it lacks 'steps' and 1 more and has 'other'" in said
    assert "array 'w' is not finite" in said
    assert "expected a whole number" in said
    assert "no disk" in said
    assert "its arrays are not the model's: it lacks 'steps' and 1 more\"" in said


def test_nodes_that_do_not_agree_make_no_model(here: World) -> None:
    def answer(node_id: int, message: Message) -> RecordDict:
        return reply(arrays(**{f"of_{node_id}": np.ones(2)}))

    with pytest.raises(RunFailedError, match="no more than half of the replies have the same"):
        here.run(answer, rounds=2)
    assert here.statuses == ["FAILED"]
    assert here.store.list_all_versions() == []


def test_trees_of_any_length_agree() -> None:
    def agreed(*models: ArrayRecord) -> Schema:
        grid = LocalGrid(lambda node, _: reply(models[node]), range(len(models)))
        asked = [Message(RecordDict(), node, "train") for node in grid.node_ids]
        return agreed_schema(grid.send_and_receive(asked), Screening(), Needs())

    documents = [arrays(**{"0": np.zeros(n, np.uint8)}) for n in (3, 4, 5)]
    assert agreed(*documents) == schema_of(documents[0])
    assert agreed(first(), arrays(w=np.ones(2))) == {}
    assert agreed() == {}


def test_the_adopted_dtypes_are_those_of_the_replies() -> None:
    averaged = arrays(w=np.ones((2, 3), np.float64), steps=np.float64(3), extra=np.ones(1))
    found = adopted_schema(averaged, schema_of(first()))
    assert {name: str(dtype) for name, (dtype, _) in found.items()} == {
        "w": "float32",
        "steps": "int64",
        "extra": "float64",
    }


def score(server_round: int, model: ArrayRecord) -> MetricRecord | None:
    """A holdout that needs a model, and says how large its weights are."""
    return MetricRecord({"accuracy": float(model["w"].numpy().mean()) / 100} if model else {})


def test_a_later_session_without_a_model_must_beat_what_is_in_staging(here: World) -> None:
    def worse(node_id: int, message: Message) -> Any:
        return begin_then_add(1, message)

    kept = {"metric": "accuracy", "evaluate_fn": score}
    here.run(begin_then_add, rounds=1, **kept)
    here.run(worse, rounds=1, **kept)
    stages = {row["version"]: row["stage"] for row in here.store.list_all_versions()}
    assert {str(k): v for k, v in stages.items()} == {"1": "Staging", "2": "None"}
    assert here.store.get_latest_version(Stage.STAGING) == "1"


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_session_without_a_model_goes_on_after_a_kill(here: World, killed_in: int) -> None:
    def killed(node_id: int, message: Message) -> Any:
        if message.content["config"]["server-round"] == killed_in:
            raise KeyboardInterrupt
        return begin_then_add(node_id, message)

    with pytest.raises(KeyboardInterrupt):
        here.run(killed, rounds=3)
    result = here.run(begin_then_add, rounds=3, resume="require")
    assert result.arrays["w"].numpy()[0, 0] == 12 + 2
    assert result.arrays["steps"].dtype == "int64"
    rounds = [row["tags"]["round"] for row in here.store.list_all_versions()]
    assert sorted(rounds) == ["1", "2", "3"]


def test_a_session_without_a_model_that_does_not_go_on_is_handed_over_with_its_scores(
    here: World,
) -> None:
    def killed(node_id: int, message: Message) -> Any:
        if message.content["config"]["server-round"] == 2:
            raise KeyboardInterrupt
        return begin_then_add(node_id, message)

    kept = {"metric": "accuracy", "evaluate_fn": score}
    with pytest.raises(KeyboardInterrupt):
        here.run(killed, rounds=2, **kept)
    here.run(begin_then_add, rounds=1, resume="fresh", **kept)
    metrics = [row["metrics"]["accuracy"] for row in here.store.list_all_versions()]
    assert metrics == pytest.approx([0.12, 0.12])


def test_no_arrays_travel_and_are_kept(tmp_path: Path) -> None:
    content = RecordDict({"arrays": NOTHING, "config": ConfigRecord({"a": 1})})
    assert list(unpack(pack(content))["arrays"]) == []
    name, _ = RoundFiles(tmp_path).save_arrays(NOTHING, 0, {})
    assert list(load_array_record(tmp_path / name)) == []


def test_the_first_model_is_sent_whole_by_nodes_that_compress(here: World) -> None:
    encoded: list[bool] = []

    def answer(node_id: int, message: Message) -> RecordDict:
        def app(sent: Message, _: Context) -> Message:
            return Message(begin_then_add(node_id, sent), reply_to=sent)

        context = Context(
            run_id=7, node_id=node_id, node_config={}, state=RecordDict(), run_config={}
        )
        content = compress_updates("int8")(message, context, app).content
        if message.metadata.message_type == "train":
            encoded.append(UPDATE_RECORD in content)
        return content

    result = here.run(answer, rounds=2)
    assert encoded == [False, False, True, True]
    np.testing.assert_allclose(result.arrays["w"].numpy(), 13, rtol=1e-5)


def changed(change: Callable[[ArrayRecord], ArrayRecord]) -> Callable[[int, Message], RecordDict]:
    """A ClientApp whose model differs from the one that it was sent."""

    def answer(node_id: int, message: Message) -> RecordDict:
        if message.metadata.message_type == "train":
            return reply(change(message.content["arrays"]), loss=1.0)
        return reply(accuracy=0.5)

    return answer


def partial(sent: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({"0": sent["0"]})


def growing(sent: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({**sent, f"more-{len(sent)}": sent["0"]})


def taller(sent: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({**sent, "0": Array(np.zeros((3, 3), np.float32))})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (partial, "it lacks '1'. Have the ClientApp return each array"),
        (growing, "it has 'more-2'. Have the ClientApp return each array"),
        (taller, r"array '0' has shape \(3, 3\), expected \(2, 3\)"),
    ],
)
@pytest.mark.parametrize("kind", [FedAvg, StreamingFedAvg])
def test_other_models_of_all_nodes_end_the_run_at_the_first_replies(
    here: World, kind: type[FedAvg], change: Any, said: str
) -> None:
    with pytest.raises(RunFailedError, match=f"All replies of round 1 were rejected.*{said}"):
        here.run(changed(change), model(), inner=kind(), rounds=9)
    assert here.statuses == ["FAILED"]
    assert "failed_round.1" in here.tracker.runs[0].tags


@pytest.mark.parametrize("change", [partial, growing, taller])
def test_so_do_aggregates_of_replies_that_are_not_screened(here: World, change: Any) -> None:
    with pytest.raises(RunFailedError, match=r"FedAvg made another model in round 1 than it began"):
        here.run(changed(change), model(), settings=RoundSettings(screening=None), rounds=9)
    assert here.statuses == ["FAILED"]


def test_a_node_that_cannot_answer_does_not_hide_it(here: World) -> None:
    def answer(node_id: int, message: Message) -> Any:
        if message.metadata.message_type == "train" and node_id == 11:
            return Error(100, "no disk")
        return changed(partial)(node_id, message)

    with pytest.raises(RunFailedError, match="All replies of round 1 were rejected"):
        here.run(answer, model(), rounds=9)


def test_some_nodes_with_another_model_are_rejected_alone(here: World) -> None:
    def answer(node_id: int, message: Message) -> Any:
        return (changed(partial) if node_id == 13 else add_one)(node_id, message)

    result = here.run(answer, model(), rounds=1)
    assert result.arrays["0"].numpy()[0, 0] == 1


def test_other_models_after_the_first_one_cost_their_rounds(here: World) -> None:
    def answer(node_id: int, message: Message) -> Any:
        later = message.content["config"]["server-round"] == 2
        return (changed(partial) if later else add_one)(node_id, message)

    result = here.run(answer, model(), rounds=3)
    assert result.arrays["0"].numpy()[0, 0] == 2
    assert here.statuses == ["FINISHED"]


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("kind", [FedAvg, StreamingFedAvg])
def test_a_session_that_made_no_model_fails(here: World, kind: Any, rounds: int) -> None:
    def two_records(node_id: int, message: Message) -> RecordDict:
        return RecordDict({**reply(model()), "more": model()})

    with pytest.raises(RunFailedError, match=rf"No round of {rounds} made a model.*2 ArrayRecords"):
        here.run(two_records, model(), inner=kind(), rounds=rounds)
    assert here.statuses == ["FAILED"]


def test_no_rounds_are_no_failure(here: World) -> None:
    here.run(add_one, model(), rounds=0)
    assert here.statuses == ["FINISHED"]
