# SPDX-License-Identifier: Apache-2.0
"""The `fl-app` command: each verb against a real store, and what bad input gets."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.terminal import as_terminal

from fl_app.cli import main
from fl_app.events import RejectedReply
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.retraining.memory.store import default_url
from fl_app.versions.tags import rejected_tag
from fl_registry import ModelManager
from fl_registry.files.weights import save_weights

COMMAND = [sys.executable, "-m", "fl_app.cli"]


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    stdout: str
    stderr: str
    returncode: int


Command = Callable[..., Said]


@pytest.fixture
def fl_app(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `fl-app WORDS` as its entry point does, in this process."""
    as_terminal(monkeypatch, 160)

    def run(*words: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main.main(words)
        code = ended.value.code
        return Said(*capsys.readouterr(), returncode=code if isinstance(code, int) else 0)

    return run


@pytest.fixture
def manager(home: Path, tmp_path: Path) -> ModelManager:
    manager = ModelManager()
    for number in (1, 2, 3):
        path = tmp_path / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        tags = {"round": str(number), "reason": f"because of [{number}]", "metric": "mAP50"}
        manager.save_model_version(path, metrics={"mAP50": number / 10}, tags=tags)
    return manager


def test_versions_lists_them_newest_first(manager: ModelManager, fl_app: Command) -> None:
    manager.promote_to_staging("3")
    manager.set_version_tags("3", {"approval": "pending"})
    lines = fl_app("versions").stdout.splitlines()
    assert lines[1].split()[:4] == ["3", "Staging", "(pending", "approval)"]
    assert "mAP50 0.3000" in lines[1]
    assert "because of [3]" in lines[1]
    assert [line.split()[0] for line in lines[1:4]] == ["3", "2", "1"]


def test_a_version_saved_by_hand_shows_its_first_metric_and_who_moved_it_why(
    home: Path, tmp_path: Path, fl_app: Command
) -> None:
    manager = ModelManager()
    path = tmp_path / "global_round_10.safetensors"
    save_weights({"w": np.zeros(3, dtype=np.float32)}, path)
    scores = {"accuracy": 0.85, "F1": 0.5}  # sorted, F1 would come first
    version = manager.save_model_version(path, "abc123", scores, {"round": "10"})
    manager.promote_to_production(version, actor="Ada", reason="it sees [well]")
    (line,) = fl_app("versions").stdout.splitlines()[1:]
    assert re.split(r"\s{2,}", line.strip()) == [
        *("1", "Production", "10", "-", "accuracy 0.8500"),
        *(manager.get_version("1").created.isoformat(" ")[:19], "it sees [well] (by Ada)"),
    ]
    assert "version 1  accuracy 0.8500" in fl_app("status").stdout


def test_versions_of_an_empty_store_say_what_to_do(fl_app: Command) -> None:
    done = fl_app("versions", "--name", "nothing-yet")
    assert done.returncode == 0
    assert "No versions of nothing-yet yet" in done.stdout


def test_compare_shows_the_difference(manager: ModelManager, fl_app: Command) -> None:
    said = fl_app("compare", "1", "3").stdout
    assert "0.1000" in said
    assert "+0.2000" in said


def test_promote_and_rollback_move_production_and_say_who(
    manager: ModelManager, fl_app: Command
) -> None:
    for version in ("1", "2"):
        done = fl_app("promote", version, "--by", "Ada", "--note", "better")
        assert done.stdout == f"Version {version} of fl-global-model is in Production now.\n"
    assert manager.get_latest_version("Production") == "2"
    assert manager.get_version("2").tags["approval"] == "approved"
    assert fl_app("rollback").stdout == "Version 1 of fl-global-model is back in Production.\n"
    assert manager.get_latest_version("Production") == "1"
    assert [(e.op, e.actor) for e in manager.history()][:2] == [("promote", "Ada")] * 2


def test_rollback_goes_to_a_version_or_to_a_day(manager: ModelManager, fl_app: Command) -> None:
    for version in "123":
        manager.promote_to_production(version)
    assert "Version 1 of" in fl_app("rollback", "--to", "1").stdout
    first = manager.history()[1]
    moment = first.time.replace("+00:00", "Z")  # as long as 2 was there
    assert "Version 2 of" in fl_app("rollback", "--to", moment, "--by", "Ada").stdout
    assert (manager.history()[-1].actor, manager.get_latest_version("Production")) == ("Ada", "2")
    assert "Version 2 of" in fl_app("rollback", "--to", first.time[:10]).stdout  # at its end
    refused = fl_app("rollback", "--to", "2020-01-01")
    assert (refused.returncode, "Nothing was in production at" in refused.stderr) == (1, True)


def test_promote_to_staging(manager: ModelManager, fl_app: Command) -> None:
    fl_app("promote", "1", "--to", "staging")
    assert manager.get_latest_version("Staging") == "1"


def test_what_waits_is_approved_or_rejected_by_name(manager: ModelManager, fl_app: Command) -> None:
    for version, verb in (("2", "approve"), ("3", "reject")):
        assert "does not wait for approval (it is 'none')" in fl_app(verb, version).stderr
        manager.promote_to_staging(version)
        manager.set_version_tags(version, {"approval": "pending"})
        done = fl_app(verb, version, "--by", "Ada", "--note", "the sharks")
        assert done.returncode == 0
        assert fl_app(verb, version).returncode == 0  # done already
    stages = {row["version"]: row["stage"] for row in manager.list_all_versions()}
    assert stages == {"1": "None", "2": "Production", "3": "Archived"}
    told = [(e.op, e.version, e.actor, e.reason) for e in manager.history() if e.actor == "Ada"]
    assert told == [("promote", "2", "Ada", "the sharks"), ("archive", "3", "Ada", "the sharks")]
    assert [manager.get_version(v).tags["approval"] for v in "23"] == ["approved", "rejected"]


def test_prune_tells_first_and_removes_when_told_to(manager: ModelManager, fl_app: Command) -> None:
    said = fl_app("prune", "--keep", "1").stdout
    assert said.startswith("2 versions would be removed")
    assert len(manager.list_all_versions()) == 3
    assert fl_app("prune", "--keep", "1", "--remove").stdout.startswith("2 versions were removed")
    assert [row["version"] for row in manager.list_all_versions()] == ["3"]


def test_every_answer_comes_as_json_too(manager: ModelManager, fl_app: Command) -> None:
    def told(*words: str) -> Any:
        return json.loads(fl_app(*words, "--json").stdout)

    assert [row["version"] for row in told("versions")] == ["3", "2", "1"]
    assert told("compare", "1", "2")["differences"] == {"mAP50": pytest.approx(0.1)}
    assert told("promote", "1") == {"version": "1", "stage": "Production", "moved": True}
    assert told("promote", "2", "--to", "staging") == {
        "version": "2",
        "stage": "Staging",
        "moved": True,
    }
    manager.set_version_tags("2", {"approval": "pending"})
    assert told("status")["pending_approval"] == ["2"]
    assert told("approve", "2")["stage"] == "Production"
    assert told("rollback") == {"version": "1", "stage": "Production", "moved": True}
    assert told("prune", "--keep", "1")["dry_run"] is True
    request = told("trigger", "--reason", "a hunch")["request"]
    assert [row["id"] for row in told("history")] == [request]
    assert told("status")["requests"]["pending"]["id"] == request
    assert {row["name"]: row["ok"] for row in told("doctor")}["ledger"] is True


def test_doctor_finds_what_is_wrong_and_repairs_what_can_be(
    manager: ModelManager, fl_app: Command
) -> None:
    for version in "12":
        manager.promote_to_production(version)
    well = fl_app("doctor")
    assert well.returncode == 0, well.stdout
    assert "2 entries follow one another" in well.stdout
    manager.client.set_registered_model_alias("fl-global-model", "production", "3")
    time.sleep(2.1)  # until then it could be a move that another process is about to finish
    moved = fl_app("doctor")
    assert moved.returncode == 1
    assert any(line.startswith("WRONG  aliases") for line in moved.stdout.splitlines())
    assert fl_app("doctor", "--repair").returncode == 0
    weights = manager.weights_path("2")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    broken = fl_app("doctor")
    assert broken.returncode == 1
    assert "have changed since they were saved" in broken.stdout


def test_doctor_names_a_store_that_does_not_answer(fl_app: Command) -> None:
    said = fl_app("doctor", "--tracking-uri", "http://127.0.0.1:9/")
    assert said.returncode == 1
    assert any(line.startswith("WRONG  store") for line in said.stdout.splitlines())


def test_a_request_by_hand_is_on_disk_and_in_the_history(fl_app: Command, home: Path) -> None:
    assert "Nobody has asked" in fl_app("history").stdout
    said = fl_app("trigger", "--reason", "new pictures [north]").stdout
    request = RetrainingManager(store=MonitorStore(default_url(home))).take()
    assert request is not None
    assert request.id in said
    assert request.reason.startswith("new pictures [north] (asked by ")
    line = fl_app("history").stdout.splitlines()[1]
    assert line.split()[2:4] == ["manual", "running"]
    assert "new pictures [north]" in line


def test_status_tells_what_is_where_and_what_waits(manager: ModelManager, fl_app: Command) -> None:
    manager.promote_to_production("1")
    manager.promote_to_staging("3")
    manager.set_version_tags("3", {"approval": "pending"})
    fl_app("trigger", "--reason", "a hunch")
    said = [line.rstrip().split("  ") for line in fl_app("status").stdout.splitlines()]
    told = {words[0].strip(): words[-1].strip() for words in said if words[0]}
    assert told["Production"] == "mAP50 0.1000"
    assert told["pending approval"] == "3"
    assert told["probation"].startswith("version 1, until 20")
    assert told["probation"].endswith("0 of 10 reports healthy, 0 critical in a row")
    assert told["request pending"].startswith("a hunch")
    assert told["request running"] == "-"
    assert told["backlog"] == "0 rounds"
    assert not any("rejected" in name for name in told)


def test_status_counts_the_rounds_that_wait_for_mlflow(
    manager: ModelManager, fl_app: Command, home: Path
) -> None:
    session = home / "checkpoints" / "a"
    session.mkdir(parents=True)
    (session / "session.json").write_text(
        json.dumps({"SessionRecord": {"model": "fl-global-model"}})
    )
    for number in (7, 8):
        (session / f"closed-{number:04d}.json").write_text("{}")
    (session / "trouble.json").write_text(json.dumps("MLflow does not answer"))
    assert "2 rounds: MLflow does not answer" in fl_app("status").stdout
    told = json.loads(fl_app("status", "--json").stdout)
    assert told["backlog"] == {"rounds": 2, "trouble": "MLflow does not answer", "apart": 0}
    nobody = "http://127.0.0.1:9"
    away = fl_app("status", "--tracking-uri", nobody)
    assert away.returncode == 1
    assert "On disk and not handed over: 2 rounds" in " ".join(away.stderr.split())


def test_status_names_the_nodes_that_were_rejected(manager: ModelManager, fl_app: Command) -> None:
    bad = RejectedReply("77", "train", "array 'w' [red] is not finite", in_a_row=3)
    manager.set_version_tags("3", rejected_tag([bad]))
    assert (
        "node 77 rejected  3 replies in a row (train): array 'w' [red] is not finite"
        in fl_app("status").stdout
    )
    told = json.loads(fl_app("status", "--json").stdout)
    assert told["rejected"] == [asdict(bad)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("promote", "99"), "99"),
        (("rollback",), "no"),
        (("compare", "1", "xyz"), "xyz"),
        (("versions", "--tracking-uri", "http://me:pass-word@127.0.0.1:9/"), "127.0.0.1:9"),
        (("versions", "--tracking-uri", "gopher://here"), "gopher"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_one(
    manager: ModelManager, fl_app: Command, words: tuple[str, ...], said: str
) -> None:
    done = fl_app(*words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "pass-word" not in done.stderr + done.stdout


@pytest.mark.slow
def test_ui_serves_mlflow_s_page_on_the_app_s_store(manager: ModelManager) -> None:
    from support.flower import free_port

    port = free_port()
    with subprocess.Popen([*COMMAND, "ui", "--port", str(port)], start_new_session=True) as server:
        try:
            assert "MLflow" in page(f"http://127.0.0.1:{port}/", seconds=120)
        finally:
            os.killpg(server.pid, 15)


def page(url: str, *, seconds: float) -> str:
    """The page at ``url``, once it is there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_what_others_wrote_cannot_write_to_the_terminal(
    manager: ModelManager, fl_app: Command
) -> None:
    manager.set_version_tags("3", {"reason": "fine\x1b[2J\x1b]0;owned\x07\r[red]good"})
    said = fl_app("versions").stdout
    assert "\x1b" not in said
    assert "\r" not in said
    assert "fine\\x1b[2J" in said
    assert "[red]good" in said


def test_help_says_what_each_command_says() -> None:
    import typer

    for name, (module, summary) in main.COMMANDS.items():
        command = getattr(import_module(f"fl_app.cli.{module}"), name.replace("-", "_"))
        own = command.info.help if isinstance(command, typer.Typer) else command.__doc__
        assert summary == " ".join(own.split("\n\n")[0].split()), name


def test_a_store_without_the_model_is_read_without_mlflow(home: Path) -> None:
    code = (
        "import sys; from fl_app.cli.main import main\n"
        "try: main({words!r})\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "print([m for m in ('mlflow', 'flwr', 'torch') if m in sys.modules])"
    )
    for words in (["--help"], ["status"], ["versions"], ["home", "check"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(words=words)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "[]", words
    assert not (home / "mlflow.db").exists()


@pytest.mark.parametrize(("words", "collects"), [(["versions"], False), (["serve"], True)])
def test_the_garbage_collector_runs_in_commands_that_go_on(
    words: list[str], collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(sys, "argv", ["fl-app", *words])
    monkeypatch.setattr(main, "main", lambda: seen.append(gc.isenabled()))
    monkeypatch.setattr(main.atexit, "register", lambda _: None)
    try:
        main.program()
    finally:
        gc.enable()
    assert seen == [collects]


def test_lists_are_limited_and_say_so(fl_app: Command, manager: ModelManager) -> None:
    rows = json.loads(fl_app("versions", "--json", "--limit", "0").stdout)
    assert len(rows) == len(manager.list_all_versions()) > 1
    part = fl_app("versions", "--json", "--limit", "1")
    assert json.loads(part.stdout) == rows[:1]
    assert f"--before {rows[0]['version']}" in part.stderr
    rest = fl_app("versions", "--json", "--before", rows[0]["version"])
    assert json.loads(rest.stdout) == rows[1:]
    assert rest.stderr == ""
    archived = json.loads(fl_app("versions", "--json", "--stage", "Archived").stdout)
    assert archived == [row for row in rows if row["stage"] == "Archived"]
    assert "No such versions" in fl_app("versions", "--since", "2100-01-01").stdout
    assert "is not a date" in fl_app("versions", "--since", "soon").stderr
    for reason in ("one", "two"):
        assert fl_app("trigger", "--reason", reason).returncode == 0
    history = json.loads(fl_app("history", "--json").stdout)
    part = fl_app("history", "--json", "--limit", "1")
    assert json.loads(part.stdout) == history[-1:]
    assert f"--before {history[-1]['id']}" in part.stderr


def test_a_home_is_checked_and_moved(
    fl_app: Command, manager: ModelManager, home: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    assert fl_app("home", "check").returncode == 0
    new = tmp_path / "new"
    said = fl_app("home", "move", str(new))
    assert (said.returncode, said.stdout.split("export ")[1].strip()) == (0, f"FL_APP_HOME={new}")
    assert not home.exists()
    monkeypatch.setenv("FL_APP_HOME", str(new))
    assert fl_app("home", "check").returncode == 0
    assert fl_app("doctor", "--deep").stdout.count("WRONG  artifacts") == 0
    new.rename(home)
    monkeypatch.setenv("FL_APP_HOME", str(home))
    moved = fl_app("home", "check")
    assert (moved.returncode, "--repair" in moved.stdout) == (1, True)
    repaired = fl_app("home", "check", "--repair")
    assert (repaired.returncode, "locations in MLflow" in repaired.stderr) == (0, True)
    newest = manager.list_all_versions()[0]["version"]
    file = ModelManager().weights_path(newest)
    file.unlink()
    broken = fl_app("home", "check")
    assert broken.returncode == 1
    assert "missing" in broken.stdout
    assert str(file.parent.parent.name) in broken.stdout.replace("\n", "")
