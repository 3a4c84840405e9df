# SPDX-License-Identifier: Apache-2.0
"""The manifests as rendered: valid for Kubernetes, restricted, and consistent."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from decimal import Decimal
from typing import Any

import kubernetes_validate
import pytest
from croniter import croniter
from support.manifests import (
    K8S,
    OVERLAYS,
    Document,
    containers,
    name,
    of_kind,
    pinned,
    pods,
    project,
    rendered,
)

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import RetrainingManager

TOKEN = "a-token-that-only-this-test-knows"  # noqa: S105 - it guards nothing
VERSIONS = ("1.29", "1.33", "1.37")
NAMESPACE = "federated-learning"
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
SECRET_WORDS = re.compile(r"PASS|TOKEN|SECRET|KEY|CREDENTIAL", re.IGNORECASE)


@pytest.fixture
def cronjob() -> Document:
    return copy.deepcopy(of_kind("local", "CronJob")[0])


@pytest.fixture
def pod(cronjob: Document) -> dict[str, Any]:
    return dict(cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"])


@each_overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_valid(overlay: str, version: str) -> None:
    for document in rendered(overlay):
        kubernetes_validate.validate(document, version, strict=True)


def test_an_unknown_field_is_an_error(cronjob: Document) -> None:
    cronjob["spec"]["concurrencyPolcy"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(cronjob, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ("local", "fl-retrain fleet-gateway mlflow postgres serverapp superlink supernode"),
        ("production", "fl-retrain fleet-gateway mlflow serverapp superlink supernode"),
        ("site", "supernode"),
    ],
)
def test_an_overlay_has_its_parts_in_one_namespace(overlay: str, expected: str) -> None:
    assert sorted(pod.name for pod in pods(overlay)) == expected.split()
    for document in rendered(overlay):
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == NAMESPACE
    (namespace,) = of_kind(overlay, "Namespace")
    assert name(namespace) == NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@each_overlay
def test_a_container_may_do_nothing_but_its_work(overlay: str) -> None:
    for pod, container, where in containers(overlay):
        user = pod.spec["securityContext"]
        assert user["runAsNonRoot"], where
        assert min(user["runAsUser"], user["runAsGroup"]) > 0, where
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, where


@each_overlay
def test_a_pod_has_no_access_to_the_cluster(overlay: str) -> None:
    for pod in pods(overlay):
        assert pod.spec["automountServiceAccountToken"] is False, pod.name
        assert pod.spec["enableServiceLinks"] is False, pod.name
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & set(pod.spec)
        kinds = {key for volume in pod.volumes.values() for key in volume if key != "name"}
        assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim", "claim"}


def amount(quantity: str) -> Decimal:
    """A quantity of Kubernetes as a number."""
    number, unit = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", quantity).groups()  # type: ignore[union-attr]
    factors = {"": Decimal(1), "m": Decimal("0.001"), "Mi": Decimal(2**20), "Gi": Decimal(2**30)}
    return Decimal(number) * factors[unit]


@each_overlay
def test_a_container_has_requests_and_limits(overlay: str) -> None:
    for _, container, where in containers(overlay):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert set(requests) == set(limits) == {"cpu", "memory", "ephemeral-storage"}, where
        for kind, requested in requests.items():
            assert amount(requested) <= amount(limits[kind]), (where, kind)


@each_overlay
def test_volumes_of_a_container_fit_its_limits(overlay: str) -> None:
    for pod, container, where in containers(overlay):
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        sizes = [
            amount(pod.volumes[volume]["emptyDir"]["sizeLimit"])
            for volume in mounted
            if "emptyDir" in pod.volumes[volume]
        ]
        assert sum(sizes) <= amount(container["resources"]["limits"]["ephemeral-storage"]), where


@each_overlay
def test_a_lasting_container_has_a_folder_for_temporary_files(overlay: str) -> None:
    for pod, container, where in containers(overlay):
        if pod.owner["kind"] != "CronJob":
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert "emptyDir" in pod.volumes[mounts["/tmp"]], where  # noqa: S108 - a container's


@each_overlay
def test_a_lasting_container_has_probes(overlay: str) -> None:
    for pod, container, where in containers(overlay):
        if pod.owner["kind"] == "CronJob":
            continue  # it ends by itself, within a deadline
        ports = container["ports"]
        known = {port[key] for port in ports for key in ("name", "containerPort")}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            port = probe.get("httpGet", probe.get("grpc", {})).get("port")
            assert port in known or "exec" in probe, (where, kind)


@each_overlay
def test_images_are_the_versions_that_are_tested(overlay: str) -> None:
    ours = project()["project"]["version"]
    flower = f"{pinned()['flwr']}-py3.13-ubuntu24.04"
    for _, container, where in containers(overlay):
        image, tag = container["image"].rsplit(":", 1)
        assert tag != "latest", where
        if image.startswith("flwr/"):
            assert tag == flower, where
        if image.rsplit("/", 1)[-1] in ("fl-app", "fl-app-mlflow"):
            assert tag == ours, where


def test_no_manifest_holds_a_secret() -> None:
    for path in sorted(K8S.rglob("*")):
        if path.is_file():
            text = path.read_text()
            assert "kind: Secret" not in text, path
            assert not re.search(r"PRIVATE KEY|://[^\s/@]+:[^\s/@]+@", text), path


@each_overlay
def test_a_variable_with_the_name_of_a_secret_comes_from_a_secret(overlay: str) -> None:
    assert of_kind(overlay, "Secret") == []
    for _, container, where in containers(overlay):
        for variable in container.get("env", []):
            if SECRET_WORDS.search(variable["name"]):
                file = variable.get("value", "").startswith("/run/secrets/")
                assert file or "secretKeyRef" in variable["valueFrom"], (where, variable)
    for settings in of_kind(overlay, "ConfigMap"):
        assert not any(SECRET_WORDS.search(key) for key in settings["data"]), name(settings)


@each_overlay
def test_a_workload_selects_its_own_pods_and_no_others(overlay: str) -> None:
    for pod in pods(overlay):
        if pod.owner["kind"] != "CronJob":
            chosen = [p for p in pods(overlay) if p.fits(pod.owner["spec"]["selector"])]
            assert chosen == [pod]


@each_overlay
def test_a_service_leads_to_a_port_that_its_pods_have(overlay: str) -> None:
    for service in of_kind(overlay, "Service"):
        (pod,) = [
            p for p in pods(overlay) if service["spec"]["selector"].items() <= p.labels.items()
        ]
        there = {port["name"] for c in pod.containers for port in c.get("ports", [])}
        for port in service["spec"].get("ports", []):
            assert port["targetPort"] in there, name(service)


@each_overlay
def test_every_lasting_workload_has_a_disruption_budget(overlay: str) -> None:
    lasting = [pod for pod in pods(overlay) if pod.owner["kind"] != "CronJob"]
    budgets = of_kind(overlay, "PodDisruptionBudget")
    for pod in lasting:
        (budget,) = [b for b in budgets if pod.fits(b["spec"]["selector"])]
        only_by_a_person = pod.name in ("superlink", "serverapp")
        assert budget["spec"]["maxUnavailable"] == (0 if only_by_a_person else 1)
    assert len(budgets) == len(lasting)


@pytest.mark.parametrize("overlay", ["local", "production"])
@pytest.mark.parametrize("who", ["superlink", "serverapp"])
def test_there_is_one_writer(overlay: str, who: str) -> None:
    (pod,) = [pod for pod in pods(overlay) if pod.name == who]
    assert pod.owner["spec"]["replicas"] == 1
    assert pod.owner["spec"]["strategy"] == {"type": "Recreate"}


@each_overlay
def test_a_claim_for_one_pod_at_a_time_is_used_by_one(overlay: str) -> None:
    for pod in pods(overlay):
        if any("persistentVolumeClaim" in volume for volume in pod.volumes.values()):
            assert pod.owner["spec"]["strategy"] == {"type": "Recreate"}, pod.name
            assert pod.owner["spec"]["replicas"] == 1, pod.name


def test_it_runs_on_sundays_at_2_and_never_twice_at_once(cronjob: Document) -> None:
    spec = cronjob["spec"]
    assert spec["schedule"] == "0 2 * * 0"
    assert croniter.is_valid(spec["schedule"])
    assert spec["concurrencyPolicy"] == "Forbid"
    assert 200 < spec["startingDeadlineSeconds"] < 7 * 24 * 3600


def test_the_token_is_in_a_secret_and_the_key_is_the_job_s_name(pod: dict[str, Any]) -> None:
    env = {entry["name"]: entry["valueFrom"] for entry in pod["containers"][0]["env"]}
    assert env["FL_APP_API_TOKEN"]["secretKeyRef"] == {"name": "fl-app-api", "key": "token"}
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    assert env["JOB_NAME"]["fieldRef"]["fieldPath"] == label


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
def test_its_command_makes_one_request_however_often_it_tries(
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
    for written, value in given.items():
        command = [word.replace(written, value) for word in command]
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
