# SPDX-License-Identifier: Apache-2.0
"""The in-memory store and tracker with their state in a file, for processes that are killed.

Each call is in the file when it returns, or was not made.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from fl_registry import InMemoryModelStore, InMemoryTracker, Stage
from fl_registry.memory import MemoryRun, MemoryRunInfo
from fl_registry.versions import read_version
from support.outage import STORE_CALLS, TRACKER_CALLS

Point = Callable[[], None]

_replace = os.replace  # tests count the app's own calls of it
_writing = threading.Lock()


def nothing() -> None:
    """No point to die at."""


class DiskStore(InMemoryModelStore):
    """An in-memory store that another process finds again; `point` is called around each call."""

    def __init__(self, folder: Path, point: Point = nothing) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self._file = folder / "store.json"
        if self._file.exists():
            self._load(json.loads(self._file.read_bytes()))
        for name in (*STORE_CALLS, "take_lease", "send_heartbeat"):
            if hasattr(self, name):
                setattr(self, name, kept(getattr(self, name), self._dump, point))

    def lock_file(self) -> Path:
        return self._file.with_name("lease.lock")

    def _load(self, text: dict[str, Any]) -> None:
        for version, row in text["saved"].items():
            row["created"] = datetime.fromisoformat(row["created"])
            row["stage"] = Stage(row["stage"])
            self.backend.stored[version] = read_version(version, **row)
        self.backend.saved = len(self.backend.stored)
        self.backend.journal.texts += text["journal"]
        self.aliases.update(text["aliases"])

    def _dump(self) -> None:
        saved = {
            version: {
                "tags": row.tags,
                "run_id": row.run_id,
                "created": row.created.isoformat(),
                "stage": row.stage,
                "description": row.description,
            }
            for version, row in self.backend.stored.items()
        }
        journal = self.backend.journal.texts
        write(self._file, {"saved": saved, "journal": journal, "aliases": self.aliases})


class DiskTracker(InMemoryTracker):
    """An in-memory tracker that another process finds again."""

    def __init__(self, folder: Path, point: Point = nothing) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "runs.json"
        if self._file.exists():
            self._load(json.loads(self._file.read_bytes()))
        for name in TRACKER_CALLS:
            setattr(self, name, kept(getattr(self, name), self._dump, point))

    def _load(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["info"] = MemoryRunInfo(**row["info"])
            row["logged"] = {tuple(logged) for logged in row["logged"]}
            row["metrics"] = {n: [tuple(p) for p in points] for n, points in row["metrics"].items()}
            self.runs.append(MemoryRun(**row))

    def _dump(self) -> None:
        rows = []
        for run in self.runs:
            rows.append({**asdict(run), "logged": [*run.logged]})
        write(self._file, rows)


def kept(call: Callable[..., Any], dump: Callable[[], None], point: Point) -> Callable[..., Any]:
    """A call that is in the file when it returns."""

    def through(*arguments: Any, **named: Any) -> Any:
        point()
        result = call(*arguments, **named)
        with _writing:
            dump()
        point()
        return result

    return through


def write(path: Path, content: object) -> None:
    """Write a file, whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content))
    _replace(draft, path)
