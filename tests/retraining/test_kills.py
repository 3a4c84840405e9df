# SPDX-License-Identifier: Apache-2.0
"""A server that is killed before any line of taking and serving requests (kill -9).

Whatever the line, after a restart each request that was answered has led to one completed session.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from monitor_children import context, noted, serve

from fl_app.retraining import MonitorStore, RetrainingManager

NIGHTLY = settings.get_current_profile_name() == "nightly"
pytestmark = pytest.mark.slow


def asked(url: str) -> list[str]:
    """Return the ids of two requests: one that a crash cut short, and one that waits."""
    manager = RetrainingManager(store=MonitorStore(url))
    first = manager.manual_trigger("first")
    assert manager.take() is not None
    second = manager.manual_trigger("second")
    manager.store.close()
    return [first, second]


def killed_and_restarted(url: str, sessions: Path, line: int, ids: list[str]) -> None:
    process = context().Process(target=serve, args=(url, sessions, line))
    process.start()
    process.join(60)
    assert process.exitcode == -9, line
    serve(url, sessions)
    completed = Counter(note for note in noted(sessions) if note.startswith("completed"))
    for name in ids:
        assert completed[f"completed {name}"] == 1, line
    manager = RetrainingManager(store=MonitorStore(url))
    assert [entry["outcome"] for entry in manager.trigger_history] == ["done", "done"], line
    assert manager.take() is None
    manager.store.close()


def test_a_server_killed_at_any_line_completes_each_request_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'counted.db'}"
    ids = asked(url)
    count = serve(url, tmp_path / "counted")
    assert [n for n in noted(tmp_path / "counted") if n != "began "] == [
        f"{what} {name}" for name in ids for what in ("began", "completed")
    ]
    assert count > 100
    for line in range(1, count + 1, 1 if NIGHTLY else 5):
        url = f"sqlite:///{tmp_path / f'{line}.db'}"
        killed_and_restarted(url, tmp_path / f"{line}", line, asked(url))
