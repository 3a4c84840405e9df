# SPDX-License-Identifier: Apache-2.0
"""`fl-app doctor`: each check where all is well, and where it is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import pytest

from fl_app.cli import main as cli
from fl_app.cli.doctor import (
    Check,
    check_clock,
    check_disk,
    check_leftovers,
    check_superlink,
    check_versions,
    examine,
    last_written,
    repaired,
)
from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.local_superlink import PORT_VARIABLE, LocalSuperLink, newest_package
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.store import default_url
from fl_registry import ModelManager, app_home
from fl_registry.files.weights import save_weights
from fl_registry.mlflow.address import server_time

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def manager(tmp_path: Path) -> ModelManager:
    """Versions 1 and 2 have been in Production, 3 is new."""
    manager = ModelManager()
    for number in (1, 2, 3):
        path = tmp_path / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        manager.save_model_version(path, metrics={"m": 0.1})
    for version in "12":
        manager.promote_to_production(version)
    return manager


def looked(manager: ModelManager, *, deep: bool = False) -> dict[str, Check]:
    home = manager.backend.connection.home
    checks = examine(manager, lambda: MonitorStore(default_url(home)), deep=deep)
    return {check.name: check for check in checks}


def damage(manager: ModelManager, version: str) -> None:
    path = manager.weights_path(version)
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def test_all_is_well(manager: ModelManager) -> None:
    for deep in (False, True):
        checks = looked(manager, deep=deep)
        assert [check for check in checks.values() if not check.ok] == []
    names = [
        "versions",
        "internals",
        "disk",
        "leftovers",
        "sessions",
        "superlink",
        "monitor",
        "clock",
        "store",
        "ledger",
        "losses",
    ]
    assert list(checks) == [*names, "aliases", "artifacts"]
    assert "2 versions are whole" in looked(manager)["artifacts"].detail
    assert "3 versions are whole" in looked(manager, deep=True)["artifacts"].detail


def test_weights_that_were_once_in_production_count_and_others_only_if_asked(
    manager: ModelManager,
) -> None:
    damage(manager, "3")
    assert looked(manager)["artifacts"].ok
    assert "version 3 have changed" in looked(manager, deep=True)["artifacts"].detail
    damage(manager, "1")
    found = looked(manager)["artifacts"]
    assert not found.ok
    assert "version 1 have changed" in found.detail
    manager.weights_path("2").unlink()
    assert "version 2 are missing" in looked(manager)["artifacts"].detail


def test_versions_of_other_tools_have_no_digest_to_check(manager: ModelManager) -> None:
    manager.client.create_model_version("fl-global-model", "/elsewhere")
    assert looked(manager, deep=True)["artifacts"].ok


def test_a_ledger_that_was_changed_from_outside(manager: ModelManager, home: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute("UPDATE params SET value = '{}' WHERE key = 'op.000001'")
        database.commit()
    checks = looked(ModelManager())
    assert not checks["ledger"].ok
    assert "Entry 1 of the journal cannot be read" in checks["ledger"].detail
    assert not checks["artifacts"].ok
    assert checks["clock"].ok


def test_aliases_that_were_moved_by_hand_are_put_back(manager: ModelManager) -> None:
    manager.client.set_registered_model_alias("fl-global-model", "production", "3")
    time.sleep(2.1)  # until then it could be a move that another process is about to finish
    assert not looked(manager)["aliases"].ok
    assert [check.detail for check in repaired(manager)] == [
        "aliases, tags and stages are in line, 1 were not; production names 3, the journal says 2"
    ]
    assert looked(manager)["aliases"].ok


def test_stages_and_tags_that_were_set_by_hand_are_put_back(manager: ModelManager) -> None:
    client, name = manager.client, "fl-global-model"
    with pytest.warns(FutureWarning, match="stages"):
        client.transition_model_version_stage(name, "3", "Production")
    client.set_model_version_tag(name, "1", "stage", "Staging")
    said = looked(manager)["aliases"]
    assert not said.ok
    assert said.detail == (
        "version 3 is shown as Production, the journal says None; "
        "version 1 is shown as Staging, the journal says Archived; --repair"
    )
    (done,) = repaired(manager)
    assert "2 were not" in done.detail
    assert looked(manager)["aliases"].ok
    assert client.get_model_version(name, "3").current_stage == "None"


def test_a_version_in_production_that_was_deleted_is_an_alarm_until_it_is_acknowledged(
    manager: ModelManager, capsys: pytest.CaptureFixture[str]
) -> None:
    def typed(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        said = capsys.readouterr()
        return int(str(ended.value.code or 0)), " ".join((said.out + said.err).split())

    manager.client.delete_model_version("fl-global-model", "2")
    checks = looked(manager)
    assert not checks["losses"].ok
    assert "`fl-app rollback` brings the one before back" in checks["losses"].detail
    assert "`fl-app acknowledge VERSION`" in checks["artifacts"].detail
    assert "is in Production; `fl-app rollback`" in typed("acknowledge", "2")[1]
    assert typed("rollback") == (0, "Version 1 of fl-global-model is back in Production.")
    assert not looked(manager)["artifacts"].ok
    assert "were lost" not in typed("acknowledge", "2", "--by", "Ada", "--note", "known")[1]
    checks = looked(manager)
    assert [check for check in checks.values() if not check.ok] == []
    assert "1 are lost, which was acknowledged" in checks["artifacts"].detail
    assert "The files of version 1 are whole" in typed("acknowledge", "3")[1].replace("3", "1")


def test_a_staged_version_that_was_deleted_is_taken_out_of_staging(manager: ModelManager) -> None:
    manager.promote_to_staging("3")
    manager.client.delete_model_version("fl-global-model", "3")
    assert "--repair" in looked(manager)["losses"].detail
    assert all(check.ok for check in repaired(manager))
    assert manager.get_latest_version("Staging") is None
    assert [check for check in looked(manager).values() if not check.ok] == []


def test_a_store_that_does_not_answer_leaves_the_other_checks() -> None:
    manager = ModelManager("http://127.0.0.1:9")
    checks = looked(manager)
    assert not checks["store"].ok
    assert "does not answer" in checks["store"].detail
    unread = ("ledger", "losses", "aliases", "artifacts")
    assert [checks[name].ok for name in unread] == [None] * 4
    assert checks["ledger"].detail == "not looked at, see store"
    assert {"versions", "disk", "leftovers", "superlink", "monitor", "clock"} < checks.keys()
    (done,) = repaired(manager)
    assert (done.name, done.ok) == ("repair", False)


def test_a_memory_that_cannot_be_read(manager: ModelManager, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database")
    checks = examine(manager, lambda: MonitorStore(f"sqlite:///{tmp_path / 'text'}"))
    (monitor,) = [check for check in checks if check.name == "monitor"]
    assert not monitor.ok
    assert "cannot be opened" in monitor.detail


def test_a_disk_without_room_or_right(home: Path) -> None:
    home.mkdir()
    assert check_disk(home)[0]
    assert list((home / "tmp").iterdir()) == []
    (home / "file").touch()
    ok, said = check_disk(home / "file")
    assert not ok
    assert "cannot be written" in said
    assert not check_disk(home, min_free=1 << 60)[0]


def test_a_home_is_for_its_owner_alone_or_doctor_tells(tmp_path: Path) -> None:
    own = app_home(tmp_path / "own")
    assert own.stat().st_mode & 0o777 == 0o700
    assert "other accounts" not in check_disk(own)[1]
    own.chmod(0o750)
    assert check_disk(own) == (True, check_disk(own)[1])
    assert f"other accounts can read it: chmod 700 {own}" in check_disk(own)[1]


def test_what_a_killed_process_left_is_told_and_removed(manager: ModelManager, home: Path) -> None:
    assert check_leftovers(home, NOW) == (True, "nothing unfinished")
    (home / "checkpoints").mkdir()
    (home / "checkpoints" / ".round-0001.safetensors.x.tmp").write_bytes(bytes(2_000_000))
    (home / "tmp").mkdir(exist_ok=True)
    (home / "tmp" / ".save.y.tmp").mkdir()
    for path in (*(home / "checkpoints").iterdir(), *(home / "tmp").iterdir()):
        os.utime(path, (0, 0))
    told = looked(manager)["leftovers"]
    assert not told.ok
    assert told.detail.startswith("2 unfinished, 2.0 MB, such as checkpoints/.round-0001")
    assert repaired(manager)[0].detail == "2 leftovers removed"
    assert looked(manager)["leftovers"].ok


def test_versions_that_were_not_tested() -> None:
    assert check_versions()[0]
    ok, said = check_versions({"flwr": "1.39.0", "mlflow": "3.17.2"})
    assert not ok
    assert "flwr 1.39.0: tested with flwr<1.43,>=1.40" in said


def test_a_clock_that_is_behind_what_has_happened() -> None:
    past = {"the ledger's last entry": NOW, "the newest file": NOW - HOUR}
    assert check_clock(NOW, past)[0]
    assert check_clock(NOW, past, NOW + timedelta(seconds=30))[0]
    ok, behind = check_clock(NOW - HOUR, past)
    assert not ok
    assert "the ledger's last entry is of 2026-11-24 12:00:00" in behind
    for server in (NOW - HOUR, NOW + HOUR):
        assert not check_clock(NOW, past, server)[0]


def test_the_clock_is_compared_with_ledger_and_files(manager: ModelManager, home: Path) -> None:
    assert looked(manager)["clock"].ok
    (newest,) = last_written(home).values()
    assert abs(newest - datetime.now(UTC)) < HOUR
    later = (datetime.now(UTC) + HOUR).timestamp()
    (home / "of-tomorrow").touch()
    os.utime(home / "of-tomorrow", (later, later))
    said = looked(manager)["clock"]
    assert not said.ok
    assert "newest file" in said.detail


@pytest.fixture
def serve() -> Iterator[Callable[[str], str]]:
    """Start a server that gives its answers a date, or none."""
    servers: list[ThreadingHTTPServer] = []

    def start(date: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response_only(200)
                if date:
                    self.send_header("Date", date)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_time_of_a_server(serve: Callable[[str], str]) -> None:
    assert server_time(serve(format_datetime(NOW, usegmt=True))) == NOW
    assert server_time(serve("yesterday, about noon")) is None
    assert server_time(serve("")) is None
    assert server_time("http://127.0.0.1:9") is None
    assert server_time("sqlite:////home/me/mlflow.db") is None


STARTED = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[tuple[LocalSuperLink, Path, int]]:
    """A process that is taken for a SuperLink, the packages of its environment, and its id."""
    packages = tmp_path / "venv" / "lib" / "python3.13" / "site-packages"
    packages.mkdir(parents=True)
    programs = tmp_path / "venv" / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(sys.executable)
    (programs / "flower-superlink").write_text(STARTED)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [programs / "python", programs / "flower-superlink", "--port", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield LocalSuperLink(port, 0, tmp_path / "local-superlink"), packages, process.pid
    process.communicate(b"")


def test_a_superlink_that_runs_other_packages_than_are_installed(
    superlink: tuple[LocalSuperLink, Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, packages, pid = superlink
    ok, seen = check_superlink(link)
    assert ok
    assert seen.startswith(f"process {pid}, up since {datetime.now(UTC):%F}")
    (packages / "flwr-1.39.0.dist-info").mkdir()
    ok, seen = check_superlink(link)
    assert not ok
    assert f"runs Flower 1.39.0, not {installed('flwr')}; end it with `fl-app stop`" in seen
    (packages / "flwr-1.39.0.dist-info").rename(packages / f"flwr-{installed('flwr')}.dist-info")
    assert check_superlink(link)[0]
    later = datetime.now(UTC) + HOUR
    ok, seen = check_superlink(link, lambda: ("fl-app", later))
    assert not ok
    assert "is older than fl-app" in seen


def test_a_superlink_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    link = LocalSuperLink(port, 0, tmp_path)
    assert check_superlink(link) == (True, f"none runs on port {port}")
    link.database.write_bytes(b"no database")
    ok, seen = check_superlink(link)
    assert not ok
    assert f"mv {link.folder} " in seen
    monkeypatch.setenv(PORT_VARIABLE, "no port")
    with pytest.raises(DeploymentError, match="'no port', expected the number of a port"):
        check_superlink()
    assert newest_package()[1] <= datetime.now(UTC) + HOUR
