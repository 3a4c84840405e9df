# SPDX-License-Identifier: Apache-2.0
"""Which replies are accepted in a round, whatever the inner strategy: screened as they arrive."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Annotated, Literal, NamedTuple, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import DifferentialPrivacyClientSideAdaptiveClipping, Strategy
from pydantic import BeforeValidator, Field

from fl_app.flower_internals import KEY_NORM_BIT
from fl_app.settings import Key, check_settings
from fl_app.strategy.round.influence import Influence, Size, winsorized
from fl_app.wire.arrays import (
    MAX_NAME,
    ArrayError,
    OtherArrayError,
    Schema,
    array_rows,
    fits,
    layout_of,
    model_values,
    quoted,
    require_like,
    schema_of,
    view,
)
from fl_app.wire.compressed_update import UPDATE_RECORD, SentModel, decode_update
from fl_app.wire.data_summary import SUMMARY_RECORD, oversized
from fl_registry.redaction import one_line

NODE_RECORD, NOTES_KEY = "node", "notes"
"""Key of the ConfigRecord with what a ClientApp reports of its node, and in it of a list of notes
for the log: what was left out."""
MAX_METRICS, MAX_LIST, MAX_NOTES = 100, 10_000, 5
MAX_CLASSES = 200
"""Metrics ``<metric>/<class>`` that a reply may have beside these: one MLflow tag holds all."""
MAX_READ = 500
"""Metrics of a reply that are looked at: a node may send a million."""
SILENT = "it sent no answer in time"
"""Why a node is rejected that sent neither a result nor an error."""

Phase = Literal["train", "evaluate"]
Value = int | float | list[int] | list[float]
Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)
_FROM_0_TO_1 = re.compile(
    r"(?:^|[_-])(?:acc|accuracy|auc|auroc|dice|f1|iou|map\d*(?:-\d+)?|precision|recall)$", re.I
)


class Checked(NamedTuple):
    """The accepted content of a reply, the faults of the rest, and the norm of its arrays."""

    content: RecordDict
    faults: list[str]
    norm: float | None = None


Check = Callable[[RecordDict], Checked]
"""Checks the content of a reply, or raises `ReplyError`."""


class ReplyError(InconsistentMessageReplies):
    """A reply is rejected; the text says why."""


def _two_numbers(value: object) -> object:
    """Check a range; a run config has it as texts."""
    if value is None:
        return None
    try:
        least, greatest = map(float, value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        least = greatest = math.nan
    if not least < greatest:
        raise ValueError("two numbers, the least value and the greatest, such as 0,1")
    return least, greatest


@dataclass(frozen=True)
class Screening:
    """What is required of a reply.

    Always: one ArrayRecord with the names and shapes of the global model, floats for floats and
    integers for integers, at least as precise (what is less precise is widened), all finite and
    with a norm whose square is, and which is at most 10 times the median of the round's replies, if
    there are three; one MetricRecord with a whole number of examples, at least 1. Metrics that
    cannot be averaged are left out of an accepted reply.

    Parameters
    ----------
    max_examples : float
        Most examples that a node may report; a reply with more is rejected. FedAvg weighs nodes
        by what they report.
    max_node_share : float | None
        Largest weight of a node in an average, in multiples of an equal share of the round's
        replies: with 2 and 10 replies a node decides at most 2/10. A larger number of examples is
        lowered for the average; None: no limit.
    metric_range : tuple[float, float] | None
        Least and greatest value of the metric that gates look at; None: 0 to 1 for accuracies, mAP
        and the like, by their names, else any. A node's value outside is left out.
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

    max_examples: Annotated[
        float, Field(gt=0, allow_inf_nan=True), Key("max-examples-per-node", shaping=True)
    ] = 1e8
    # The one hospital among practices is lowered too: which of both a large node is cannot be told
    # from what it reports.
    max_node_share: Annotated[float | None, Field(gt=1), Key(off=0.0, shaping=True)] = 2.0
    metric_range: Annotated[
        tuple[float, float] | None,
        BeforeValidator(_two_numbers),
        Key(off="", listed=True, shaping=True),
    ] = None
    max_update_norm: Annotated[float | None, Field(gt=0), Key(off=0.0, shaping=True)] = None
    norm_action: Annotated[Literal["clip", "refuse"], Key(shaping=True)] = "clip"

    def __post_init__(self) -> None:
        check_settings(self)

    def range_of(self, metric: str) -> tuple[float, float]:
        """Return the least and the greatest value of the metric that gates look at."""
        if self.metric_range is not None:
            return self.metric_range
        return (0.0, 1.0) if _FROM_0_TO_1.search(metric) else (-math.inf, math.inf)


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


