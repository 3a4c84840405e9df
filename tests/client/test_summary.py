# SPDX-License-Identifier: Apache-2.0
"""data_summary_mod as Flower calls it: what leaves a node, when, and what stays on its disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_app.client.mods.data_summary import KeyedRows, data_summary_mod
from fl_app.client.summary.reference import load_reference
from fl_app.wire.data_summary import (
    HOLD_KEY,
    REFERENCE_KEY,
    SUMMARY_RECORD,
    DataSummary,
    FeatureKind,
    read_summary,
)

NODE = 5


class Node:
    """A ClientApp with the mod, whose rows a test sets."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.rows: Any = None
        self.folder = folder
        self.order: dict[str, bool | str] = {}
        mod = data_summary_mod(lambda message, context: self.rows, **options)
        self.app = ClientApp(mods=[mod])
        self.app.train()(self.reply)
        self.app.evaluate()(self.reply)

    def reply(self, message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"loss": 1.0})}), reply_to=message)

    def ask(self, rows: Any, kind: str = "train") -> Message:
        self.rows = rows
        content = RecordDict({"config": ConfigRecord({"server-round": 1, **self.order})})
        config: dict[str, Any] = {"data-summaries": str(self.folder)}
        context = Context(
            run_id=7, node_id=NODE, node_config=config, state=RecordDict(), run_config={}
        )
        return self.app(Message(content, dst_node_id=NODE, message_type=kind), context)

    def tell(self, rows: Any) -> DataSummary | None:
        """The summary in the reply, if any."""
        records = self.ask(rows).content.config_records
        if SUMMARY_RECORD not in records:
            return None
        return read_summary(records[SUMMARY_RECORD], str(NODE))

    def sees(self, rows: Any) -> DataSummary:
        """The summary, which must be there."""
        summary = self.tell(rows)
        assert summary is not None
        return summary


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


def table(rows: int, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, (rows, 3))


def test_the_first_rows_make_the_reference_and_only_new_ones_are_told(node: Node) -> None:
    first = table(200)
    assert node.tell(first) is None
    assert node.tell(first) is None
    grown = np.concatenate([first, table(60, seed=1)])
    summary = node.sees(grown)
    assert [str(f) for f in summary.features] == ["column 0", "column 1", "column 2"]
    assert summary.counts.shape == (3, 3, 64)
    assert summary.counts.sum(axis=2).tolist() == [[60, 200, 200]] * 3
    assert node.tell(grown) is None


def test_names_of_files_that_are_no_utf_8_are_rows_like_any_other(node: Node) -> None:
    names = [os.fsdecode(b"caf\xe9-%d.png" % number) for number in range(120)]

    def rows(count: int) -> KeyedRows:
        return KeyedRows(names[:count], lambda which: {"a": np.array(which, np.float64)})

    assert node.tell(rows(60)) is None
    assert node.sees(rows(120)).counts[0].sum(axis=1).tolist() == [60, 60, 60]


def test_rows_that_move_place_or_go_are_not_new(node: Node) -> None:
    first = table(200)
    node.tell(first)
    assert node.tell(first[::-1]) is None
    assert node.tell(first[:60]) is None


def test_equal_rows_are_new_as_often_as_there_are_more_of_them(node: Node) -> None:
    node.tell({"switch": np.array([0, 1] * 50)})
    summary = node.sees({"switch": np.array([0] * 120 + [1] * 50)})
    assert summary.counts[0].sum(axis=1).tolist() == [70, 100, 100]
    assert np.flatnonzero(summary.counts[0, 0]).tolist() == [0]


def test_fewer_than_fifty_new_rows_wait_for_more(node: Node) -> None:
    first, more = table(100), table(60, seed=1)
    node.tell(first)
    assert node.tell(np.concatenate([first, more[:30]])) is None
    assert node.tell(np.concatenate([first, more[:49]])) is None
    summary = node.sees(np.concatenate([first, more]))
    assert summary.counts[0, 0].sum() == 60


