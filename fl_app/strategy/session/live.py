# SPDX-License-Identifier: Apache-2.0
"""Writes how far a session is beside its checkpoints, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from flwr.app import Message

from fl_app.events import RejectedReply
from fl_app.progress import MAX_NODES, PROGRESS_FILE, Phase, SessionProgress, as_json

logger = logging.getLogger("flwr.fl_app")

WRITE_EVERY = 2.0
"""Seconds between two writes; a reader that finds nothing new for long takes the session to hang.
"""
AVERAGED = 5
"""Rounds whose duration says how long the others take."""


class LiveProgress:
    """How far a session is: changed by Flower's thread, and written by another one.

    A write that fails costs what people see for two seconds, and nothing else.

    Parameters
    ----------
    folder : Path
        The session's folder.
    progress : SessionProgress
        What is known at its start.
    """

    def __init__(self, folder: Path, progress: SessionProgress) -> None:
        self._file = folder / PROGRESS_FILE
        self._progress = progress
        self._seconds: deque[float] = deque(maxlen=AVERAGED)
        self._nodes: dict[str, None] = {}
        self._bad: Mapping[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fl-app-progress", daemon=True)
        self._thread.start()

    def begin(self, phase: Phase, server_round: int, requested: int = 0) -> None:
        """Begin a phase; `waiting` and `train` begin a round as well."""
        changes: dict[str, object] = {"phase": phase, "requested": requested, "answered": 0}
        if server_round != self._progress.round:
            before = self._snapshot().rejected
            changes |= {"round": server_round, "round_started": datetime.now(UTC)}
            changes |= {"rejected": (), "rejected_before": before}
        self._nodes, self._bad = {}, {}
        self._progress = replace(self._progress, **changes)  # type: ignore[arg-type]

    def arriving(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies, and count them."""
        for reply in replies:
            self._nodes[str(reply.metadata.src_node_id)] = None
            yield reply
            del reply  # free its memory before the next one is waited for

    def screen(self, bad: Mapping[str, str]) -> None:
        """Take note of where rejected replies of this phase are entered, by node."""
        self._bad = bad

    def rejected(self, replies: tuple[RejectedReply, ...]) -> None:
        """Take note of what was rejected in this round, once a phase is over."""
        self._bad = {}
        self._progress = replace(self._progress, rejected=replies)

    def closed(self, seconds: float) -> None:
        """Take note of how long a round took."""
        self._seconds.append(seconds)
        mean = sum(self._seconds) / len(self._seconds)
        self._progress = replace(self._progress, round_seconds=mean)

    def close(self) -> None:
        """End the thread and remove the file."""
        self._stop.set()
        self._thread.join(WRITE_EVERY)
        self._file.unlink(missing_ok=True)

    def _snapshot(self) -> SessionProgress:
        """Return what is known now; copies of what another thread may be changing."""
        known, bad, nodes = self._progress, dict(self._bad), list(self._nodes)
        phase: Literal["train", "evaluate"] = "evaluate" if known.phase == "evaluate" else "train"
        rejected = known.rejected + tuple(RejectedReply(n, phase, why) for n, why in bad.items())
        out = {each.node_id for each in rejected if each.phase == phase}
        return replace(
            known,
            answered=len(nodes),
            nodes=tuple(node for node in nodes if node not in out)[:MAX_NODES],
            rejected=rejected[:MAX_NODES],
            written=datetime.now(UTC),
        )

    def _run(self) -> None:
        draft = self._file.with_name(f".{PROGRESS_FILE}.tmp")
        while not self._stop.is_set():
            try:
                draft.write_bytes(as_json(self._snapshot()))
                draft.replace(self._file)
            except OSError as error:
                logger.debug("%s is not written: %s", self._file, error)
            self._stop.wait(WRITE_EVERY)
