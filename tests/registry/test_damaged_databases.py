# SPDX-License-Identifier: Apache-2.0
"""A damaged `mlflow.db` or `monitor.db`: what is said of it, and that it can be saved that way."""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fl_app.cli.doctor import check_monitor, examine
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.errors import MonitorStoreError
from fl_registry import ModelManager, StoreUnavailable
from fl_registry.files import sqlite
from fl_registry.home import sqlite_address

Damage = Callable[[Path], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def torn(path: Path) -> None:
    """Overwrite pages in the middle, which opening the file does not show."""
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(random.Random(7).randbytes(path.stat().st_size - 8192))


DAMAGES: dict[str, Damage] = {
    "cut": cut,
    "torn": torn,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(random.Random(7).randbytes(path.stat().st_size)),
}
GONE: dict[str, Damage] = {"empty": lambda path: path.write_bytes(b""), "missing": Path.unlink}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a version, and with a monitor's memory."""
    home = tmp_path_factory.mktemp("whole")
    save_file({"w": np.ones(3, np.float32)}, home / "given.safetensors")
    ModelManager(home=home).save_model_version(home / "given.safetensors")
    MonitorStore(sqlite_address(home / "monitor.db"))
    return home


@pytest.fixture
def copied(whole: Path, home: Path) -> Path:
    shutil.copytree(whole, home, dirs_exist_ok=True)
    assert sqlite.problem(home / "mlflow.db") == sqlite.problem(home / "monitor.db") == ""
    return home


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_gets_advice_that_saves_it(copied: Path, damage: str) -> None:
    file = copied / "mlflow.db"
    DAMAGES[damage](file)
    left = file.read_bytes()
    manager = ModelManager(home=copied)
    with pytest.raises(StoreUnavailable) as raised:
        manager.list_all_versions()
    checks = {check.name: check for check in examine(manager, MonitorStore)}
    assert not checks["store"].ok
    for said in (str(raised.value), checks["store"].detail):
        assert f"The SQLite database {file} is damaged" in said
        assert "put a backup in its place" in said
        assert f"`sqlite3 {file} .recover | sqlite3 {file}.saved`" in said
    assert file.read_bytes() == left  # nobody has made it worse


@pytest.mark.parametrize("damage", GONE)
def test_a_database_that_is_gone_is_not_made_anew(copied: Path, damage: str) -> None:
    file = copied / "mlflow.db"
    GONE[damage](file)
    for act in (ModelManager(home=copied).ping, ModelManager(home=copied).list_all_versions):
        with pytest.raises(StoreUnavailable, match="is missing or empty, and "):
            act()
    shutil.rmtree(copied / "artifacts")  # as the sentence says
    assert not file.exists() or not file.stat().st_size
    assert sqlite.problem(file) == ""


def test_the_advice_saves_what_can_be_read(copied: Path) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("no sqlite3 here")
    file = copied / "mlflow.db"
    with file.open("r+b") as opened:  # the last page
        opened.seek(file.stat().st_size - 4096)
        opened.write(bytes(4096))
    saved, found = Path(f"{file}.saved"), list[bool]()
    for command in re.findall(r"`(sqlite3 [^`]+)`", sqlite.advice(file, "torn")):
        saved.unlink(missing_ok=True)
        subprocess.run(["sh", "-c", command], check=False, capture_output=True)
        assert sqlite.problem(saved) == ""
        with closing(sqlite3.connect(saved)) as database:
            query = "SELECT count(*) FROM sqlite_master WHERE name = 'model_versions'"
            if database.execute(query).fetchone()[0]:
                rows = database.execute("SELECT version FROM model_versions").fetchall()
                found.append(rows == [(1,)])
    assert found == [True] * len(found)
    assert found  # Debian's sqlite3 has no .recover


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_for_the_monitors_memory(copied: Path, damage: str) -> None:
    file = copied / "monitor.db"
    DAMAGES[damage](file)
    ok, said = check_monitor(lambda: MonitorStore(sqlite_address(file)), file)
    assert not ok
    assert f"The SQLite database {file} is damaged" in said
    assert ".recover" in said
    if damage != "torn":  # which opening it does not show
        with pytest.raises(
            MonitorStoreError, match=r"The monitor's memory cannot be opened.*\.rec"
        ):
            MonitorStore(sqlite_address(file))
