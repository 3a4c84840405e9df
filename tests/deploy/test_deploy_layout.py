# SPDX-License-Identifier: Apache-2.0
"""The folder of a deployment: what it remembers, who may read it, and that one start has it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout, Settings, default_folder


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "deployment")
    layout.prepare()
    return layout


def test_what_was_chosen_is_there_at_the_next_start(layout: Layout) -> None:
    assert layout.settings() == Settings()
    chosen = Settings(3, ("/a/data.yaml", "/b/data.yaml", "/c/data.yaml"), 8001, 5002)
    layout.keep(chosen)
    assert Layout(layout.folder).settings() == chosen


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nodes": 2}', '{"data": [], "strange": 1}'])
def test_a_damaged_memory_is_told(layout: Layout, text: str) -> None:
    (layout.folder / "deployment.json").write_text(text)
    with pytest.raises(DeploymentError, match="cannot be read"):
        layout.settings()


def test_others_get_to_the_database_at_most(layout: Layout) -> None:
    layout.keep_secret("token", "abc")
    secret = layout.folder / "secrets" / "token"
    assert layout.secret("token") == "abc"
    assert layout.secret("nothing") == ""
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    for path in layout.folder.iterdir():
        assert not path.stat().st_mode & 0o077, path
    if os.geteuid():
        assert not layout.folder.stat().st_mode & 0o077


def test_one_start_has_it(layout: Layout) -> None:
    with (
        layout.lock(),
        pytest.raises(DeploymentError, match=r"runs in .* already"),
        Layout(layout.folder).lock(),
    ):
        pass
    with layout.lock():
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeploymentError, match=r"cannot be made .* --folder"):
        Layout(tmp_path / "file" / "deployment").prepare()


def test_where_it_is_by_default(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_folder() == home / "deployment"
    monkeypatch.delenv("FL_APP_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_folder() == Path("/home/ada/.fl-app/deployment")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_folder() == Path("/var/lib/fl-app/deployment")
