# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ClientApp as Flower calls it: a message in, a reply out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from support.arrays import to_arrays

from fl_app.client import handlers
from fl_app.client.client_app import app
from fl_app.client.data import load_node_data
from fl_app.client.data_yaml import load_data_spec
from fl_app.client.generated_shapes import NAMES
from fl_app.client.handlers import OPTIMIZER
from fl_app.config import ClientConfig
from fl_app.wire.compressed_update import SentModel, decode_update
from fl_models.pictures import cached_while_unchanged, label_file, settled_state
from fl_models.yolo import get_model

SETTINGS: dict[str, bool | float | int | str] = {
    "image-size": 64,
    "batch-size": 4,
    "local-epochs": 1,
}
SCORES = {"mAP50", "mAP50-95", "precision", "recall"}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return to_arrays(get_model("n", 7, seed=1))


@cache
def described(names: tuple[str, ...]) -> str:
    return json.dumps(get_model("n", len(names), names=names).description)


def ask(
    kind: str,
    arrays: dict[str, np.ndarray],
    data: Path | str,
    *,
    node: dict[str, int | str] | None = None,
    server_round: int = 1,
    names: Sequence[str] = NAMES,
    state: RecordDict | None = None,
    **settings: bool | float | int | str,
) -> Message:
    order = {"server-round": server_round, "num-rounds": 3, "train-args": "{}"}
    config = ConfigRecord({**order, "names": list(names), "model": described(tuple(names))})
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    content = RecordDict({"arrays": record, "config": config})
    context = Context(
        run_id=7,
        node_id=1,
        node_config={"partition-id": 0, "num-partitions": 2} if node is None else node,
        state=RecordDict() if state is None else state,
        run_config={**SETTINGS, "data": str(data), **settings},
    )
    return app(Message(content, dst_node_id=1, message_type=kind), context)


def test_a_train_reply_has_all_arrays_in_their_order(
    arrays: dict[str, np.ndarray], shapes_yaml: Path
) -> None:
    content = ask("train", arrays, shapes_yaml).content
    sent = {name: array.numpy() for name, array in content.array_records["arrays"].items()}
    assert list(sent) == list(arrays)
    assert all(sent[k].dtype == v.dtype and sent[k].shape == v.shape for k, v in arrays.items())
    assert not np.array_equal(sent["model.0.conv.weight"], arrays["model.0.conv.weight"])
    metrics = content.metric_records["metrics"]
    assert set(metrics) == {"num-examples", "loss"}
    assert metrics["num-examples"] == 10  # 12 of the partition, 2 held out
    assert len(str(content.config_records["node"]["data-digest"])) == 64


def test_a_node_continues_with_its_optimizer_if_it_trained_in_the_round_before(
    arrays: dict[str, np.ndarray], shapes_yaml: Path
) -> None:
    state = RecordDict()

    def steps(server_round: int) -> float:
        ask("train", arrays, shapes_yaml, state=state, server_round=server_round, **KEEPS)
        kept = state.array_records[OPTIMIZER]
        (count,) = {float(kept[name].numpy()) for name in kept if name.endswith("/step")}
        return count

    each = steps(1)
    assert [steps(2), steps(3), steps(5), steps(1)] == [2 * each, 3 * each, each, each]
    nothing = RecordDict()
    ask("train", arrays, shapes_yaml, state=nothing)
    assert not nothing


KEEPS = {"keep-optimizer": True}


def test_a_setting_makes_a_reply_smaller_and_what_is_read_of_it_is_near_the_plain_one(
    arrays: dict[str, np.ndarray], shapes_yaml: Path
) -> None:
    plain = ask("train", arrays, shapes_yaml).content
    small = ask("train", arrays, shapes_yaml, **{"update-compression": "int8"}).content
    sizes = [
        sum(len(array.data) for array in content.array_records["arrays"].values())
        for content in (small, plain)
    ]
    assert sizes[0] < 0.27 * sizes[1]
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    decoded = decode_update(small, SentModel(record)).array_records["arrays"]
    for name, array in plain.array_records["arrays"].items():
        exact, found = array.numpy(), decoded[name].numpy()
        change = np.abs(exact - arrays[name]).max() if exact.ndim > 1 else 0
        assert np.abs(found - exact).max() <= 1.01 * change / 127 + 1e-7


def test_a_round_repeats_bit_by_bit_and_the_next_one_differs(
    arrays: dict[str, np.ndarray], shapes_yaml: Path
) -> None:
    replies = [
        ask("train", arrays, shapes_yaml, server_round=number).content.array_records["arrays"]
        for number in (1, 1, 2)
    ]
    first, again, later = [
        {name: array.numpy().tobytes() for name, array in reply.items()} for reply in replies
    ]
    assert first == again
    assert first != later


