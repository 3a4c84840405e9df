# SPDX-License-Identifier: Apache-2.0
"""The commands and snippets of two pages, operations and troubleshooting, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.postgres_server import postgres, postgres_programs

from fl_app import RetrainingManager
from fl_app.cli import main
from fl_app.cli.doctor import examine
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.store import default_url
from fl_registry import ModelManager
from fl_registry.files.weights import save_weights

DOCS = Path(__file__).parents[1] / "docs"
BIN = Path(sys.executable).parent


def blocks(name: str, language: str, section: str = "") -> list[str]:
    """The fenced blocks of a page, or of one of its sections."""
    text = (DOCS / name).read_text()
    if section:
        text = re.split(rf"^## {section}$", text, flags=re.MULTILINE)[1]
        text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def shell(block: str, folder: Path, **variables: str) -> str:
    """Run a block in a folder, with this environment's programs in place of `uv run`'s."""
    places = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    known = {k: v for k, v in os.environ.items() if k not in ("FL_APP_HOME", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.replace("uv run ", "")],
        check=False,
        cwd=folder,
        env={**known, "PATH": places, "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fill(manager: ModelManager, folder: Path) -> None:
    """Register two versions, of which the second waits and the first is in production."""
    for number in (1, 2):
        path = folder / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        manager.save_model_version(path, metrics={"mAP50": number / 10})
    manager.promote_to_production("1")
    manager.promote_to_staging("2")


@pytest.mark.slow
def test_a_backup_of_one_machine_is_brought_back(tmp_path: Path) -> None:
    home = tmp_path / ".fl-app"
    manager = ModelManager(home=home)
    fill(manager, tmp_path)
    store = MonitorStore(default_url(home))
    RetrainingManager(store=store).manual_trigger("new pictures")
    entries = manager.verify()
    save, bring_back = blocks("operations.md", "bash", "Backup and restore on one machine")
    shell(save, tmp_path)
    shutil.rmtree(home)
    said = shell(bring_back, tmp_path)
    assert f"{entries} entries follow one another" in said
    assert "the weights of 2 versions are whole" in said
    (request,) = MonitorStore(default_url(home)).requests.history()
    assert "new pictures" in str(request["reason"])


@pytest.mark.slow
def test_a_database_is_brought_along_to_a_newer_mlflow_and_looked_at(tmp_path: Path) -> None:
    fill(ModelManager(home=tmp_path / ".fl-app"), tmp_path)
    for block in blocks("operations.md", "bash", "Upgrade"):
        shell(block, tmp_path)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a PostgreSQL database."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres(programs) as address:
        yield address


@pytest.mark.slow
def test_a_dump_of_postgresql_is_brought_back(database: str, tmp_path: Path) -> None:
    address = database.replace("postgresql://", "postgresql+psycopg://")
    manager = ModelManager(address, home=tmp_path)
    fill(manager, tmp_path)
    save, bring_back = blocks("operations.md", "bash", "Backup and restore with PostgreSQL")
    programs = f"{postgres_programs()}{os.pathsep}{os.environ['PATH']}"
    shell(save, tmp_path, MLFLOW_DATABASE=database, PATH=programs)
    manager.promote_to_production("2")  # after the backup
    shell(bring_back, tmp_path, MLFLOW_DATABASE=database, PATH=programs)
    again = ModelManager(address, home=tmp_path)
    assert again.get_latest_version("Production") == "1"
    assert again.verify() > 0


def test_the_snippets_of_troubleshooting_run(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(ModelManager(), tmp_path)
    snippets = blocks("troubleshooting.md", "python")
    assert len(snippets) == 4
    for code in snippets:
        exec(compile(code, "troubleshooting.md", "exec"), {})  # noqa: S102 - that is the test
    said = capsys.readouterr().out
    assert "['2', '1']" in said
    assert "1 Production" in said
    assert "False None" in said


def test_every_part_that_doctor_looks_at_is_in_the_runbook(home: Path) -> None:
    text = (DOCS / "operations.md").read_text().partition("## Runbook")[2]
    looked_at = {
        check.name for check in examine(ModelManager(), lambda: MonitorStore(default_url(home)))
    }
    assert len(looked_at) > 8
    assert looked_at == {name for name in looked_at if f"**{name}**" in text}


@pytest.mark.parametrize("page", ["operations.md", "troubleshooting.md"])
def test_each_command_in_the_text_exists(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.findall(r"`uv run fl-app ([^`]+)`", (DOCS / page).read_text())
    assert found
    for words in map(shlex.split, found):
        with pytest.raises(SystemExit) as ended:
            main.main([words[0], "--help"])
        assert not ended.value.code
        said = capsys.readouterr().out
        assert all(word in said for word in words if word.startswith("--"))
