# SPDX-License-Identifier: Apache-2.0
"""A session on disk: who it is, and its rounds, each written whole before anybody relies on it.

The name of a record tells how far its round is, so that what waits can be counted without reading:

``aggregated-0007.json``
    It has a new model. After a crash its nodes are asked to evaluate, not to train.
``closed-0007.json``
    It is over for the nodes, and waits to be finished: logged, registered, staged.
``done-0007.json``
    It is finished; its report is in the record.

What becomes of a session that was left behind is decided elsewhere.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fl_app.events import RoundReport
from fl_app.strategy.errors import CheckpointError
from fl_app.strategy.session.arrays_file import load_round, save_round
from fl_app.strategy.session.backlog import SESSION_FILE, TROUBLE_FILE
from fl_app.strategy.session.closed_round import ClosedRound, report_from_json, report_to_json
from fl_app.strategy.session.plain_json import NotPlainError, decode, encode
from fl_app.strategy.session.strategy_state import InnerState
from fl_registry.files.artifacts import file_digest
from fl_registry.files.atomic import sync_folder, write_whole
from fl_registry.files.weights import WeightsError, load_weights, save_weights

logger = logging.getLogger("flwr.fl_app")

Phase = Literal["aggregated", "closed", "done"]
PHASES: tuple[Phase, ...] = ("aggregated", "closed", "done")
LOCK_FILE = "lock"
_NUMBERED = re.compile(r"(round|inner|aggregated|closed|done)-(\d{4,})(?:-[a-z]+)?\.[a-z]+")


@dataclass(frozen=True)
class Checkpoint:
    """All that a round leaves behind.

    Attributes
    ----------
    closed : ClosedRound
        The round.
    phase : "aggregated" | "closed" | "done"
        How far it is.
    inner : InnerState
        What the inner strategy remembers after it.
    configs : Mapping[str, ConfigRecord]
        The configs for ``train`` and ``evaluate`` messages, which strategies may change.
    report : RoundReport | None
        What became of it, once it is done.
    files : Mapping[str, tuple[str, str]]
        Name and SHA-256 of the files with its ``arrays`` and, if there are any, the ``inner`` ones.
    """

    closed: ClosedRound
    phase: Phase
    inner: InnerState = field(default_factory=InnerState)
    configs: Mapping[str, ConfigRecord] = field(default_factory=dict)
    report: RoundReport | None = None
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class SessionFolder:
    """The files of one session, and the lock that ends with the process which runs it.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    CheckpointError
        From all that write and read: the disk is full, or a file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = ExitStack()

    @classmethod
    def create(cls, path: Path, record: Mapping[str, Any]) -> SessionFolder:
        """Make the folder of a new session, whole or not at all, and hold it."""
        draft = cls(_unfinished(path))
        try:
            with _told(f"the session's folder {path} could not be created"):
                draft.path.mkdir(parents=True)
                draft.acquire()
                draft.write_session(record)
                draft.path.rename(path)
                sync_folder(path.parent)
        except BaseException:
            draft.release()
            shutil.rmtree(draft.path, ignore_errors=True)
            raise
        draft.path = path
        return draft

    def acquire(self) -> bool:
        """Whether nobody runs this session; then it is ours until `release`."""
        from filelock import FileLock, Timeout

        try:
            self._lock.enter_context(FileLock(self.path / LOCK_FILE, timeout=0, thread_local=False))
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let others have it."""
        self._lock.close()

    def write_session(self, record: Mapping[str, Any]) -> None:
        """Write down who the session is and how far, whole."""
        self._write(SESSION_FILE, record)

    def read_session(self) -> dict[str, Any]:
        """What `write_session` was last given."""
        return self._read(self.path / SESSION_FILE)

    def save_arrays(
        self, arrays: ArrayRecord, number: int, model: Mapping[str, object]
    ) -> tuple[str, str]:
        """Write the arrays of a round; return the name of their file and its SHA-256."""
        path, digest = save_round(arrays, self.path, number, model)
        return path.name, digest

    def save(self, checkpoint: Checkpoint, model: Mapping[str, object]) -> Checkpoint:
        """Write a round down with its arrays; it is there when this returns, or was before.

        Arrays of a round without a new model, and an inner state that stayed, are not written
        again: they keep the files that ``checkpoint`` names.
        """
        closed, files = checkpoint.closed, dict(checkpoint.files)
        if closed.arrays is not None and "arrays" not in files:
            files["arrays"] = self.save_arrays(closed.arrays, closed.round, model)
        if checkpoint.inner.arrays and "inner" not in files:
            name = f"inner-{closed.round:04d}-{checkpoint.phase}.safetensors"
            with _told(f"the inner strategy's arrays of round {closed.round} could not be written"):
                files["inner"] = (name, save_weights(checkpoint.inner.arrays, self.path / name))
        saved = replace(checkpoint, files=files)
        self._write(_name(saved.phase, closed.round), _to_json(saved))
        return saved

    def finish(self, checkpoint: Checkpoint, report: RoundReport) -> None:
        """Write down what became of a closed round; it waits no longer."""
        number, closed = checkpoint.closed.round, replace(checkpoint.closed, nodes=())
        done = replace(checkpoint, closed=closed, phase="done", report=report)
        self._write(_name("done", number), _to_json(done))
        for name in (_name("closed", number), _name("aggregated", number), _scored(number)):
            _remove(self.path / name)

    def checkpoints(self) -> list[Checkpoint]:
        """All rounds, each as far as it is, oldest first; without their arrays."""
        found = {(kind, number) for kind, number, _ in self._numbered()}
        phases: dict[int, Phase] = {}
        for phase in PHASES:  # a later one takes the place of an earlier one
            phases |= {number: phase for kind, number in found if kind == phase}
        return [self._load(phase, number) for number, phase in sorted(phases.items())]

    def arrays(self, checkpoint: Checkpoint) -> ArrayRecord:
        """The global arrays after a round, as they were written."""
        with _told(f"the arrays of round {checkpoint.closed.round} cannot be read"):
            return load_round(self._whole(checkpoint, "arrays"))

    def weights(self, checkpoint: Checkpoint) -> Path:
        """The file with the arrays of a round."""
        return self.path / checkpoint.files["arrays"][0]

    def with_inner_arrays(self, checkpoint: Checkpoint) -> InnerState:
        """What the inner strategy remembered after a round."""
        if "inner" not in checkpoint.files:
            return checkpoint.inner
        number = checkpoint.closed.round
        with _told(f"the inner strategy's arrays of round {number} cannot be read"):
            arrays: dict[str, np.ndarray] = load_weights(self._whole(checkpoint, "inner"))
        return replace(checkpoint.inner, arrays=arrays)

    def keep_scores(self, number: int, record: MetricRecord, *, whole: bool) -> None:
        """Write what ``evaluate_fn`` returned for a closed round.

        ``whole`` says that there is nothing more to it, so that it need not be evaluated again.
        """
        self._write(_scored(number), {"record": encode(MetricRecord(dict(record))), "whole": whole})

    def scores(self, number: int) -> tuple[MetricRecord | None, bool]:
        """Return what `keep_scores` was given; None if it was not called."""
        path = self.path / _scored(number)
        if not path.exists():
            return None, False
        found = self._read(path)
        return decode(found["record"]), bool(found["whole"])

    def note_trouble(self, why: str) -> None:
        """Have others see why rounds wait; an empty text for none."""
        try:
            if why:
                self._write(TROUBLE_FILE, {"why": why})
            else:
                (self.path / TROUBLE_FILE).unlink(missing_ok=True)
        except (OSError, CheckpointError) as error:
            logger.info("%s", error)

    def forget(self, newest: Checkpoint, *, keeping: Collection[int] = ()) -> None:
        """Delete what is needed neither to go on after ``newest`` nor to finish what waits.

        ``keeping`` are further rounds whose arrays stay.
        """
        needed = {name for name, _ in newest.files.values()}
        waiting = {number for kind, number, _ in self._numbered() if kind == "closed"} | {*keeping}
        for kind, number, path in self._numbered():
            old = number < newest.closed.round and path.name not in needed
            if old and (kind == "inner" or (kind == "round" and number not in waiting)):
                _remove(path)

    def remove(self) -> None:
        """Delete the session, at once for whoever looks: all of it is in the registry."""
        gone = _unfinished(self.path)
        try:
            self.path.rename(gone)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", self.path, error.strerror)
        shutil.rmtree(gone, ignore_errors=True)

    def set_apart(self) -> Path:
        """Rename the folder, so that nobody tries to go on with it; its files stay."""
        apart = self.path.with_name(f"{self.path.name}.failed")
        try:
            self.path.rename(apart)
        except OSError as error:
            logger.warning("%s could not be renamed: %s", self.path, error.strerror)
        return apart

    def _numbered(self) -> Iterator[tuple[str, int, Path]]:
        for path in sorted(self.path.iterdir()):
            if found := _NUMBERED.fullmatch(path.name):
                yield found[1], int(found[2]), path

    def _load(self, phase: Phase, number: int) -> Checkpoint:
        path = self.path / _name(phase, number)
        try:
            text = self._read(path)
            report = report_from_json(text["report"]) if "report" in text else None
            return Checkpoint(
                closed=ClosedRound.from_json(text["closed"]),
                phase=phase,
                inner=InnerState(text["inner"], missing=tuple(text["missing"])),
                configs={name: decode(config) for name, config in text["configs"].items()},
                report=report,
                files={what: (name, digest) for what, (name, digest) in text["files"].items()},
            )
        except (NotPlainError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged ({type(error).__name__})") from error

    def _whole(self, checkpoint: Checkpoint, what: str) -> Path:
        name, digest = checkpoint.files[what]
        path = self.path / name
        if file_digest(path) != digest:
            raise CheckpointError(f"{path} has changed since it was written")
        return path

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        with _told(f"{self.path / name} could not be written"):
            write_whole(self.path / name, json.dumps(record).encode())

    def _read(self, path: Path) -> dict[str, Any]:
        with _told(f"{path} cannot be read"):
            return dict(json.loads(path.read_bytes()))


def _unfinished(path: Path) -> Path:
    """A name by which nobody takes a folder for a session, and a clean-up finds it."""
    return path.with_name(f".{path.name}.tmp")


def _name(phase: Phase, number: int) -> str:
    return f"{phase}-{number:04d}.json"


def _scored(number: int) -> str:
    return f"scored-{number:04d}.json"


def _to_json(checkpoint: Checkpoint) -> dict[str, Any]:
    text: dict[str, Any] = {
        "closed": checkpoint.closed.to_json(),
        "inner": dict(checkpoint.inner.values),
        "missing": list(checkpoint.inner.missing),
        "configs": {name: encode(config) for name, config in checkpoint.configs.items()},
        "files": {what: list(file) for what, file in checkpoint.files.items()},
    }
    if checkpoint.report is not None:
        text["report"] = report_to_json(checkpoint.report)
    return text


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """Turn what a disk, or a damaged file, raises in the block into a CheckpointError."""
    try:
        yield
    except (OSError, MemoryError, WeightsError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{doing} ({reason})") from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", path, error.strerror)
