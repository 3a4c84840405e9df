# SPDX-License-Identifier: Apache-2.0
"""`fl-app run` and `fl-app stop` with Flower's local SuperLink."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.deployment import wait_until
from support.flower import ROOT, Flower, superlinks

from fl_app.deploy.processes import answers

pytestmark = pytest.mark.slow

APP = ROOT / "examples" / "sklearn-digits"
RUN = ("fl-app", "run", "--run-config", "num-server-rounds=1")
ENSURE = """
from fl_app.deploy.local_superlink import LocalSuperLink
LocalSuperLink.of_this_account().ensure(print)
"""
HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Flower]:
    """A Flower whose SuperLink builds an environment for each run, as `flwr run` starts it."""
    flower = Flower(tmp_path / "flower")
    yield flower
    flower.stop()


def port_of(flower: Flower) -> str:
    return flower.environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]


def started_by_flower(flower: Flower) -> int:
    """Start a SuperLink as `flwr run` does, but wait longer than its 15 s; return its process."""
    port, folder = port_of(flower), flower.folder / "flwr" / "local-superlink"
    folder.mkdir(parents=True)
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", port, "--database", str(folder / "state.db")]
    control = flower.environment["FLWR_LOCAL_CONTROL_API_PORT"]
    command += ["--control-api-address", f"127.0.0.1:{control}"]
    started = subprocess.Popen(command, env=flower.environment, start_new_session=True)

    def is_up() -> bool:
        assert started.poll() is None
        return answers(f"http://127.0.0.1:{port}/health")

    wait_until(is_up, 120, "the SuperLink")
    return started.pid


def test_a_superlink_of_another_environment_is_replaced_and_stopped(
    plain: Flower, tmp_path: Path
) -> None:
    first = started_by_flower(plain)
    done = plain.command(*RUN, cwd=APP)
    assert "was started for another environment and has nothing to do" in done.stdout
    (second,) = superlinks(port_of(plain))
    assert second != first
    assert plain.command("python", "-c", ENSURE, cwd=tmp_path).stdout == ""
    assert superlinks(port_of(plain)) == [second]

    stopped = plain.command("fl-app", "stop", cwd=tmp_path)
    assert f"(process {second}) has ended" in stopped.stdout
    assert superlinks(port_of(plain)) == []
    none = plain.command("fl-app", "stop", cwd=tmp_path)
    assert f"No SuperLink of yours runs on port {port_of(plain)}" in none.stdout


def test_a_database_that_cannot_be_opened_is_named_with_the_remedy(
    plain: Flower, tmp_path: Path
) -> None:
    database = plain.folder / "flwr" / "local-superlink" / "state.db"
    database.parent.mkdir(parents=True)
    changes = {
        "newer Flower": "CREATE TABLE alembic_version AS SELECT ? AS version_num",
        "half-made": "UPDATE alembic_version SET version_num = ?",
    }
    revisions = {"newer Flower": "d00000000000", "half-made": first_revisions()[1]}
    for kind, statement in changes.items():
        with sqlite3.connect(database) as connection:
            connection.execute(statement, (revisions[kind],))
        done = plain.command(*RUN, cwd=APP, ok=False)
        assert done.returncode == 1
        line = next(line for line in done.stdout.splitlines() if str(database) in line)
        assert kind in done.stdout, line
        assert f"mv {database.parent} " in done.stdout
        checked = plain.command("fl-app", "doctor", "--json", cwd=tmp_path, ok=False)
        assert f"mv {database.parent} " in checked.stdout
        database.parent.rename(database.parent.with_suffix(f".{len(kind)}"))
        # The next database is the one that Flower makes now.
        plain.command("python", "-c", ENSURE, cwd=tmp_path)
        assert superlinks(port_of(plain))
        plain.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="needs root to act as another account")
def test_a_superlink_of_another_account_is_not_used(plain: Flower, tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HEALTHY, port_of(plain)])
    try:
        done = plain.command(*RUN, cwd=APP, ok=False)
        checked = plain.command("fl-app", "doctor", "--json", cwd=tmp_path, ok=False)
    finally:
        other.kill()
        other.wait()
    for printed in (done.stdout, checked.stdout):
        assert "belongs to another account" in printed
        assert "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT" in printed
    assert done.returncode == 1


def first_revisions() -> list[str]:
    """The revisions of Flower's state database, oldest first."""
    from alembic.script import ScriptDirectory
    from flwr.supercore.state.alembic.utils import build_alembic_config
    from sqlalchemy import create_engine

    scripts = ScriptDirectory.from_config(build_alembic_config(create_engine("sqlite://")))
    return [each.revision for each in scripts.walk_revisions()][::-1]