def test_a_node_with_too_few_rows_says_nothing(node: Node) -> None:
    for rows in (10, 49):
        assert node.tell(table(rows)) is None
    assert not (node.folder / "reference.npz").exists()


def test_what_was_told_joins_the_reference_unless_the_server_holds_it_back(node: Node) -> None:
    rows = table(100)
    node.tell(rows)
    held = []
    for number, hold in enumerate((False, False, True, False)):
        node.order = {HOLD_KEY: hold, REFERENCE_KEY: ""}
        rows = np.concatenate([rows, table(50, seed=number + 1)])
        held.append(node.sees(rows).counts[0, 1:].sum(axis=1).tolist())
    assert held == [[100, 100], [150, 100], [150, 100], [200, 100]]


def test_another_reference_begins_anew_with_the_present_rows(node: Node) -> None:
    node.tell(table(100))
    node.order = {REFERENCE_KEY: "after the alarm"}
    moved = table(80, seed=1, mean=5)
    assert node.tell(moved) is None
    summary = node.sees(np.concatenate([moved, table(50, seed=2, mean=5)]))
    assert summary.reference == "after the alarm"
    assert summary.counts[0, 1:].sum(axis=1).tolist() == [80, 80]


def test_a_new_reference_is_made_of_what_the_old_one_did_not_let_in(node: Node) -> None:
    rows = table(100)
    node.tell(rows)
    rows = np.concatenate([rows, table(60, seed=1, mean=5)])
    node.sees(rows)
    node.order = {HOLD_KEY: True, REFERENCE_KEY: ""}
    rows = np.concatenate([rows, table(60, seed=2, mean=5)])
    node.sees(rows)
    node.order = {HOLD_KEY: False, REFERENCE_KEY: "after the alarm"}
    assert node.tell(rows) is None
    counts = node.sees(np.concatenate([rows, table(60, seed=3, mean=5)])).counts
    assert counts[0].sum(axis=1).tolist() == [60, 120, 120]
    share = counts[0] / counts[0].sum(axis=1, keepdims=True)
    assert np.abs(np.cumsum(share[0] - share[1])).max() < 0.3


def test_other_columns_begin_anew(node: Node) -> None:
    node.tell({"a": np.arange(100)})
    assert node.tell({"b": np.arange(200)}) is None
    assert node.sees({"b": np.arange(300)}).features[0].name == "b"


def test_a_shift_shows_where_it_should(node: Node) -> None:
    first = table(1000)
    node.tell(first)
    rows = np.concatenate([first, table(500, seed=1) + np.array([0, 2, 0])])
    counts = node.sees(rows).counts
    share = counts / counts.sum(axis=2, keepdims=True)
    gaps = np.abs(np.cumsum(share[:, 0] - share[:, 1], axis=1)).max(axis=1)
    assert gaps[1] > 0.6
    assert gaps[[0, 2]].max() < 0.1


def test_missing_values_are_a_feature_of_their_own_where_there_are_any(node: Node) -> None:
    first = {"a": np.arange(100.0), "b": np.arange(100.0)}
    node.tell(first)
    more = {"a": np.arange(200.0), "b": np.where(np.arange(200) < 120, np.arange(200.0), np.nan)}
    summary = node.sees(more)
    assert [(f.name, str(f.kind)) for f in summary.features] == [
        ("a", "value"),
        ("b", "value"),
        ("b", "missing"),
    ]
    assert summary.counts[2, :, :2].tolist() == [[20, 80], [100, 0], [100, 0]]


