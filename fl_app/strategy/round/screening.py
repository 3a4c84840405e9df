# SPDX-License-Identifier: Apache-2.0
"""Which replies are accepted in a round, whatever the inner strategy; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import DifferentialPrivacyClientSideAdaptiveClipping, Strategy
from flwr.supercore.differential_privacy import KEY_NORM_BIT
from pydantic import Field

from fl_app.settings import Key, check_settings
from fl_app.strategy.round.array_layout import ArrayLayout
from fl_app.strategy.round.decoding import SentModel, decode_update
from fl_app.strategy.round.metrics import Value, WatchedMetric, is_finite, sound_metrics
from fl_app.strategy.round.replies import (
    ArrivingReplies,
    OtherArraysError,
    ReplyError,
    ScreenedReplies,
)
from fl_app.wire.arrays import ArrayError, OtherArrayError, is_bytes, quoted, require_like, view
from fl_app.wire.schema import Schema, fits, is_document, other_names

Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)


@dataclass(frozen=True)
class Screening:
    """What is required of a reply.

    Always: one ArrayRecord with the names and shapes of the global model, floats for floats and
    integers for integers, at least as precise (what is less precise is widened), all finite and
    with a norm whose square is; one MetricRecord with a positive number of examples. Metrics that
    cannot be averaged are left out of an accepted reply.

    Parameters
    ----------
    max_examples : float
        Most examples that a node may report; a reply with more is rejected. FedAvg weighs nodes
        by what they report.
    max_update_norm : float | None
        Largest L2 norm of the difference between a reply and the global model, over all floats;
        None: no limit.
    norm_action : "clip" | "refuse"
        Above this norm, scale the difference down to it (``clip``) or reject the reply.

    Raises
    ------
    SettingError
        If a limit is not positive or ``norm_action`` is another word.
    """

    # No limit relative to other nodes: one with a thousand times the median may be the one hospital
    # among practices. This one stops gross errors; below it, FedAvg believes what nodes report.
    max_examples: Annotated[
        float, Field(gt=0, allow_inf_nan=True), Key("max-examples-per-node", shaping=True)
    ] = 1e8
    max_update_norm: Annotated[
        float | None, Field(gt=0), Key("max-update-norm", off=0.0, shaping=True)
    ] = None
    norm_action: Annotated[Literal["clip", "refuse"], Key("norm-action", shaping=True)] = "clip"

    def __post_init__(self) -> None:
        check_settings(self)


DEFAULT_SCREENING = Screening()


@dataclass(frozen=True)
class Needs:
    """The metrics that a strategy needs in each reply; a reply without them is rejected.

    Attributes
    ----------
    weighted_by : str | None
        The metric that nodes are weighed by; None if it does not weigh them.
    metrics : frozenset[str]
        Other metrics that it needs.
    """

    weighted_by: str | None = "num-examples"
    metrics: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        """All of these metrics."""
        return self.metrics | ({self.weighted_by} if self.weighted_by is not None else set())


def needs_of(strategy: object, *, evaluate: bool = False) -> Needs:
    """Return what a strategy of Flower's needs; a wrapper needs what it wraps, and more."""
    weighted_by, metrics = None, set()
    while isinstance(strategy, Strategy):
        weighted_by = getattr(strategy, "weighted_by_key", weighted_by)
        metrics.add(getattr(strategy, "train_loss_key", None))
        if isinstance(strategy, DifferentialPrivacyClientSideAdaptiveClipping):
            metrics.add(KEY_NORM_BIT)
        strategy = getattr(strategy, "strategy", None)
    names = frozenset(name for name in metrics if isinstance(name, str))
    return Needs(weighted_by, frozenset() if evaluate else names)


def screen_train(
    replies: Iterable[Message],
    rules: Screening | None,
    *,
    needs: Needs,
    model: ArrayRecord,
    schema: Schema,
    requested: Iterable[str] = (),
    watched: WatchedMetric | None = None,
) -> ArrivingReplies:
    """Screen the replies of a round of training; ``model`` is what the nodes were sent.

    Encoded arrays are decoded first. Without rules all replies but errors are accepted. Without a
    schema none is: the server has no model, and the replies do not agree on one.
    """

    sent, layout = SentModel(model), None if rules is None else _layout(model, schema)

    def check(content: RecordDict) -> tuple[RecordDict, list[str]]:
        content = decode_update(content, sent)
        if rules is None:
            return content, []
        metrics, faults = _screen_metrics(content, rules, needs, watched)
        arrays = _only(content, ArrayRecord)
        if not schema:
            _require_sound(arrays)
            raise ReplyError(
                "the server has no model yet, and no more than half of the replies have the same "
                "arrays"
            )
        if layout is None or not _is_sound(arrays, layout):
            arrays = _screen_arrays(arrays, schema)
        arrays, clipped = _bound_update(arrays, model, rules)
        return _with_records(content, arrays, metrics), [*clipped, *faults]

    return ArrivingReplies(replies, check, requested)


def sound_models(
    replies: Iterable[Message], rules: Screening | None, needs: Needs
) -> Iterator[ArrayRecord]:
    """Return the arrays of acceptable replies, whatever model they are of."""
    for message in replies:
        if message.has_error():
            continue
        try:
            arrays = _only(message.content, ArrayRecord)
            _require_sound(arrays)
            if rules is not None:
                _screen_metrics(message.content, rules, needs)
        except Exception:  # noqa: BLE001, S112  (screening gives the reason)
            continue
        yield arrays


