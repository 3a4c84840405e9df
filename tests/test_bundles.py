# SPDX-License-Identifier: Apache-2.0
"""`fl-app run` bundles an app as `flwr run` does, and looks into fewer folders for it."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flwr.cli import build
from flwr.cli.utils import collect_files
from hypothesis import given
from hypothesis import strategies as st

from fl_app import flower_internals
from fl_app.flower_internals import app_files, run_flower

PYPROJECT = """
[project]
name = "own"
version = "1.0.0"
[tool.flwr.app]
publisher = "own"
fab-format-version = 0
[tool.flwr.app.components]
serverapp = "app:app"
clientapp = "app:app"
"""
NAMES = ("app.py", "data", "site", "__pycache__", ".venv", ".git", "build", "a b")
PATTERNS = (
    "site/",
    "build",
    "/data",
    "*.py",
    "data/**/site",
    "!site/app.py",
    "# data",
    "a?b/",
    "*",
)


def app_in(folder: Path, paths: set[tuple[str, ...]], ignored: list[str]) -> Path:
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / ".gitignore").write_text("\n".join(ignored))
    for path in paths:
        file = folder.joinpath(*path, "code.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {path}")
    return folder


def bundle(files: dict[str, Path]) -> list[str]:
    """Names of the files in the bundle; the error's text if Flower makes none."""
    try:
        content, *_ = build.build_fab_from_files(files)
    except ValueError as error:
        return [str(error)]
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return opened.namelist()


@given(
    paths=st.sets(st.lists(st.sampled_from(NAMES), max_size=3).map(tuple), max_size=6),
    ignored=st.lists(st.sampled_from(PATTERNS), max_size=3),
)
def test_the_bundle_is_the_one_that_flower_makes(
    tmp_path_factory: pytest.TempPathFactory, paths: set[tuple[str, ...]], ignored: list[str]
) -> None:
    folder = app_in(tmp_path_factory.mktemp("app") / "own", paths, ignored)
    assert bundle(app_files(folder)) == bundle(collect_files(folder))


def test_links_and_what_is_ignored_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = app_in(tmp_path / "own", {("pkg",), (".venv", "lib"), ("site",)}, ["site/"])
    (folder / "linked").symlink_to(tmp_path)
    (folder / "link.py").symlink_to(folder / "pyproject.toml")
    seen: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(
        flower_internals.os, "scandir", lambda path: seen.append(Path(path).name) or scan(path)
    )
    assert set(app_files(folder)) == {".gitignore", "pkg/code.py", "pyproject.toml"}
    assert seen == ["own", "pkg"]


def test_a_linked_gitignore_and_a_folder_that_cannot_be_read_are_passed_over_as_by_flower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = app_in(tmp_path / "own", {("site",), ("pkg",), ("data",)}, [])
    (folder / ".gitignore").unlink()
    (tmp_path / "ignored").write_text("site/")
    (folder / ".gitignore").symlink_to(tmp_path / "ignored")
    scan = os.scandir

    def scandir(path: str | Path) -> Any:
        if Path(path).name == "data":
            raise PermissionError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert set(app_files(folder)) == {"pkg/code.py", "pyproject.toml", "site/code.py"}
    assert bundle(app_files(folder)) == bundle(collect_files(folder))


def test_a_command_of_flower_runs_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_flower(["--version"]) == 0
    assert "Flower version" in capsys.readouterr().out
    assert run_flower(["run", "/nowhere"]) == 1
    assert "pyproject.toml" in capsys.readouterr().err
    assert run_flower(["no-such-command"]) == 2
    assert build.collect_files is app_files
