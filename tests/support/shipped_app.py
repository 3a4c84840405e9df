# SPDX-License-Identifier: Apache-2.0
"""The shipped app in a folder that holds nothing else: Flower looks at all files beside an app."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.flower import ROOT


def shipped_app(folder: Path, client: str = "") -> Path:
    """Copy the app to a new folder; ``client`` is a file beside this one with another ClientApp."""
    folder.mkdir()
    project = (ROOT / "pyproject.toml").read_text()
    if client:
        shutil.copy(Path(__file__).with_name(f"{client}.py"), folder)
        project = project.replace("fl_app.client.client_app:app", f"{client}:app")
        project = project.replace(
            '"README.md", "LICENSE"]', f'"README.md", "LICENSE", "{client}.py"]'
        )
    (folder / "pyproject.toml").write_text(project)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("fl_app", "registry", "models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
