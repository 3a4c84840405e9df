# SPDX-License-Identifier: Apache-2.0
"""The folder of a deployment: its settings, its permissions, and its lock."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import DEFAULTS, Layout, Settings


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "deployment")
    layout.prepare()
    return layout


def test_the_next_start_has_the_settings_of_the_last(layout: Layout) -> None:
    assert layout.settings() == DEFAULTS
    data = ("/a/data.yaml", "/b/data.yaml", "/c/data.yaml")
    settings = Settings(3, data, 8001, 5002, "postgresql+psycopg://u:open-sesame@h/db", ("1", "2"))
    layout.save(settings)
    assert Layout(layout.folder).settings() == settings
    assert "open-sesame" not in repr(settings)


WHOLE = TypeAdapter(Settings).dump_json(DEFAULTS).decode()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"nodes": 2}', '{"data": [], "strange": 1}'),
        *(WHOLE.replace("{", '{"strange": 1, '), WHOLE.replace('"nodes":2', '"nodes":"two"')),
    ],
)
def test_damaged_settings_are_reported(layout: Layout, text: str) -> None:
    (layout.folder / "deployment.json").write_text(text)
    with pytest.raises(DeploymentError, match="cannot be read"):
        layout.settings()


def test_only_the_owner_may_read_anything(layout: Layout) -> None:
    layout.save(DEFAULTS)
    settings = layout.folder / "deployment.json"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    for path in (layout.folder, *layout.folder.iterdir()):
        assert not path.stat().st_mode & 0o077, path


def test_a_second_start_is_refused(layout: Layout) -> None:
    with (
        layout.lock(),
        pytest.raises(DeploymentError, match=r"runs in .* already"),
        Layout(layout.folder).lock(),
    ):
        pass
    with layout.lock():
        pass


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeploymentError, match=r"cannot be created .* --folder"):
        Layout(tmp_path / "file" / "deployment").prepare()