def test_levels_are_counted_by_rank_and_never_named(node: Node) -> None:
    first = np.array(["cat"] * 60 + ["dog"] * 30 + [None] * 10, object)
    node.tell({"animal": first})
    rows = np.concatenate([first, np.array(["dog"] * 50 + ["newt"] * 5, object)])
    content = node.ask({"animal": rows}).content.config_records[SUMMARY_RECORD]
    summary = read_summary(content, str(NODE))
    assert summary.features[0].kind is FeatureKind.LEVELS
    assert summary.counts[0, :, :3].tolist() == [[0, 50, 5], [60, 30, 0], [60, 30, 0]]
    assert not any(word in str(content) for word in ("cat", "dog", "newt"))


@pytest.mark.parametrize(
    ("first", "later", "bin_of_later"),
    [
        ([7.0] * 100, [8.0] * 60, 63),
        ([7.0] * 100, [6.0] * 60, 0),
        ([0.0] * 99 + [1.0], [1.0] * 60, None),
        ([1.0] * 99 + [0.0], [0.0] * 60, None),
        (list(range(100)), [np.inf] * 60, 63),
        (list(range(100)), [-np.inf] * 60, 0),
    ],
)
def test_constants_rare_values_and_infinite_ones_have_bins(
    node: Node, first: list[float], later: list[float], bin_of_later: int | None
) -> None:
    node.tell({"x": np.array(first)})
    counts = node.sees({"x": np.array(first + later)}).counts[0]
    (place,) = np.flatnonzero(counts[0])
    assert bin_of_later in (None, place)
    share = counts / counts.sum(axis=1, keepdims=True)
    assert np.abs(np.cumsum(share[0] - share[1])).max() > 0.9


def test_no_value_edge_or_range_leaves_the_node(node: Node) -> None:
    secret = 123456.75
    node.tell({"x": np.arange(100) + secret})
    record = node.ask({"x": np.arange(160) + secret}).content.config_records[SUMMARY_RECORD]
    assert set(record) == {
        "version",
        "node-id",
        "reference",
        "names",
        "kinds",
        "bins",
        "noise",
        "counts",
    }
    counts = np.frombuffer(bytes(record["counts"]), "<f4")  # type: ignore[arg-type]
    assert counts.max() <= 100
    assert counts.min() >= 0


def test_dear_rows_are_read_only_when_they_are_new(tmp_path: Path) -> None:
    read: list[int] = []

    def rows_of(keys: list[str]) -> KeyedRows:
        def columns(which: Any) -> dict[str, np.ndarray]:
            read.extend(which)
            return {"x": np.array([float(len(keys[i])) for i in which])}

        return KeyedRows(keys, columns)

    node = Node(tmp_path)
    keys = [f"picture {i}" for i in range(120)]
    assert node.tell(rows_of(keys[:60])) is None
    assert read == list(range(60))
    assert node.tell(rows_of(keys[:60])) is None
    assert node.tell(rows_of(keys)) is not None
    assert read == list(range(120))


def test_fresh_rows_all_count_however_alike(tmp_path: Path) -> None:
    node = Node(tmp_path, fresh=True)
    rows = table(80)
    assert node.tell(rows) is None
    assert node.sees(rows).counts[0].sum(axis=1).tolist() == [80, 80, 80]
    assert node.sees(rows).counts[0].sum(axis=1).tolist() == [80, 160, 80]


def test_without_a_disk_bare_counts_on_given_edges_are_told(tmp_path: Path) -> None:
    edges = {"x": [0.0, 1.0], "y": ["red", "blue", "green"]}
    node = Node(tmp_path / "none", fresh=True, edges=edges)
    rows = {"x": np.linspace(-1, 2, 60), "y": np.array(["red"] * 40 + ["black"] * 20)}
    summary = node.sees(rows)
    assert summary.counts.shape == (4, 1, 4)
    assert summary.counts[0, 0].tolist() == [20, 20, 20, 0]
    assert summary.counts[2, 0].tolist() == [40, 0, 0, 20]
    assert not (tmp_path / "none").exists()