def _require_sound(arrays: ArrayRecord) -> None:
    """Require arrays that may be a model."""
    if not arrays:
        raise OtherArraysError("it has no arrays, and the server has no model yet")
    for name, array in arrays.items():
        try:
            values = view(array)
            require_like(values, values.dtype, values.shape)
        except ArrayError as error:
            raise ReplyError(f"array {quoted(name)} {error}") from None


def screen_evaluate(
    replies: Iterable[Message],
    rules: Screening | None,
    *,
    needs: Needs,
    requested: Iterable[str] = (),
    watched: WatchedMetric | None = None,
) -> ScreenedReplies:
    """Screen the replies of a round of evaluation, of which only the metrics are checked."""

    def check(content: RecordDict) -> tuple[RecordDict, list[str]]:
        if rules is None:
            return content, []
        metrics, faults = _screen_metrics(content, rules, needs, watched)
        return _with_records(content, None, metrics), faults

    return ArrivingReplies(replies, check, requested).all()


def _only(content: RecordDict, kind: type[Record]) -> Record:
    """Return the one record of a kind."""
    records = [record for record in content.values() if isinstance(record, kind)]
    if len(records) != 1:
        raise ReplyError(f"it has {len(records)} {kind.__name__}s, expected exactly one")
    return records[0]


def _screen_metrics(
    content: RecordDict, rules: Screening, needs: Needs, watched: WatchedMetric | None = None
) -> tuple[MetricRecord, list[str]]:
    """Return the valid metrics of a reply, and what is wrong with the others."""
    record, watched = _only(content, MetricRecord), watched or WatchedMetric("")
    sound, faults = sound_metrics(record, needs.all, watched.name)
    try:
        if needs.weighted_by is not None:
            _require_count(record.get(needs.weighted_by), needs.weighted_by, rules.max_examples)
        for name in sorted(needs.metrics):
            if not isinstance(sound.get(name), int | float):
                raise ReplyError(f"metric {quoted(name)} is missing or no finite number")
    except ReplyError as error:
        watched.refuse(record, str(error))
        raise
    watched.note(record, sound)
    return (MetricRecord(dict(sound)) if faults else record), faults


def _require_count(count: Value | None, name: str, most: float) -> None:
    if isinstance(count, list) or count is None:
        what = "missing" if count is None else "a list"
        raise ReplyError(f"metric {quoted(name)} is {what}, expected the number of examples")
    if not is_finite(count) or not 0 < count <= most:
        raise ReplyError(
            f"metric {quoted(name)} is {count}, expected more than 0, at most {most:g}"
        )


def _layout(model: ArrayRecord, schema: Schema) -> ArrayLayout | None:
    """Return the layout of the model that nodes were sent, if it fits the schema."""
    try:
        return ArrayLayout(model) if fits(model, schema) else None
    except ArrayError:
        return None


def _is_sound(arrays: ArrayRecord, layout: ArrayLayout) -> bool:
    """Return whether arrays have the model's layout and valid values, checked in few pieces."""
    pieces = layout.read_alike(arrays)
    try:
        for values in pieces or []:
            require_like(values, values.dtype, values.shape)
    except ArrayError:
        return False
    return pieces is not None


def _screen_arrays(arrays: ArrayRecord, schema: Schema) -> ArrayRecord:
    """Return arrays that fit the schema, in its order and at least as precise."""
    if why := other_names(arrays.keys(), schema.keys()):
        raise OtherArraysError(f"its arrays are not the model's: {why}")
    wider, document = {}, is_document(schema)
    for name, (dtype, shape) in schema.items():
        try:
            values = view(arrays[name])
            anything = document and is_bytes(values)
            require_like(values, dtype, values.shape if anything else shape)
        except OtherArrayError as error:
            raise OtherArraysError(f"array {quoted(name)} {error}") from None
        except ArrayError as error:
            raise ReplyError(f"array {quoted(name)} {error}") from None
        if values.dtype.itemsize < dtype.itemsize:
            wider[name] = Array(values.astype(dtype))
    if not wider and list(arrays) == list(schema):
        return arrays
    return ArrayRecord({name: wider.get(name, arrays[name]) for name in schema})


def _bound_update(
    arrays: ArrayRecord, model: ArrayRecord, rules: Screening
) -> tuple[ArrayRecord, list[str]]:
    """Clip or reject a reply beyond the largest update norm, if there is one."""
    if rules.max_update_norm is None:
        return arrays, []
    updates = {
        name: np.subtract(view(array), view(model[name]), dtype=np.float64)
        for name, array in arrays.items()
        if np.dtype(array.dtype).kind == "f"
    }
    norm = math.sqrt(sum(float(np.vdot(update, update)) for update in updates.values()))
    if norm <= rules.max_update_norm:
        return arrays, []
    excess = f"its update has norm {norm:.4g}"
    if rules.norm_action == "refuse" or not math.isfinite(norm):
        raise ReplyError(f"{excess}, expected at most {rules.max_update_norm:g}")
    bounded = dict(arrays.items())
    for name, update in updates.items():
        old, dtype = view(model[name]), np.dtype(arrays[name].dtype)
        new = old + update * (rules.max_update_norm / norm)
        bounded[name] = Array(np.asarray(new, dtype=dtype))
    return ArrayRecord(bounded), [f"{excess}, clipped to {rules.max_update_norm:g}"]


def _with_records(
    content: RecordDict, arrays: ArrayRecord | None, metrics: MetricRecord
) -> RecordDict:
    """Return the same content with these records in the place of those of their kind."""
    changed: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {}
    for key, record in content.items():
        if isinstance(record, MetricRecord):
            changed[key] = metrics
        elif isinstance(record, ArrayRecord) and arrays is not None:
            changed[key] = arrays
        else:
            changed[key] = record
    return RecordDict(changed)
