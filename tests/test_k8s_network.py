# SPDX-License-Identifier: Apache-2.0
"""The network policies: which connections are allowed, at both ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.manifests import OVERLAYS, Document, Pod, name, of_kind, pods

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
Flow = tuple[str, str, int]

INSIDE: set[Flow] = {
    ("fleet-gateway", "superlink", 8000),
    ("serverapp", "superlink", 8000),
    ("serverapp", "mlflow", 5000),
    ("fl-retrain", "serverapp", 5001),
    ("supernode", "fleet-gateway", 8443),
}
EXPECTED: dict[str, set[Flow]] = {
    "local": INSIDE | {("mlflow", "postgres", 5432)},
    "production": INSIDE
    | {("mlflow", "192.0.2.10/32", 5432), ("mlflow", "0.0.0.0/0", 443)}
    | {("198.51.100.0/24", "fleet-gateway", 8443)},
    "site": {("supernode", "203.0.113.10/32", 443)},
}


def policies(overlay: str) -> list[Document]:
    """The policies that allow something to pods of ours, and something else than names."""
    general = ("default-deny", "allow-dns")
    return [p for p in of_kind(overlay, "NetworkPolicy") if name(p) not in general]


def subject(overlay: str, policy: Document) -> Pod:
    (pod,) = [pod for pod in pods(overlay) if pod.fits(policy["spec"]["podSelector"])]
    return pod


def peers(overlay: str, sides: list[dict[str, Any]]) -> Iterator[str]:
    """Names of pods, or ranges of addresses."""
    assert sides, "an empty list of peers would be everybody"
    for side in sides:
        assert set(side) in ({"podSelector"}, {"ipBlock"})
        if "ipBlock" in side:
            yield side["ipBlock"]["cidr"]
        else:
            chosen = [pod.name for pod in pods(overlay) if pod.fits(side["podSelector"])]
            assert len(chosen) == 1, side
            yield chosen[0]


def flows(overlay: str, direction: str) -> set[Flow]:
    """What policies allow, as they say it of one end."""
    found = set()
    for policy in policies(overlay):
        own = subject(overlay, policy).name
        for rule in policy["spec"].get(direction, []):
            assert set(rule) == {"ports", "from" if direction == "ingress" else "to"}
            for other in peers(overlay, rule.get("from", rule.get("to"))):
                ends = (other, own) if direction == "ingress" else (own, other)
                found |= {(*ends, port["port"]) for port in rule["ports"]}
    return found


@each_overlay
def test_connections_are_denied_by_default(overlay: str) -> None:
    (deny,) = [p for p in of_kind(overlay, "NetworkPolicy") if name(p) == "default-deny"]
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@each_overlay
def test_every_pod_has_one_policy_of_its_own(overlay: str) -> None:
    covered = [subject(overlay, policy).name for policy in policies(overlay)]
    assert sorted(covered) == sorted(pod.name for pod in pods(overlay))
    for policy in policies(overlay):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"], name(policy)


@each_overlay
def test_which_connections_are_allowed(overlay: str) -> None:
    assert flows(overlay, "ingress") | flows(overlay, "egress") == EXPECTED[overlay]


@each_overlay
def test_a_connection_is_allowed_at_both_ends(overlay: str) -> None:
    ours = {pod.name for pod in pods(overlay)}

    def between_pods(direction: str) -> set[Flow]:
        return {flow for flow in flows(overlay, direction) if set(flow[:2]) <= ours}

    assert between_pods("ingress") == between_pods("egress")


@each_overlay
def test_a_policy_names_ports_of_the_receiver(overlay: str) -> None:
    known = {pod.name: pod for pod in pods(overlay)}
    for _, receiver, port in EXPECTED[overlay]:
        if receiver in known:
            containers = known[receiver].containers
            there = {p["containerPort"] for c in containers for p in c.get("ports", [])}
            assert port in there, receiver


@each_overlay
def test_every_pod_may_use_dns(overlay: str) -> None:
    (dns,) = [p for p in of_kind(overlay, "NetworkPolicy") if name(p) == "allow-dns"]
    assert dns["spec"]["podSelector"] == {}
    (rule,) = dns["spec"]["egress"]
    assert {(port["port"], port["protocol"]) for port in rule["ports"]} == {
        (53, "UDP"),
        (53, "TCP"),
    }
