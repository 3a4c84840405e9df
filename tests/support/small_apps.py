# SPDX-License-Identifier: Apache-2.0
"""Small Flower apps of the files beside this one, for runs in which no model is learnt."""

from __future__ import annotations

import shutil
from pathlib import Path

_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "fl-app"
fab-include = ["**/*.py"]
[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"
[tool.flwr.app.config]
{config}
"""


def small_app(folder: Path, name: str, *, server: str, client: str, config: str = "") -> Path:
    """Make the app in a new folder; ``server`` and ``client`` are as in ``points_server:app``."""
    folder.mkdir()
    for component in {server, client}:
        module = component.partition(":")[0]
        shutil.copy(Path(__file__).with_name(f"{module}.py"), folder)
    text = _PROJECT.format(name=name, server=server, client=client, config=config)
    (folder / "pyproject.toml").write_text(text)
    return folder
