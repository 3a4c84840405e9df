# SPDX-License-Identifier: Apache-2.0
"""What `make bench` makes of the rows of its benchmarks; no benchmark is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"row": "a fast thing", "ours": 1.0, "peer": "p", "peer_value": 4.0, "ratio": 0.25,
     "goal": 0.5, "met": True},
    {"row": "a slow thing", "ours": 9.0, "peer": "p", "peer_value": 3.0, "ratio": 3.0,
     "goal": 2.0, "met": False},
    {"row": "a count", "ours": 7, "peer": None, "peer_value": None, "ratio": None,
     "goal": None, "met": None},
]  # fmt: skip


def python(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_all_rows_are_in_one_table_one_file_and_one_plot(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from benchmarks import run_all as b; "
        "found = {'things': json.loads(sys.argv[1])}; "
        "b.write(found, Path(sys.argv[2])); print(b.table(found))"
    )
    lines = python(code, json.dumps(ROWS), str(tmp_path)).splitlines()
    assert len(lines) == 4
    assert [line.split()[-1] for line in lines[1:]] == ["met", "MISSED", "7"]
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == {"things": ROWS}
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_every_benchmark_takes_json_and_is_run() -> None:
    known = set(python("from benchmarks import run_all as b; print(*b.names())").split())
    assert known == {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - {"run_all"}
    for name in known:
        assert '"--json"' in (ROOT / "benchmarks" / f"{name}.py").read_text()
