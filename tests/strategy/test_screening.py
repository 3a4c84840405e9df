# SPDX-License-Identifier: Apache-2.0
"""Screening: what may count, what is rejected and why, what is mended; nothing is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_app.strategy import Screening
from fl_app.strategy.round.averaging import in_step
from fl_app.strategy.round.screening import (
    Needs,
    ScreenedReplies,
    agreed_schema,
    needs_of,
    screen_evaluate,
    screen_train,
    sound_metrics,
)
from fl_app.strategy.round.state import RoundInHand
from fl_app.wire.arrays import (
    ArrayError,
    model_values,
    require_like,
    schema_of,
    view,
    viewed,
)

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
HALF = np.ones(4, np.float16)
STEPS = np.asarray(7, dtype=np.int64)
MASK = np.asarray([True, False])
DEFAULT = Screening()
MODEL = ArrayRecord(
    {"weight": Array(WEIGHT), "half": Array(HALF), "steps": Array(STEPS), "mask": Array(MASK)}
)


def message(content: RecordDict | Error, node: int = 12) -> Message:
    asked = Message(RecordDict(), node, "train")
    asked.metadata.__dict__["_message_id"] = "1"
    return Message(content, reply_to=asked)


def arrays(**changed: Array | np.ndarray) -> ArrayRecord:
    made = {k: v if isinstance(v, Array) else Array(np.asarray(v)) for k, v in changed.items()}
    return ArrayRecord({**MODEL, **made})


def content(record: ArrayRecord | None = None, **metrics: Any) -> RecordDict:
    told = {"num-examples": metrics.pop("num_examples", 10), **metrics}
    known = {k: v for k, v in told.items() if v is not None}
    return RecordDict({"arrays": record or MODEL, "metrics": MetricRecord(known)})


def screen(
    reply: RecordDict | Error, rules: Screening | None = DEFAULT, needs: Needs | None = None
) -> ScreenedReplies:
    return screen_train(
        [message(reply)], rules, needs=needs or Needs(), model=MODEL, schema=schema_of(MODEL)
    ).all()


def described(**lie: Any) -> Array:
    truth = {"dtype": "float32", "shape": (2, 3), "stype": "numpy.ndarray"}
    return Array(**{**truth, **lie}, data=GOOD)


def raw(data: bytes) -> Array:
    return Array("float32", (2, 3), "numpy.ndarray", data)


GOOD = Array(WEIGHT).data
NEITHER = Array("bool", (2,), "numpy.ndarray", Array(MASK).data[:-1] + b"\7")
NAN = np.where(WEIGHT == 4, np.nan, WEIGHT)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (arrays(weight=NAN), "array 'weight' is not finite"),
        (arrays(weight=NAN.astype(np.float64)), "array 'weight' is not finite"),
        (arrays(weight=np.full((2, 3), 1e300)), "array 'weight' has values that float32 cannot"),
        (arrays(weight=np.full((2, 3), 1e30)), "array 'weight' is too large: float32 cannot hold"),
        (arrays(half=np.full(4, np.inf, np.float16)), "array 'half' is not finite"),
        (arrays(half=np.full(4, 1e5, np.float32)), "array 'half' has values that float16 cannot"),
        (arrays(weight=WEIGHT[:1]), "array 'weight' has shape (1, 3), expected (2, 3)"),
        (arrays(weight=WEIGHT.reshape(3, 2)), "array 'weight' has shape (3, 2), expected (2, 3)"),
        (arrays(steps=np.zeros(1, np.int64)), "array 'steps' has shape (1,), expected ()"),
        (arrays(weight=WEIGHT.astype(int)), "array 'weight' holds int64, expected float32"),
        (arrays(steps=np.asarray(7.0)), "array 'steps' holds float64, expected int64"),
        (arrays(weight=WEIGHT.astype(np.longdouble)), "array 'weight' holds"),
        (arrays(weight=WEIGHT.astype(complex)), "array 'weight' holds complex128"),
        (arrays(steps=np.asarray(2**60)), f"has values from {2**60} to {2**60}, expected -90071"),
        (arrays(mask=np.asarray([1, 0])), "array 'mask' holds int64, expected bool"),
        (arrays(mask=NEITHER), "array 'mask' holds bytes that are neither true nor false"),
        (arrays(weight=WEIGHT.astype("U3")), "array 'weight' does not hold plain numbers"),
        (arrays(weight=described(dtype="float64")), "says it is 'float64' of shape (2, 3), but ho"),
        (arrays(weight=described(shape=(6,))), "says it is 'float32' of shape (6,), but holds flo"),
        (arrays(weight=described(stype="torch.tensor")), "is serialized as 'torch.tensor', expect"),
        (arrays(weight=raw(GOOD[:-1])), "array 'weight' has 23 bytes of values, expected 24"),
        (arrays(weight=raw(GOOD + b"0")), "array 'weight' has 25 bytes of values, expected 24"),
        (arrays(weight=raw(b"")), "array 'weight' does not begin as numpy's format does"),
        (arrays(weight=raw(GOOD[:9])), "array 'weight' does not begin as numpy's format does"),
        (arrays(weight=raw(GOOD[:8] + b"\xff\xff" + GOOD[10:])), "has a header of 65545 bytes"),
        (arrays(weight=raw(GOOD.replace(b"<f4", b"|O "))), "'weight' does not hold plain numbers"),
        (arrays(weight=raw(GOOD.replace(b"<f4", b"<f3"))), "numbers of an unknown kind '<f3'"),
        (arrays(**{"\x1b[2J\n": STEPS}), "its arrays are not the model's: it has '\\x1b[2J\\n'"),
        (ArrayRecord({"weight": Array(WEIGHT)}), "it lacks 'half' and 2 more"),
        (ArrayRecord({"w" * 99: Array(WEIGHT)}), "it lacks 'half' and 3 more and has 'wwwwwwwwwww"),
    ],
)
def test_arrays_that_are_not_the_model_s(reply: ArrayRecord, why: str) -> None:
    screened = screen(content(reply))
    assert not screened.replies
    assert why in screened.rejected["12"]


KINDS = ["f2", "f4", "f8", "i8", "i2", "u1", "?"]
ODD = [np.nan, -np.inf, 65504.0, 1e19, 3e38, 2.0**53, 2.0**62, 200, -1, 0.5]


@given(st.data())
def test_looked_at_in_few_pieces_a_reply_is_judged_as_array_by_array(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KINDS), max_size=5))
    sizes = [data.draw(st.sampled_from([1, 3, 5000])) for _ in kinds]
    sent = [np.arange(size).astype(kind) for kind, size in zip(kinds, sizes, strict=True)]
    answer = [values.copy() for values in sent]
    for values in answer:
        if data.draw(st.booleans()):
            flat = values.view(np.uint8) if values.dtype == bool else values
            with np.errstate(all="ignore"):
                flat[-1:] = np.asarray(data.draw(st.sampled_from(ODD))).astype(flat.dtype)
    in_pieces, one_by_one = (
        screen_train(
            [message(content(ArrayRecord(answer)))],
            DEFAULT,
            needs=Needs(),
            model=known,
            schema=schema_of(ArrayRecord(sent)),
        ).all()
        for known in (ArrayRecord(sent), ArrayRecord())
    )
    assert in_pieces.rejected == one_by_one.rejected
    assert [r.content for r in in_pieces.replies] == [r.content for r in one_by_one.replies]


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (0, "'num-examples' is 0, expected a whole number from 1 to 1e+08"),
        (-9, "'num-examples' is -9"),
        (10**9, "'num-examples' is 1000000000, expected a whole number from 1 to 1e+08"),
        (float("nan"), "'num-examples' is nan"),
        (float("inf"), "'num-examples' is inf"),
        ([1, 2], "'num-examples' is a list"),
        (None, "'num-examples' is missing, expected the number of examples"),
    ],
)
def test_counts_are_positive_and_capped(count: Any, why: str) -> None:
    assert why in screen(content(num_examples=count)).rejected["12"]
    evaluated = screen_evaluate([message(content(num_examples=count))], DEFAULT, needs=Needs())
    assert why in evaluated.rejected["12"]


def test_the_cap_is_the_operator_s() -> None:
    assert screen(content(num_examples=50), Screening(max_examples=50)).replies
    assert not screen(content(num_examples=51), Screening(max_examples=50)).replies
    assert screen(content(num_examples=10**9), Screening(max_examples=1e12)).replies


def test_a_strategy_that_does_not_weigh_needs_no_count() -> None:
    assert screen(content(num_examples=None), needs=Needs(None)).replies


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ({"arrays": MODEL}, "it has 0 MetricRecords, expected exactly one"),
        ({"metrics": MetricRecord({"num-examples": 1})}, "it has 0 ArrayRecords, expected exactly"),
        ({"a": MODEL, "b": MODEL, "m": MetricRecord({"num-examples": 1})}, "it has 2 ArrayRec"),
        ({"a": MODEL, "m": MetricRecord({"num-examples": 1}), "n": MetricRecord()}, "2 MetricR"),
        ({}, "it has 0 MetricRecords"),
    ],
)
def test_records_are_one_of_each(records: dict[str, Any], why: str) -> None:
    assert why in screen(RecordDict(records)).rejected["12"]


def test_an_error_goes_on_in_one_line_and_counts_as_rejected() -> None:
    screened = screen(Error(7, "no\ndisk\x1b[2J" + "!" * 500))
    (passed,) = screened.replies
    assert passed.error.code == 7
    assert (passed.error.reason or "").startswith("no\\ndisk\\x1b[2J!!!")
    assert len(passed.error.reason or "") == 200
    assert screened.rejected["12"].startswith("it answered with an error: no\\ndisk")
    assert screened.good == []


def test_an_honest_reply_passes_as_it_is() -> None:
    reply = content(loss=0.5)
    (passed,) = screen(reply).replies
    for key, record in reply.items():
        assert passed.content[key] is record


def test_other_widths_and_orders_are_mended() -> None:
    sent = {
        "mask": Array(MASK),
        "steps": Array(np.asarray(7, np.int32)),
        "half": Array(HALF.astype(np.float64)),
        "weight": Array(np.asfortranarray(WEIGHT).astype(">f8")),
    }
    (passed,) = screen(content(ArrayRecord(sent))).replies
    got = passed.content["arrays"]
    assert list(got) == list(MODEL)
    for name, array in got.items():
        np.testing.assert_array_equal(array.numpy(), MODEL[name].numpy())
    # What is more precise stays so; what is less precise is widened, which loses nothing.
    assert [got[name].dtype for name in got] == [">f8", "float64", "int64", "bool"]


def test_half_precision_does_not_pull_the_others_down() -> None:
    (passed,) = screen(content(arrays(weight=WEIGHT.astype(np.float16)))).replies
    assert passed.content["arrays"]["weight"].dtype == "float32"


@given(npst.arrays(npst.floating_dtypes() | npst.integer_dtypes(), npst.array_shapes(min_dims=0)))
def test_a_view_is_what_flower_reads_and_no_copy(values: np.ndarray) -> None:
    for stored in (values, np.asfortranarray(values)):
        array = Array(stored)
        seen = view(array)
        np.testing.assert_array_equal(seen, array.numpy())
        assert seen.dtype == values.dtype
        assert np.shares_memory(seen, np.frombuffer(array.data, np.uint8))
        assert not seen.flags.writeable


@given(st.binary(max_size=300), st.integers(0, len(GOOD)))
@example(b"\x0b", GOOD.index(b", }"))  # a blank to a pattern, and none to Python
def test_a_view_of_anything_is_the_array_or_refused(junk: bytes, at: int) -> None:
    array = raw(GOOD[:at] + junk + GOOD[at + len(junk) :])
    try:
        seen = view(array)
    except ArrayError:
        return
    np.testing.assert_array_equal(seen, array.numpy())


def test_arrays_that_are_scored_are_read_without_python_s_parser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def parse(text: str) -> None:
        raise AssertionError(text)

    given = ArrayRecord({"weight": Array(np.asfortranarray(WEIGHT)), "step": Array(np.asarray(3))})
    monkeypatch.setattr("ast.literal_eval", parse)
    weight, step = viewed(given).to_numpy_ndarrays()  # as an evaluate_fn gets them
    np.testing.assert_array_equal(weight, WEIGHT)
    assert (int(step), weight.flags.writeable) == (3, True)


def test_a_document_of_trees_may_be_of_any_length() -> None:
    trees = ArrayRecord([np.zeros(0, np.uint8)])

    def why(values: np.ndarray, model: ArrayRecord = trees) -> dict[str, str]:
        record = ArrayRecord({**model, next(iter(model)): Array(values)})
        found = screen_train(
            [message(content(record))],
            DEFAULT,
            needs=Needs(),
            model=model,
            schema=schema_of(model),
        ).all()
        return dict(found.rejected)

    assert not why(np.frombuffer(b'{"trees": []}', np.uint8))
    assert "holds float32" in why(np.zeros(0, np.float32))["12"]
    assert "has shape (2, 3)" in why(np.zeros((2, 3), np.uint8))["12"]
    several = ArrayRecord([np.zeros(3, np.uint8), WEIGHT])  # numbers, not a document
    assert "has shape (4,), expected (3,)" in why(np.zeros(4, np.uint8), several)["12"]


# The norm of the update, of floats: the counter does not count.

FAR = arrays(weight=WEIGHT + 3, half=HALF + 1, steps=STEPS + 1000)
NORM = float(np.sqrt(6 * 9 + 4))


def test_what_a_node_notes_is_logged_once_until_it_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hand = RoundInHand(2, {}, schema_of(MODEL), MODEL)
    with caplog.at_level("INFO"):
        for number, notes in enumerate(
            (["1 picture\nis left out"], ["1 picture\nis left out"], [])
        ):
            sent = content(MODEL)
            sent["node"] = ConfigRecord({"data-digest": "", "notes": notes})
            hand.note_rejected("train", number + 1, screen(sent), {})
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [r"round 1: of node 12: 1 picture\nis left out"]
    many = content(MODEL)
    many["node"] = ConfigRecord({"notes": ["x" * 1_000_000] * 1000})
    (note,) = screen(many).notes.values()
    assert len(note) == 200
    odd = content(MODEL)
    odd["node"] = ConfigRecord({"notes": 3})
    assert screen(odd).notes == {}


def test_an_update_within_the_norm_passes() -> None:
    assert screen(content(FAR), Screening(max_update_norm=NORM)).notes == {}
    assert screen(content(MODEL), Screening(max_update_norm=1e-9)).notes == {}


def test_an_update_beyond_the_norm_is_clipped_to_it() -> None:
    screened = screen(content(FAR), Screening(max_update_norm=NORM / 4))
    (passed,) = screened.replies
    got = passed.content["arrays"]
    np.testing.assert_allclose(got["weight"].numpy(), WEIGHT + 0.75, rtol=1e-6)
    np.testing.assert_allclose(got["half"].numpy(), HALF + 0.25, rtol=1e-3)
    assert got["steps"].numpy() == STEPS + 1000
    assert [got[n].dtype for n in got] == ["float32", "float16", "int64", "bool"]
    assert screened.notes == {"12": "its update has norm 7.616, clipped to 1.90394"}


def test_an_update_beyond_the_norm_is_refused_if_so_set() -> None:
    screened = screen(content(FAR), Screening(max_update_norm=5, norm_action="refuse"))
    assert screened.rejected == {"12": "its update has norm 7.616, expected at most 5"}


@pytest.mark.parametrize(
    "wrong", [{"max_examples": 0}, {"max_update_norm": -1}, {"norm_action": "ignore"}]
)
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*, expected"):
        Screening(**wrong)


# Metrics

BAD_NAMES = ["", "a\nb", "\u202egnol", "x" * 201, "\x00"]


def test_bad_metrics_are_left_out_and_told_of_and_the_reply_counts() -> None:
    bad = {
        **dict.fromkeys(BAD_NAMES, 1.0),
        "nan": float("nan"),
        "huge": 10**400,
        "long": [0.0] * 10_001,
        "holes": [1.0, float("inf")],
    }
    screened = screen(content(loss=0.5, losses=[1, 2], **{"mAP50(B)": 0.25}, **bad))
    (passed,) = screened.replies
    assert dict(passed.content["metrics"]) == {
        "num-examples": 10,
        "loss": 0.5,
        "losses": [1, 2],
        "mAP50(B)": 0.25,
    }
    assert len(screened.notes["12"]) == 200
    assert screened.notes["12"].startswith("metric '' has a bad name, expected 1 to 200 printable")


def test_a_reply_has_at_most_a_hundred_metrics_beside_those_that_are_needed() -> None:
    many = {f"m{i:04}": float(i) for i in range(5000)} | {"num-examples": 1, "need": 2}
    kept, faults = sound_metrics(many, {"num-examples", "need"})
    assert list(kept) == [*(f"m{i:04}" for i in range(100)), "need", "num-examples"]
    assert faults[0] == "it has 5000 metrics, expected at most 100"


class Counted(dict[str, Any]):
    """Metrics that count how often they are read."""

    reads = 0

    def __getitem__(self, name: str) -> Any:
        self.reads += 1
        return super().__getitem__(name)


def test_of_a_million_metrics_only_some_hundreds_are_read() -> None:
    many = Counted({f"m{i}": 1.0 for i in range(10**6)} | {"acc": 0.5, "num-examples": 1})
    kept, faults = sound_metrics(many, {"num-examples"}, "acc")
    assert (kept["acc"], kept["num-examples"], len(kept)) == (0.5, 1, 102)
    assert many.reads < 600
    assert len(faults) < 600
    assert faults[0] == "it has 1000000 metrics, expected at most 100"


def test_a_data_summary_that_is_too_large_is_left_out_when_it_arrives() -> None:
    reply = content()
    reply["data-summary"] = ConfigRecord({"names": ["x"] * 10_000})
    screened = screen(reply)
    (passed,) = screened.replies
    assert [*passed.content] == ["arrays", "metrics"]
    assert "names of length 10000, expected at most 2000" in screened.notes["12"]


def test_a_first_model_has_at_most_four_thousand_arrays() -> None:
    many = ArrayRecord({f"a{n}": Array(np.zeros(1, "f4")) for n in range(4_001)})
    assert agreed_schema([message(content(many))], DEFAULT, Needs()) == {}
    with pytest.raises(ArrayError, match="has 4001 arrays, expected at most 4000; give start"):
        model_values(many, {}, require_like)


def same_metrics(told: list[Any], weights: list[float]) -> list[dict[str, Any]]:
    """The metrics of replies after `in_step`, without their weights."""
    both = zip(told, weights, strict=True)
    contents = [RecordDict({"m": MetricRecord({**m, "weight": w})}) for m, w in both]
    filled = [dict(content.metric_records["m"]) for content in in_step(contents, "weight")]
    return [{k: v for k, v in metrics.items() if k != "weight"} for metrics in filled]


def test_one_bad_value_costs_only_its_own() -> None:
    told = [{"n": 10, "loss": 1.0}, {"n": 30, "loss": 2.0}, {"n": 60}]
    filled = same_metrics(told, [10, 30, 60])
    assert [m["loss"] for m in filled] == [1.0, 2.0, 1.75]
    # So the average of all three is that of the two which told it.
    assert sum(m["loss"] * n for m, n in zip(filled, (10, 30, 60), strict=True)) / 100 == 1.75


def test_what_few_tell_is_not_the_round_s() -> None:
    told = [{"a": 1.0, "evil": 9.0}, {"a": 1.0}, {"a": 1.0}]
    assert same_metrics(told, [1, 1, 1]) == [{"a": 1.0}] * 3
    assert same_metrics(told[:2], [1, 1]) == [{"a": 1.0, "evil": 9.0}] * 2  # of two, one is half


def test_lists_of_another_length_than_most_are_replaced() -> None:
    told: list[Any] = [{"l": [1.0, 3.0]}, {"l": [3.0, 5.0]}, {"l": [7.0]}, {"l": 8.0}]
    assert same_metrics(told, [1, 1, 2, 1])[2:] == [{"l": [2.0, 4.0]}] * 2


def test_what_each_of_flower_s_strategies_needs() -> None:
    assert needs_of(FedAvg(weighted_by_key="n")) == Needs("n")
    loss = flower.QFedAvg(client_learning_rate=0.1, train_loss_key="l")
    assert needs_of(loss) == Needs("num-examples", frozenset({"l"}))
    assert needs_of(loss, evaluate=True) == Needs("num-examples")
    wrapped = flower.DifferentialPrivacyClientSideAdaptiveClipping(
        FedAvg(weighted_by_key="n"), noise_multiplier=0.1, num_sampled_clients=3
    )
    assert needs_of(wrapped) == Needs("n", frozenset({"norm_bit"}))
    assert needs_of(object()) == Needs(None)


def test_a_needed_metric_that_is_bad_costs_the_reply() -> None:
    needs = Needs("num-examples", frozenset({"train_loss"}))
    for bad in (None, float("nan"), [1.0]):
        assert (
            "'train_loss' is missing or no finite number"
            in (screen(content(**{"train_loss": bad}), needs=needs).rejected["12"])
        )


def test_without_rules_everything_passes() -> None:
    odd = RecordDict({"masked": ArrayRecord([np.zeros(3)]), "why": ConfigRecord({"a": 1})})
    (passed,) = screen(odd, None).replies
    assert passed.content == odd
