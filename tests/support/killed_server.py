# SPDX-License-Identifier: Apache-2.0
"""Serves requests, and is killed before each line of that in turn; one thread, so it may fork.

`python killed_server.py FOLDER STEP` prints a line of JSON for each line of code that it died at.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import fl_app.retraining
from fl_app.retraining import MonitorStore, RetrainingManager, RetrainRequest, train_and_retrain

SOURCES = str(Path(fl_app.retraining.__file__).parent)


def asked(url: str) -> list[str]:
    """Return the ids of two requests: one that a crash cut short, and one that waits."""
    manager = RetrainingManager(store=MonitorStore(url))
    first = manager.manual_trigger("first")
    assert manager.take() is not None
    second = manager.manual_trigger("second")
    manager.store.close()
    return [first, second]


def serve(url: str, sessions: Path) -> None:
    """Serve what waits, as the server does, with sessions that note what they do in a file."""
    manager = RetrainingManager(store=MonitorStore(url))

    def session(number: int, request: RetrainRequest | None) -> None:
        name = "" if request is None else request.id
        note(sessions, f"began {name}")
        note(sessions, f"completed {name}")

    train_and_retrain(
        session,
        manager,
        max_retrains=5,
        completed=lambda request: f"completed {request.id}" in noted(sessions),
    )
    manager.store.close()


def note(sessions: Path, line: str) -> None:
    """Write a line and have it on disk."""
    with sessions.open("a") as file:
        file.write(f"{line}\n")


def noted(sessions: Path) -> list[str]:
    """Return what sessions have noted, in their order."""
    return sessions.read_text().splitlines() if sessions.exists() else []


def serve_traced(url: str, sessions: Path, die_at: int) -> int:
    """Serve, and die before that line of the monitor's or this file's; return how many there are.

    A line is counted each time that it is run.
    """
    lines = 0

    def line(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def trace(frame: FrameType, _: str, __: object) -> Any:
        return line if frame.f_code.co_filename.startswith((SOURCES, __file__)) else None

    sys.settrace(trace)
    serve(url, sessions)
    sys.settrace(None)
    return lines


def killed_and_restarted(folder: Path, line: int) -> dict[str, Any]:
    """Die at a line, start again; return what there is then."""
    url, sessions = f"sqlite:///{folder / f'{line}.db'}", folder / f"{line}.txt"
    ids = asked(url)
    child = os.fork()
    if child == 0:
        serve_traced(url, sessions, line)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    before = noted(sessions)
    serve(url, sessions)
    manager = RetrainingManager(store=MonitorStore(url))
    rows = [(entry["id"], entry["outcome"]) for entry in manager.trigger_history]
    manager.store.close()
    signal_of = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    told = {"line": line, "signal": signal_of, "ids": ids, "rows": rows}
    return {**told, "before": before, "after": noted(sessions)}


def main(folder: Path, step: int) -> None:
    """Die everywhere, once for each line."""
    url = f"sqlite:///{folder / 'counted.db'}"
    asked(url)
    lines = serve_traced(url, folder / "counted.txt", 0)
    for line in range(1, lines + 1, step):
        sys.stdout.write(json.dumps(killed_and_restarted(folder, line)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
