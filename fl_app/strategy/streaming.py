# SPDX-License-Identifier: Apache-2.0
"""FedAvg at the speed of memory: each reply is added to the average as it arrives, and let go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg, Result

from fl_app.strategy.arriving import without_arrays
from fl_app.strategy.grids import arriving
from fl_app.strategy.payload import ArrayError, header_of, view
from fl_app.strategy.reply_metrics import Value, in_step

Record = TypeVar("Record", ArrayRecord, MetricRecord)

BLOCK = 10_000
"""Numbers that BLAS adds at once: up to here OpenBLAS starts no threads, which would wait for each
other in a busy loop, and take twenty times as long wherever the cores are not free."""
SMALL = 16_384
"""Bytes of values up to which arrays are added together: one call costs more than such an array."""


class StreamingFedAvg(FedAvg):
    """FedAvg that holds one reply at a time, and adds it in one pass over its bytes.

    The model is Flower's FedAvg's but for rounding: floats are summed in the order of arrival in
    their own precision (half precision in float32), integers and truth values come out as float64.
    Metrics that at least half of the nodes tell are averaged over those.

    Parameters
    ----------
    **kwargs
        Parameters of Flower's FedAvg.

    Raises
    ------
    InconsistentMessageReplies
        From ``aggregate_train``: the replies are not of one model, or weigh nothing together.
    """

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run Flower's loop, with replies that are handed on as they arrive."""
        return super().start(arriving(grid), *args, **kwargs)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average arrays and metrics; each reply is asked for when the one before is added."""
        average = WeightedAverage()
        told = list(map(partial(self._added, average), replies))  # no name holds a reply any longer
        valid, _ = self._check_and_log_replies(told, is_train=True, validate=False)
        if not valid:
            return None, None
        contents = _same_metrics([reply.content for reply in valid], self.weighted_by_key)
        return average.result(), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def _added(self, average: WeightedAverage, reply: Message) -> Message:
        """Add a reply to the average; return what else it says."""
        if reply.has_content():
            average.add(_only(reply.content, ArrayRecord), self._weight(reply.content))
        return without_arrays(reply)

    def _weight(self, content: RecordDict) -> float:
        weight = _only(content, MetricRecord).get(self.weighted_by_key)
        if isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0:
            return float(weight)
        raise InconsistentMessageReplies(
            f"A reply's {self.weighted_by_key} is {weight!r}, expected a number that is not "
            "negative, by which its arrays are weighed."
        )


class _Stored(NamedTuple):
    """How an array is stored: what Flower says of it, its header, and the bytes of it all."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    header: bytes
    length: int

    @property
    def order(self) -> Literal["C", "F"]:
        """In which order its values are stored."""
        return "F" if b"'fortran_order': True" in self.header else "C"

    def read(self, array: Array) -> np.ndarray:
        """The flat values of an array of the same shape, in the same order.

        Raises ArrayError if it has another shape.
        """
        values = view(array)
        if values.shape != self.shape:
            raise ArrayError(f"has shape {values.shape}, expected {self.shape}")
        return values.ravel(order=self.order)


class _Sum:
    """What has been added of some arrays of one dtype.

    ``values`` are flat, one array's after the other's, each in the order in which it is stored;
    there are none before something is added.
    """

    def __init__(self, arrays: Sequence[_Stored], stored: np.dtype) -> None:
        from scipy.linalg import blas

        in_one_pass = {np.dtype("f4"): blas.saxpy, np.dtype("f8"): blas.daxpy}
        native = stored.newbyteorder("=")
        kinds = {"f": np.result_type(native, np.float32), "c": native}
        self.arrays, self.stored = arrays, stored
        self.dtype = kinds.get(stored.kind, np.dtype("f8"))
        self.values: np.ndarray | None = None
        self.add_scaled: Callable[..., object] | None = in_one_pass.get(self.dtype)
        self.headers = [each.header for each in arrays]
        self.lengths = [each.length for each in arrays]

    def read(self, model: Mapping[str, Array]) -> np.ndarray:
        """The values of a model's arrays of these names, in place where it is one.

        Raises ArrayError if one is of another kind.
        """
        found = [model[each.name] for each in self.arrays]
        data = [array.data for array in found]
        alike = all(map(bytes.startswith, data, self.headers))
        if not alike or [*map(len, data)] != self.lengths:
            both = zip(self.arrays, found, strict=True)
            return np.concatenate([each.read(array) for each, array in both])
        if len(data) == 1:
            return np.frombuffer(data[0], self.stored, -1, len(self.headers[0]))
        values = [whole[len(head) :] for whole, head in zip(data, self.headers, strict=True)]
        return np.frombuffer(b"".join(values), self.stored)

    def add(self, read: np.ndarray, share: float) -> None:
        """Add flat values, in one pass where both are of the same precision."""
        values, scale = self.values, self.dtype.type(share)
        if values is None:
            self.values = np.multiply(read, scale, dtype=self.dtype)
        elif self.add_scaled is not None and read.dtype == values.dtype:
            for start in range(0, values.size, BLOCK):
                count = min(BLOCK, values.size - start)
                self.add_scaled(read, values, count, share, start, 1, start, 1)
        else:
            values += np.multiply(read, scale, dtype=self.dtype)

    def averages(self, total: float) -> Iterator[tuple[str, Array]]:
        """What was added, over its total weight, by name and as Flower sends arrays."""
        values, end = self.values, 0
        if values is None:
            return
        values *= self.dtype.type(1 / total)
        for each in self.arrays:
            start, end = end, end + math.prod(each.shape)
            yield each.name, self._array(each, values[start:end])

    def _array(self, each: _Stored, values: np.ndarray) -> Array:
        if self.dtype == self.stored:
            data = b"".join((each.header, values.data))
            return Array(each.dtype, each.shape, each.stype, data)
        shaped, native = values.reshape(each.shape, order=each.order), self.stored.newbyteorder("=")
        return Array(shaped.astype(native) if native.kind in "fc" else shaped)


