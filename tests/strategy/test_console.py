# SPDX-License-Identifier: Apache-2.0
"""What a person reads in the terminal, and that the commands named there work as typed."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, MetricRecord
from support.local_grid import LocalGrid, add_one, model

from fl_app.cli.main import main
from fl_app.events import RoundReport
from fl_app.strategy import LifecycleStrategy
from fl_app.strategy.finish.reporting import (
    next_commands,
    plot_metrics,
    round_line,
    session_table,
)
from fl_app.strategy.finish.staging import superseded
from fl_app.strategy.records import SessionReport
from fl_registry import InMemoryModelStore, InMemoryTracker, ModelManager, Stage

DONE = RoundReport(3, 8, {"mAP50": 0.5906}, "3", Stage.STAGING, "pending", "the best so far")
FAILED = RoundReport(4, 8, reason="no client sent a valid reply", failed=True)


def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 10})


def test_a_round_is_a_line_with_its_score_its_stage_and_the_time_left() -> None:
    assert round_line(DONE, "mAP50", 80.4) == (
        "round 3/8  mAP50 0.5906  version 3 Staging (pending approval)  (1 min 20 s left)"
    )
    assert round_line(FAILED, "mAP50", 9.0) == (
        "round 4/8  failed: no client sent a valid reply  (9 s left)"
    )


def test_the_table_has_every_round_with_its_reason() -> None:
    lines = session_table([DONE, FAILED], "mAP50").splitlines()
    assert lines[0].split() == ["version", "round", "mAP50", "stage", "why"]
    assert lines[1].split()[:3] == ["3", "3", "0.5906"]
    assert "Staging (pending approval)" in lines[1]
    assert "the best so far" in lines[1]
    assert lines[2].split()[:4] == ["-", "4", "-", "failed"]
    assert max(map(len, lines)) <= 100


def test_the_table_says_what_superseded_a_version() -> None:
    first = superseded(DONE, "8")
    line = session_table([first, FAILED], "mAP50").splitlines()[1]
    said = ["3", "3", "0.5906", "Archived", "superseded", "by", "8;", "the", "best", "so", "far"]
    assert line.split() == said
    assert superseded(DONE, "").reason == DONE.reason


def session(home: Path, tracker: InMemoryTracker, first: float) -> list[str]:
    """Run a session and return the commands that it ends with."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr.fl_app")
    logger.addHandler(handler)
    try:
        LifecycleStrategy(
            metric="accuracy",
            store=ModelManager(None, "digits", home=home),
            tracker=tracker,
            home=home,
        ).start(LocalGrid(add_one), model(first), num_rounds=1, evaluate_fn=holdout)
    finally:
        logger.removeHandler(handler)
    told = [text for text in said if text.startswith("next:")]
    assert len(told) == 1
    return [line.strip() for line in told[0].splitlines()[1:]]


def type_in(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what a shell does with a line of these commands."""
    words = shlex.split(line)
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            patch.setenv(name, value)
        assert words[: words.index("fl-app")] in ([], ["uv", "run"])
        with pytest.raises(SystemExit) as ended:
            main(words[words.index("fl-app") + 1 :])
        assert ended.value.code == 0, line


def test_the_commands_at_the_end_work_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, tracker = tmp_path / "another home", InMemoryTracker()
    monkeypatch.setenv("UV", "/somewhere/uv")
    first = session(home, tracker, 0)
    assert [line.split("fl-app ")[1].split()[0] for line in first] == [
        "versions",
        "approve",
        "serve",
        "ui",
    ]
    assert all(line.startswith(f"FL_APP_HOME='{home}' uv run fl-app ") for line in first)
    type_in(first[0], monkeypatch)
    assert "Staging" in capsys.readouterr().out
    type_in(first[1], monkeypatch)
    assert ModelManager(None, "digits", home=home).get_latest_version("Production") == "1"
    second = session(home, tracker, 1)
    compare = second[1]
    assert "compare 1 2 --name digits" in compare
    type_in(compare, monkeypatch)
    assert "accuracy\t0.1000\t0.2000\t+0.1000" in capsys.readouterr().out


def test_another_mlflow_is_named_without_its_password(tmp_path: Path) -> None:
    store = ModelManager("postgresql://ada:open-sesame@db.example/mlflow", home=tmp_path)
    said = next_commands([], store, tmp_path)
    assert "--tracking-uri 'postgresql://ada:***@db.example/mlflow'" in said
    assert "open-sesame" not in said


def test_the_usual_place_needs_no_options(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV", raising=False)
    said = next_commands([DONE], ModelManager(home=home), home.resolve())
    assert said.splitlines() == [
        "next:",
        "  fl-app versions",
        "  fl-app approve 3 --note 'why'",
        "  fl-app serve",
        "  fl-app ui",
    ]


def test_versions_in_memory_can_be_asked_about_by_no_command(home: Path) -> None:
    assert "fl-app" not in next_commands([DONE], InMemoryModelStore(), home)


def test_the_lines_of_classes_are_named_the_lowest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.figure

    drawn = list[matplotlib.figure.Figure]()

    class Seen(matplotlib.figure.Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(matplotlib.figure, "Figure", Seen)
    scores = {"mAP50": 0.5, "mAP50/fish": 0.9, "mAP50/a $shark$": 0.1, "train/loss": 2.0}
    history = {name: ((0, 0.0), (1, value)) for name, value in scores.items()}
    (path,) = plot_metrics(SessionReport((), "r", history, None, None), tmp_path)
    assert path == tmp_path / "metrics.png"
    first, second = drawn[0].axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("mAP50", "train/loss")
    legend = first.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [r"a \$shark\$ 0.100", "fish 0.900"]
    assert second.get_legend() is None
    many = {f"mAP50/{n}": ((1, n / 100),) for n in range(30)} | {"mAP50": ((1, 0.5),)}
    list(plot_metrics(SessionReport((), "r", many, None, None), tmp_path))
    legend = drawn[1].axes[0].get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "lowest of 30 classes"
    assert len(legend.get_texts()) == 20