def test_a_node_trains_with_its_own_batch_size_and_on_its_own_device(
    arrays: dict[str, np.ndarray], shapes_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def looked_at(*args: Any, **settings: Any) -> float:
        seen.append(settings)
        return 1.0

    monkeypatch.setattr("fl_app.client.handlers.train_locally", looked_at)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    node = {"partition-id": 0, "num-partitions": 2, "batch-size": 2, "threads": 3, "workers": 2}
    assert not ask("train", arrays, shapes_yaml, node={**node, "device": "cuda:1"}).has_error()
    (given,) = seen
    assert given["batch_size"] == 2
    assert given["hardware"].device == torch.device("cuda:1")
    assert (given["hardware"].threads, given["hardware"].workers) == (3, 2)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_device_that_is_not_there_is_the_answer(
    kind: str, arrays: dict[str, np.ndarray], shapes_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    node = {"partition-id": 0, "num-partitions": 2, "device": "mps"}
    reply = ask(kind, arrays, shapes_yaml, node=node)
    assert reply.error.reason.startswith("device='mps' cannot be used here: PyTorch finds no MPS")


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_lack_of_memory_is_the_answer(
    kind: str, arrays: dict[str, np.ndarray], shapes_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    assert not ask("evaluate", arrays, shapes_yaml).has_error()  # which builds the model
    monkeypatch.setattr("fl_models.yolo.YoloModel.forward", full)
    assert ask(kind, arrays, shapes_yaml).error.reason == (
        "cpu has too little memory: lower batch-size (now 4, which a node config may set), or "
        "image-size (now 64)"
    )


def test_a_misspelt_key_of_a_node_is_not_a_demonstration(
    arrays: dict[str, np.ndarray], shapes_yaml: Path
) -> None:
    reply = ask("train", arrays, shapes_yaml, node={"dta": str(shapes_yaml)})
    assert reply.error.reason == "Unknown node-config key 'dta': did you mean 'data'?"


def test_a_deployed_node_that_names_no_data_trains_on_no_generated_shapes(
    arrays: dict[str, np.ndarray],
) -> None:
    reply = ask("train", arrays, "", node={})
    assert reply.error.reason.startswith("this node has no pictures, expected a data.yaml")


def test_a_new_process_decodes_no_unchanged_picture_to_check_it(
    arrays: dict[str, np.ndarray], shapes_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_data_spec(shapes_yaml, 7)
    while any(settled_state(path) is None for path in (*spec.train, *spec.val)):
        time.sleep(0.1)  # two seconds at most
    first = [ask(kind, arrays, shapes_yaml).content for kind in ("train", "evaluate")]
    for name in ("_pictures", "_holdout"):  # the caches of the first process
        read = getattr(handlers, name).__wrapped__
        monkeypatch.setattr(handlers, name, cached_while_unchanged(read))
    monkeypatch.setattr(handlers, "picture_shape", lambda path: pytest.fail(str(path)))
    again = [ask(kind, arrays, shapes_yaml).content for kind in ("train", "evaluate")]
    for before, after in zip(first, again, strict=True):
        assert after.metric_records["metrics"] == before.metric_records["metrics"]


def test_an_evaluate_reply_has_scores_and_no_arrays(
    arrays: dict[str, np.ndarray], shapes_yaml: Path
) -> None:
    content = ask("evaluate", arrays, shapes_yaml).content
    assert not content.array_records
    assert set(content.metric_records["metrics"]) == {"num-examples", *SCORES}
    assert content.metric_records["metrics"]["num-examples"] == 2


def test_replies_of_two_nodes_average(arrays: dict[str, np.ndarray], shapes_yaml: Path) -> None:
    replies = [
        ask("train", arrays, shapes_yaml, node={"partition-id": i, "num-partitions": 2})
        for i in range(2)
    ]
    record, metrics = FedAvg().aggregate_train(1, replies)
    assert record is not None
    assert metrics is not None
    averaged = {name: array.numpy() for name, array in record.items()}
    assert ask("evaluate", averaged, shapes_yaml).has_content()


def test_a_node_never_evaluates_on_pictures_it_trains_on(shapes_yaml: Path) -> None:
    nodes = [
        load_node_data(
            ClientConfig.from_run_config(
                {"data": str(shapes_yaml)}, {"partition-id": i, "num-partitions": 3}
            ),
            NAMES,
        )
        for i in range(3)
    ]
    used = [path for node in nodes for path in (*node.spec.train, *node.spec.val)]
    assert len(set(used)) == len(used) == 24
    assert all(node.spec.val for node in nodes)
    assert len({node.digest for node in nodes}) == 3


def test_a_node_with_data_of_its_own_uses_all_of_it(
    arrays: dict[str, np.ndarray], shapes_yaml: Path, tmp_path: Path
) -> None:
    node: dict[str, int | str] = {"data": str(shapes_yaml)}
    trained = ask("train", arrays, tmp_path / "unused.yaml", node=node).content
    scored = ask("evaluate", arrays, tmp_path / "unused.yaml", node=node).content
    assert trained.metric_records["metrics"]["num-examples"] == 24
    assert scored.metric_records["metrics"]["num-examples"] == 6


def relabelled(data: Path, names: Sequence[str], *, first: int = 0) -> None:
    """Give the classes of a data set this order, and number them from ``first``."""
    place = [names.index(name) + first if name in names else number + first
             for number, name in enumerate(NAMES)]  # fmt: skip
    for label in (data.parent / "labels").rglob("*.txt"):
        rows = [row.split(maxsplit=1) for row in label.read_text().splitlines()]
        label.write_text("".join(f"{place[int(number)]} {box}\n" for number, box in rows))
    text = data.read_text().partition("nc:")[0]
    data.write_text(f"{text}names: [{', '.join(names)}]\n")


def sent_by(reply: Message) -> dict[str, bytes]:
    record = reply.content.array_records["arrays"]
    return {name: array.numpy().tobytes() for name, array in record.items()}


def test_a_node_with_the_same_names_in_another_order_answers_the_same(
    arrays: dict[str, np.ndarray], shapes_yaml: Path, own_yaml: Path
) -> None:
    relabelled(own_yaml, NAMES[::-1])
    replies = [
        (
            ask("train", arrays, yaml, node={"data": str(yaml)}),
            ask("evaluate", arrays, yaml, node={"data": str(yaml)}),
        )
        for yaml in (shapes_yaml, own_yaml)
    ]
    (train, scored), (other, scored_too) = replies
    assert sent_by(train) == sent_by(other)
    assert train.content["metrics"] == other.content["metrics"]
    assert scored.content["metrics"] == scored_too.content["metrics"]
    assert train.content["node"] != other.content["node"]  # the digest has the names
    assert train.content["node"]["notes"] == []


def test_a_node_with_some_of_the_classes_takes_part_if_others_are_ignored(
    arrays: dict[str, np.ndarray], own_yaml: Path
) -> None:
    names = ("circle", "square", "triangle", "star", "cross", "ring", "cube")
    relabelled(own_yaml, names)
    node: dict[str, int | str] = {"data": str(own_yaml)}
    why = reason_of(ask("train", arrays, own_yaml, node=node))
    assert "it has 'cube' and it lacks 'diamond'" in why
    assert "unknown-classes='ignore-others'" in why
    ignoring = {"unknown-classes": "ignore-others"}
    content = ask("train", arrays, own_yaml, node=node, **ignoring).content
    (note,) = content.config_records["node"]["notes"]
    assert "it has 'cube' and it lacks 'diamond'; boxes of classes that the server lacks" in note
    none = ask("train", arrays, own_yaml, node=node, names=("cat", "dog"), **ignoring)
    assert "its classes are not the server's" in reason_of(none)


def test_labels_off_by_one_are_refused_and_pictures_left_out_are_reported(
    arrays: dict[str, np.ndarray], own_yaml: Path
) -> None:
    node: dict[str, int | str] = {"data": str(own_yaml)}
    label = label_file(load_data_spec(own_yaml, 7).train[2])
    label.write_text("9 0.5 0.5 0.1 0.1\n")
    content = ask("train", arrays, own_yaml, node=node).content
    assert content.config_records["node"]["notes"] == [
        "1 of 24 pictures are left out: 1 because of class 9, expected 0 to 6"
    ]
    label.write_text("6 0.5 0.5 0.1 0.1\n")
    relabelled(own_yaml, NAMES, first=1)
    for kind in ("train", "evaluate"):
        why = reason_of(ask(kind, arrays, own_yaml, node=node))
        assert "are numbered 1 to 7, expected 0 to 6: number the classes from 0" in why


def reason_of(reply: Message) -> str:
    assert reply.has_error()
    assert reply.error.reason
    assert "\n" not in reply.error.reason
    return reply.error.reason


def test_unusable_data_is_an_error_reply_and_one_warning(
    arrays: dict[str, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        reason = reason_of(ask("train", arrays, tmp_path / "none.yaml"))
    assert "none.yaml can't be read" in reason
    assert [r.getMessage() for r in caplog.records] == [
        f"this node does not take part in the round: {reason}"
    ]


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_reasons_are_told_in_one_sentence(
    arrays: dict[str, np.ndarray], shapes_yaml: Path, kind: str
) -> None:
    empty: dict[str, int | str] = {"partition-id": 29, "num-partitions": 30}
    single: dict[str, int | str] = {"partition-id": 0, "num-partitions": 24}
    other_model = to_arrays(get_model("n", 3))
    other_names = reason_of(ask(kind, arrays, shapes_yaml, names=("circle", "squares")))
    assert "partition 29 of 30 is empty" in reason_of(ask(kind, arrays, shapes_yaml, node=empty))
    assert "can't be split" in reason_of(ask(kind, arrays, shapes_yaml, node=single))
    assert "don't fit the model" in reason_of(ask(kind, other_model, shapes_yaml))
    assert "it has 'square' (did you mean 'squares'?), 'triangle'" in other_names
    assert "relative path" in reason_of(ask(kind, arrays, Path("data.yaml")))


def test_the_other_node_goes_on_when_one_sits_out(
    arrays: dict[str, np.ndarray], shapes_yaml: Path, tmp_path: Path
) -> None:
    good, bad = ask("train", arrays, shapes_yaml), ask("train", arrays, tmp_path / "none.yaml")
    record, _ = FedAvg().aggregate_train(1, [good, bad])
    assert record is not None
    name = "model.0.conv.weight"
    sent = good.content.array_records["arrays"][name].numpy()
    assert np.array_equal(record[name].numpy(), sent)


def test_broken_pictures_and_missing_labels_are_reported_and_the_rest_is_used(
    arrays: dict[str, np.ndarray], own_yaml: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = load_data_spec(own_yaml, 7)
    spec.train[0].write_bytes(b"no picture")
    label_file(spec.train[1]).unlink()
    label_file(spec.train[2]).write_text("9 0.5 0.5 0.1 0.1\n")
    node: dict[str, int | str] = {"data": str(own_yaml)}
    with caplog.at_level(logging.WARNING):
        reply = ask("train", arrays, own_yaml, node=node)
    assert reply.content.metric_records["metrics"]["num-examples"] == 22
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert sum(spec.train[0].name in line for line in lines) == 1
    assert sum("class 9, expected 0 to 6" in line for line in lines) == 1
    assert sum("1 of 22 pictures have no label file" in line for line in lines) == 1
    assert not list(own_yaml.parent.rglob("*.cache"))


def test_only_broken_pictures_are_an_error_reply(
    arrays: dict[str, np.ndarray], own_yaml: Path
) -> None:
    spec = load_data_spec(own_yaml, 7)
    for path in (*spec.train, *spec.val):
        path.write_bytes(b"no picture")
    node: dict[str, int | str] = {"data": str(own_yaml)}
    assert "none of the 24 training pictures can be used (24 of 24" in reason_of(
        ask("train", arrays, own_yaml, node=node)
    )
    assert "none of the 6" in reason_of(ask("evaluate", arrays, own_yaml, node=node))


def test_weights_that_diverge_are_an_error_reply(
    arrays: dict[str, np.ndarray], shapes_yaml: Path
) -> None:
    spoilt = arrays | {"model.0.conv.weight": arrays["model.0.conv.weight"] * np.nan}
    assert "the loss is nan" in reason_of(ask("train", spoilt, shapes_yaml))
    assert ask("train", arrays, shapes_yaml).has_content()  # nothing of it stays behind


def test_data_that_changes_between_rounds_is_noticed(
    arrays: dict[str, np.ndarray], own_yaml: Path
) -> None:
    time.sleep(2.1)  # files that changed within the last two seconds are read each time
    node: dict[str, int | str] = {"data": str(own_yaml)}
    spec = load_data_spec(own_yaml, 7)

    def answer(kind: str) -> tuple[Any, Any, bytes]:
        content = ask(kind, arrays, own_yaml, node=node).content
        sent = content.array_records.get("arrays")
        weight = sent["model.0.conv.weight"].numpy().tobytes() if sent else b""
        metrics = dict(content.metric_records["metrics"])
        return metrics, content.config_records["node"]["data-digest"], weight

    trained, scored = answer("train"), answer("evaluate")
    assert answer("train") == trained
    label_file(spec.train[0]).write_text("0 0.5 0.5 0.2 0.2\n")
    relabelled = answer("train")
    assert relabelled[1] != trained[1]
    assert relabelled[2] != trained[2]
    spec.train[1].unlink()
    spec.val[0].unlink()
    assert answer("train")[0]["num-examples"] == trained[0]["num-examples"] - 1
    assert answer("evaluate")[0]["num-examples"] == scored[0]["num-examples"] - 1
