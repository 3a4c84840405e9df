# SPDX-License-Identifier: Apache-2.0
"""A server that is killed before any line of taking and serving requests (kill -9).

Whatever the line, after a restart each request that was answered has led to one completed session.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

NIGHTLY = settings.get_current_profile_name() == "nightly"
pytestmark = pytest.mark.chaos
SERVER = Path(__file__).parents[1] / "support" / "killed_server.py"


@pytest.mark.slow
def test_a_server_killed_at_any_line_completes_each_request_once(tmp_path: Path) -> None:
    command = [sys.executable, str(SERVER), str(tmp_path), "1" if NIGHTLY else "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(deaths) > 80
    cut_short = set()
    for death in deaths:
        assert death["signal"] == 9, death
        completed = Counter(note for note in death["after"] if note.startswith("completed"))
        assert [completed[f"completed {name}"] for name in death["ids"]] == [1, 1], death
        assert death["rows"] == [[name, "done"] for name in death["ids"]], death
        cut_short.add(len(death["before"]))
    # It died before the first session, in both, between them and after the last.
    assert cut_short >= {0, 1, 2, 3, 4}
