# SPDX-License-Identifier: Apache-2.0
"""What differs between two versions: numbers, settings, arrays, data, single examples. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json


def metric_differences(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    """Return by how much `two` exceeds `one` in each metric that both have."""
    return {name: two[name] - one[name] for name in one if name in two}


def param_differences(
    one: Mapping[str, str] | None, two: Mapping[str, str] | None
) -> dict[str, list[str | None]] | None:
    """Return the params that differ as ``{name: [in one, in two]}``; None where a side is unknown.

    A param that only one of them has is None on the other side.
    """
    if one is None or two is None:
        return None
    names = sorted(one.keys() | two.keys())
    return {n: [one.get(n), two.get(n)] for n in names if one.get(n) != two.get(n)}


def architecture_differences(one: bytes | None, two: bytes | None) -> dict[str, Any] | None:
    """Return which arrays differ, by the ``spec.json`` of both; None where one is missing.

    ``only_in_version1`` and ``only_in_version2`` hold names; ``changed`` holds
    ``{name: [{"dtype", "shape"} in one, the same in two]}``.
    """
    first, second = _arrays(one), _arrays(two)
    if first is None or second is None:
        return None
    changed = [name for name in first if name in second and first[name] != second[name]]
    return {
        "only_in_version1": [name for name in first if name not in second],
        "only_in_version2": [name for name in second if name not in first],
        "changed": {name: [first[name], second[name]] for name in changed},
    }


def data_differences(one: str | None, two: str | None) -> dict[str, Any] | None:
    """Return how the training data differ, by the tag ``nodes`` of both; None where one is missing.

    ``changed`` names the nodes whose data are known to be others; ``num_nodes`` and
    ``num_examples`` are the totals of both sides.
    """
    first, second = _nodes(one), _nodes(two)
    if first is None or second is None:
        return None
    digests = {n: (first[n][1], second[n][1]) for n in first.keys() & second.keys()}
    return {
        "only_in_version1": sorted(first.keys() - second.keys()),
        "only_in_version2": sorted(second.keys() - first.keys()),
        "changed": sorted(n for n, (a, b) in digests.items() if a and b and a != b),
        "num_nodes": [len(first), len(second)],
        "num_examples": [sum(count for count, _ in side.values()) for side in (first, second)],
    }


def _arrays(spec: bytes | None) -> dict[str, dict[str, Any]] | None:
    try:
        rows = from_json(spec or b"null")["arrays"]
        return {str(r["name"]): {"dtype": r["dtype"], "shape": r["shape"]} for r in rows}
    except (ValueError, TypeError, KeyError):
        return None


def _nodes(tag: str | None) -> dict[str, tuple[float, str]] | None:
    try:
        return {
            str(n["node_id"]): (float(n["num_examples"]), str(n.get("data_digest", "")))
            for n in from_json(tag or "null")
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
