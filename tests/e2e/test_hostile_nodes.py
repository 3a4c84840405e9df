# SPDX-License-Identifier: Apache-2.0
"""A SuperLink with honest and hostile SuperNodes: thirteen kinds of hostile replies, no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.deployment import deployment
from support.flower import Flower
from support.small_apps import small_app

from fl_app.versions.tags import read_rejected
from fl_registry import ModelManager
from fl_registry.files.weights import load_weights
from fl_registry.redaction import printable

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

HOSTILE = [
    ("nan", "unpackable", "huge"),
    ("shape", "dtype", "foreign"),
    ("pickle", "negative", "many"),
    ("uncounted", "recordless", "error"),
]
"""What each hostile node sends in rounds 1, 2 and 3; one more node is untidy throughout."""
NODES = ["honest", "honest", "untidy", *("+".join(kinds) for kinds in HOSTILE)]

SAID = {
    1: {
        "array '0' is not finite",
        "array '0' has shape (1, 3), expected (2, 3)",
        "array '0' does not begin as numpy's format does",
        "metric 'num-examples' is missing, expected the number of examples",
    },
    2: {
        "it answered with an error: its reply cannot be unpacked: TypeError: Invalid arg",
        "array '0' does not hold plain numbers, or has a header that numpy does not write",
        "metric 'num-examples' is -9, expected a whole number from 1 to 1e+08",
        "it has 0 MetricRecords, expected exactly one",
    },
    3: {
        "array '0' is too large: float32 cannot hold the square of its norm",
        "metric 'num-examples' is 1000000000000000, expected a whole number from 1 to 1e+08",
        "metric 'num-examples' is 1000000000000000000, expected a whole number from 1 to 1e+08",
        "it answered with an error: ",
    },
}


def test_hostile_nodes_are_named_and_change_nothing(own: Flower, tmp_path: Path) -> None:
    app = small_app(
        tmp_path / "app",
        "hostile",
        server="hostile_server:app",
        client="hostile_client:app",
        config="nodes = 2",
    )
    with deployment(own, [Path(kinds) for kinds in NODES]) as superlink:
        printed = own.run(app, f"nodes={len(NODES)}", superlink)

    store = ModelManager(None, "hostile", home=own.fl_app_home)
    rows = sorted(store.list_all_versions(), key=lambda row: int(row["version"]))
    assert [row["tags"]["round"] for row in rows] == ["1", "2", "3"]
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        (weights,) = load_weights(store.weights_path(row["version"])).values()
        assert (weights == number).all()  # each honest node adds one
        assert row["metrics"]["train/loss"] == pytest.approx(0.5)
        assert set(row["metrics"]) == {"train/loss"} | ({"accuracy"} if number == 1 else set())
        bad = [one for one in read_rejected(row["tags"]) if one.phase == "train"]
        reasons = {reason for one in bad for reason in SAID[number] if reason in one.reason}
        assert reasons == SAID[number]
        assert {one.in_a_row for one in bad} == {number}
        seen |= {one.node_id for one in bad}
        for one in bad:
            assert printable(one.reason) == one.reason
            assert f"node {one.node_id} is rejected" in printed
    assert len(seen) == len(HOSTILE)
    assert rows[0]["metrics"]["accuracy"] == pytest.approx(0.1)  # no hostile node's 1e9
    assert printed.count("keeps failing") == len(HOSTILE)
    assert "\x1b[2J" not in printed
    assert not list(own.folder.rglob("hostile-was-here"))