def with_content(message: Message, content: RecordDict) -> Message:
    """Return a message with the same metadata and another content."""
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload, no-any-return]


def without_arrays(message: Message) -> Message:
    """Return a message of the same node without its arrays."""
    if not message.has_content():
        return message
    content = RecordDict()
    for key, record in message.content.items():
        if not isinstance(record, ArrayRecord):
            content[key] = record
    return with_content(message, content)


def with_records(content: RecordDict, *records: ArrayRecord | MetricRecord) -> RecordDict:
    """Return the same content with these records in the place of those of their kind."""
    new: dict[type, ArrayRecord | MetricRecord | ConfigRecord] = {type(r): r for r in records}
    return RecordDict({key: new.get(type(record), record) for key, record in content.items()})


def only(content: RecordDict, kind: type[Record]) -> Record:
    """Return the one record of a kind."""
    # Not by `content.array_records`: it refers to itself, and would keep the arrays in memory.
    records = [record for record in content.values() if isinstance(record, kind)]
    if len(records) != 1:
        raise ReplyError(f"it has {len(records)} {kind.__name__}s, expected exactly one")
    return records[0]


@dataclass(eq=False)
class ScreenedReplies(Iterable[Message]):
    """The replies of a round, screened as they arrive; they are streamed, or returned together.

    Iteration streams the replies for the inner strategy and stores them without their arrays, so
    that no two models of nodes need to be in memory at once.

    Attributes
    ----------
    arriving : Iterator[Message]
        The replies, which may not have arrived yet.
    check : Callable
        Checks the content of a reply; no error that it raises ends the round.
    requested : set[str]
        The ids of the nodes from which replies are expected.
    watched : WatchedMetric
        The metric that gates look at, which ``check`` counts.
    weighted_by : str | None
        The metric that nodes are weighed by.
    shares : float | None
        Largest weight of a node, in multiples of an equal share; None: no limit.
    replies : list[Message]
        Replies for the inner strategy, in the order of arrival: accepted replies and errors. Those
        that were streamed have no arrays any more.
    nodes : dict[str, None]
        The ids of all nodes that answered, or should have.
    rejected : dict[str, str]
        By node id why its reply is rejected; errors are included.
    notes : dict[str, str]
        By node id what was left out of an accepted reply, or was clipped, and what the node notes.
    other_arrays : set[str]
        Nodes whose replies are rejected since their arrays are not the model's.
    lost : Exception | None
        The error of the connection, not of a reply, that ended the iteration.
    """

    arriving: Iterator[Message]
    check: Check
    requested: set[str]
    watched: WatchedMetric
    weighted_by: str | None = None
    shares: float | None = None
    replies: list[Message] = field(default_factory=list)
    nodes: dict[str, None] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    other_arrays: set[str] = field(default_factory=set)
    lost: Exception | None = None

    def __iter__(self) -> Iterator[Message]:
        """Stream the replies for the inner strategy, once."""
        try:
            for message in self._influence().streamed(self._screened()):
                self.replies.append(without_arrays(message))
                yield message
                del message  # free its memory before the next reply is waited for
        except Exception as error:
            self.lost = error
            raise

    def all(self) -> ScreenedReplies:
        """Wait for the remaining replies, and hold all with their arrays."""
        self.replies.extend(self._influence().all(self._screened()))
        return self

    def _influence(self) -> Influence[Message]:
        return Influence(self.shares, self._lowered, self._refuse)

    def _lowered(self, message: Message, heaviest: float) -> Message:
        """Return a reply that counts as fewer examples than it reports."""
        metrics, name = only(message.content, MetricRecord), str(self.weighted_by)
        counted, node = math.floor(heaviest), str(message.metadata.src_node_id)
        note = f"its {metrics[name]:.12g} examples count as {counted}, {self.shares:g} equal shares"
        self.notes[node] = "; ".join(filter(None, [self.notes.get(node), note]))
        lowered = MetricRecord({**metrics, name: counted})
        return with_content(message, with_records(message.content, lowered))

    def _refuse(self, message: Message, why: str) -> None:
        node = str(message.metadata.src_node_id)
        self.rejected[node] = one_line(why)
        self.notes.pop(node, None)

    def _screened(self) -> Iterator[Size[Message]]:
        for message in self.arriving:
            node = str(message.metadata.src_node_id)
            self.nodes[node] = None
            if message.has_error():
                # In one line, for Flower's log.
                error = Error(message.error.code, one_line(message.error.reason))
                self.rejected[node] = one_line(f"it answered with an error: {error.reason}")
                failed = Message(error=error, metadata=message.metadata)  # type: ignore[call-overload]
                yield Size(failed, None, None)
                continue
            try:
                content, faults, norm = self.check(message.content)
            except (ReplyError, ArrayError) as error:
                self.rejected[node] = one_line(error)
                if isinstance(error, OtherArrayError):
                    self.other_arrays.add(node)
            except Exception as error:  # noqa: BLE001  (no reply ends the round)
                why = f"it cannot be read: {type(error).__name__}: {error}"
                self.rejected[node] = one_line(why)
            else:
                faults = [*faults, *_notes(content)]
                if faults:
                    self.notes[node] = one_line("; ".join(faults))
                yield Size(with_content(message, content), self._weight(content), norm)
                del content
            del message
        for node in sorted(self.requested - self.nodes.keys()):
            self.nodes[node], self.rejected[node] = None, SILENT

    def _weight(self, content: RecordDict) -> float | None:
        if self.weighted_by is None or self.shares is None:
            return None
        weight = only(content, MetricRecord).get(self.weighted_by)
        return float(weight) if isinstance(weight, int | float) else None

    @property
    def good(self) -> list[Message]:
        """The accepted replies."""
        return [message for message in self.replies if message.has_content()]

    def out_of_scale(self) -> dict[str, str]:
        """Return by node id which of its metrics counts as another value than it reports."""
        found: dict[str, str] = {}
        told: list[tuple[Message, Mapping[str, Value]]] = [
            (m, next(iter(m.content.metric_records.values()), MetricRecord())) for m in self.good
        ]
        for name in dict.fromkeys(chain.from_iterable(metrics for _, metrics in told)):
            some = [(str(m.metadata.src_node_id), t[name]) for m, t in told if name in t]
            numbers = [(n, v) for n, v in some if not isinstance(v, list)]
            if name == self.weighted_by or 2 * len(numbers) < len(told):
                continue
            counted = winsorized([value for _, value in numbers])
            for (node, value), new in zip(numbers, counted, strict=True):
                if new != value:
                    found[node] = (
                        f"its {quoted(name)} of {value:.6g} is out of scale, {new:.6g} counts"
                    )
        return found

    @property
    def unscored(self) -> str:
        """Why the average lacks the watched metric although nodes reported it; else empty."""
        return self.watched.why_missing(len(self.good))

    def without(self, nodes: Collection[str]) -> list[Message]:
        """Return all replies but those of some nodes."""
        return [m for m in self.replies if str(m.metadata.src_node_id) not in nodes]


