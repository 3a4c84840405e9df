# SPDX-License-Identifier: Apache-2.0
"""The files for operators: dashboards and alerts name real metrics, units are command lines."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from prometheus_client.parser import text_string_to_metric_families

from fl_app.api import create_trigger_api
from fl_app.backlog import Backlog
from fl_app.cli.main import load
from fl_app.events import (
    RetrainingRequested,
    RoundReport,
    SessionEnded,
    SessionStarted,
    StageMoved,
)
from fl_app.hooks import PrometheusMetrics
from fl_app.retraining import RetrainingManager

ROOT = Path(__file__).parents[1]
MONITORING, SYSTEMD = ROOT / "deploy" / "monitoring", ROOT / "deploy" / "systemd"
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
EXPRESSIONS = [rule["expr"] for group in RULES for rule in group["rules"]] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]
SELECTOR = re.compile(r"\b(fl_app_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


@pytest.fixture(scope="module")
def exposed() -> Mapping[str, list[Mapping[str, str]]]:
    """The labels of each series that the API shows after one of each event, by its name."""
    manager, hook = RetrainingManager(), PrometheusMetrics()
    manager.update_metrics(accuracy=0.9, round_num=1)
    manager.manual_trigger("new pictures")
    manager.health.fails("registry", "MLflow does not answer")
    now = datetime.now(UTC)
    moved: dict[str, Any] = {"production": "7", "staging": "8"}
    for event in (
        SessionStarted("ab", 1, 3, **moved),
        RoundReport(1, 3, {"mAP50": 0.5, "mAP50/fish": 0.25}, "8", seconds=2.0),
        SessionEnded("ab", 1, "failed"),
        SessionEnded("ab", 1, "finished"),
        StageMoved(1, "rollback", "7", "8", "Ada", "it is worse", **moved, id="cd", time=now),
        RetrainingRequested("ab", "manual", "new pictures", "pending"),
    ):
        hook(event)
    waiting = lambda: Backlog(2, "MLflow does not answer")  # noqa: E731
    app = create_trigger_api(manager, collectors=[hook], waiting=waiting)
    text = app.test_client().get("/metrics?format=prometheus").get_data(as_text=True)
    series: dict[str, list[Mapping[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    return series


@pytest.mark.parametrize("expression", dict.fromkeys(EXPRESSIONS))
def test_what_is_asked_for_is_exposed(
    expression: str, exposed: Mapping[str, list[Mapping[str, str]]]
) -> None:
    found = SELECTOR.findall(expression)
    assert found or "up{" in expression
    for name, matchers in found:
        assert name in exposed, name
        for label, operator, value in MATCHER.findall(matchers):
            values = [labels.get(label) for labels in exposed[name]]
            assert None not in values, (name, label)
            if operator == "=" and name not in ("fl_app_rounds_total", "fl_app_retrain_requests"):
                assert value in values, (name, label)
    for label in re.findall(r"by \(([\w, ]+)\)", expression):
        known = {each for name, _ in found for labels in exposed[name] for each in labels}
        assert set(label.split(", ")) <= {*known, "instance"}


def test_each_alert_says_what_is_wrong_and_what_to_do() -> None:
    rules = [rule for group in RULES for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 5
    for rule in rules:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("warning", "critical")
    page = (ROOT / "docs" / "operate.md").read_text()
    assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in page] == []


def test_the_dashboard_s_panels_lie_beside_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_them(tmp_path: Path) -> None:
    shutil.copytree(MONITORING, tmp_path / "m")
    for words in (["rules", "alerts.yaml"], ["config", "--syntax-only", "prometheus.yaml"]):
        subprocess.run(["promtool", "check", *words], cwd=tmp_path / "m", check=True)


def command_of(unit: Path) -> list[str]:
    """The words of a unit's ExecStart, for instance 1."""
    text = unit.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    return shlex.split(line.replace("%i", "1").replace("${SUPERLINK}", "superlink.example:8000"))


def test_units_are_command_lines_of_the_programs() -> None:
    units = {path.name: command_of(path) for path in sorted(SYSTEMD.iterdir())}
    assert len(units) == 3
    link = units["fl-app-superlink.service"]
    assert Path(link[0]).name == "flower-superlink"
    parsed = _parse_args_run_superlink().parse_args(link[1:])
    assert parsed.enable_supernode_auth
    node = units["fl-app-supernode@.service"]
    assert [Path(node[0]).name, node[1]] == ["fl-app", "supernode"]
    parsed = _parse_args_run_supernode().parse_args(node[2:])
    assert parsed.superlink == "superlink.example:8000"
    assert parsed.node_config == 'data="/srv/fl-app/node-1/data.yaml"'
    serve = units["fl-app-serve.service"]
    assert [Path(serve[0]).name, serve[1]] == ["fl-app", "serve"]
    command = load("serve")
    assert isinstance(command, click.Command)
    assert command.make_context("serve", serve[2:]).params["token_file"] == "/etc/fl-app/api-token"  # noqa: S105


def test_units_have_what_systemd_needs() -> None:
    for path in SYSTEMD.iterdir():
        text = path.read_text()
        assert re.findall(r"^\[(\w+)\]$", text, re.MULTILINE) == ["Unit", "Service", "Install"]
        for key in ("User", "Restart", "WantedBy", "NoNewPrivileges", "ProtectSystem"):
            assert re.search(rf"^{key}=\S", text, re.MULTILINE), (path.name, key)
