# SPDX-License-Identifier: Apache-2.0
"""Python environments in which fl-app is installed from its wheel, or is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from support.flower import BIN, OWN_ENVIRONMENT, ROOT, Flower


def environment_without_fl_app(folder: Path) -> Path:
    """Make a virtual environment with all packages of this one but fl-app; return its `bin`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    # A line with a folder lends its packages, but does not read the .pth files in it: one of those
    # is the editable install of fl-app.
    (site_packages(folder) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for script in (*BIN.glob("flwr*"), *BIN.glob("flower*")):
        _, _, text = script.read_text().partition("\n")
        copy = folder / "bin" / script.name
        copy.write_text(f"#!{folder / 'bin' / 'python'}\n{text}")
        copy.chmod(0o755)
    return folder / "bin"


def build_wheel(folder: Path) -> Path:
    """Build fl-app's wheel in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    build = ["uv", "build", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, env=environment)
    (wheel,) = folder.glob("fl_app-*.whl")
    return wheel


def install_wheel(folder: Path, wheels: Path) -> None:
    """Build fl-app's wheel and install it in an environment, without what it needs."""
    install = ["uv", "pip", "install", "--quiet", "--no-deps", "--python", folder / "bin/python"]
    subprocess.run([*install, build_wheel(wheels)], check=True)


def site_packages(folder: Path) -> Path:
    """Where a virtual environment keeps its packages."""
    (found,) = (folder / "lib").glob("python*/site-packages")
    return found


def flower_in(environment: Path, folder: Path) -> Flower:
    """Flower that runs apps in that environment."""
    path = f"{environment}{os.pathsep}{os.environ['PATH']}"
    return Flower(folder, {**OWN_ENVIRONMENT, "PATH": path, "PYTHONPATH": ""})