def _notes(content: RecordDict) -> list[str]:
    """Return what a node notes for the log."""
    record = content.get(NODE_RECORD)
    notes = record.get(NOTES_KEY) if isinstance(record, ConfigRecord) else None
    return [str(note) for note in notes[:MAX_NOTES]] if isinstance(notes, list) else []


def screen_train(
    replies: Iterable[Message],
    rules: Screening | None,
    *,
    needs: Needs,
    model: ArrayRecord,
    schema: Schema,
    requested: Iterable[str] = (),
    metric: str | None = None,
) -> ScreenedReplies:
    """Screen the replies of a round of training; ``model`` is what the nodes were sent.

    Encoded arrays are decoded first. Without rules all replies but errors are accepted. Without a
    schema none is: the server has no model, and the replies do not agree on one.
    """
    sent, watched, layout = SentModel(model), WatchedMetric.of(metric, "train"), None
    if rules is not None and schema and fits(model, schema):
        with suppress(ArrayError):
            layout = layout_of(model)

    def check(content: RecordDict) -> Checked:
        if UPDATE_RECORD in content:
            content = decode_update(content, sent)
        content, large = _without_oversized(content)
        if rules is None:
            return Checked(content, large)
        metrics, faults = _screen_metrics(content, rules, needs, watched)
        faults = [*large, *faults]
        arrays = only(content, ArrayRecord)
        # In few pieces if it has the layout of the model, which saves most of the time.
        norm = layout.norm(arrays) if layout is not None else None
        if norm is None:
            arrays, norm = _fitting(arrays, schema)
        if not schema:
            raise ReplyError(
                "the server has no model yet, and no more than half of the replies have the same "
                "arrays"
            )
        arrays, clipped = _bound_update(arrays, model, rules)
        size = None if clipped else norm  # what was clipped is bounded already
        return Checked(with_records(content, arrays, metrics), [*clipped, *faults], size)

    shares = None if rules is None else rules.max_node_share
    arriving, asked = iter(replies), {*requested}
    return ScreenedReplies(arriving, check, asked, watched, needs.weighted_by, shares)


