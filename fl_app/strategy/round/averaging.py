# SPDX-License-Identifier: Apache-2.0
"""FedAvg that adds replies to the average as they arrive."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from io import BytesIO
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg, Result

from fl_app.strategy.round.grids import streaming_grid
from fl_app.strategy.round.influence import winsorized
from fl_app.strategy.round.screening import only, with_records, without_arrays
from fl_app.wire.arrays import (
    STYPE,
    ArrayError,
    ArrayLayout,
    Piece,
    header_for,
    layout_of,
    restore_dtypes,
    schema_of,
)

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

BLOCK = 2**16
"""Numbers that are added at once: a block of the sum stays in the core's cache."""
TOGETHER = 3
"""Models that are added in one pass over the sum: a fifth less time than one by one, while two
replies wait in memory. Five would save another twentieth."""


class StreamingFedAvg(FedAvg):
    """FedAvg that holds at most three replies in memory.

    The result is that of Flower's FedAvg except for rounding: floats are summed in the order of
    arrival in their own precision (half precision in float32); averages of integers and booleans
    are float64. Metrics that at least half of the nodes report are averaged over those.

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
        """Run Flower's loop with streamed replies."""
        return super().start(streaming_grid(grid), *args, **kwargs)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average arrays and metrics; each reply is pulled after the one before was added."""
        average = WeightedAverage()
        # No variable may reference a reply: its memory is freed before the next one is pulled.
        rest = list(map(partial(self._added, average), replies))
        valid, _ = self._check_and_log_replies(rest, is_train=True, validate=False)
        if not valid:
            return None, None
        contents = in_step([reply.content for reply in valid], self.weighted_by_key)
        return average.result(), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def _added(self, average: WeightedAverage, reply: Message) -> Message:
        """Add a reply to the average; return it without its arrays."""
        if reply.has_content():
            average.add(only(reply.content, ArrayRecord), self._weight(reply.content))
        return without_arrays(reply)

    def _weight(self, content: RecordDict) -> float:
        weight = only(content, MetricRecord).get(self.weighted_by_key)
        if isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0:
            return float(weight)
        raise InconsistentMessageReplies(
            f"A reply's {self.weighted_by_key} is {weight!r}, expected a number that is not "
            "negative, by which its arrays are weighed."
        )


class EmaFedAvg(StreamingFedAvg):
    """StreamingFedAvg whose global model is a moving average of the rounds' averages.

    Nodes continue from the latest average itself, as Ultralytics does with the model that it
    trains. The average ``a`` of round ``t`` changes the global model ``g`` to
    ``d * g + (1 - d) * a`` with ``d = min(decay, (t - 1) / t)``: the mean of all rounds at first,
    so that the first weights do not count. Integers and booleans are those of the latest average.

    Parameters
    ----------
    decay : float
        From 0 to less than 1; 0.9 averages over about ten rounds.
    **kwargs
        Parameters of Flower's FedAvg.
    """

    def __init__(self, decay: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.decay, self.averaged_rounds = decay, 0
        self.trained: ArrayRecord | None = None
        self._moving: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of training from the latest average."""
        self._moving = arrays
        start = arrays if self.trained is None else self.trained
        return super().configure_train(server_round, start, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies, and return the moving average."""
        made, metrics = super().aggregate_train(server_round, replies)
        # Not kept: it would be saved with the strategy's state beside the global model.
        moving, self._moving = self._moving, None
        if made is None or moving is None:
            return made, metrics
        if made.keys() == moving.keys():  # else the session reports the other model
            made = restore_dtypes(made, schema_of(moving))
        self.trained, rounds = made, self.averaged_rounds
        self.averaged_rounds += 1
        if not rounds:
            return made.copy(), metrics
        decay = min(self.decay, rounds / (rounds + 1))
        return moved(moving, made, decay), metrics


def moved(old: ArrayRecord, new: ArrayRecord, decay: float) -> ArrayRecord:
    """Return ``decay * old + (1 - decay) * new`` for floats, and the other arrays of ``new``."""
    record = ArrayRecord()
    for name, array in new.items():
        values = array.numpy()
        mixed = array
        if np.issubdtype(values.dtype, np.floating):
            mean = decay * old[name].numpy() + (1 - decay) * values
            mixed = Array(mean.astype(values.dtype))
        record[name] = mixed
    return record


class WeightedAverage:
    """The weighted average of models that are added one after the other.

    Beside the models that wait to be added, it holds one model, which becomes the result.
    """

    def __init__(self) -> None:
        self._layout: ArrayLayout | None = None
        self._sums: list[_Sum] = []
        self._waiting: list[tuple[list[np.ndarray], float]] = []
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
            self._layout = self._layout or layout_of(arrays)
            values = self._layout.read(arrays)
        except ArrayError as error:
            raise InconsistentMessageReplies(
                f"The replies are not of one model: an array {error}."
            ) from None
        # In units of the first weight, so that sums are of the size of the values.
        self._unit = self._unit or weight
        share = weight / self._unit if self._unit else 0.0
        self._total += share
        if not self._sums:
            self._sums = [
                _Sum(*begun, share) for begun in zip(self._layout.pieces, values, strict=True)
            ]
            return
        self._waiting.append((values, share))
        if len(self._waiting) == TOGETHER:
            self._add_waiting()

    def _add_waiting(self) -> None:
        models, shares = zip(*self._waiting, strict=True)
        with _blas().limit(limits=1):
            for each, *reads in zip(self._sums, *models, strict=True):
                each.add([*zip(reads, shares, strict=True)])
        self._waiting.clear()

    def result(self) -> ArrayRecord:
        """Return the average; nothing can be added after.

        Raises
        ------
        InconsistentMessageReplies
            If the weights add up to 0.
        """
        if self._layout is None or not self._total:
            raise InconsistentMessageReplies("All replies together have a weight of 0.")
        if self._waiting:
            self._add_waiting()
        made: dict[str, Array] = {}
        while self._sums:
            made |= self._sums.pop().averages(self._total)
        record = ArrayRecord()
        for name in self._layout.names:
            record[name] = made[name]
        return record


class _Sum:
    """The weighted sum of one piece of a model, as flat values.

    The values of a large array are stored behind its header, as Flower's Array needs them, so that
    the result is not copied: that would be 8 % of the time for 10 replies of 12 MB.
    """

    def __init__(self, piece: Piece, read: np.ndarray, share: float) -> None:
        from scipy.linalg import blas

        in_one_pass = {np.dtype("f4"): blas.saxpy, np.dtype("f8"): blas.daxpy}
        self.arrays, self.native = piece.arrays, piece.dtype.newbyteorder("=")
        kinds = {"f": np.result_type(self.native, np.float32), "c": self.native}
        self.dtype = kinds.get(self.native.kind, np.dtype("f8"))
        self.add_scaled: Callable[..., object] | None = in_one_pass.get(self.dtype)
        self.data: BytesIO | None = None
        header = self.arrays[0].header
        aligned = len(header) % self.dtype.itemsize == 0  # otherwise BLAS would add to a copy
        if self.dtype == piece.dtype and not self.arrays[1:] and aligned:
            self.data = BytesIO(b"".join((header, read.data)))
            self.values = np.frombuffer(self.data.getbuffer(), self.dtype, -1, len(header))
            if share != 1:
                self.values *= self.dtype.type(share)
        else:
            self.values = np.multiply(read, share, dtype=self.dtype)

    def add(self, added: Sequence[tuple[np.ndarray, float]]) -> None:
        """Add flat values by their shares, in one pass if they have the precision of the sum."""
        values, add_scaled = self.values, self.add_scaled
        if add_scaled is None or any(read.dtype != self.dtype for read, _ in added):
            for read, share in added:
                values += np.multiply(read, share, dtype=self.dtype)
            return
        # BLAS's axpy is one pass over a reply's bytes, where numpy needs two and a copy. With all
        # around it, a reply of 355 arrays (12 MB) takes 1.6 to 2.2 ms among 50 or 200 replies, and
        # 13 to 23 ms in Flower's FedAvg (benchmarks/aggregation.py).
        for start in range(0, values.size, BLOCK):
            count = min(BLOCK, values.size - start)
            for read, share in added:
                add_scaled(read, values, count, share, start, 1, start, 1)

    def averages(self, total: float) -> Iterator[tuple[str, Array]]:
        """Return the averages by name, as Flower sends arrays; nothing can be added after."""
        self.values *= self.dtype.type(1 / total)
        if self.data is not None:
            del self.values  # BytesIO shares its memory only while no view exists
            (only,) = self.arrays
            yield only.name, Array(self.dtype.name, only.shape, STYPE, self.data.getvalue())
            return
        dtype = self.native if self.native.kind in "fc" else self.dtype
        values, end, name = self.values.astype(dtype, copy=False).data, 0, dtype.name
        for each in self.arrays:
            start, end = end, end + math.prod(each.shape)
            header = header_for(dtype, each.shape, each.order)
            yield each.name, Array(name, each.shape, STYPE, b"".join((header, values[start:end])))


@cache
def _blas() -> ThreadpoolController:
    """Return the controller of BLAS's threads, which wait for each other in a busy loop.

    If the cores are not free, two threads take 20 to 70 ms for 12 MB, and one takes 1.1 to 1.6 ms
    (benchmarks/aggregation.py). On free cores two would take 0.85 ms.
    """
    import scipy.linalg  # noqa: F401  (its BLAS is looked for)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def in_step(contents: Sequence[RecordDict], weighted_by: str | None) -> list[RecordDict]:
    """Return contents of replies with the same metrics, as Flower's aggregation requires.

    A metric is kept if at least half of the replies report it. If a reply lacks it, or has a list
    of another length than most, it gets the mean of the others, weighted by a metric, so that the
    weighted average of all is theirs. A value that is out of scale becomes the nearest that is not
    (`winsorized`).
    """
    replies: list[dict[str, Any]] = [
        dict(next((r for r in content.values() if isinstance(r, MetricRecord)), {}))
        for content in contents
    ]
    weights = [metrics.get(weighted_by or "", 1.0) for metrics in replies]
    filled: list[dict[str, Any]] = [{} for _ in replies]
    for name, count in Counter(chain.from_iterable(replies)).items():
        if 2 * count < len(replies):
            continue
        values: list[Any] = [metrics.get(name) for metrics in replies]
        lengths = [None if v is None else len(v) if isinstance(v, list) else -1 for v in values]
        ((usual, _),) = Counter(n for n in lengths if n is not None).most_common(1)
        fits = [length == usual for length in lengths]
        if name != weighted_by:
            bounded = iter(winsorized([*compress(values, fits)]))
            values = [
                next(bounded) if fit else value for value, fit in zip(values, fits, strict=True)
            ]
        if not all(fits):
            total = sum(compress(weights, fits))
            shares = [weight / total for weight in compress(weights, fits)]
            mean = np.dot(shares, np.asarray([*compress(values, fits)], float)).tolist()
            values = [value if fit else mean for value, fit in zip(values, fits, strict=True)]
        for metrics, value in zip(filled, values, strict=True):
            metrics[name] = value
    return [
        with_records(content, MetricRecord(metrics))
        for content, metrics in zip(contents, filled, strict=True)
    ]
