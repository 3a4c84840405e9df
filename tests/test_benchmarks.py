# SPDX-License-Identifier: Apache-2.0
"""How benchmarks tell of their rows, and what `make bench` makes of them; none of ours is run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import run_all
from benchmarks.run_all import Result
from benchmarks.table import Row, parser, report

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"row": "a fast thing", "ours": 1.0, "peer": "p", "peer_value": 4.0, "ratio": 0.25,
     "goal": 0.5, "met": True, "n": 3, "spread": [0.5, 2.0], "peer_spread": None},
    {"row": "a slow thing", "ours": 9.0, "peer": "p", "peer_value": 3.0, "ratio": 3.0,
     "goal": 2.0, "met": False, "n": 1, "spread": None, "peer_spread": [2.0, 5.0]},
    {"row": "a count", "ours": 7.0, "peer": None, "peer_value": None, "ratio": None,
     "goal": None, "met": None, "n": 1, "spread": None, "peer_spread": None},
]  # fmt: skip
HALF = """
import numpy as np
from benchmarks.table import Row, parser, report
def rows():
    yield Row("a fast thing", [2, np.float32(0.5), 1], "p", 4, np.float64(0.5))
    yield Row("a slow thing", np.int64(9), "p", (5, 3, 2), 2)
    raise SystemExit({status})
report(rows(), parser(__doc__).parse_args().json)
"""


def test_numbers_of_numpy_are_written(tmp_path: Path) -> None:
    rows = [
        Row("a fast thing", [np.float32(1), 0.5, 2], "p", np.int64(4), np.float64(0.5)),
        Row("a slow thing", np.float64(9), "p", np.float32([3, 2, 5]).tolist(), 2),
        Row("a count", np.uint8(7)),
    ]
    target = tmp_path / "new" / "rows.json"
    report(rows, target)
    assert json.loads(target.read_text()) == ROWS
    assert list(ROWS[0]) == list(json.loads(target.read_text())[0])


def test_a_ratio_and_whether_it_is_met_can_be_told() -> None:
    assert Row("none of the peer's", 1, "p", 0, goal=2).ratio is None
    assert Row("met, no ratio", 1, "p", 4, 2, ratio=None, met=True) == Row(
        "met, no ratio", 1.0, "p", 4.0, 2.0, ratio=None, met=True
    )
    assert Row("the other way round", 1, "p", 30, 20, ratio=30, met=True).ratio == 30
    assert Row("at the goal", 1, "p", 2, 0.5).met is True
    assert [Row("no peer", ours, goal=2).met for ours in (1, 2, 3)] == [True, True, False]


def test_each_row_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = parser("A benchmark.").parse_args(["--json", str(tmp_path / "rows.json")]).json

    def rows() -> Iterator[Row]:
        yield Row(**ROWS[0])
        assert json.loads(target.read_text()) == ROWS[:1]
        assert capsys.readouterr().out.splitlines()[1].endswith("met     a fast thing (p)")
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the one above
        report(rows(), target)
    assert json.loads(target.read_text()) == ROWS[:1]


def result(rows: list[dict[str, Any]], **more: Any) -> Result:
    return Result([Row(**row) for row in rows], "2026-01-31", 0.5, {"cores": 2}, **more)


def test_all_rows_are_in_one_table_one_file_and_one_plot(tmp_path: Path) -> None:
    found = {"things": result(ROWS)}
    run_all.write({"others": result(ROWS[:1])}, tmp_path)
    run_all.write(found, tmp_path)
    lines = run_all.table(found).splitlines()
    assert len(lines) == 4
    assert ["met" in lines[1], "MISSED" in lines[2]] == [True, True]
    assert lines[3].split() == ["things", "7", "1", "a", "count"]
    assert "  3    150%  met " in lines[1]
    assert run_all.read(tmp_path) == {**found, "others": result(ROWS[:1])}
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_pages_get_the_figures_of_their_rows() -> None:
    found = {"things": result(ROWS)}
    mark = "<!-- things: {} -->{}<!-- / -->"
    names = ("a fast thing (p)", "a count", "a row that is gone")
    page = "".join(f"| {mark.format(name, '?')} |" for name in names)
    wanted = [mark.format(*each) for each in zip(names, ("0.25", "7.00", "?"), strict=True)]
    assert run_all.filled(page, found) == "".join(f"| {each} |" for each in wanted)


@pytest.mark.parametrize("page", run_all.PAGES, ids=lambda page: page.name)
def test_figures_of_the_documentation_are_those_of_the_last_results(page: Path) -> None:
    text, found = page.read_text(), run_all.read()
    assert run_all.filled(text, found) == text
    known = {(name, row.name) for name, each in found.items() for row in each.rows}
    assert {(mark[1], mark[2]) for mark in run_all.FIGURE.findall(text)} <= known


def test_the_rows_of_a_benchmark_that_fails_half_way_are_kept(tmp_path: Path) -> None:
    folder, results = tmp_path / "benchmarks", tmp_path / "results"
    folder.mkdir()
    for name in ("run_all", "table"):
        shutil.copy(ROOT / "benchmarks" / f"{name}.py", folder)
    for name, status in {"first": 3, "second": 0}.items():
        (folder / f"{name}.py").write_text(HALF.format(status=status))
    (folder / "third.py").write_text("raise SystemExit(1)")
    words = [sys.executable, "-m", "benchmarks.run_all", "--results", str(results)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    missed = "goals missed: a slow thing, a slow thing"
    assert done.stdout.splitlines()[-2:] == [missed, "failed: first, third"]
    told = json.loads((results / "benchmarks.json").read_text())
    rows = {name: benchmark["rows"] for name, benchmark in told.items()}
    assert rows == {"first": ROWS[:2], "second": ROWS[:2], "third": []}
    assert [told[name]["ended"] for name in rows] == [False, True, False]
    assert {"cores", "processor", "memory_gb", "flwr"} <= told["first"]["machine"].keys()
    assert told["first"]["load"] >= 0


def test_results_are_written_after_each_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(name: str) -> Result:
        seen.append([*run_all.read(tmp_path)])
        return result(ROWS[:1])

    monkeypatch.setattr(run_all, "run", run)
    assert run_all.main(["aggregation", "drift", "--results", str(tmp_path)]) == 0
    assert seen == [[], ["aggregation"]]


@pytest.mark.parametrize(("bad", "status"), [(None, 0), ("a goal", 1), ("the end", 1)])
def test_a_missed_goal_ends_with_status_one(
    bad: str | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = result(ROWS[1:] if bad == "a goal" else ROWS[:1], ended=bad != "the end")
    monkeypatch.setattr(run_all, "run", lambda _: found)
    assert run_all.main(["drift", "--results", str(tmp_path)]) == status


def test_every_benchmark_is_run_and_tells_its_rows_in_the_one_way() -> None:
    known = set(run_all.names())
    assert known == {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - {"run_all", "table"}
    for name in known:
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert "from benchmarks.table import Row, parser, report" in text, name
        assert "ArgumentParser" not in text, name
        assert '"peer_value"' not in text, name