def screen_evaluate(
    replies: Iterable[Message],
    rules: Screening | None,
    *,
    needs: Needs,
    requested: Iterable[str] = (),
    metric: str | None = None,
) -> ScreenedReplies:
    """Screen the replies of a round of evaluation, of which only the metrics are checked."""
    watched = WatchedMetric.of(metric, "evaluate")

    def check(content: RecordDict) -> Checked:
        if rules is None:
            return Checked(content, [])
        metrics, faults = _screen_metrics(content, rules, needs, watched)
        return Checked(with_records(content, metrics), faults)

    shares = None if rules is None else rules.max_node_share
    arriving, asked = iter(replies), {*requested}
    return ScreenedReplies(arriving, check, asked, watched, needs.weighted_by, shares).all()


def agreed_schema(replies: Iterable[Message], rules: Screening | None, needs: Needs) -> Schema:
    """Return the schema of more than half of the acceptable replies; empty if there is none."""
    votes: dict[object, list[Schema]] = defaultdict(list)
    for message in replies:
        with suppress(Exception):  # screening gives the reason
            arrays = only(message.content, ArrayRecord)
            model_values(arrays, {}, require_like)
            if rules is not None:
                _screen_metrics(message.content, rules, needs, WatchedMetric(""))
            votes[frozenset(array_rows(schema_of(arrays)))].append(schema_of(arrays))
    most = max(votes.values(), key=len, default=[])
    return most[0] if 2 * len(most) > sum(map(len, votes.values())) else {}


def _fitting(arrays: ArrayRecord, schema: Schema) -> tuple[ArrayRecord, float]:
    """Return arrays that fit the schema, in its order and at least as precise, and their norm."""
    squares = []

    def require(values: np.ndarray, dtype: np.dtype) -> None:
        squares.append(require_like(values, dtype))

    values, fitting = model_values(arrays, schema, require), {}
    for name, (dtype, _) in schema.items():
        narrow = values[name].itemsize < dtype.itemsize
        fitting[name] = Array(values[name].astype(dtype)) if narrow else arrays[name]
    same = [*fitting.items()] == [*arrays.items()]
    return arrays if same else ArrayRecord(fitting), math.sqrt(math.fsum(squares))


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
    bounded, scale = dict(arrays.items()), rules.max_update_norm / norm
    for name, update in updates.items():
        bounded[name] = Array(np.asarray(view(model[name]) + update * scale, arrays[name].dtype))
    return ArrayRecord(bounded), [f"{excess}, clipped to {rules.max_update_norm:g}"]


def _without_oversized(content: RecordDict) -> tuple[RecordDict, list[str]]:
    """Leave out a data summary that is too large to be one; it would be saved with the round."""
    summary = content.get(SUMMARY_RECORD)
    fault = oversized(summary) if isinstance(summary, ConfigRecord) else ""
    if not fault:
        return content, []
    rest = RecordDict({key: record for key, record in content.items() if key != SUMMARY_RECORD})
    return rest, [f"its data summary is left out: {fault}"]


def _screen_metrics(
    content: RecordDict, rules: Screening, needs: Needs, watched: WatchedMetric
) -> tuple[MetricRecord, list[str]]:
    """Return the valid metrics of a reply, and what is wrong with the others."""
    record = only(content, MetricRecord)
    needed, limits = {*needs.metrics, needs.weighted_by}, rules.range_of(watched.name)
    sound, faults = sound_metrics(record, needed, watched.name, limits)
    why = _unmet(record, sound, needs, rules.max_examples)
    watched.note(record, sound, why, limits)
    if why:
        raise ReplyError(why)
    return (MetricRecord(sound) if faults else record), faults


def _unmet(
    reported: Mapping[str, Value], sound: Mapping[str, Value], needs: Needs, most: float
) -> str:
    """Return which metric that the strategy needs is not as it should be; empty if all are."""
    if (name := needs.weighted_by) is not None:
        count = reported.get(name)
        if isinstance(count, list) or count is None:
            what = "missing" if count is None else "a list"
            return f"metric {quoted(name)} is {what}, expected the number of examples"
        if not is_finite(count) or not 1 <= count <= most or count % 1:
            expected = f"a whole number from 1 to {most:g}"
            return f"metric {quoted(name)} is {count}, expected {expected}"
    for name in sorted(needs.metrics):
        value = sound.get(name)
        if not isinstance(value, int | float):
            return f"metric {quoted(name)} is missing or no finite number"
        if value < 0 or (name == KEY_NORM_BIT and value > 1):
            expected = "0 or 1" if name == KEY_NORM_BIT else "a loss that is not negative"
            return f"metric {quoted(name)} is {value}, expected {expected}"
    return ""