def test_noise_has_the_variance_that_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path, fresh=True, epsilon=1.0)
    assert node.tell(table(1000)) is None
    summary = node.sees(table(1000, seed=1))
    sigma = np.sqrt(3 * 2 * np.log(1.25e5))  # three columns, epsilon 1, delta 1e-5
    assert summary.noise == pytest.approx((sigma**2,) * 3)
    assert summary.counts.shape == (3, 3, 16)
    spread = (summary.counts[:, 1] - 1000 / 16).std()
    assert spread == pytest.approx(sigma, rel=0.4)
    later = node.sees(table(1000, seed=2))
    assert later.noise == pytest.approx((sigma**2, 2 * sigma**2, sigma**2))
    np.testing.assert_allclose(
        later.counts[:, 1], summary.counts[:, 0] + summary.counts[:, 1], rtol=1e-4, atol=1e-3
    )


def test_noise_that_drowns_the_rows_is_not_sent(tmp_path: Path) -> None:
    node = Node(tmp_path, fresh=True, epsilon=0.1)
    assert node.tell(table(1000)) is None
    assert node.tell(table(1000)) is None
    assert not (tmp_path / "reference.npz").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 4.0}, "at most 1"),
        ({"epsilon": 1.0, "delta": 0.0}, "delta"),
        ({"edges": {"x": [0.0]}}, "fresh"),
        ({"edges": {"x": [0.0]}, "fresh": True, "epsilon": 1.0}, "either"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data_summary_mod(lambda message, context: None, **options)


def test_evaluate_replies_and_errors_stay_as_they_are(node: Node) -> None:
    node.tell(table(100))
    reply = node.ask(table(300, seed=1), kind="evaluate")
    assert SUMMARY_RECORD not in reply.content.config_records
    node.app = ClientApp(mods=[data_summary_mod(lambda message, context: table(9))])
    node.app.train()(lambda message, context: Message(Error(1, "no"), reply_to=message))
    assert node.ask(None).has_error()


def broken(message: Message, context: Context) -> Any:
    raise RuntimeError("a bug of the user's")


@pytest.mark.parametrize(
    "features",
    [
        broken,
        lambda message, context: np.zeros((3, 3, 3)),
        lambda message, context: {"a": np.zeros(60), "b": np.zeros(61)},
        lambda message, context: {},
    ],
)
def test_what_goes_wrong_costs_the_summary_and_not_the_round(
    node: Node, features: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    node.app = ClientApp(mods=[data_summary_mod(features)])
    node.app.train()(node.reply)
    with caplog.at_level(logging.WARNING):
        reply = node.ask(None)
    assert reply.content.metric_records["metrics"]["loss"] == 1.0
    assert SUMMARY_RECORD not in reply.content.config_records
    assert "sends no data summary" in caplog.text


def test_a_damaged_file_starts_anew(node: Node) -> None:
    file = node.folder / "reference.npz"
    node.tell(table(100))
    whole = file.read_bytes()
    for place in range(0, len(whole), 997):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        load_reference(file)
    for part in (b"", whole[:100], whole[: len(whole) // 2], b"\x80\x04N."):
        file.write_bytes(part)
        assert load_reference(file) is None
        assert node.tell(table(100)) is None
    assert node.tell(np.concatenate([table(100), table(50, seed=1)])) is not None


def test_writing_leaves_the_old_file_or_the_new_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.tell(table(100))
    before = (node.folder / "reference.npz").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert node.tell(table(300, seed=1)) is None
    assert (node.folder / "reference.npz").read_bytes() == before
    assert [path.name for path in node.folder.iterdir()] == ["reference.npz"]


def test_a_data_frame_will_do(node: Node) -> None:
    import pandas as pd

    frame = pd.DataFrame({"age": range(100), "town": ["Bonn", "Ulm"] * 50})
    node.tell(frame)
    more = pd.concat([frame, pd.DataFrame({"age": range(60), "town": ["Ulm"] * 60})])
    assert [f.name for f in node.sees(more).features] == ["age", "town"]