class WeightedAverage:
    """The average of arrays that are added one model after the other.

    It takes the memory of one model, and so does the result, for which that of each sum is freed.
    """

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._sums: list[_Sum] = []
        self._unit = 0.0
        self._total = 0.0

    def add(self, arrays: ArrayRecord, weight: float) -> None:
        """Add a model, whole or not at all.

        Raises
        ------
        InconsistentMessageReplies
            If it is another model than the first one.
        """
        try:
            if not self._sums:
                self._names, self._sums = dict.fromkeys(arrays), _begun(arrays)
            elif arrays.keys() != self._names.keys():
                raise ArrayError(f"is not in both: {arrays.keys() ^ self._names.keys()}")
            model = dict(arrays.items())
            values = [each.read(model) for each in self._sums]
        except ArrayError as error:
            raise InconsistentMessageReplies(
                f"The replies are not of one model: an array {error}."
            ) from None
        # In units of the first weight, so that sums are of the size of the values.
        self._unit = self._unit or weight
        share = weight / self._unit if self._unit else 0.0
        for each, read in zip(self._sums, values, strict=True):
            each.add(read, share)
        self._total += share

    def result(self) -> ArrayRecord:
        """Return the average of what was added; nothing can be added after.

        Raises
        ------
        InconsistentMessageReplies
            If all that was added weighs nothing.
        """
        if not self._total:
            raise InconsistentMessageReplies("All replies together have a weight of 0.")
        made: dict[str, Array] = {}
        while self._sums:
            made |= self._sums.pop().averages(self._total)
        record = ArrayRecord()
        for name in self._names:
            record[name] = made[name]
        return record


def _begun(arrays: ArrayRecord) -> list[_Sum]:
    """Sums of nothing, of the kind of these arrays."""
    groups: dict[tuple[np.dtype, str | None], list[_Stored]] = {}
    for name, array in arrays.items():
        values = view(array)
        stored = _Stored(
            name,
            array.dtype,
            tuple(array.shape),
            array.stype,
            header_of(array.data),
            len(array.data),
        )
        alone = name if values.nbytes > SMALL else None
        groups.setdefault((values.dtype, alone), []).append(stored)
    return [_Sum(group, dtype) for (dtype, _), group in groups.items()]


def _only(content: RecordDict, kind: type[Record]) -> Record:
    """Return the one record of a kind."""
    found = [record for record in content.values() if isinstance(record, kind)]
    if len(found) != 1:
        raise InconsistentMessageReplies(
            f"A reply has {len(found)} {kind.__name__}s, expected one."
        )
    return found[0]


def _same_metrics(contents: Sequence[RecordDict], weighted_by: str) -> list[RecordDict]:
    """The same contents with the same metrics in each, as Flower averages them."""
    told: list[dict[str, Value]] = [dict(_only(content, MetricRecord)) for content in contents]
    weights = [cast("float", metrics[weighted_by]) for metrics in told]
    same = []
    for content, metrics in zip(contents, in_step(told, weights), strict=True):
        key = next(iter(content.metric_records))
        same.append(RecordDict({**content, key: MetricRecord(metrics)}))
    return same