@dataclass
class WatchedMetric:
    """The metric that gates look at, as the replies of a phase report it.

    Attributes
    ----------
    name : str
        Its name in a reply; empty without a metric.
    sound : int
        Accepted replies with a valid value of it.
    rejected : list[str]
        What was wrong with each other value.
    """

    name: str
    sound: int = 0
    rejected: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, metric: str | None, phase: Phase) -> WatchedMetric:
        """Watch a metric by the name that a round has for it, such as ``train/loss``."""
        name, trained = metric or "", (metric or "").startswith("train/")
        if trained != (phase == "train"):
            return cls("")
        return cls(name.removeprefix("train/" if trained else "client/"))

    def note(
        self,
        reported: Mapping[str, Value],
        sound: Mapping[str, Value],
        why: str,
        limits: tuple[float, float],
    ) -> None:
        """Count the value in a reply, which is rejected if ``why`` says so."""
        if not self.name or self.name not in reported:
            return
        if why:
            self.rejected.append(f"is in a reply that was rejected: {why}")
        elif isinstance(sound.get(self.name), int | float):
            self.sound += 1
        else:
            value = reported[self.name]
            fault = _fault(self.name, value) or _outside(value, limits)
            self.rejected.append(fault or "is a list, expected a number")

    def why_missing(self, replies: int) -> str:
        """Return why the average of that many replies lacks the metric although nodes reported it.

        Empty if no node did, or so many that the strategy must have left it out.
        """
        if 0 < replies <= 2 * self.sound:
            return ""
        parts = [f"{self.sound} of {replies} replies have it"] if self.sound else []
        most = Counter(self.rejected).most_common(3)
        parts += [f"of {count} {'node' if count == 1 else 'nodes'} it {why}" for why, count in most]
        return "; ".join(parts)


def sound_metrics(
    metrics: Mapping[str, Value],
    needed: Collection[str | None],
    watched: str = "",
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[dict[str, Value], list[str]]:
    """Return the metrics that may be averaged, and what is wrong with the others.

    A name has 1 to 200 printable characters, a value is finite, and within ``limits`` if it is of
    the ``watched`` metric or of one of its classes (``<watched>/…``). A list has at most 10,000
    values. Beside those that are ``needed``, the one that is ``watched`` and 200 of its classes a
    reply has at most 100; of these and the classes, only the first 500 are looked at.
    """
    # Arrays are rejected and metrics are left out: Flower averages none if the names differ between
    # replies, and one node must not take them from all others.
    sound: dict[str, Value] = {}
    faults, room, classes = [], MAX_METRICS, MAX_CLASSES if watched else 0
    known = sorted({*filter(None, (*needed, watched))} & metrics.keys())
    read = dict.fromkeys(chain(islice(metrics, MAX_READ), known))
    for name in read:
        value = metrics[name]
        fault = _fault(name, value)
        if not fault and watched and name.partition("/")[0] == watched:
            fault = _outside(value, limits)
        if not fault and classes and name.startswith(f"{watched}/"):
            classes -= 1
        elif not fault and name != watched and name not in needed:
            room -= 1
            fault = "is one too many" if room < 0 else ""
        if fault:
            faults.append(f"metric {quoted(name)} {fault}")
        else:
            sound[name] = value
    if room < 0:
        count = MAX_METRICS - room + len(metrics) - len(read)
        faults.insert(0, f"it has {count} metrics, expected at most {MAX_METRICS}")
    return sound, faults


def _fault(name: str, value: Value) -> str:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        return f"has a bad name, expected 1 to {MAX_NAME} printable characters"
    if not isinstance(value, list):
        return "" if is_finite(value) else f"is {value}, expected a finite number"
    if len(value) > MAX_LIST:
        return f"has {len(value)} values, expected at most {MAX_LIST}"
    return "" if all(map(is_finite, value)) else "has values that are not finite"


def _outside(value: Value, limits: tuple[float, float]) -> str:
    least, greatest = limits
    if all(least <= each <= greatest for each in (value if isinstance(value, list) else [value])):
        return ""
    return f"is {value}, expected {least:g} to {greatest:g} (metric_range in Screening)"


def is_finite(value: float) -> bool:
    """Whether a number is finite, as a float too: some integers are beyond all floats."""
    return abs(value) <= sys.float_info.max
