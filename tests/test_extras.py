# SPDX-License-Identifier: Apache-2.0
"""What works without an extra, and what the error says that its absence gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.manifests import project

from fl_registry.errors import EXTRA_OF

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util as util
found = util.find_spec
util.find_spec = lambda n, *a: None if n.partition(".")[0] in {hidden!r} else found(n, *a)
"""
MISSING = {
    "API": (
        "from fl_app import RetrainingManager, create_trigger_api;"
        "create_trigger_api(RetrainingManager())",
        "flask",
    ),
    "cron": ("from fl_app.retraining.schedule import Cron; Cron('0 2 * * 0')", "croniter"),
    "hook": (
        "from fl_app.hooks import PrometheusMetrics; PrometheusMetrics()",
        "prometheus_client",
    ),
    "run": (
        "from fl_app.cli.runs import run; import typer, click;"
        "run(typer.Context(click.Command('run')))",
        "ray",
    ),
    "model": ("import fl_app.yolo", "torch"),
    "ClientApp": ("import fl_app.client.client_app", "torch"),
    "monitor": (
        "from fl_app.retraining import MonitorStore; MonitorStore('postgresql+psycopg://h/d')",
        "psycopg",
    ),
}


def without(modules: set[str], code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process that cannot import these modules."""
    program = HIDE.format(hidden=modules) + code
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_strategy_needs_no_extra(tmp_path: Path) -> None:
    code = (
        "import fl_app, fl_app.hooks, fl_app.retraining, fl_app.client.mods.data_summary\n"
        "from fl_app.strategy import LifecycleStrategy, ModelManager\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        f"LifecycleStrategy(FedAvg(), store=ModelManager(None, 'm', home={str(tmp_path)!r}))"
    )
    done = without(set(EXTRA_OF), code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", MISSING)
def test_what_is_missing_is_named_with_its_extra(part: str, tmp_path: Path) -> None:
    code, module = MISSING[part]
    done = without({module}, code, tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"{module}" in last
    assert f"install fl-app[{EXTRA_OF[module]}]" in last


def test_each_extra_brings_what_it_is_named_for() -> None:
    extras = project()["project"]["optional-dependencies"]
    for module, extra in EXTRA_OF.items():
        names = {Requirement(each).name.replace("-", "_") for each in extras[extra]}
        assert module in names or (module, names) == ("ray", {"flwr"})
