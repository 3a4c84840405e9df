# SPDX-License-Identifier: Apache-2.0
"""A model store and a tracker without MLflow, in this process; only files are on disk."""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_registry.backend import Backend, Inventory, JournalStorage, NewVersion, VersionFiles
from fl_registry.errors import RegistryError, UnknownVersion, foreign_errors
from fl_registry.files.artifacts import WEIGHTS_FILE, Removal, own_bytes, read_small, remove_folder
from fl_registry.files.atomic import copy_whole, scratch_folder
from fl_registry.journal.entries import Mark, Page
from fl_registry.journal.lease import Heartbeat
from fl_registry.serving.mlmodel import write_serving
from fl_registry.stages import StageMark
from fl_registry.store import ModelStore
from fl_registry.tracking import Kind, Tracker
from fl_registry.versions import ModelVersion, read_version


class InMemoryJournal(JournalStorage):
    """A journal in a list.

    Attributes
    ----------
    texts : list[str]
        Its entries, oldest first.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._heartbeat = Heartbeat()
        self._checked = Mark()
        self._lock = threading.Lock()

    def page(self, *, fresh: bool) -> Page:
        return Page(tuple(self.texts))

    def pages(self, *, after: int = 0) -> Sequence[Page]:
        return [self.page(fresh=True)]

    def checked(self) -> Mark:
        return self._checked

    def set_checked(self, mark: Mark) -> None:
        self._checked = mark

    def claim(self, number: int, text: str) -> bool:
        with self._lock:
            if len(self.texts) != number - 1:
                return False
            self.texts.append(text)
            return True

    def heartbeat(self) -> Heartbeat:
        return self._heartbeat

    def set_heartbeat(self, beat: Heartbeat) -> None:
        self._heartbeat = beat

    def lock_file(self) -> Path | None:
        return None


class FolderFiles(VersionFiles):
    """Files in one folder a version.

    Parameters
    ----------
    folder : Path
        Holds the folders of the versions.
    forget : Callable[[str], object]
        Called with the number of a version that is removed.
    """

    def __init__(self, folder: Path, forget: Callable[[str], object]) -> None:
        super().__init__()
        self._folder = folder
        self._forget = forget

    def path(self, record: ModelVersion, name: str, sha256: str) -> Path:
        return self._folder / record.version / name

    def is_local(self, record: ModelVersion) -> bool:
        return True

    def read(self, record: ModelVersion, name: str) -> bytes | None:
        file = self._folder / record.version / name
        return read_small(file) if file.is_file() else None

    def add(self, record: ModelVersion, file: Path) -> None:
        with foreign_errors(f"store {file.name} of version {record.version}"):
            copy_whole(file, self._folder / record.version / file.name)

    def is_whole(self, record: ModelVersion) -> bool:
        file = self._folder / record.version / WEIGHTS_FILE
        return self.whole.has(file, record.sha256)

    def size(self, record: ModelVersion) -> int:
        return own_bytes(self._folder / record.version)

    def remove(self, record: ModelVersion, *, users: str = "") -> Removal:
        done = remove_folder(self._folder / record.version)
        if not done.left:
            self.whole.forget(self._folder / record.version / WEIGHTS_FILE)
            self._forget(record.version)
        return done


@dataclass(frozen=True)
class MemoryRunInfo:
    """Identity of a run."""

    run_id: str
    run_name: str


@dataclass
class MemoryRun:
    """What a run has logged: params, metrics as ``{name: [(step, value), ...]}``, and so on.

    Data sets are ``{context: (name, digest)}``.
    """

    info: MemoryRunInfo
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    datasets: dict[str, tuple[str, str]] = field(default_factory=dict)
    status: str = "RUNNING"
    logged: set[tuple[str, float, int, int]] = field(default_factory=set, repr=False)


class InMemoryBackend(Backend):
    """Versions in a dictionary.

    Parameters
    ----------
    folder : Path
        Where to store copies of the files.

    Attributes
    ----------
    stored : dict[str, ModelVersion]
        The versions that there are, by number.
    saved : int
        How many versions were ever saved.
    alias_table : dict[str, str]
        The aliases.
    runs : dict[str, MemoryRun]
        What was logged about production, by the id of the run.
    run_contents : dict[str, dict[str, bytes]]
        Files of runs by id and name.
    """

    def __init__(self, folder: Path) -> None:
        self.stored: dict[str, ModelVersion] = {}
        self.saved = 0
        self.alias_table: dict[str, str] = {}
        self.runs: dict[str, MemoryRun] = {}
        self.run_contents: dict[str, dict[str, bytes]] = {}
        self.scratch = folder
        self.journal: InMemoryJournal = InMemoryJournal()
        self.files = FolderFiles(folder, lambda version: self.stored.pop(version, None))
        self._lock = threading.RLock()

    def ping(self) -> None:
        with foreign_errors(f"use the folder {self.scratch}"):
            self.scratch.mkdir(parents=True, exist_ok=True)

    def check_files(self) -> None:
        with foreign_errors("store a file"), scratch_folder(self.scratch) as folder:
            (folder / "check").write_text("a", encoding="utf-8")

    def fingerprint(self) -> Hashable | None:
        return None

    def save(
        self, new: NewVersion, retired: Callable[[], frozenset[str]]
    ) -> tuple[ModelVersion, bool]:
        with self._lock:
            for record in self.stored.values():
                equal = record.tags["save_key"] == new.tags["save_key"]
                if equal and record.version not in retired():
                    return record, False
            version = str(self.saved + 1)
            with foreign_errors(f"store the files of version {version}"):
                if new.serving is not None:
                    write_serving(new.serving, new.artifact.folder)
                _copy(new.artifact.folder, self.scratch / version)
            self.saved, now = self.saved + 1, datetime.now(UTC)
            self.stored[version] = read_version(
                version, new.tags, run_id=new.run_id, created=now, description=new.description
            )
            return self.stored[version], True

    def find(self, version: str) -> ModelVersion | None:
        return self.stored.get(version)

    def versions(self, *, at_once: int, before: str = "") -> Iterator[ModelVersion]:
        for record in reversed(list(self.stored.values())):
            if not before or int(record.version) < int(before):
                yield record

    def inventory(self, run_id: str = "") -> Inventory:
        records = self.versions(at_once=0)
        return Inventory([record for record in records if run_id in ("", record.run_id)])

    def set_tags(self, version: str, tags: Mapping[str, str]) -> None:
        with self._lock:
            record = self.stored.get(version)
            if record is None:
                raise UnknownVersion(f"There is no version {version} in the in-memory registry.")
            self.stored[version] = replace(record, tags={**record.tags, **tags})

    def aliases(self) -> Mapping[str, str]:
        return dict(self.alias_table)

    def show(self, aliases: Mapping[str, str | None], marks: Sequence[StageMark]) -> None:
        with self._lock:
            for alias, version in aliases.items():
                if version is None:
                    self.alias_table.pop(alias, None)
                else:
                    self.alias_table[alias] = version
            for mark in marks:
                record = self.stored.get(mark.version)
                if record is not None:
                    tags = {**record.tags, **mark.tags}
                    self.stored[mark.version] = replace(record, stage=mark.stage, tags=tags)

    def log_to_run(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        texts: Mapping[str, str],
        *,
        step: int,
        time: datetime,
    ) -> None:
        with self._lock:
            run = self.runs.setdefault(run_id, MemoryRun(MemoryRunInfo(run_id, "")))
            for name, value in metrics.items():
                points = run.metrics.setdefault(name, [])
                points += [] if (step, value) in points else [(step, value)]
            run.artifacts += [path for path in texts if path not in run.artifacts]

    def run_params(self, run_id: str) -> Mapping[str, str] | None:
        return None

    def run_files(self, run_id: str) -> Sequence[str]:
        return sorted(self.run_contents.get(run_id, {}))

    def run_file(self, run_id: str, name: str) -> bytes | None:
        return self.run_contents.get(run_id, {}).get(name)

    def models(self) -> Mapping[str, Mapping[str, str]]:
        return {}


class InMemoryModelStore(ModelStore):
    """A model store in memory; only the weights files are on disk.

    Parameters
    ----------
    folder : str | Path | None
        Where to store copies of the weights. Default: a temporary folder that goes with the store.

    Attributes
    ----------
    aliases : dict[str, str]
        What MLflow would show as aliases; a change of it is a move by hand.
    runs : dict[str, MemoryRun]
        What `log_production` logged, by the id of the run.
    """

    backend: InMemoryBackend

    def __init__(self, folder: str | Path | None = None) -> None:
        if folder is None:
            where = Path(tempfile.mkdtemp(prefix="fl-app-"))
            weakref.finalize(self, shutil.rmtree, where, ignore_errors=True)
        else:
            where = Path(folder).resolve()
        super().__init__(InMemoryBackend(where))
        self.aliases = self.backend.alias_table
        self.runs = self.backend.runs


class InMemoryTracker(Tracker):
    """A tracker that keeps its runs in ``runs``, oldest first."""

    run: MemoryRun | None

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[MemoryRun] = []

    def _create(self, name: str | None, tags: Mapping[str, str]) -> MemoryRun:
        self.runs.append(MemoryRun(MemoryRunInfo(uuid.uuid4().hex, name or ""), tags=dict(tags)))
        return self.runs[-1]

    def _resume(self, run_id: str, name: str | None) -> MemoryRun:
        for run in self.runs:
            if run.info.run_id == run_id:
                run.status = "RUNNING"
                return run
        raise RegistryError(f"There is no run {run_id} to continue.")

    def _unfinished(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(r.info.run_id, r.tags) for r in reversed(self.runs) if r.status == "RUNNING"]

    def _log(self, run: MemoryRun, kind: Kind, rows: Iterable[tuple[Any, ...]]) -> None:
        if kind != "metrics":
            getattr(run, kind).update(rows)
            return
        for name, value, moment, step in rows:
            if (name, value, moment, step) not in run.logged:
                run.logged.add((name, value, moment, step))
                run.metrics.setdefault(name, []).append((step, value))

    def _log_artifact(self, run: MemoryRun, file: Path, folder: str | None) -> None:
        run.artifacts.append("/".join(filter(None, (folder, file.name))))

    def _log_dataset(
        self, run: MemoryRun, name: str, digest: str, source: str, context: str
    ) -> None:
        run.datasets[context] = (name, digest)

    def _end(self, run: MemoryRun, status: str) -> None:
        run.status = status


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target, dirs_exist_ok=True)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
