# SPDX-License-Identifier: Apache-2.0
"""The manifests: valid for Kubernetes, safe by its rules, and what the API answers to."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from croniter import croniter

from fl_app.retraining import RetrainingManager, create_trigger_api, serve_api

FOLDER = Path(__file__).parents[1] / "deploy" / "k8s"
TOKEN = "a-token-that-only-this-test-knows"  # noqa: S105 - it guards nothing
VERSIONS = ("1.29", "1.33", "1.37")


@pytest.fixture
def cronjob() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "retraining-cronjob.yaml").read_text()))


@pytest.fixture
def pod(cronjob: dict[str, Any]) -> dict[str, Any]:
    return dict(cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(path: Path, version: str) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_seen(cronjob: dict[str, Any]) -> None:
    cronjob["spec"]["concurrencyPolcy"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(cronjob, VERSIONS[-1], strict=True)


def test_it_runs_on_sundays_at_2_and_never_twice_at_once(cronjob: dict[str, Any]) -> None:
    spec = cronjob["spec"]
    assert spec["schedule"] == "0 2 * * 0"
    assert croniter.is_valid(spec["schedule"])
    assert spec["concurrencyPolicy"] == "Forbid"
    assert 200 < spec["startingDeadlineSeconds"] < 7 * 24 * 3600


def test_the_pod_may_do_nothing_but_ask(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    assert not container["image"].endswith(":latest")


def test_the_token_is_in_a_secret_and_the_key_is_the_job_s_name(pod: dict[str, Any]) -> None:
    env = {entry["name"]: entry["valueFrom"] for entry in pod["containers"][0]["env"]}
    assert env["FL_APP_API_TOKEN"]["secretKeyRef"] == {"name": "fl-app-api", "key": "token"}
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    assert env["JOB_NAME"]["fieldRef"]["fieldPath"] == label


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
def test_its_command_gets_one_request_into_the_mailbox_however_often_it_tries(
    pod: dict[str, Any],
) -> None:
    manager = RetrainingManager()
    server = serve_api(create_trigger_api(manager, token=TOKEN), port=0)
    assert server is not None
    given = {
        "$(FL_APP_API_TOKEN)": TOKEN,
        "$(JOB_NAME)": "fl-retrain-29381280",
        "http://fl-server:5001": f"http://127.0.0.1:{server.port}",
    }
    command = pod["containers"][0]["command"]
    for name, value in given.items():
        command = [word.replace(name, value) for word in command]
    try:
        answers = [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for _ in range(2)
        ]
    finally:
        server.close()
    assert answers[0] == answers[1]
    (entry,) = manager.trigger_history
    assert entry["reason"] == "Scheduled weekly retraining"
    assert entry["id"] in answers[0]
