# SPDX-License-Identifier: Apache-2.0
"""Replies that Flower cannot unpack: an error of their node, and nothing for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx
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
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from support.hostile_replies import first_model, honest
from support.local_grid import LocalGrid

from fl_app.client.mods.packing import pack_arrays
from fl_app.flower_internals import lost
from fl_app.strategy.round.grids import GridAround, OneByOne, streaming_grid
from fl_app.strategy.round.screening import with_content
from fl_app.wire.packing import INDEX_RECORD


class Wire(LocalGrid):
    """Nodes whose replies are packed and unpacked as Flower's network Grid does it.

    Each reply is handed out once; it is there when ``delay`` says.
    """

    def __init__(
        self,
        answer: Callable[[int, Message], Any],
        *,
        delay: float = 0.0,
        nodes: Sequence[int] = (1, 2, 3),
    ) -> None:
        super().__init__(answer, nodes)
        self.now, self.delay, self.pulls = 0.0, delay, 0
        self.packed: dict[str, tuple[str, dict[str, bytes]]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(len(self.sent))
            self.sent.append(message)
            reply = Message(self.answer(message.metadata.dst_node_id, message), reply_to=message)
            parts = get_all_nested_objects(reply)
            contents = {name: part.deflate() for name, part in parts.items()}
            self.packed[message.metadata.message_id] = (reply.object_id, contents)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls += 1
        there = [i for i in message_ids if i in self.packed and self.now >= self.delay]
        taken = [self.packed.pop(i) for i in there]
        return [inflate_object_from_contents(*packed) for packed in taken]  # type: ignore[misc]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def one_by_one(self, *, packed: bool = False) -> Grid:
        return OneByOne(self, packed=packed, clock=lambda: self.now, sleep=self.sleep)


def ask(grid: Grid) -> list[Message]:
    messages = FedAvg().configure_train(1, first_model(), ConfigRecord(), grid)
    return list(grid.send_and_receive(messages, timeout=60))


def shape_of_text(parts: RecordDict) -> RecordDict:
    parts["arrays"]["layer.bias"].shape = ("x",)
    return parts


def no_metric(parts: RecordDict) -> RecordDict:
    class Broken(MetricRecord):
        def deflate(self) -> bytes:
            return super().deflate()[:-5] + b"\xff\xff\xff\xff\xff"

    Broken.__name__ = Broken.__qualname__ = "MetricRecord"
    parts["metrics"] = Broken(dict(parts["metrics"]))
    return parts


UNPACKABLE = [shape_of_text, no_metric]


@pytest.mark.parametrize("spoil", UNPACKABLE)
def test_what_cannot_be_unpacked_is_an_error_of_its_node(
    spoil: Callable[[RecordDict], RecordDict],
) -> None:
    def answer(node: int, message: Message) -> RecordDict:
        content = honest(node).content()
        return spoil(content) if node == 2 else content

    wire = Wire(answer)
    ids = wire.push_messages(FedAvg().configure_train(1, first_model(), ConfigRecord(), wire))
    with pytest.raises(Exception, match=r"."):  # which in Flower's own way ends the run
        list(wire.pull_messages(ids))

    by_node = {m.metadata.src_node_id: m for m in ask(Wire(answer).one_by_one())}
    assert set(by_node) == {1, 2, 3}
    assert "its reply cannot be unpacked" in (by_node[2].error.reason or "")
    for node in (1, 3):
        got = by_node[node].content["arrays"]
        for name, array in honest(node).arrays.items():
            np.testing.assert_array_equal(got[name].numpy(), array.numpy())


def test_replies_are_waited_for_until_the_timeout() -> None:
    wire = Wire(lambda node, message: honest(node).content(), delay=50.0)
    assert len(ask(wire.one_by_one())) == 3
    assert 50 <= wire.now < 51
    assert wire.pulls < 3 * 110  # twice a second
    late = Wire(lambda node, message: honest(node).content(), delay=70.0)
    assert ask(late.one_by_one()) == []
    assert 60 <= late.now < 61


def test_what_came_in_time_is_returned_to_a_reader_who_comes_late() -> None:
    wire = Wire(lambda node, message: honest(node).content(), delay=50.0)
    messages = FedAvg().configure_train(1, first_model(), ConfigRecord(), wire)
    replies = wire.one_by_one().send_and_receive(messages, timeout=60)
    wire.now = 90.0
    assert len(list(replies)) == 3
    assert wire.now == 90.0


def test_many_nodes_are_looked_for_less_often() -> None:
    wire = Wire(lambda node, message: honest(node).content(), delay=50.0, nodes=range(1, 200))
    assert len(ask(wire.one_by_one())) == 199
    assert wire.pulls < 199 * 20


def test_in_a_simulation_replies_are_looked_for_as_often_as_by_flower() -> None:
    from flwr.superlink.grid.inmemory_grid import InMemoryGrid

    class State:
        def state(self) -> None: ...

    grid = InMemoryGrid(State())  # type: ignore[arg-type]
    wire = Wire(lambda node, message: honest(node).content(), delay=50.0, nodes=range(1, 200))
    often = streaming_grid(grid)
    assert isinstance(often, OneByOne)
    often._grid, often._clock, often._sleep = wire, lambda: wire.now, wire.sleep
    assert len(ask(often)) == 199
    assert wire.pulls == pytest.approx(199 * 50 / grid.pull_interval, rel=0.02)


def test_replies_are_handed_on_as_they_arrive() -> None:
    wire = Wire(lambda node, message: honest(node).content())
    messages = FedAvg().configure_train(1, first_model(), ConfigRecord(), wire)
    replies = iter(wire.one_by_one().send_and_receive(messages))
    assert len(wire.packed) == 3  # sent before anybody asks for a reply
    for left in (2, 1, 0):
        next(replies)
        assert len(wire.packed) == left
    assert next(replies, None) is None


def test_errors_of_the_connection_are_not_a_node_s() -> None:
    for error in (httpx.ConnectError("refused"), ConnectionResetError("reset")):

        class Down(Wire):
            def pull_messages(
                self, message_ids: Iterable[str], error: Exception = error
            ) -> Iterable[Message]:
                raise error

        with pytest.raises(type(error)):
            ask(Down(lambda node, message: honest(node).content()).one_by_one())


def test_only_flower_s_own_grid_over_the_network_needs_it() -> None:
    from flwr.superlink.grid.http_grid import HttpGrid

    local = LocalGrid(lambda node, message: honest(node).content())
    assert streaming_grid(local) is local
    assert isinstance(streaming_grid(HttpGrid(token="t")), OneByOne)  # noqa: S106 - no secret


def test_all_else_is_passed_on() -> None:
    grid = GridAround(LocalGrid(lambda node, message: honest(node).content(), (7, 8)))
    assert list(grid.get_node_ids()) == [7, 8]
    assert grid.run.run_id == 7
    message = Message(RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(1))})}), 7, "train")
    (reply,) = grid.send_and_receive([message])
    assert reply.metadata.src_node_id == 7


def test_what_the_superlink_says_of_a_node_that_is_gone_counts_as_that_node_s() -> None:
    class Gone(Wire):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                if reply.has_error():
                    reply.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's own number
            return replies

    def answer(node: int, message: Message) -> RecordDict | Error:
        if node == 3:
            return Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat")
        return honest(node).content()

    replies = ask(Gone(answer, nodes=(2, 3, 4)).one_by_one())
    assert {m.metadata.src_node_id: m.has_error() for m in replies} == {2: False, 3: True, 4: False}
    (error,) = [m.error for m in replies if m.has_error()]
    assert (error.code, error.reason) == (ErrorCode.NODE_UNAVAILABLE, "no heartbeat")


def packed_answer(node: int, message: Message) -> Any:
    """An honest node with the mod; node 2 spoils the index of what it has packed."""
    context = Context(run_id=7, node_id=node, node_config={}, state=RecordDict(), run_config={})
    arrived = with_content(message, message.content)  # or the node would change what was sent
    reply = pack_arrays(
        arrived, context, lambda asked, _: Message(honest(node).content(), reply_to=asked)
    )
    if node == 2:
        reply.content[INDEX_RECORD] = ConfigRecord({"index": "{"})
    return reply.content


def test_models_travel_packed_and_what_is_malformed_is_an_error_of_its_node() -> None:
    wire = Wire(packed_answer)
    asked = FedAvg().configure_train(1, first_model(), ConfigRecord(), wire)
    messages = list(asked)
    replies = list(wire.one_by_one(packed=True).send_and_receive(messages, timeout=60))
    assert all(list(message.content["arrays"]) == ["packed"] for message in wire.sent)
    assert len({id(message.content["arrays"]) for message in wire.sent}) == 1
    assert list(messages[0].content["arrays"]) == list(first_model())  # as the strategy made it
    by_node = {m.metadata.src_node_id: m for m in replies}
    assert (by_node[2].error.reason or "").endswith("PackingError: has no readable index")
    for node in (1, 3):
        got = by_node[node].content["arrays"]
        assert list(got) == list(honest(node).arrays)
        for name, array in honest(node).arrays.items():
            assert got[name].data == array.data


def test_packed_replies_are_handed_on_as_they_arrive() -> None:
    wire = Wire(packed_answer, nodes=(1, 3))
    replies = iter(wire.one_by_one(packed=True).send_and_receive(_asked(wire), timeout=60))
    next(replies)
    assert len(wire.packed) == 1


def _asked(grid: Grid) -> Iterable[Message]:
    return FedAvg().configure_train(1, first_model(), ConfigRecord(), grid)


def test_models_are_packed_over_the_network_only_and_if_asked_for() -> None:
    from flwr.superlink.grid.http_grid import HttpGrid

    http, local = HttpGrid(token="t"), LocalGrid(packed_answer)  # noqa: S106 - no secret
    for packed in (True, False):
        grid = streaming_grid(http, packed=packed)
        assert isinstance(grid, OneByOne)
        assert grid._packed is packed
    assert streaming_grid(local, packed=True) is local


def test_a_flower_whose_grids_have_moved_is_reported() -> None:
    assert lost() == ()
    for module, name in (("flwr.superlink.no_grid", "HttpGrid"), ("flwr.serverapp", "HttpGrid")):
        (reason,) = lost({"superlink": (module, name)})
        assert "has moved its Grids" in reason
        assert "install flwr>=1.40,<1.43" in reason
