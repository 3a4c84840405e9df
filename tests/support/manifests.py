# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes manifests as `kubectl kustomize` renders them, and what is in them."""

from __future__ import annotations

import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
KUBECTL = Path(sys.executable).parent / "kubectl"
OVERLAYS = ("local", "production", "site")

Document = dict[str, Any]


@functools.cache
def rendered(overlay: str) -> tuple[Document, ...]:
    """All documents of an overlay."""
    command = [str(KUBECTL), "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> list[Document]:
    return [document for document in rendered(overlay) if document["kind"] in kinds]


def name(document: Document) -> str:
    return str(document["metadata"]["name"])


@dataclass(frozen=True)
class Pod:
    """What a workload's pods are made from.

    Attributes
    ----------
    owner : dict
        The workload's document.
    labels : dict
        Of the pods.
    spec : dict
        Of the pods.
    """

    owner: Document
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        return name(self.owner)

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def volumes(self) -> dict[str, dict[str, Any]]:
        """Its volumes by name; those of a claim template hold `claim`."""
        claims = self.owner["spec"].get("volumeClaimTemplates", [])
        found = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        return found | {name(claim): {"claim": claim} for claim in claims}

    def fits(self, selector: dict[str, Any]) -> bool:
        """Whether a selector, by `matchLabels` alone, chooses these pods."""
        assert set(selector) <= {"matchLabels"}
        return bool(selector.get("matchLabels", {}).items() <= self.labels.items())


def pods(overlay: str) -> list[Pod]:
    found = []
    for document in of_kind(overlay, "Deployment", "StatefulSet", "CronJob"):
        spec = document["spec"]
        template = spec["jobTemplate"]["spec"]["template"] if "jobTemplate" in spec else None
        template = template or spec["template"]
        found.append(Pod(document, template["metadata"]["labels"], template["spec"]))
    return found


def containers(overlay: str) -> Iterator[tuple[Pod, dict[str, Any], str]]:
    """Every container of an overlay, with its pod, and its name for messages."""
    for pod in pods(overlay):
        for container in pod.containers:
            yield pod, container, f"{pod.name}/{container['name']}"


@functools.cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@functools.cache
def pinned() -> dict[str, str]:
    """The exact versions that the tests run with, by package."""
    lines = project()["tool"]["uv"]["constraint-dependencies"]
    return dict(line.split("==") for line in lines)
