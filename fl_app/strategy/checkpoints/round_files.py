# SPDX-License-Identifier: Apache-2.0
"""The files of a session's rounds.

The name of a record says how far its round is, so that waiting rounds are counted without reading:

``aggregated-0007.json``
    It has a new model. After a crash its nodes evaluate, and do not train again.
``closed-0007.json``
    It is over for the nodes, and waits to be finished: logged, registered, staged.
``done-0007.json``
    It is finished; its report is in the record.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

from fl_app.events import RoundReport
from fl_app.strategy.checkpoints.arrays_file import load_round, save_round
from fl_app.strategy.checkpoints.json_files import disk_errors, read, remove, write
from fl_app.strategy.checkpoints.plain_json import encode
from fl_app.strategy.checkpoints.record import PHASES, Checkpoint, InnerState, Phase
from fl_app.strategy.errors import CheckpointError
from fl_registry.files.digests import file_digest
from fl_registry.files.weights import load_weights, save_weights

_NUMBERED = re.compile(r"(round|inner|aggregated|closed|done)-(\d{4,})(?:-[a-z]+)?\.[a-z]+")


class RoundFiles:
    """Reads and writes the rounds of a session.

    Parameters
    ----------
    folder : Path
        The session's folder.

    Raises
    ------
    CheckpointError
        From all methods: the disk is full, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save_arrays(
        self, arrays: ArrayRecord, number: int, model: Mapping[str, object]
    ) -> tuple[str, str]:
        """Write the arrays of a round; return the name of their file and its SHA-256."""
        path, digest = save_round(arrays, self._folder, number, model)
        return path.name, digest

    def save(self, checkpoint: Checkpoint, model: Mapping[str, object]) -> Checkpoint:
        """Write a round with its arrays.

        Files that ``checkpoint`` names already are not written again: those of a round without a
        new model, and of an inner state that did not change.
        """
        closed, files = checkpoint.closed, dict(checkpoint.files)
        if closed.arrays is not None and "arrays" not in files:
            files["arrays"] = self.save_arrays(closed.arrays, closed.round, model)
        if checkpoint.inner.arrays and "inner" not in files:
            name = f"inner-{closed.round:04d}-{checkpoint.phase}.safetensors"
            with disk_errors(f"the inner state of round {closed.round} could not be written"):
                digest = save_weights(checkpoint.inner.arrays, self._folder / name)
            files["inner"] = (name, digest)
        saved = replace(checkpoint, files=files)
        write(self._path(saved.phase, closed.round), encode(saved.without_arrays()))
        return saved

    def finish(
        self,
        checkpoint: Checkpoint,
        report: RoundReport,
        newest: Checkpoint,
        *,
        keeping: Collection[int] = (),
    ) -> None:
        """Write the report of a closed round, which waits no longer, and delete old files.

        Old are those that neither a session resumed after ``newest`` nor a waiting round needs;
        ``keeping`` are further rounds whose arrays stay.
        """
        number, closed = checkpoint.closed.round, replace(checkpoint.closed, nodes=())
        done = replace(checkpoint, closed=closed, phase="done", report=report)
        old = [self._path(kind, number) for kind in ("closed", "aggregated", "scored")]
        files = [*self._numbered()]
        needed = {name for name, _ in newest.files.values()}
        waiting = {n for kind, n, _ in files if kind == "closed"} - {number} | {*keeping}
        old += [
            path
            for kind, n, path in files
            if n < newest.closed.round
            and path.name not in needed
            and (kind == "inner" or (kind == "round" and n not in waiting))
        ]
        write(self._path("done", number), encode(done.without_arrays()))
        remove(old)

    def load(self) -> list[Checkpoint]:
        """Return all rounds, each as far as it is, oldest first; without their arrays."""
        names = {(kind, number) for kind, number, _ in self._numbered()}
        phases: dict[int, Phase] = {}
        for phase in PHASES:  # a later phase replaces an earlier one
            phases |= {number: phase for kind, number in names if kind == phase}
        return [read(self._path(phase, n), Checkpoint) for n, phase in sorted(phases.items())]

    def arrays(self, checkpoint: Checkpoint) -> ArrayRecord:
        """Return the global arrays after a round."""
        with disk_errors(f"the arrays of round {checkpoint.closed.round} cannot be read"):
            return load_round(self._unchanged(checkpoint, "arrays"))

    def weights(self, checkpoint: Checkpoint) -> Path:
        """Return the file with the arrays of a round."""
        return self._folder / checkpoint.files["arrays"][0]

    def inner(self, checkpoint: Checkpoint) -> InnerState:
        """Return the state of the inner strategy after a round, with its arrays."""
        if "inner" not in checkpoint.files:
            return checkpoint.inner
        with disk_errors(f"the inner state of round {checkpoint.closed.round} cannot be read"):
            arrays: dict[str, np.ndarray] = load_weights(self._unchanged(checkpoint, "inner"))
        return replace(checkpoint.inner, arrays=arrays)

    def save_score(self, number: int, record: MetricRecord, *, whole: bool) -> None:
        """Write what ``evaluate_fn`` returned for a closed round.

        ``whole`` says that the record is complete, so that it need not be evaluated again.
        """
        write(self._path("scored", number), encode((MetricRecord(dict(record)), whole)))

    def score(self, number: int) -> tuple[MetricRecord | None, bool]:
        """Return what `save_score` has written; None if there is nothing."""
        path = self._path("scored", number)
        return read(path, tuple) if path.exists() else (None, False)

    def _path(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number:04d}.json"

    def _numbered(self) -> Iterator[tuple[str, int, Path]]:
        for path in sorted(self._folder.iterdir()):
            if match := _NUMBERED.fullmatch(path.name):
                yield match[1], int(match[2]), path

    def _unchanged(self, checkpoint: Checkpoint, what: str) -> Path:
        name, digest = checkpoint.files[what]
        path = self._folder / name
        if file_digest(path) != digest:
            raise CheckpointError(f"{path} has changed since it was written")
        return path
